"""Both ways with the released verifiers: ours accepted there, theirs accepted here.

Tables of (pack, options) and the exit codes there and here. The packs hold invented reports of the
real code; the released commands run as black boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pack_factory as packs
import peers
import published_factory as published
import pytest
import report_factory as factory
import tamperings
from peers import PACK, ROOT, UNVERIFIED, VERSIONS

from invarlock.evidence.published.report_checks import report_passes

PAGE = ROOT / "docs" / "compatibility.md"
PROFILES = ("dev", "ci", "release")
# Clean edits, a stress edit, rejected and measured damage, and guards that speak on a good metric.
PROBES = ("rmt_norm_noise", "spectral_moderate_scale", "ve_mlp_scale_skew")
SUITE = (*packs.IDS, "weight_tying_break", *PROBES)


def verification(pack: Path, options: Sequence[str]) -> list[str | Path]:
    """The words of ``evidence-pack verify``."""
    return [*PACK, "verify", pack, *options]


def here(
    words: Sequence[str | Path],
    monkeypatch: pytest.MonkeyPatch,
    env: Mapping[str, str] | None = None,
) -> int:
    """The exit code of our command with the same words."""
    with monkeypatch.context() as patched:
        for name, value in (env or {}).items():
            patched.setenv(name, value)
        return packs.cli([str(word) for word in words])


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, key: Path) -> dict[str, Path]:
    """Packs that we build: by container or host, signed or not, PASS or FAIL."""
    folder = tmp_path_factory.mktemp("ours")
    strict = packs.add_records(published.strict_suite(folder / "strict", SUITE))
    small = published.strict_suite(folder / "small", tamperings.IDS)
    host = packs.add_records(packs.write_suite(folder / "out", SUITE))
    failed = packs.write_suite(folder / "bad", packs.IDS, packs.failed_clean)
    missed = packs.write_suite(folder / "missed", packs.IDS, packs.harmless_stress)
    made = {name: folder / f"{name}_pack" for name in
            ("container", "small", "host", "unsigned", "failed", "missed")}  # fmt: skip
    sources = (strict, small, host, host, failed, missed)
    for (name, pack), source in zip(made.items(), sources, strict=True):
        assert packs.build(source, pack, key=None if name == "unsigned" else key) == 0
    return made


# --- ours there -----------------------------------------------------------------------------

STRICT, RELEASE = ("--strict",), ("--strict", "--report-assurance", "off", "--profile", "release")
SWITCH: Mapping[str, str] = UNVERIFIED
NONE: Mapping[str, str] = {}
# pack, options, environment, exit code in both released versions, exit code here
OURS = (
    ("container", tamperings.STRICT, NONE, 0, 0),
    ("container", ("--strict", "--report-assurance", "strict", "--profile", "ci"), NONE, 0, 0),
    ("container", RELEASE, NONE, 0, 0),
    ("container", (), NONE, 0, 0),
    ("host", STRICT, SWITCH, 0, 0),
    ("host", ("--strict", "--report-assurance", "report", "--profile", "ci"), SWITCH, 0, 0),
    ("host", RELEASE, SWITCH, 0, 0),
    ("host", tamperings.STRICT, SWITCH, 7, 7),
    ("host", RELEASE, NONE, 7, 0),
    ("unsigned", (), SWITCH, 0, 0),
    ("unsigned", STRICT, SWITCH, 5, 5),
    ("unsigned", (), NONE, 5, 5),
    ("failed", RELEASE, SWITCH, 7, 7),
    ("failed", (), SWITCH, 7, 0),
    ("missed", RELEASE, SWITCH, 7, 7),
)


def test_our_packs_verify_there(
    ours: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage that fails and damage that only a guard sees included, in every profile."""
    calls = [(verification(ours[name], options), env) for name, options, env, _, _ in OURS]
    found = peers.all_codes(calls)
    for (name, options, env, there, own), pair in zip(OURS, found, strict=True):
        assert pair == (there, there), (name, options, dict(env))
        assert here(verification(ours[name], options), monkeypatch, env) == own, (name, options)
    capsys.readouterr()


def test_damage_is_where_both_look(ours: dict[str, Path]) -> None:
    """What must fail lies below errors or is labelled; what passes is neither."""
    model = ours["container"] / "reports" / packs.MODEL
    folders = {p.parent.parent.relative_to(model).as_posix() for p in model.rglob("*.report.json")}
    assert folders == {
        "noop_clean", "quant_8bit_clean", "prune_50pct_stress",
        "errors/nan_injection", "errors/rank1_projection", "errors/weight_tying_break",
        "observed/errors/rmt_norm_noise", "observed/spectral_moderate_scale",
        "observed/ve_mlp_scale_skew",
    }  # fmt: skip
    document = packs.json.loads((ours["container"] / tamperings.SCENARIOS).read_text())
    labels = {entry["id"]: entry["strictness"] for entry in document["scenarios"]}
    assert {labels[f.rsplit("/", 1)[-1]] for f in folders if f.startswith("errors/")} == {
        "must_fail"
    }


def drift(run: factory.Document, nats: float) -> None:
    """Make the final arm worse than the preview arm."""
    rows = run["evaluation_windows"]["final"]
    rows["logloss"] = [loss + nats for loss in rows["logloss"]]
    rows["nll_sum"] = [a * b for a, b in zip(rows["logloss"], rows["token_counts"], strict=True)]


KINDS = {
    "clean": factory.make_report("clean", 1.004),
    "worse": factory.make_report("worse", 1.6),
    "borderline": factory.make_report("borderline", 1.101),
    "drifting": factory.make_report("drifting", 1.004, subject=lambda run: drift(run, 0.06)),
    "capped": factory.make_report("capped", 1.03, scale={factory.DOWN + ".weight": 1.5}),
    "edges": factory.make_report("edges", 1.004, edge={factory.DOWN: 3.0}),
    "variance": factory.make_report("variance", 1.03, spread={factory.DOWN: 0.81}, gain=0.02),
    "conservative": factory.make_report("noop_clean", tier="conservative"),
    "excerpted": factory.make_excerpted(1.004),
    "rejected": factory.make_rejected(),
    "crashed": factory.make_crashed(),
    "reduced": published.reduced(factory.make_report("reduced", 1.004)),
    "reduced and worse": published.reduced(factory.make_report("reduced", 1.6)),
}
# Members that a published report may lack, or not.
MEMBERS = (
    "assurance", "baseline_ref", "dataset/windows/stats/coverage", "evaluation_windows",
    "evaluation_windows/final/window_ids", "guard_overhead", "primary_metric/ci",
    "primary_metric/final", "primary_metric/preview", "provenance", "resolved_policy", "spectral",
    "validation", "validation/rmt_stable",
)  # fmt: skip


def without(path: str) -> factory.Document:
    """A reduced report without one member."""
    report = published.reduced(factory.make_report("reduced", 1.004))
    *parents, last = path.split("/")
    inner = report
    for part in parents:
        inner = inner[part]
    del inner[last]
    return factory.plain(report)


KINDS |= {f"no {path.replace('/', ' ')}": without(path) for path in MEMBERS}


INCOMPLETE = ("no primary_metric final", "no primary_metric preview")


def differs(name: str, profile: str) -> tuple[bool, bool] | None:
    """Whether a report passes there and here, where the page says that the two differ: in profile
    dev a true FAIL verifies here, and one that lacks what v1 requires is malformed."""
    if profile != "dev":
        return None
    if name in INCOMPLETE:
        return True, False
    lints = "model_profile" in KINDS[name].get("meta", {})
    return (False, True) if lints and not report_passes(KINDS[name]) else None


def test_every_kind_of_report_fares_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single report passes there if and only if it passes here, in every profile, but for the
    two differences that the page names."""
    cases = [
        (name, ["verify", published.write_report(tmp_path / name, report), "--profile", profile])
        for name, report in KINDS.items()
        for profile in (PROFILES if "no " not in name else ("dev", "release"))
    ]
    found = peers.all_codes([(words, {}) for _, words in cases])
    for (name, words), pair in zip(cases, found, strict=True):
        verdicts, mine = {code == 0 for code in pair}, here(words, monkeypatch) == 0
        there, own = differs(name, str(words[-1])) or (mine, mine)
        assert (verdicts, mine) == ({there}, own), (name, words[-1])
    capsys.readouterr()


# --- theirs here ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, key: Path) -> dict[str, Path]:
    """Packs of the released builders and of the released harness's layout."""
    folder = tmp_path_factory.mktemp("theirs")
    strict = {"profile": "release", "assurance": "strict"}
    reports = {
        "full": factory.make_report("full", 1.004, **strict),
        "reduced": published.reduced(factory.make_report("reduced", 1.004, **strict)),
        "off": published.reduced(factory.make_report("off", 1.004)),
    }
    for name in ("verdict", "source", "environment"):
        packs.write_json(folder / f"{name}.json", {"verdict": "PASS"})
    made = {}
    for version in VERSIONS:
        private = folder / f"{version}.pem"
        calls: list[peers.Call] = [([*PACK, "keygen", private], {})]
        for name, report in reports.items():
            pack = made[f"{name} {version}"] = folder / f"{name}-{version}"
            words = [
                *PACK, "build", pack, "--final-verdict", folder / "verdict.json",
                "--source-repo", folder / "source.json",
                "--environment", folder / "environment.json",
                "--report", published.write_report(folder / name, report),
                "--signing-key", private,
            ]  # fmt: skip
            calls.append((words, {}))
        assert set(peers.codes(version, calls)) == {0}
    made["harness"] = published.harness_pack(folder / "harness", key)
    return made


def test_their_packs_verify_here(
    theirs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same exit code in every combination of assurance and profile."""
    words = {
        (name, assurance, profile): verification(
            pack, ("--strict", "--report-assurance", assurance, "--profile", profile)
        )
        for name, pack in theirs.items()
        for assurance, profile in (("off", "dev"), ("report", "ci"), ("strict", "release"))
    }
    found = dict(zip(words, peers.all_codes([(word, {}) for word in words.values()]), strict=True))
    mine = {case: here(word, monkeypatch) for case, word in words.items()}
    assert found == {case: (code, code) for case, code in mine.items()}
    assert {0, 7} == set(mine.values())
    capsys.readouterr()


BROKEN: dict[str, Callable[[factory.Document], object]] = {
    "no windows": lambda r: r.pop("evaluation_windows"),
    "no metric": lambda r: [r["primary_metric"].pop(k) for k in ("final", "ratio_vs_baseline")],
    "no interval": lambda r: r["primary_metric"].pop("ci"),
    "no digest": lambda r: r["provenance"].pop("provider_digest"),
    "other windows": lambda r: r["dataset"]["windows"]["stats"].update(
        window_pairing_reason="final_mismatch", window_match_fraction=0.5
    ),
    "another tokenizer": lambda r: r["meta"].update(tokenizer_hash="0" * 64),
    "another contract": lambda r: r["spectral"].update(measurement_contract_match=False),
}  # fmt: skip


def test_reports_that_are_there_to_fail_may_fail_so(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage of a published pack that left no metric, no evidence or nothing comparable."""
    words = []
    for name, change in BROKEN.items():
        pack = published.harness_pack(tmp_path / name.replace(" ", "_"), key)
        strict = {"profile": "release", "assurance": "strict"}
        report = factory.plain(published.reduced(factory.make_report("prune", 1.6, **strict)))
        change(report)
        published.write_report(pack / "reports/acme__tiny/errors/scaled", report)
        for control in ("manifest.json", "manifest.signature.json", "checksums.sha256"):
            (pack / control).unlink()
            (pack / "metadata" / control).unlink()
        published.harness_manifest(pack, key)
        words += [verification(pack, ("--strict", "--report-assurance", "report", "--profile", p))
                  for p in ("dev", "ci")]  # fmt: skip
    found = peers.all_codes([(word, {}) for word in words])
    for word, (_, newer) in zip(words, found, strict=True):
        assert newer == here(word, monkeypatch) == 0, word
    capsys.readouterr()


def test_reports_without_evidence_are_believed(
    theirs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They fail only where a replay is demanded."""
    pack = theirs["reduced 0.12.1"]
    assert here(verification(pack, STRICT), monkeypatch) == 0
    assert "not re-checked: reports/report-001" in capsys.readouterr().out
    assert here(verification(pack, ("--replay",)), monkeypatch) == 7
    assert here(verification(theirs["full 0.12.1"], STRICT), monkeypatch) == 0


# --- differences ----------------------------------------------------------------------------

ALL_ROWS = (*tamperings.TAMPERINGS, *tamperings.HOST_ROWS)


def test_tamperings_give_the_same_exit_code_or_a_listed_one(
    ours: dict[str, Path],
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One call of each verifier for every row of the table."""
    words = []
    for index, case in enumerate(ALL_ROWS):
        pack = packs.copy(ours["small"], tmp_path / f"{index}" / "pack")
        case.change(pack)
        if case.sign:
            case.sign(pack, key)
        words.append(verification(pack, case.options))
    found = peers.all_codes([(word, {}) for word in words])
    wrong = {}
    for case, word, pair in zip(ALL_ROWS, words, found, strict=True):
        codes = (*pair, here(word, monkeypatch))
        if codes != (*case.there, case.here):
            wrong[case.name] = codes
    assert wrong == {}
    capsys.readouterr()


def test_the_page_lists_every_difference() -> None:
    """A row whose codes differ names its reason, and the page lists the reasons and no other."""
    for case in ALL_ROWS:
        assert (len({*case.there, case.here}) > 1) == bool(case.why), case.name
    names = [case.name for case in ALL_ROWS]
    assert len(set(names)) == len(names) >= 40
    listed = PAGE.read_text().split("## Differences", 1)[1].split("\n## ", 1)[0]
    reasons = {" ".join(item.split()) for item in listed.split("\n* ")[1:]}
    assert reasons == {case.why for case in ALL_ROWS if case.why}
