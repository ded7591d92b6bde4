"""Policy packs: made, refused, laid over a tier and a preset, named in reports, carried along."""

from __future__ import annotations

import json
from pathlib import Path

import pack_factory as packs
import pytest
import report_factory as factory
from pack_factory import Document

from invarlock.cli import main
from invarlock.cli.job import EvaluateOptions
from invarlock.errors import ConfigError, ContractError, InputError
from invarlock.evidence import keys
from invarlock.evidence.policy_pack import (
    PolicyPack,
    create,
    policy_pack_of,
    read_policy_pack,
)
from invarlock.policy import POLICY_PACK, Override
from invarlock.reporting.replay import believed, replay
from invarlock.verdict.records import Evaluation

EDIT = "quant_8bit_clean"
VALUES: dict[str, float | str] = {"rmt.epsilon.ffn": 0.16, "tail.mode": "fail"}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A signing key."""
    return packs.new_key(tmp_path / "policy-key.pem")


@pytest.fixture
def made(key: Path) -> PolicyPack:
    """A pack over tier balanced."""
    return create("acme-strict", "balanced", VALUES, keys.load_signing_key(key))


def judged_by(found: PolicyPack) -> Document:
    """A report whose thresholds are a pack's."""
    by_pack = {"overrides": found.overrides, "policy_pack": found.named}
    return factory.make_report(EDIT, 1.004, **by_pack)


def test_the_command_makes_what_it_verifies(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same values give the same bytes; the signer is told, and held to where one is named."""
    words = ["policy", "create", "--name", "acme-strict", "--set", "rmt.epsilon.ffn=0.16",
             "--set", "tail.mode=fail", "--signing-key", str(key)]  # fmt: skip
    first, again = tmp_path / "a.json", tmp_path / "b.json"
    assert main([*words, "--out", str(first)]) == main([*words, "--out", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    capsys.readouterr()
    assert main(["policy", "verify", str(first), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["tier"], shown["values"]) == ("acme-strict", "balanced", VALUES)
    assert main(["policy", "verify", str(first), "--expected-fingerprint", shown["signer"]]) == 0
    other = "sha256:" + "0" * 64
    assert main(["policy", "verify", str(first), "--expected-fingerprint", other]) == 3
    assert "not one that is trusted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "tier", "values", "what"),
    [("x", "balanced", {"rmt.epsilon.ffn": 0.9}, "outside what tier balanced admits"),
     ("x", "conservative", {"rmt.epsilon.ffn": 0.4}, "outside what tier conservative admits"),
     ("x", "balanced", {"pm_ratio.ratio_limit_base": 2.0}, "cannot be overridden"),
     ("x", "balanced", {}, "values"),
     ("x", "strict", VALUES, "is not a tier"),
     ("../x", "balanced", VALUES, "/name")],
)  # fmt: skip
def test_a_pack_admits_no_more_than_its_tier(
    name: str, tier: str, values: Document, what: str, key: Path
) -> None:
    """A value out of bounds, another path, no value, no tier, a bad name: not signed."""
    with pytest.raises(ConfigError, match=what):
        create(name, tier, values, keys.load_signing_key(key))


def test_whatever_is_changed_breaks_the_signature(made: PolicyPack, tmp_path: Path) -> None:
    """Name, tier, values, key; and another key's signature."""
    other = create("acme-strict", "balanced", VALUES,
                   keys.load_signing_key(packs.new_key(tmp_path / "other.pem")))  # fmt: skip
    changes: list[Document] = [
        {"name": "acme"},
        {"tier": "aggressive"},
        {"values": VALUES | {"rmt.epsilon.ffn": 0.17}},
        {"values": {"tail.mode": "fail"}},
        {"signature": other.document["signature"]},
        {"public_key": other.document["public_key"]},
        {"signature": "AAAA"},
        {"signature": "no base64"},
        {"signing_key_fingerprint": other.document["signing_key_fingerprint"]},
    ]
    assert policy_pack_of(made.document, "p").named == made.named
    for change in changes:
        with pytest.raises(ContractError):
            policy_pack_of({**made.document, **change}, "p")
    with pytest.raises(ContractError):
        policy_pack_of({**made.document, "comment": "x"}, "p")


def test_a_pack_wins_over_the_preset_and_nothing_wins_over_the_pack(
    made: PolicyPack, tmp_path: Path
) -> None:
    """Of one path the pack's value; what a setting says too is refused, and another tier."""
    preset = (Override("rmt.epsilon.ffn", 0.3, "preset:x"), Override("drift.min", 0.94, "preset:x"))
    assert {o.path: o.value for o in made.over(preset)} == {**VALUES, "drift.min": 0.94}
    path = tmp_path / "policy.json"
    packs.write_json(path, dict(made.document))
    given = {"baseline": Path(), "subject": Path(), "windows": Path(), "out": Path()}
    options = EvaluateOptions(**given, policy_pack=path)  # type: ignore[arg-type]
    policy, _ = options.policy(None)
    assert (policy.rmt.epsilon("ffn"), policy.tail.mode) == (0.16, "fail")
    for more, what in (({"tail_mode": "fail"}, "overridden twice"),
                       ({"tier": "conservative"}, "for another tier")):  # fmt: skip
        with pytest.raises(ConfigError, match=what):
            EvaluateOptions(**given, policy_pack=path, **more).policy(None)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        read_policy_pack(tmp_path / "none.json")


def test_a_report_names_its_policy_pack(made: PolicyPack) -> None:
    """It is replayed by the pack's values; what alone it cannot show is said."""
    report = judged_by(made)
    assert report["policy_provenance"]["policy_pack"] == made.named
    assert report["policy_digest"]["changed"] is True
    assert replay(report) == []
    assert any("policy pack" in claim for claim in believed(report))
    unnamed = factory.plain(report)
    del unnamed["policy_provenance"]["policy_pack"]
    assert any("source" in line for line in replay(unnamed))
    idle = factory.make_report("quant_8bit_clean", 1.004, policy_pack=made.named)
    assert any("sets none" in line for line in replay(idle))


@pytest.fixture
def pack(made: PolicyPack, key: Path, tmp_path: Path) -> Path:
    """A signed evidence pack whose reports were judged by the policy pack."""

    def judged(evaluations: list[Evaluation]) -> None:
        by_pack = {"overrides": made.overrides, "policy_pack": made.named}
        evaluations[:] = factory.good_suite("smoke", ids, **by_pack)

    ids = ("noop_clean", EDIT, "rank1_projection")
    run = packs.write_suite(tmp_path / "run", ids, judged)
    for report in run.rglob("evaluation.report.json"):
        packs.write_json(report.with_name(POLICY_PACK), dict(made.document))
    assert packs.build(run, tmp_path / "pack", key=key) == 0
    return tmp_path / "pack"


def test_a_pack_carries_it_and_verification_applies_it(
    pack: Path, key: Path, made: PolicyPack, tmp_path: Path
) -> None:
    """Beside each report; left out, exchanged or forged it is found, whoever signs the pack."""
    assert packs.verify(pack, "--strict", "--replay") == 0
    beside, *others = pack.glob(f"reports/**/{POLICY_PACK}")
    assert len(others) == 2
    looser = create("acme-strict", "balanced", {"rmt.epsilon.ffn": 0.4},
                    keys.load_signing_key(key))  # fmt: skip
    forged = {**made.document, "values": {"rmt.epsilon.ffn": 0.4}}
    for number, document in enumerate((None, dict(looser.document), forged)):
        other = packs.copy(pack, tmp_path / f"other{number}")
        path = other / beside.relative_to(pack)
        if document is None:
            path.unlink()
        else:
            packs.write_json(path, document)
        packs.relist(other, key)
        assert packs.verify(other) == 7
