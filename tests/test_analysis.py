"""What is said beside the verdict: worth of the guards, times, pages, and their place in packs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
from measuring_factory import read
from report_factory import (
    MODEL,
    catalogue,
    expected_report,
    make_evaluation,
    make_report,
    probed_report,
    replace,
    scenario,
    write_evaluation,
)

from invarlock.cli import main
from invarlock.contracts import violations
from invarlock.errors import ConfigError
from invarlock.files import slug, write_json
from invarlock.verdict.guard_value import guard_value
from invarlock.verdict.records import Evaluation
from invarlock.verdict.timings import contradictions, timings_document
from invarlock.verdict.verdict import judge_all

PROBES = ("rmt_norm_noise", "spectral_moderate_scale", "ve_mlp_scale_skew")
CLEAN = ("noop_clean", "quant_8bit_clean")
SWEEP = "guard_value_all_guard_probe_sweep.json"
Document = dict[str, Any]


def sweep(evaluations: list[Evaluation]) -> Document:
    """The sweep over the probes and clean edits of suite smoke."""
    scenarios = catalogue().select("smoke", [*CLEAN, *PROBES])
    document = guard_value(scenarios, evaluations, judge_all(scenarios, evaluations))
    assert violations(document, "guard-value-sweep") == []
    return document


def good() -> list[Evaluation]:
    """Every probe found by its own guard alone, every clean edit quiet."""
    found = [(scenario(n), expected_report(scenario(n))) for n in (*CLEAN, *PROBES)]
    return [make_evaluation(s, report) for s, report in found]


def replaced(name: str, report: Document | None, **outcome: Any) -> list[Evaluation]:
    """The same with the evaluation of one scenario replaced."""
    evaluations = good()
    replace(evaluations, name, report, **outcome)
    return evaluations


# --- worth of the guards ----------------------------------------------------------------------


def test_each_guard_finds_its_probe_alone() -> None:
    """One row a probe; its guard is the only one with something new, and the metric passes it."""
    document = sweep(good())
    assert [row["scenario"] for row in document["rows"]] == list(PROBES)
    for row in document["rows"]:
        guard = row["primary_guard"]
        assert row["unique"] == guard
        assert row["primary_metric"]["alone_passes"] is True
        assert [g for g, reading in row["guards"].items() if reading["new"]] == [guard]
        assert row["guards"][guard]["margin"] > 0
        assert row["guards"]["primary_metric"]["margin"] < 0
        assert row["parameters"]
    for guard in ("rmt", "spectral", "variance"):
        worth = document["summary"][guard]
        assert (worth["found"]["found"], worth["found"]["total"]) == (1, 1)
        assert worth["found"]["lower"] == pytest.approx(0.025)
        assert (worth["found_alone"], worth["metric_alone_passes"]) == (1, 1)
        assert (worth["negative_controls"]["flagged"], worth["negative_controls"]["total"]) == (
            0,
            2,
        )
    assert document["summary"]["invariants"]["found"] == {
        "found": 0, "total": 0, "lower": None, "upper": None, "level": 0.95
    }  # fmt: skip


def test_readings_are_those_of_the_report() -> None:
    """Statistic and threshold of the family that is furthest beyond its limit; both probes."""
    rows = {row["scenario"]: row for row in sweep(good())["rows"]}
    report = expected_report(scenario("rmt_norm_noise"))
    reading = rows["rmt_norm_noise"]["guards"]["rmt"]
    family = reading["statistic"].partition(":")[2]
    assert reading["value"] == report["rmt"]["families"][family]["ratio"]
    assert reading["threshold"] == 1 + report["rmt"]["families"][family]["epsilon"]
    assert rows["rmt_norm_noise"]["rmt_probe"]["stable"] is False
    assert rows["ve_mlp_scale_skew"]["ve_probe"]["signal"] is True
    assert rows["ve_mlp_scale_skew"]["ve_probe"]["proposed_scales"]
    assert rows["spectral_moderate_scale"]["rmt_probe"]["stable"] is True


def test_a_missed_probe_and_a_false_alarm_are_counted() -> None:
    """A probe that nobody sees is not found; a clean edit that a guard speaks on is flagged."""
    missed = sweep(replaced("rmt_norm_noise", make_report("rmt_norm_noise", 1.03)))
    assert (missed["summary"]["rmt"]["found"]["found"], missed["rows"][0]["unique"]) == (0, None)
    noisy = make_report("quant_8bit_clean", 1.004, edge={"model.layers.1.mlp.down_proj": 1.5})
    assert sweep(replaced("quant_8bit_clean", noisy))["summary"]["rmt"]["negative_controls"][
        "flagged"
    ] == 1  # fmt: skip


def test_what_the_no_op_shows_too_is_nothing_new() -> None:
    """A guard that also speaks on the unchanged model has not found the probe."""
    name = "model.layers.1.mlp.down_proj"
    alarmed = make_report("noop_clean", 1.0, edge={name: 1.5})
    document = sweep(replaced("noop_clean", alarmed))
    row = document["rows"][0]
    assert (row["guards"]["rmt"]["spoke"], row["guards"]["rmt"]["new"]) == (True, False)
    assert document["summary"]["rmt"]["found"]["found"] == 0
    missing = sweep([e for e in good() if e.scenario != "noop_clean"])["rows"][0]
    assert (missing["compared_with_noop"], missing["guards"]["rmt"]["new"]) == (False, True)
    scenarios = catalogue().select("smoke", PROBES)
    probes = good()[len(CLEAN) :]
    unasked = guard_value(scenarios, probes, judge_all(scenarios, probes))["rows"][0]
    assert (unasked["compared_with_noop"], unasked["guards"]["rmt"]["new"]) == (False, True)


def test_a_probe_that_the_metric_refuses_needs_no_guard() -> None:
    """The metric alone does not let it pass, and the guard is not alone in finding it."""
    report = make_report("rmt_norm_noise", 1.6, edge={"model.layers.1.mlp.down_proj": 1.5})
    document = sweep(replaced("rmt_norm_noise", report))
    worth = document["summary"]["rmt"]
    assert (worth["found"]["found"], worth["found_alone"]) == (1, 0)
    assert worth["metric_alone_passes"] == 0


def test_a_negative_control_is_no_probe_to_be_found() -> None:
    """Suite mistral_guard_value: four kinds of damage, one of them too small for any guard."""
    scenarios = catalogue().select("mistral_guard_value")
    control = "spectral_moderate_scale_attn_l31_o_s105"

    def worth(quiet: bool) -> Document:
        reports = {
            s.id: make_report(s.id, 1.0 if s.is_noop else 1.004)
            if s.is_noop or (quiet and s.id == control)
            else probed_report(s)
            for s in scenarios
        }
        evaluations = [make_evaluation(s, reports[s.id]) for s in scenarios]
        document = guard_value(scenarios, evaluations, judge_all(scenarios, evaluations))
        assert violations(document, "guard-value-sweep") == []
        assert len(document["rows"]) == 4
        summary: Document = document["summary"]
        return summary

    for quiet in (True, False):
        summary = worth(quiet)
        for guard in ("spectral", "rmt", "variance"):
            found = summary[guard]["found"]
            assert (found["found"], found["total"]) == (1, 1)
            assert (summary[guard]["found_alone"], summary[guard]["metric_alone_passes"]) == (1, 1)
            controls = summary[guard]["negative_controls"]
            flagged = int(not quiet and guard == "spectral")
            assert (controls["flagged"], controls["total"]) == (flagged, 2)


def test_a_crash_finds_nothing() -> None:
    """An evaluation without a result has a row, without readings."""
    document = sweep(replaced("ve_mlp_scale_skew", None, status="crashed"))
    row = next(r for r in document["rows"] if r["scenario"] == "ve_mlp_scale_skew")
    assert (row["status"], row["ve_probe"], row["unique"]) == ("crashed", None, None)
    assert row["guards"]["variance"]["value"] is None
    assert row["primary_metric"]["alone_passes"] is False
    assert document["summary"]["variance"]["found"]["found"] == 0


def test_a_selection_without_probes_has_no_sweep() -> None:
    """There is nothing to say about guards that nothing is aimed at."""
    scenarios = catalogue().select("smoke", CLEAN)
    with pytest.raises(ConfigError, match="probe"):
        guard_value(scenarios, [], [])


def test_the_sweep_is_packed_and_recomputed(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes it, a pack holds it, and a publisher cannot change it."""
    out = packs.write_suite(tmp_path / "out", (*CLEAN, *PROBES, "prune_50pct_stress"))
    file = out / "reports" / SWEEP
    folders = [str(path.parent) for path in sorted(out.rglob("outcome.json"))]
    words = ["--scenarios", str(out / "state/scenarios.json"), "--evaluation", *folders]
    assert main(["advanced", "analyze", "guard-value", *words, "--out", str(file)]) == 0
    pack = tmp_path / "pack"
    assert packs.build(out, pack, "--analysis", str(file), key=key) == 0
    assert packs.verify(pack, "--strict", "--replay") == 0

    def better(document: Document) -> None:
        document["summary"]["rmt"]["found_alone"] = 7

    packs.edit_json(pack / "reports" / SWEEP, better)
    packs.relist(pack, key)
    capsys.readouterr()
    assert packs.verify(pack) == 6
    assert "/summary/rmt/found_alone is 7; the reports give 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("verification_summary", lambda d: d.update(failed_reports=1)),
        ("analysis/edit_artifact_summary", lambda d: d["counts"].update(deployable=1)),
    ],
)
def test_summaries_of_a_pack_are_recomputed(
    tmp_path: Path, key: Path, name: str, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts by expectation and classes of subjects follow from the evaluations of a pack."""
    out, pack = packs.write_suite(tmp_path / "out"), tmp_path / "pack"
    assert packs.build(out, pack, key=key) == 0
    packs.edit_json(pack / f"results/{name}.json", change)
    packs.relist(pack, key)
    capsys.readouterr()
    assert packs.verify(pack) == 6
    assert f"results/{name}.json: /" in capsys.readouterr().out


# --- times --------------------------------------------------------------------------------------


def benchmark(path: Path, seconds: float) -> None:
    """A benchmark file as Snakemake writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t12.5\n")


@pytest.fixture
def timed(tmp_path: Path) -> tuple[Path, list[Path]]:
    """An output folder with known times, and its evaluations."""
    out, folders = tmp_path / "smoke", []
    logs = out / "logs" / slug(MODEL)
    benchmark(logs / "calibrate.benchmark.tsv", 7)
    benchmark(logs / "baseline_report.benchmark.tsv", 11)
    for name in ("quant_8bit_clean", "nan_injection"):
        evaluation = make_evaluation(scenario(name), expected_report(scenario(name)))
        folder = write_evaluation(evaluation, out)
        ran = name == "quant_8bit_clean"
        times = {"load_model": 1, "forward": 10, "spectral": 2, "variance": 3} if ran else {}
        write_json(folder / "runtime.manifest.json", {"context": {"timings_seconds": times}})
        benchmark(logs / name / "evaluate.1.benchmark.tsv", 20 if ran else 4)
        benchmark(logs / name / f"{'edit' if ran else 'inject'}.benchmark.tsv", 5)
        folders.append(folder)
    return out, folders


def test_times_are_added_up(timed: tuple[Path, list[Path]]) -> None:
    """Jobs by their benchmark files, phases by what the evaluations recorded."""
    document = timings_document(*timed, deferred=False)
    assert violations(document, "evaluation-optimization-summary") == []
    assert document["run_dir"] == "smoke"
    assert document["timing_totals_seconds"] == {
        "plan": 7, "baseline": 11, "subject": 16, "evaluation_report": 8, "total": 42
    }  # fmt: skip
    assert document["run_timing_totals_seconds"] == {
        "load_model": 1, "load_dataset": None, "prepare": None, "prepare_guards": None, "edit": 10,
        "guards": 5, "eval": 10, "finalize": 8, "execute": 15, "total": 34,
    }  # fmt: skip
    assert document["evaluation_reports_timed"] == document["baseline_report_reuse_count"] == 2
    assert document["deferred_rendering_count"] == document["grouped_evaluation_tasks"] == 0


def test_a_removed_benchmark_is_not_timed(timed: tuple[Path, list[Path]]) -> None:
    """What was removed counts as not timed; rendering together saves one process a report."""
    out, folders = timed
    (out / "logs" / slug(MODEL) / "nan_injection/evaluate.1.benchmark.tsv").unlink()
    document = timings_document(out, folders, deferred=True)
    assert document["evaluation_reports_timed"] == 1
    assert document["controls"]["PACK_DEFER_REPORT_RENDERING"] == "1"
    assert document["deferred_rendering_count"] == 2
    assert document["avoided_cli_process_invocations"] == 1


def test_times_are_packed_and_held_to_the_runtime_manifests(tmp_path: Path, key: Path) -> None:
    """Two packs of one run have the same bytes; sums that the manifests do not give are found."""
    out = packs.write_suite(tmp_path / "suite")
    folders = [str(path.parent) for path in sorted(out.rglob("outcome.json"))]
    file = out / "analysis/evaluation_optimization_summary.json"
    words = ["--run-dir", str(out), "--evaluation", *folders, "--out", str(file)]
    assert main(["advanced", "analyze", "timings", *words]) == 0
    for name in ("one", "two"):
        assert packs.build(out, tmp_path / name, key=key) == 0
    assert packs.snapshot(tmp_path / "one") == packs.snapshot(tmp_path / "two")
    packed = tmp_path / "one/results/analysis/evaluation_optimization_summary.json"
    assert packed.read_bytes() == file.read_bytes()
    assert packs.verify(tmp_path / "one", "--strict", "--replay") == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d: d.update(evaluation_reports_timed=3),
         "/evaluation_reports_timed is 3; there are 2 evaluations"),
        (lambda d: d.update(baseline_report_reuse_count=1),
         "/baseline_report_reuse_count is 1; the evaluations give 2"),
        (lambda d: d.update(deferred_rendering_count=2),
         "/deferred_rendering_count is 2; the evaluations give 0"),
        (lambda d: d["run_timing_totals_seconds"].update(load_model=0.0),
         "/run_timing_totals_seconds/load_model is 0.0; the runtime manifests give 1.000"),
        (lambda d: d["timing_totals_seconds"].update(total=1.0),
         "/timing_totals_seconds/total is 1.0; its parts give"),
    ],
)  # fmt: skip
def test_a_summary_of_times_that_contradicts_itself(
    timed: tuple[Path, list[Path]], change: Callable[[Document], object], line: str
) -> None:
    """Counts and phases follow from the evaluations, totals from their parts."""
    out, folders = timed
    document = timings_document(out, folders, deferred=False)
    phases = [read(f, "runtime.manifest.json")["context"]["timings_seconds"] for f in folders]
    assert list(contradictions(document, phases)) == []
    change(document)
    assert any(found.startswith(line) for found in contradictions(document, phases))


def test_fewer_times_than_evaluations(timed: tuple[Path, list[Path]]) -> None:
    """Where a benchmark file was removed the phases are those of the others, and no more."""
    out, folders = timed
    phases = [read(f, "runtime.manifest.json")["context"]["timings_seconds"] for f in folders]
    (out / "logs" / slug(MODEL) / "nan_injection/evaluate.1.benchmark.tsv").unlink()
    document = timings_document(out, folders, deferred=False)
    assert list(contradictions(document, phases)) == []
    document["run_timing_totals_seconds"]["eval"] += 100
    assert list(contradictions(document, phases))


# --- pages --------------------------------------------------------------------------------------


def test_pages_of_many_reports_are_those_of_one(tmp_path: Path) -> None:
    """One process for all: the bytes of `report`, `report html` and `verify` for each."""
    reports = [write_evaluation(e, tmp_path / "out") / "evaluation.report.json" for e in good()[:3]]
    assert main(["advanced", "pages", *map(str, reports)]) == 0
    for report in reports:
        alone = tmp_path / "alone" / report.parent.parent.name
        alone.mkdir(parents=True)
        words = ["--report", str(report), "--out"]
        markdown = ["--format", "markdown"]
        assert main(["report", *words, str(alone / "evaluation.md"), *markdown]) == 0
        assert main(["report", "html", *words, str(alone / "evaluation.html")]) == 0
        words = ["verify", str(report), "--runtime-provenance", "host", "--out"]
        assert main([*words, str(alone / "verify.json")]) in (0, 1)  # 1: a gate does not hold
        # by the report's name alone, as packs name no folder
        verified = alone / "verify.json"
        verified.write_text(verified.read_text().replace(str(report), report.name))
        for path in alone.iterdir():
            assert path.read_bytes() == (report.parent / path.name).read_bytes(), path.name


def test_a_report_that_does_not_pass_its_check_has_pages(tmp_path: Path) -> None:
    """What the re-check finds is a result: it stands in verify.json."""
    folder = write_evaluation(good()[1], tmp_path / "out")
    report = folder / "evaluation.report.json"
    packs.edit_json(report, lambda d: d["primary_metric"].update(ratio_vs_baseline=1.5))
    assert main(["advanced", "pages", str(report)]) == 0
    assert json.loads((folder / "verify.json").read_text())["results"][0]["ok"] is False
    assert re.search("<html", (folder / "evaluation.html").read_text())
