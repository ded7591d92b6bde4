"""A publisher with a key: signed packs whose contents do not bear out what they claim."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pack_factory as packs
import pytest
from pack_factory import CLEAN, DAMAGE, STRESS, Document, edit_json

from invarlock.evidence.result import VerifyOptions
from invarlock.evidence.verify import verify_pack

VERDICT = "results/final_verdict.json"
SCENARIOS = "metadata/scenarios.json"
REPORT = f"{CLEAN}/evaluation.report.json"
RUNTIME = f"{CLEAN}/runtime.manifest.json"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The publisher's key."""
    return packs.new_key(tmp_path_factory.mktemp("key") / "pack.pem")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """A signed pack that verifies; never changed."""
    folder = tmp_path_factory.mktemp("packs")
    assert packs.build(packs.write_suite(folder / "out"), folder / "pack", key=key) == 0
    return folder / "pack"


@pytest.fixture
def pack(honest: Path, tmp_path: Path) -> Path:
    """A copy that a test may forge."""
    return packs.copy(honest, tmp_path / "pack")


def member(path: str, value: object) -> Callable[[Document], None]:
    """A change of one member, by ``/``-separated path."""

    def change(document: Document) -> None:
        *parts, last = path.split("/")
        for part in parts:
            document = document[int(part) if part.isdigit() else part]  # type: ignore[call-overload]
        if value is None:
            del document[last]
        else:
            document[last] = value

    return change


def both_arms(report: Document) -> None:
    """Halve the subject's losses, consistently with the point that is stored beside them."""
    for arm in ("preview", "final"):
        rows = report["evaluation_windows"][arm]
        rows["nll_sum"] = [value / 2 for value in rows["nll_sum"]]


FORGED_FILES: dict[str, tuple[int, str, Callable[[Document], object]]] = {
    "verdict FAIL to PASS and back": (6, VERDICT, member("verdict", "FAIL")),
    "a record made nicer": (6, VERDICT, member("records/1/ratio_vs_baseline", 1.0)),
    "a summary": (6, "results/category_summary.json", member("clean/reports", 99)),
    "a control left out": (6, SCENARIOS, lambda d: d["scenarios"].pop()),
    "a control made lenient": (6, SCENARIOS, member("scenarios/2/strictness", "informational")),
    "scenarios without a list": (6, SCENARIOS, member("scenarios", 3)),
    "a scenario twice": (6, SCENARIOS, lambda d: d["scenarios"].append(d["scenarios"][0])),
    "outcome of another run": (6, f"{CLEAN}/outcome.json", member("run", 2)),
    "outcome of another model": (6, f"{CLEAN}/outcome.json", member("model_id", "a/b")),
    "damage that was not done": (6, f"{DAMAGE}/outcome.json", member("injected", False)),
    "edit of another type": (6, f"{CLEAN}/edit_metadata.json", member("edit_type", "noop")),
    "packed storage": (6, f"{CLEAN}/edit_metadata.json", member("packed_quantized_storage", True)),
    "0 for false": (6, f"{CLEAN}/edit_metadata.json", member("optimized_deployment_backend", 0)),
    "another subject": (
        6,
        f"{CLEAN}/edit_metadata.json",
        member("baseline_checkpoint_sha256", "0" * 64),
    ),
    "another damage": (6, f"{DAMAGE}/error_metadata.json", member("error_type", "inf_injection")),
    "the ratio": (6, REPORT, member("primary_metric/ratio_vs_baseline", 1.0)),
    "the interval": (6, REPORT, member("primary_metric/display_ci", [0.9, 1.0])),
    "a window's loss": (7, REPORT, lambda r: r["evaluation_windows"]["final"]["nll_sum"].reverse()),
    "all losses": (7, REPORT, both_arms),
    "the limit": (7, REPORT, member("primary_metric/limit", 9.0)),
    "the tier": (7, REPORT, member("auto/tier", "made-up")),
    "a spectral statistic": (7, REPORT, member("spectral/modules/sigma_max", [])),
    "an absurd bootstrap": (7, REPORT, member("context/bootstrap/replicates", 10**12)),
    "losses that are words": (7, REPORT, member("evaluation_windows/final/nll_sum", ["x"])),
    "no report at all": (6, REPORT, lambda r: r.clear()),
    "manifest of another mode": (7, RUNTIME, member("execution_mode", "container")),
    "an unknown member": (7, RUNTIME, member("runtime/extra", True)),
    "a date that is prose": (7, RUNTIME, member("generated_at_utc", "some time in the spring")),
    "a date without offset": (7, RUNTIME, member("generated_at_utc", "2026-01-01T00:00:00.0")),
}


@pytest.mark.parametrize("name", FORGED_FILES)
def test_a_forged_file_is_caught_although_it_is_signed(pack: Path, key: Path, name: str) -> None:
    """Checksums, manifest and signature fit; the recomputation does not."""
    code, path, change = FORGED_FILES[name]
    edit_json(pack / path, change)
    packs.resign(pack, key)
    result = verify_pack(pack, VerifyOptions(strict=True))
    assert result.exit_code == code, result.errors


FORGED_MANIFESTS: dict[str, tuple[int, Callable[[Document], object]]] = {
    "evidence level": (6, member("evidence_level", "high")),
    "path out of the pack": (6, member("subject/path", "../out/reports/final_verdict.json")),
    "absolute path": (6, member("subject/path", "/etc/passwd")),
    "reference to nothing": (6, member("materials/0/path", "metadata/none.json")),
    "reference to itself": (6, member("materials/0/path", "manifest.json")),
    "other digest": (6, member("subject/digest", "sha256:" + "0" * 64)),
    "path without digest": (4, member("materials/0/digest", None)),
    "unknown level": (4, member("evidence_level", "supreme")),
    "format": (4, member("format", "evidence-pack-v2")),
    "digest of checksums": (6, member("checksums_sha256_digest", "0" * 64)),
    "upper-case digest": (4, member("checksums_sha256_digest", "A" * 64)),
    "signer": (5, member("signing_key_fingerprint", "sha256:" + "0" * 64)),
}


@pytest.mark.parametrize("name", FORGED_MANIFESTS)
def test_a_forged_manifest_is_caught_although_it_is_signed(
    pack: Path, key: Path, name: str
) -> None:
    """What the manifest claims is checked, not believed."""
    code, change = FORGED_MANIFESTS[name]
    packs.resign(pack, key, change)
    result = verify_pack(pack, VerifyOptions())
    assert result.exit_code == code, result.errors


def test_a_weaker_level_may_be_claimed(pack: Path, key: Path) -> None:
    """A pack may claim less than it supports."""
    packs.resign(pack, key, member("evidence_level", "low"))
    assert verify_pack(pack, VerifyOptions()).exit_code == 0


@pytest.mark.parametrize(
    "text",
    [b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": 1e999}', b"\xef\xbb\xbf{}", b"[" * 99 + b"]" * 99,
     b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\xff"}'],
    ids=["duplicate", "nan", "infinite", "bom", "deep", "digits", "utf8"],
)  # fmt: skip
@pytest.mark.parametrize("path", [SCENARIOS, f"{CLEAN}/outcome.json", REPORT, VERDICT, RUNTIME])
def test_json_is_strict_everywhere(pack: Path, key: Path, path: str, text: bytes) -> None:
    """Signed JSON with two readings is refused, whichever file it is in."""
    (pack / path).write_bytes(text)
    packs.relist(pack, key)
    assert verify_pack(pack, VerifyOptions()).exit_code in (6, 7)


def test_a_deleted_control_is_missed(pack: Path, key: Path) -> None:
    """Removing an evaluation from the pack changes the recomputed verdict."""
    for path in (pack / DAMAGE).iterdir():
        path.unlink()
    packs.resign(pack, key)
    result = verify_pack(pack, VerifyOptions())
    assert result.exit_code == 6
    assert (result.claims.verdict or {})["verdict"] == "FAIL"


def test_the_readme_cannot_say_pass_above_a_fail(pack: Path, key: Path) -> None:
    """The first line of the README agrees with the recomputed verdict."""
    (pack / "README.md").write_text("# Evidence pack: FAIL\n")
    packs.resign(pack, key)
    assert verify_pack(pack, VerifyOptions()).exit_code == 6


def test_evidence_that_is_left_out_is_only_believed_or_fails(pack: Path, key: Path) -> None:
    """Without both runs' sums the report is believed; with --replay that is a failure."""
    for report in pack.rglob("evaluation.report.json"):
        edit_json(report, lambda r: r.pop("evaluation_windows"))
    packs.resign(pack, key)
    result = verify_pack(pack, VerifyOptions())
    assert result.exit_code == 0
    assert len(result.believed) == len(packs.IDS)
    assert verify_pack(pack, VerifyOptions(replay=True)).exit_code == 7


def test_a_stress_report_must_fail_for_its_reason(pack: Path, key: Path) -> None:
    """In a pack without outcomes, a file that is no report is no expected failure."""
    for outcome in pack.rglob("outcome.json"):
        outcome.unlink()
    packs.resign(pack, key)
    assert verify_pack(pack, VerifyOptions()).exit_code == 0
    (pack / STRESS / "evaluation.report.json").write_text("{}")
    packs.resign(pack, key)
    result = verify_pack(pack, VerifyOptions())
    assert result.exit_code == 7
    assert "E601" in result.errors[0]


def test_an_expected_failure_that_passes_fails_the_pack(pack: Path, key: Path) -> None:
    """In a pack without outcomes, a must_fail report that passes is exit 7."""
    for outcome in pack.rglob("outcome.json"):
        outcome.unlink()
    for place in (STRESS, DAMAGE):
        clean = (pack / CLEAN / "evaluation.report.json").read_bytes()
        (pack / place / "evaluation.report.json").write_bytes(clean)
        for name in ("edit_metadata.json", "error_metadata.json"):
            if (pack / place / name).exists():
                edit_json(pack / place / name, lambda m: m.pop("baseline_checkpoint_sha256"))
    packs.resign(pack, key)
    result = verify_pack(pack, VerifyOptions())
    assert result.exit_code == 7
    assert len(result.errors) == 2


def test_a_pack_without_a_report_that_has_to_pass_fails(key: Path, tmp_path: Path) -> None:
    """Only damage: it can be built, and verify says that nothing shows that any report can pass."""
    out = packs.write_suite(tmp_path / "out", ["nan_injection"])
    assert packs.build(out, tmp_path / "pack", key=key) == 0
    assert verify_pack(tmp_path / "pack", VerifyOptions()).exit_code == 7


def test_strict_assurance_needs_container_provenance(pack: Path) -> None:
    """Host runs never satisfy --report-assurance strict."""
    assert verify_pack(pack, VerifyOptions(report_assurance="strict")).exit_code == 7
    assert verify_pack(pack, VerifyOptions(report_assurance="off")).exit_code == 0


def _values(document: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The place of every value of a document."""
    items: list[tuple[object, object]] = []
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document[:2]))
    return [at] + [place for key, value in items for place in _values(value, (*at, key))]


WEIRD: list[object] = [
    None,
    True,
    -1,
    10**30,
    1e308,
    "",
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    ["x"],
    [None],
]


@pytest.mark.parametrize(
    "path",
    [REPORT, RUNTIME, SCENARIOS, VERDICT, f"{CLEAN}/outcome.json", f"{CLEAN}/edit_metadata.json",
     "metadata/model_revisions.json", "results/scenario_signal_summary.json"],
)  # fmt: skip
def test_no_shape_of_json_crashes_the_verifier(pack: Path, key: Path, path: str) -> None:
    """Any value anywhere may have any type: the verifier ends with one of its exit codes."""
    document = json.loads((pack / path).read_text())
    rng = random.Random(path)
    places = _values(document)
    for place in rng.sample(places, min(40, len(places))):
        changed = json.loads(json.dumps(document))
        value = rng.choice(WEIRD)
        if not place:
            changed = value
        else:
            node = changed
            for part in place[:-1]:
                node = node[part]
            node[place[-1]] = value
        (pack / path).write_text(json.dumps(changed))
        (packs.relist if path == RUNTIME else packs.resign)(pack, key)
        assert verify_pack(pack, VerifyOptions(replay=True)).exit_code in (0, 6, 7), place
