"""One evaluation repeated: what is compared, what is refused, and that a CPU repeats exactly."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pack_factory as packs
import published_factory as published
import pytest
from conftest import write_tiny_folder
from report_factory import (
    catalogue,
    make_outcome,
    make_rejected,
    make_report,
    make_timed,
    plain,
    scenario,
    write_evaluation,
)
from report_factory import make_evaluation as evaluation_of
from repository_copy import link_repository, snakemake

from invarlock.cli import main
from invarlock.contracts import violations
from invarlock.errors import InputError
from invarlock.files import sha256_bytes, sha256_file
from invarlock.verdict.repeats import (
    Repeat,
    compare,
    contradictions,
    digest_of,
    repeats_document,
    strict_difference,
    subject_of,
)

EDIT = "quant_8bit_clean"
Document = dict[str, Any]


def repeat(k: int, report: Document | None, digest: str = "a" * 64, **outcome: Any) -> Repeat:
    """A repeat of one edit."""
    found = make_outcome(scenario(EDIT), report, run=k, **outcome)
    return Repeat(f"repeat_{k}", found, report, digest if report else None)


def changed(report: Document) -> Document:
    """The report with one loss and one flag different."""
    other = copy.deepcopy(report)
    other["evaluation_windows"]["final"]["nll_sum"][3] += 0.25
    other["primary_metric"]["ratio_vs_baseline"] += 0.125
    other["validation"]["rmt_stable"] = not other["validation"]["rmt_stable"]
    return other


@pytest.fixture(scope="module")
def report() -> Document:
    """A report as it is read from its file."""
    return plain(make_report(EDIT, 1.01))


def test_the_same_bytes_are_the_same_measurements(report: Document) -> None:
    """Equal reports: hashes match, every field is identical, the ratio has no spread."""
    document = repeats_document([repeat(1, report), repeat(2, report)], "strict", "smoke")
    assert violations(document, "determinism-repeats") == []
    assert contradictions(document) == []
    assert (document["requested"], document["completed"], document["errors"]) == (2, 2, [])
    assert document["cert_hashes_match"] is True
    assert document["measurements_identical"] is True
    assert document["primary_metric_ratio"]["delta"] == 0.0
    assert document["edit_name"] == EDIT
    assert len(document["fields"]) > 50
    assert "generated_at" not in document


def test_times_are_no_difference() -> None:
    """Repeats with telemetry have one digest, unless something else differs too."""
    first, second = plain(make_timed()), plain(make_timed({}))
    second["telemetry"]["memory_mb_peak"] += 1.0
    digests = {digest_of(one, json.dumps(one).encode()) for one in (first, second)}
    assert len(digests) == 1
    other = changed(second)
    assert digest_of(other, b"") not in digests
    untold = plain(make_report(EDIT, 1.01))
    assert digest_of(untold, b"x") == sha256_bytes(b"x")


def test_a_difference_is_found_field_by_field(report: Document) -> None:
    """The largest |delta| of a column is that of its worst row; a flag has none."""
    both = [repeat(1, report), repeat(2, changed(report), "b" * 64)]
    document = repeats_document(both, "throughput", "smoke")
    assert violations(document, "determinism-repeats") == []
    assert contradictions(document) == []
    nll, ratio, stable = (
        "/evaluation_windows/final/nll_sum/*",
        "/primary_metric/ratio_vs_baseline",
        "/validation/rmt_stable",
    )
    assert document["differing"] == [nll, ratio, stable]
    assert document["fields"][nll]["max_abs_delta"] == pytest.approx(0.25)
    assert document["fields"][nll]["values"] == len(
        report["evaluation_windows"]["final"]["nll_sum"]
    )
    assert document["fields"][stable] == {"values": 1, "identical": False, "max_abs_delta": None}
    assert document["primary_metric_ratio"]["delta"] == pytest.approx(0.125)
    assert (document["cert_hashes_match"], document["measurements_identical"]) == (False, False)


def test_columns_of_different_length_have_no_delta() -> None:
    """A value that one report lacks is a difference, whatever the others hold."""
    fields = compare([{"rmt": {"a": [1, 2], "b": 1}}, {"rmt": {"a": [1]}}])
    assert fields["/rmt/a/*"] == {"values": 2, "identical": False, "max_abs_delta": None}
    assert fields["/rmt/b"]["identical"] is False
    assert compare([{"rmt": {"a": 1}}, {"rmt": {"a": True}}])["/rmt/a"]["identical"] is False


def test_a_repeat_that_measured_nothing_is_named(report: Document) -> None:
    """A crash is counted and told; what is left cannot be compared."""
    crash = repeat(2, None, status="crashed", error="killed")
    document = repeats_document([repeat(1, report), crash], "strict", "smoke")
    assert violations(document, "determinism-repeats") == []
    assert contradictions(document) == []
    assert document["errors"] == ["repeat_2: crashed: killed"]
    assert (document["requested"], document["completed"]) == (2, 1)
    assert (document["cert_hashes_match"], document["measurements_identical"]) == (None, None)


def test_a_subject_that_was_rejected_agrees_with_nothing() -> None:
    """Its reports have the same bytes and hold no measurement: nothing is identical."""
    rejected = plain(make_rejected(EDIT))
    document = repeats_document([repeat(k, rejected) for k in (1, 2, 3)], "strict", "smoke")
    assert violations(document, "determinism-repeats") == []
    assert contradictions(document) == []
    assert (document["requested"], document["completed"]) == (3, 0)
    assert (document["cert_hashes_match"], document["measurements_identical"]) == (None, None)
    assert len(document["errors"]) == 3
    assert "not finite" in document["errors"][0]
    assert "were not compared: 0 of 3" in strict_difference(document)
    assert strict_difference(document | {"mode": "throughput"}) == ""


def test_a_comparison_of_nothing_is_a_contradiction(report: Document) -> None:
    """Agreement is claimed of windows, or it is refused."""
    document = repeats_document([repeat(1, report), repeat(2, report)], "strict", "smoke")
    document["fields"] = {k: v for k, v in document["fields"].items() if "windows" not in k}
    assert contradictions(document) == [
        "/fields hold no windows: nothing was measured that could agree"
    ]


def test_what_is_no_repeat_is_refused(report: Document) -> None:
    """Other windows, or another subject, are another evaluation."""
    other = repeat(2, report, windows_sha256="f" * 64)
    with pytest.raises(InputError, match="windows_sha256"):
        repeats_document([repeat(1, report), other], "strict", "smoke")
    with pytest.raises(InputError, match="no repeat"):
        repeats_document([], "strict", "smoke")


def test_the_subject_that_is_repeated() -> None:
    """A clean edit that changes something, else the user's subject, else a stress edit, else the
    no-op; damage, which may never be run, only where there is nothing else."""
    smoke = catalogue().select("smoke")
    assert subject_of(smoke).id == EDIT
    assert subject_of([s for s in smoke if s.category != "clean"]).id == "quant_4bit_stress"
    assert subject_of([scenario("nan_injection"), scenario("noop_clean")]).id == "noop_clean"
    assert subject_of([scenario("noop_clean")]).id == "noop_clean"
    assert subject_of([scenario("nan_injection")]).id == "nan_injection"
    byoe = catalogue().select("byoe")
    assert subject_of(byoe).id == "byoe"
    assert subject_of([*byoe, scenario("quant_4bit_stress")]).id == "byoe"
    assert subject_of([*byoe, scenario(EDIT)]).id == EDIT
    assert subject_of([s for s in byoe if s.category != "custom"]).id == "noop_clean"


# --- the command ----------------------------------------------------------------------------


def folders(out: Path, reports: list[Document]) -> list[str]:
    """Folders of repeats as the workflow leaves them."""
    found = []
    for k, document in enumerate(reports, 1):
        written = write_evaluation(evaluation_of(scenario(EDIT), document, run=k), out / str(k))
        found.append(str(written.rename(out / f"repeat_{k}")))
    return found


def analyze(out: Path, found: list[str], mode: str) -> int:
    """``advanced analyze repeats``; the exit code."""
    words = ["advanced", "analyze", "repeats", "--evaluation", *found, "--suite", "smoke"]
    return main([*words, "--determinism", mode, "--out", str(out)])


@pytest.mark.parametrize(("mode", "warned"), [("throughput", False), ("strict", True)])
def test_differences_are_warned_of_where_determinism_is_strict(
    tmp_path: Path, report: Document, mode: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The document is kept either way; strict says in one line what differs and by how much."""
    out = tmp_path / "determinism_repeats.json"
    assert analyze(out, folders(tmp_path, [report, changed(report)]), mode) == 0
    assert json.loads(out.read_text())["measurements_identical"] is False
    error = capsys.readouterr().err
    assert error.count("\n") == int(warned)
    if warned:
        assert error.startswith("warning: strict repeats of quant_8bit_clean on ")
        assert "nll_sum/* by up to 0.25, " in error
        assert "/validation/rmt_stable; " in error
        assert "determinism: throughput" in error


# --- packs ------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path, report: Document, key: Path) -> Path:
    """A signed pack with a comparison of repeats."""
    out = packs.write_suite(tmp_path / "out")
    analysis = out / "analysis" / "determinism_repeats.json"
    assert analyze(analysis, folders(tmp_path, [report, report]), "strict") == 0
    assert packs.build(out, tmp_path / "pack", "--analysis", str(analysis), key=key) == 0
    return tmp_path / "pack"


def test_a_pack_holds_the_comparison_and_its_manifest_says_so(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest repeats the summary; verification accepts it and says that it is believed."""
    manifest = json.loads((packed / "manifest.json").read_text())
    assert (manifest["repeats"], manifest["determinism"]) == (2, "strict")
    assert manifest["determinism_repeats"]["cert_hashes_match"] is True
    assert "fields" not in manifest["determinism_repeats"]
    capsys.readouterr()
    assert packs.verify(packed, "--strict", "--json") == 0
    assert "repeats" in " ".join(json.loads(capsys.readouterr().out)["believed"])


@pytest.mark.parametrize(("mode", "code"), [("throughput", 0), ("strict", 1)])
def test_differences_are_packed_and_fail_the_gate_where_strict(
    tmp_path: Path,
    report: Document,
    key: Path,
    mode: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The pack with the evidence verifies; ``gate`` on it and on the folder names the fields."""
    out, pack = packs.write_suite(tmp_path / "out"), tmp_path / "pack"
    analysis = out / "analysis" / "determinism_repeats.json"
    assert analyze(analysis, folders(tmp_path, [report, changed(report)]), mode) == 0
    assert packs.build(out, pack, "--analysis", str(analysis), key=key) == 0
    assert packs.verify(pack, "--strict") == 0
    for path in (out, pack):
        capsys.readouterr()
        assert main(["gate", str(path), "--junit", str(tmp_path / "gate.xml")]) == code
        line = capsys.readouterr().out
        assert line.count("\n") == 1
        assert line.startswith("FAIL: strict repeats of" if code else "PASS: 5 of 5")
        failures = ElementTree.parse(tmp_path / "gate.xml").findall(".//failure/..")
        assert [case.get("classname") for case in failures] == ["determinism"] * code


def test_a_comparison_that_cannot_be_is_refused(
    packed: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A publisher who turns two reports into two digests cannot still say that they match."""
    path = packed / "results/analysis/determinism_repeats.json"
    packs.edit_json(path, lambda d: d.update(cert_hashes=["a" * 64, "b" * 64]))
    packs.relist(packed, key)
    assert packs.verify(packed) == 6
    assert "/cert_hashes_match does not follow" in capsys.readouterr().out


def test_the_manifest_cannot_say_something_else(
    packed: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another count of repeats in the manifest than in the comparison."""
    parameters = {"repeats": 5, "determinism": "throughput"}
    packs.relist(packed, key, lambda d: d.update(repeats=5, invocation={"parameters": parameters}))
    assert packs.verify(packed) == 6
    out = capsys.readouterr().out
    assert "manifest.json: /repeats is 5; the files give 2" in out
    assert "/invocation/parameters/repeats is 5; the files give 2" in out
    assert "/invocation/parameters/determinism is 'throughput'; the files give 'strict'" in out


def test_a_published_comparison_is_left_alone(tmp_path: Path, key: Path) -> None:
    """Published packs hold a comparison of another shape at the same place; ours may not."""
    pack = published.harness_pack(tmp_path / "pack", key)
    other = {"requested": 2, "completed": 2, "cert_hashes": ["a", "b"], "cert_hashes_match": False}
    packs.write_json(pack / "results/analysis/determinism_repeats.json", other)
    for name in ("manifest.json", "manifest.signature.json", "checksums.sha256"):
        (pack / "metadata" / name).unlink()
        (pack / name).unlink()
    published.harness_manifest(pack, key)
    assert packs.verify(pack, "--strict") == 0


def test_only_known_analyses_are_packed(tmp_path: Path, key: Path) -> None:
    """--analysis takes the documents it knows by their names."""
    out = packs.write_suite(tmp_path / "out")
    (tmp_path / "other.json").write_text("{}")
    option = ("--analysis", str(tmp_path / "other.json"))
    assert packs.build(out, tmp_path / "pack", *option, key=key) == 4


# --- the workflow -------------------------------------------------------------------------------


def test_a_cpu_repeats_exactly(tmp_path: Path) -> None:
    """repeats=2 on a tiny model: the same bytes; a subject lives until its last repeat."""
    base = tmp_path / "base"
    write_tiny_folder(base)
    text = tmp_path / "speech.txt"
    text.write_text(" ".join(f"sentence {n} of {n * n} words." for n in range(60)))
    repository = link_repository(tmp_path / "repository")
    words = ["suite=byoe", "out=out", "repeats=2", "scenarios=extreme_quant", f"baseline={base}"]
    words += [f"subject={base}", f"text=local:{text}"]
    words += ["windows={seq_len: 16, preview: 4, final: 4, seed: 43}"]
    words += ["bootstrap={replicates: 200, alpha: 0.05}", "tier=none"]
    cpu = ("--profile", "profiles/cpu")
    measured = snakemake(repository, "out/base/runs/baseline/report.json", *cpu, config=words)
    assert measured.returncode == 0, measured.stdout[-3000:] + measured.stderr[-6000:]
    # a Python of its own for each repeat: forks have the same order of what is in a set
    alone = sys.executable
    done = snakemake(repository, "determinism", *cpu, config=words, python=alone)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    document = json.loads((repository / "out/analysis/determinism_repeats.json").read_text())
    assert violations(document, "determinism-repeats") == []
    assert (document["mode"], document["edit_name"]) == ("strict", "extreme_quant")
    assert (document["completed"], document["errors"]) == (2, [])
    assert document["cert_hashes_match"] is True
    assert document["differing"] == []
    assert document["fields"]["/evaluation_windows/final/nll_sum/*"]["max_abs_delta"] == 0.0
    made = repository / "out/base"
    reports = sorted((made / "determinism").rglob("evaluation.report.json"))
    assert [sha256_file(path) for path in reports] == document["cert_hashes"]
    assert not (made / "models/extreme_quant").exists()
    assert not (made / "reports").exists()
