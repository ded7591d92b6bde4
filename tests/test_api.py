"""The modules that programs import: what they give is what the commands give."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
import report_factory as factory
from jsonschema import Draft202012Validator
from repository_copy import ROOT, in_a_new_python, program
from test_compare_runs import BASE, together
from test_report_verify import runtime

from invarlock import evidence_pack
from invarlock.cli import main as cli
from invarlock.contracts import load_contract
from invarlock.errors import ConfigError, InputError
from invarlock.evidence import PackError
from invarlock.files import canonical_json
from invarlock.reporting.html import render_report_html
from invarlock.reporting.replay import replay
from invarlock.reporting.report_builder import make_report
from invarlock.reporting.report_schema import (
    REPORT_JSON_SCHEMA,
    REPORT_SCHEMA_VERSION,
    departures,
)
from invarlock.reporting.verify_contract import envelope, exit_code, verify_reports

CLEAN = factory.make_report("quant_8bit_clean", 1.004)
EXAMPLE = re.compile(r"```python\n(import json.*?)```", re.S)


def write(folder: Path, report: dict[str, Any]) -> Path:
    """A report and its manifest in a folder; the report's path."""
    folder.mkdir(parents=True)
    data = canonical_json(report)
    (folder / "evaluation.report.json").write_bytes(data)
    packs.write_json(folder / "runtime.manifest.json", runtime(data))
    return folder / "evaluation.report.json"


@pytest.fixture
def suite(tmp_path: Path) -> tuple[Path, Path]:
    """A suite's output folder and a signing key."""
    packs.write_suite(tmp_path / "run")
    return tmp_path / "run", packs.new_key(tmp_path / "key.pem")


def test_the_schema_is_the_contract() -> None:
    """Draft 2020-12, equal to the published file, and what a change of it does not reach."""
    on_disk = json.loads((ROOT / "contracts/evaluation-report.schema.json").read_text())
    assert on_disk == REPORT_JSON_SCHEMA
    assert REPORT_JSON_SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(REPORT_JSON_SCHEMA)
    assert REPORT_JSON_SCHEMA["properties"]["schema_version"]["const"] == REPORT_SCHEMA_VERSION
    assert REPORT_JSON_SCHEMA is not load_contract("evaluation-report")
    assert departures(CLEAN) == []
    assert departures(CLEAN | {"run_id": "abc"}) == [
        "/run_id is 'abc'; expected at least 4 characters"
    ]


def test_two_finished_runs_make_a_report() -> None:
    """That of evaluate, which is true and judged by the subject's tier; none of other windows."""
    run = together("quant_8bit_clean", 1.004)
    report = make_report(run, BASE)
    assert departures(report) == []
    assert replay(report) == []
    assert report["primary_metric"]["ratio_vs_baseline"] == pytest.approx(1.004)
    assert report["auto"]["tier"] == run["context"]["tier"]
    other = copy.deepcopy(run)
    other["evaluation_windows"]["final"]["window_ids"][0] = "0" * 16
    with pytest.raises(InputError):
        make_report(other, BASE)


def test_a_page_is_that_of_the_command(tmp_path: Path) -> None:
    """The same bytes."""
    path = write(tmp_path / "r", CLEAN)
    page = tmp_path / "page.html"
    assert cli(["report", "html", "--report", str(path), "--out", str(page)]) == 0
    assert render_report_html(CLEAN) == page.read_text()


def test_reports_are_verified_as_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results, envelope and exit code of a good and of an untrue report, by path or by folder."""
    untrue = copy.deepcopy(CLEAN)
    untrue["primary_metric"]["ratio_vs_baseline"] *= 0.99
    good, bad = write(tmp_path / "good", CLEAN), write(tmp_path / "bad", untrue)
    results = verify_reports([good, bad.parent], profile="ci", replay=True)
    assert [result.ok for result in results] == [True, False]
    code = cli(["verify", str(good), str(bad), "--profile", "ci", "--replay", "--json"])
    shown = json.loads(capsys.readouterr().out)
    del shown["ts"]
    assert shown == envelope(results, "ci")
    assert code == exit_code(results, "ci") != 0


@pytest.mark.parametrize(
    "word",
    [{"profile": "Release"}, {"assurance": "full"}, {"runtime_provenance": "podman"},
     {"tolerance": 2.0}],
)  # fmt: skip
def test_a_misspelt_word_weakens_no_verification(word: dict[str, Any], tmp_path: Path) -> None:
    """It is refused before anything is read."""
    with pytest.raises(ConfigError):
        verify_reports([tmp_path / "none"], **word)
    if not word.keys() & {"tolerance", "runtime_provenance"}:
        given = {k.replace("assurance", "report_assurance"): v for k, v in word.items()}
        with pytest.raises(ConfigError):
            evidence_pack.verify(tmp_path / "none", **given)
        with pytest.raises(ConfigError):
            evidence_pack.build(tmp_path / "pack", run_dir=tmp_path, **given)


def test_packs_are_built_inspected_and_verified(suite: tuple[Path, Path], tmp_path: Path) -> None:
    """The same pack as the command's, byte by byte; a changed one and a stranger's are refused."""
    run, key = suite
    built = evidence_pack.build(tmp_path / "mine", run_dir=run, signing_key=key)
    assert packs.build(run, tmp_path / "theirs", key=key) == 0
    assert packs.snapshot(tmp_path / "mine") == packs.snapshot(tmp_path / "theirs")
    assert built.signer
    checked = evidence_pack.verify(
        tmp_path / "mine", strict=True, replay=True, expected_fingerprint=built.signer
    )
    assert (checked.exit_code, checked.signer, checked.verdict) == (0, built.signer, built.verdict)
    shown = evidence_pack.inspect(tmp_path / "mine")
    assert shown["signature"] == {
        "present": True, "valid": True, "signer_fingerprint": built.signer
    }  # fmt: skip
    other = evidence_pack.keygen(tmp_path / "other.pem")
    assert evidence_pack.verify(tmp_path / "mine", expected_fingerprint=other).exit_code == 5
    (tmp_path / "mine/README.md").write_text("changed")
    assert evidence_pack.verify(tmp_path / "mine").exit_code == 6


def test_packs_need_a_run_or_reports_with_their_verdict(
    suite: tuple[Path, Path], tmp_path: Path
) -> None:
    """Not both, not neither; and a key is not replaced."""
    run, key = suite
    with pytest.raises(ConfigError, match="neither"):
        evidence_pack.build(tmp_path / "pack")
    with pytest.raises(ConfigError, match="itself"):
        evidence_pack.build(tmp_path / "pack", run_dir=run, reports=[tmp_path / "r"])
    report, verdict = write(tmp_path / "r", CLEAN), run / "reports/final_verdict.json"
    report.with_name("runtime.manifest.json").unlink()
    with pytest.raises(PackError, match="runtime"):
        evidence_pack.build(tmp_path / "pack", reports=[report], final_verdict=verdict)
    with pytest.raises(ConfigError, match="never overwritten"):
        evidence_pack.keygen(key)
    assert not (tmp_path / "pack").exists()


def test_the_page_is_current_and_its_example_runs(
    suite: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """docs/api.md is what the docstrings say, and what it shows works in a folder of that kind."""
    text = (ROOT / "docs/api.md").read_text()
    assert program("tools/make_api.py").page() == text, "run: make docs"
    run, key = suite
    evidence_pack.build(tmp_path / "evidence_pack", run_dir=run, signing_key=key)
    write(tmp_path / "reports/quant8", CLEAN)
    monkeypatch.chdir(tmp_path)
    (example,) = EXAMPLE.findall(text)
    exec(compile(example, "docs/api.md", "exec"), {})
    assert capsys.readouterr().out == "True []\n0\n"
    page = (tmp_path / "reports/quant8/evaluation.html").read_text()
    assert page == render_report_html(CLEAN)


def test_importing_costs_nothing_heavy() -> None:
    """Each module of the page is imported without torch and its like."""
    modules = program("tools/make_api.py").MODULES
    words = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'snakemake', 'datasets', 'jsonschema'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    in_a_new_python(words)
