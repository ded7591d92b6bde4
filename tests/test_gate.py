"""``invarlock gate`` and what the verifying commands import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pack_factory as packs
import pytest
import report_factory as factory

from invarlock.cli import main as cli


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two suites, ``good`` and ``bad``, each with its signed pack."""
    folder = tmp_path_factory.mktemp("suites")
    key = packs.new_key(folder / "key.pem")
    packs.write_suite(folder / "good")
    packs.write_suite(folder / "bad", change=packs.failed_clean)
    for name in ("good", "bad"):
        assert packs.build(folder / name, folder / f"{name}.pack", key=key) == 0
    return folder


def test_gate_does_not_believe_a_damaged_pack(
    suites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pack that does not verify has no verdict: the exit code is verify's, for PASS and FAIL."""
    for name in ("good", "bad"):
        pack = packs.copy(suites / f"{name}.pack", tmp_path / name)
        (pack / "README.md").write_text("changed")
        junit = tmp_path / f"{name}.xml"
        assert cli(["gate", str(pack), "--junit", str(junit)]) == packs.verify(pack) == 6
        assert 'failures="1"' in junit.read_text()
        (pack / "manifest.json").write_text("{}")
        capsys.readouterr()
        assert cli(["gate", str(pack)]) == 4
        assert capsys.readouterr().out.startswith("NOT VERIFIED: manifest.json")


def test_gate_asks_for_the_signer_as_verify_does(
    suites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other signers than a store's do not pass; unsigned packs do where that is admitted."""
    pack = str(suites / "good.pack")
    packs.write_json(tmp_path / "store.json", ["sha256:" + "0" * 64])
    assert cli(["gate", pack, "--trust-store", str(tmp_path / "store.json")]) == 5
    assert packs.build(suites / "good", tmp_path / "unsigned") == 0
    monkeypatch.setenv("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE", "1")
    assert cli(["gate", str(tmp_path / "unsigned")]) == 0


def test_gate_does_not_believe_a_verdict_above_failed_records(suites: Path, tmp_path: Path) -> None:
    """PASS above records that are not as expected is refused: exit 3."""
    document = json.loads((suites / "bad/reports/final_verdict.json").read_text())
    document |= {"verdict": "PASS", "failed_requirements": []}
    packs.write_json(tmp_path / "v.json", document)
    assert cli(["gate", str(tmp_path / "v.json")]) == 3


def test_gate_passes_only_what_it_recomputed(
    suites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A PASS that can only be believed is 7: a verdict alone, a report without its evidence."""
    verdict = json.loads((suites / "good/reports/final_verdict.json").read_text())
    packs.write_json(tmp_path / "v.json", verdict)
    packs.write_json(tmp_path / "w.json", {"verdict": "PASS", "records": []})
    report = factory.make_report("noop_clean")
    del report["evaluation_windows"]
    packs.write_json(tmp_path / "evaluation.report.json", report)
    for name in ("v.json", "w.json", "evaluation.report.json"):
        capsys.readouterr()
        assert cli(["gate", str(tmp_path / name)]) == 7
        assert capsys.readouterr().out.startswith("NOT RECOMPUTED: ")
    packs.write_json(tmp_path / "w.json", {"verdict": "FAIL", "records": []})
    assert cli(["gate", str(tmp_path / "w.json")]) == 1


def test_gate_holds_a_verdict_against_its_evaluations(suites: Path, tmp_path: Path) -> None:
    """A verdict in its output folder is recomputed from the reports beside it: exit 3 if it is
    another one, or if a report contradicts its own evidence."""
    out = packs.copy(suites / "bad", tmp_path / "out")
    forged = json.loads((out / "reports/final_verdict.json").read_text())
    forged |= {"verdict": "PASS", "failed_requirements": []}
    for record in forged["records"]:
        record |= {"as_expected": True, "why": ""}
    for requirement in forged["requirements"]:
        requirement |= {"ok": True, "details": []}
    packs.write_json(out / "reports/final_verdict.json", forged)
    assert cli(["gate", str(out)]) == 3
    out = packs.copy(suites / "good", tmp_path / "again")
    path = next(out.rglob("noop_clean/run_1/evaluation.report.json"))
    packs.edit_json(path, lambda r: r["spectral"].update(max_caps=99))
    assert cli(["gate", str(out)]) == 3


def test_gate_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """Missing, empty or foreign input: exit 3."""
    packs.write_json(tmp_path / "other.json", {"a": 1})
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty", "other.json"):
        assert cli(["gate", str(tmp_path / name)]) == 3


def test_junit_has_one_case_a_record(suites: Path, tmp_path: Path) -> None:
    """Each record is a test case, and so is each requirement that failed."""
    for name, failures in (("good", 0), ("bad", 2)):
        path = tmp_path / f"{name}.xml"
        cli(["gate", str(suites / name), "--junit", str(path)])
        root = ElementTree.fromstring(path.read_text())
        suite = root.find(f"testsuite[@name='{factory.MODEL}']")
        assert suite is not None
        assert len(suite.findall("testcase")) == len(packs.IDS)
        assert len(suite.findall("testcase/failure")) == failures
        assert bool(root.findall("testsuite[@name='requirements']/testcase")) == bool(failures)


BLOCKED = ["torch", "transformers", "pandas", "snakemake", "datasets", "safetensors", "tokenizers"]
SCRIPT = """
import sys
for name in {blocked}:
    sys.modules[name] = None  # importing it would be an error
from invarlock.cli import main
codes = [main(words) for words in {commands}]
sys.exit(0 if codes == {wanted} else 9)
"""


def test_verification_needs_no_heavy_library(suites: Path) -> None:
    """verify, evidence-pack verify, inspect and gate run with torch and the like blocked."""
    pack = str(suites / "good.pack")
    report = f"{pack}/reports/{packs.MODEL}/noop_clean/run_1/evaluation.report.json"
    commands = [
        ["verify", report],
        ["advanced", "evidence-pack", "inspect", pack],
        ["advanced", "evidence-pack", "verify", pack, "--replay"],
        ["gate", pack],
    ]
    script = SCRIPT.format(blocked=BLOCKED, commands=commands, wanted=[0, 0, 0, 0])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
