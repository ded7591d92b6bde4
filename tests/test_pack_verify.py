"""What verify and inspect say about packs in and out of order; attacks have their own table."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pack_factory as packs
import pytest
from attacks import REPORT, RUNTIME, SCENARIOS, VERDICT
from pack_factory import CLEAN, DAMAGE

from invarlock.contracts import validate
from invarlock.evidence import checksums, consistency, keys
from invarlock.evidence.published import deployable
from invarlock.evidence.result import VerifyOptions
from invarlock.evidence.tree import CHUNK, read_tree, size_of
from invarlock.evidence.verify import VERDICT_CLAIM, verify_pack
from invarlock.files import FEW_BYTES


@pytest.fixture
def pack(signed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return packs.copy(signed, tmp_path / "pack")


def code(pack: Path, **options: object) -> int:
    """The exit code of a verification."""
    return verify_pack(pack, VerifyOptions(**options)).exit_code  # type: ignore[arg-type]


def test_a_pack_below_a_folder_called_errors_is_fine(pack: Path, tmp_path: Path) -> None:
    """Only the path inside the pack decides what a report has to show."""
    (tmp_path / "errors").mkdir()
    assert code(packs.copy(pack, tmp_path / "errors" / "pack")) == 0


def test_files_are_hashed_whole_and_in_parts(tmp_path: Path) -> None:
    """The first ones of a pack whole, what comes after them by chunks; nothing is kept of them."""
    sizes = (0, 1, FEW_BYTES - 2, 1, 0, 3, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7)
    for number, size in enumerate(sizes):
        (tmp_path / f"{number:02}.bin").write_bytes(random.Random(number).randbytes(size))
    found = read_tree(tmp_path).files
    assert [found[name].size for name in sorted(found)] == list(sizes)
    for name, file in found.items():
        assert file.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert file.data is None


def test_tables_and_excerpts_are_no_values_to_be_judged(tmp_path: Path) -> None:
    """What is held of a report until the verdict does not grow with what only a replay reads."""
    sizes = []
    for many in (1, 1000):
        table = {"name": ["a"] * many, "baseline_sigma_max": [1.0] * many}
        excerpt = {"window_id": "w", "tokens": ["a"] * many}
        spectral = {"operators": table, "modules": table, "evaluated": True}
        report = {"spectral": spectral, "rmt": {"modules": table}, "excerpts": [excerpt]}
        packs.write_json(tmp_path / "evaluation.report.json", report)
        outline = read_tree(tmp_path).outline("evaluation.report.json")
        assert outline["spectral"]["evaluated"] is True
        sizes.append(size_of(outline))
    assert sizes[0] == sizes[1]


# --- signer ---------------------------------------------------------------------------------


def test_the_ambient_store_never_widens_a_pin(
    pack: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own store holds when nothing is named, and not beside a pin."""
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = keys.fingerprint(keys.load_signing_key(key).public)
    packs.write_json(keys.default_trust_store(), [mine])
    assert packs.verify(pack) == 0
    assert packs.verify(pack, "--expected-fingerprint", "sha256:" + "0" * 64) == 5
    packs.write_json(keys.default_trust_store(), ["sha256:" + "0" * 64])
    assert packs.verify(pack) == 5
    assert packs.verify(pack, "--expected-fingerprint", mine) == 0


# --- the command ----------------------------------------------------------------------------


def test_an_archive_has_to_be_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person is told to unpack a file."""
    (tmp_path / "pack.tar").write_text("")
    assert packs.verify(tmp_path / "pack.tar") == 3
    assert "unpack it" in capsys.readouterr().err


def test_the_folder_of_a_run_is_no_pack(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the pack that lies in it."""
    assert packs.verify(pack.parent) == 3
    assert "in it" not in capsys.readouterr().out
    pack.rename(pack.parent / "evidence_pack")
    assert packs.verify(pack.parent) == 3
    assert "the pack is the folder evidence_pack in it" in capsys.readouterr().out


def test_a_verdict_that_is_not_replayed_says_why(pack: Path) -> None:
    """Also where what it follows from is there and does not hold."""
    (pack / REPORT).unlink()
    believed = verify_pack(pack, VerifyOptions()).believed
    assert f"{VERDICT_CLAIM} (what it follows from does not hold)" in believed


def test_the_json_result_follows_its_contract(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json and --json-out give one document with every step, for good and bad packs."""
    assert packs.verify(pack, "--json", "--json-out", str(tmp_path / "v.json")) == 0
    good = json.loads(capsys.readouterr().out)
    assert good == json.loads((tmp_path / "v.json").read_text())
    validate(good, "evidence-pack-verify", "good")
    validate(good["verify"], "verify-v1", "good")
    assert [step["number"] for step in good["steps"]] == list(range(9))
    (pack / "README.md").unlink()
    assert packs.verify(pack, "--json") == 6
    bad = json.loads(capsys.readouterr().out)
    validate(bad, "evidence-pack-verify", "bad")
    assert bad["errors"] == ["README.md: is listed and missing"]


def test_all_findings_of_a_step_are_listed(pack: Path) -> None:
    """Two changed files and a missing one make three findings."""
    for name in ("README.md", f"{CLEAN}/evaluation.html"):
        (pack / name).write_text("changed")
    (pack / DAMAGE / "outcome.json").unlink()
    result = verify_pack(pack, VerifyOptions())
    changed = next(step for step in result.steps if step.name == "checksums")
    assert len(changed.findings) == 3


def test_inspect_checks_the_signature(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """inspect says whether the signature is valid, and fails when it is not."""
    from invarlock.cli import main as cli

    words = ["advanced", "evidence-pack", "inspect", str(pack), "--json"]
    assert cli(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["signature"]["valid"] is True
    assert shown["strict_ready"] is True
    (pack / "manifest.json").write_bytes(b" " + (pack / "manifest.json").read_bytes())
    assert cli(words) == 5
    shown = json.loads(capsys.readouterr().out)
    assert (shown["signature"]["present"], shown["signature"]["valid"]) == (True, False)
    assert shown["strict_ready"] is False


# --- deployable subjects --------------------------------------------------------------------

SIDECARS: dict[str, packs.Document] = {
    "deployable_artifact_validation.json": {
        "schema": "invarlock/deployable-artifact-validation-v1",
        "ok": True, "load_smoke": True, "inference_smoke": True, "issues": [],
    },
    "backend_inventory.json": {
        "schema": "invarlock/backend-inventory-v1",
        "load_smoke": True, "inference_smoke": True, "quantized_module_count": 12,
        "quantized_module_types": ["Linear4bit"],
        "memory_footprint": {"reported_bytes": 4000, "method": "get_memory_footprint"},
    },
    "memory_report.json": {
        "schema": "invarlock/deployable-memory-report-v1", "ok": True,
        "runtime_memory_reduction_observed": True, "baseline_reported_bytes": 10000,
        "quantized_reported_bytes": 4000, "reduction_bytes": 6000, "reduction_ratio": 0.6,
    },
    "load_smoke.json": {"schema": "invarlock/deployable-load-smoke-v1", "ok": True},
    "inference_smoke.json": {"schema": "invarlock/deployable-inference-smoke-v1", "ok": True},
}  # fmt: skip
WRONG: tuple[tuple[str, str, object], ...] = (
    ("backend_inventory.json", "memory_footprint", {"reported_bytes": -1}),
    ("backend_inventory.json", "memory_footprint", {"reported_bytes": 0}),
    ("backend_inventory.json", "memory_footprint", {"reported_bytes": True}),
    ("backend_inventory.json", "memory_footprint", {}),
    ("backend_inventory.json", "memory_footprint", None),
    ("backend_inventory.json", "quantized_module_count", -1),
    ("backend_inventory.json", "quantized_module_count", True),
    ("backend_inventory.json", "quantized_module_types", "Linear4bit"),
    ("backend_inventory.json", "ok", False),
    ("memory_report.json", "quantized_reported_bytes", -4000),
    ("memory_report.json", "baseline_reported_bytes", 0),
    ("memory_report.json", "reduction_bytes", 7000),
    ("memory_report.json", "reduction_ratio", 1.5),
    ("memory_report.json", "quantized_reported_bytes", 20000),
    ("deployable_artifact_validation.json", "issues", ["a layer was skipped"]),
    ("inference_smoke.json", "all_logits_finite", False),
    ("load_smoke.json", "loaded_from_saved_checkpoint", False),
)


@pytest.mark.parametrize(("name", "member", "value"), [("", "", None), *WRONG])
def test_deployable_sidecars_state_what_is_possible(
    tmp_path: Path, name: str, member: str, value: object
) -> None:
    """A footprint is a number of bytes above 0, and a reduction is the difference of two."""
    folder = tmp_path / "reports/m/s/run_1"
    for sidecar, document in SIDECARS.items():
        changed = document | ({member: value} if sidecar == name else {})
        packs.write_json(folder / sidecar, changed)
    packs.write_json(folder / "evaluation.report.json", {})
    tree = read_tree(tmp_path)
    found = deployable.check(tree, "reports/m/s/run_1/")
    assert bool(found) == bool(name), found
    assert all(line.startswith(name) for line in found)


# --- checksums ------------------------------------------------------------------------------

D = "0" * 64


@pytest.mark.parametrize(
    "line",
    [f"{D}  a/b", f"{D} *a/b", f"{D}  ./a/b", f"{'A' * 64}  a b", f"{D}  a", "", f"{D}  \u2028"],
)
def test_tolerated_checksum_lines(line: str) -> None:
    """What published packs contain is read."""
    digests, problems = checksums.parse(f"{line}\n\n".encode())
    assert problems == []
    assert len(digests) == bool(line)


def test_checksums_work_with_sha256sum(pack: Path) -> None:
    """The file is what ``sha256sum --check`` reads."""
    import subprocess

    command = ["sha256sum", "--check", "--strict", "--quiet", "checksums.sha256"]
    assert subprocess.run(command, cwd=pack, check=False).returncode == 0


def test_the_example_in_the_format_page_is_true(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own few lines of Python verify the first links of a real pack."""
    page = (Path(__file__).parent.parent / "docs" / "pack-format.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    pack.rename(tmp_path / "PACK")
    monkeypatch.chdir(tmp_path)
    exec(code, {})


# --- a publisher with a key ------------------------------------------------------------------


def test_a_pack_without_a_report_that_has_to_pass_fails(key: Path, tmp_path: Path) -> None:
    """Only damage: it can be built, and verify says that nothing shows that any report can pass."""
    out = packs.write_suite(tmp_path / "out", ["nan_injection"])
    assert packs.build(out, tmp_path / "pack", key=key) == 0
    assert verify_pack(tmp_path / "pack", VerifyOptions()).exit_code == 7


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


def test_a_pass_that_shows_little_says_so(tmp_path: Path) -> None:
    """Without a control that has to fail, and where the edit itself need not pass."""
    out = packs.write_suite(tmp_path / "out", ("noop_clean", "quant_8bit_clean"))
    assert packs.build(out, tmp_path / "pack", key=packs.new_key(tmp_path / "pack.pem")) == 0
    result = verify_pack(tmp_path / "pack", VerifyOptions())
    assert result.exit_code == 0
    assert sum("no scenario has to fail" in claim for claim in result.believed) == 1
    record = {"strictness": "informational", "category": "custom", "passed": False,
              "model": "m", "name": "mine", "run_num": 1}  # fmt: skip
    failed = {"strictness": "must_fail", "category": "stress", "passed": False}
    lines = list(consistency.left_to_belief({"verdict": "PASS", "records": [record, failed]}))
    assert len(lines) == 1
    assert "m mine run_1" in lines[0]
