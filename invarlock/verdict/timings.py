"""``analysis/evaluation_optimization_summary.json``: where the time of a run went.

From the benchmark files of the jobs and the timings in ``runtime.manifest.json``. It holds
times, as those manifests do, so that two runs of the same inputs differ in it; two packs of one
run do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from invarlock.errors import InputError
from invarlock.files import read_json_object
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST

SCHEMA = "invarlock/evidence-pack-evaluation-optimization-summary-v1"
# bare_batch: the calibration windows once more, without hooks
GUARD_PHASES = ("invariants", "spectral", "rmt", "variance", "bare_batch")
# Phases of the published harness that are no steps of their own here.
NOT_SEPARATE = ("load_dataset", "prepare", "prepare_guards")
ROUNDED = 0.01  # seconds that sums of numbers with three decimals may be off by


def timings_document(run_dir: Path, evaluations: Sequence[Path], deferred: bool) -> dict[str, Any]:
    """The document, from an output folder and the folders of its evaluations.

    A job whose benchmark file was removed is not timed; ``evaluation_reports_timed`` says how
    many were.
    """
    logs = run_dir / "logs"
    phases: Counter[str] = Counter()
    jobs: list[float] = []
    for folder in evaluations:
        model, scenario, run = folder.parts[-4], folder.parts[-2], folder.name.rpartition("_")[2]
        seconds = _seconds(logs / model / scenario / f"evaluate.{run}.benchmark.tsv")
        if seconds is not None:
            jobs.append(seconds)
            phases.update(_phases(folder / RUNTIME_MANIFEST))
    models = sorted({folder.parts[-4] for folder in evaluations})
    made = {(folder.parts[-4], folder.parts[-2]) for folder in evaluations}
    edits = _total(
        logs / model / scenario / f"{verb}.benchmark.tsv"
        for model, scenario in sorted(made)
        for verb in ("edit", "inject")
    )
    guards = math.fsum(phases[name] for name in GUARD_PHASES)
    measured = phases["load_model"] + guards + phases["forward"]
    evaluate = math.fsum(jobs)
    totals = {
        "plan": _total(logs / model / "calibrate.benchmark.tsv" for model in models),
        "baseline": _total(logs / model / "baseline_report.benchmark.tsv" for model in models),
        "subject": measured,
        "evaluation_report": max(0.0, evaluate - measured),
    }
    steps = {
        "load_model": phases["load_model"],
        **dict.fromkeys(NOT_SEPARATE),
        "edit": edits,
        "guards": guards,
        "eval": phases["forward"],
        "finalize": totals["evaluation_report"],
        "execute": guards + phases["forward"],
        "total": edits + evaluate,
    }
    count = len(evaluations)
    return {
        "schema": SCHEMA,
        "run_dir": run_dir.resolve().name,
        "controls": {
            "PACK_GROUP_EVALUATIONS": "0",
            "PACK_DEFER_REPORT_RENDERING": str(int(deferred)),
        },
        "evaluation_reports_timed": len(jobs),
        "baseline_report_reuse_count": count,
        "deferred_rendering_count": count if deferred else 0,
        "grouped_evaluation_tasks": 0,
        "grouped_evaluation_entries": 0,
        "avoided_cli_process_invocations": max(0, count - 1) if deferred else 0,
        "timing_totals_seconds": _rounded({**totals, "total": math.fsum(totals.values())}),
        "run_timing_totals_seconds": _rounded(steps),
    }


def contradictions(document: Mapping[str, Any], phases: Sequence[object]) -> Iterator[str]:
    """What a document that follows its contract says, and the evaluations beside it do not.

    How long whole jobs took is in no other file; how long their phases took is.

    Args:
        document: the summary.
        phases: ``timings_seconds`` of each evaluation's runtime manifest, whatever it is.
    """
    count, timed = len(phases), document["evaluation_reports_timed"]
    deferred = document["controls"]["PACK_DEFER_REPORT_RENDERING"] == "1"
    wanted: dict[str, float] = {
        "baseline_report_reuse_count": count,
        "deferred_rendering_count": count if deferred else 0,
        "avoided_cli_process_invocations": max(0, count - 1) if deferred else 0,
    }
    for name, number in wanted.items():
        if document[name] != number:
            yield f"/{name} is {document[name]}; the evaluations give {number}"
    if timed > count:
        yield f"/evaluation_reports_timed is {timed}; there are {count} evaluations"
    totals, steps = document["timing_totals_seconds"], document["run_timing_totals_seconds"]
    measured = Counter[str]()
    for one in phases:
        measured.update(_numbers(one))
    guards = math.fsum(measured[name] for name in GUARD_PHASES)
    given = {"load_model": measured["load_model"], "guards": guards, "eval": measured["forward"]}
    for name, number in given.items():
        # without some benchmark files, fewer evaluations are timed than the pack holds
        if steps[name] > number + ROUNDED or (timed == count and steps[name] < number - ROUNDED):
            yield (
                f"/run_timing_totals_seconds/{name} is {steps[name]}; "
                f"the runtime manifests give {number:.3f}"
            )
    sums = (
        ("/timing_totals_seconds/total", totals["total"],
         math.fsum(v for k, v in totals.items() if k != "total")),
        ("/timing_totals_seconds/subject", totals["subject"],
         steps["load_model"] + steps["guards"] + steps["eval"]),
        ("/run_timing_totals_seconds/execute", steps["execute"], steps["guards"] + steps["eval"]),
        ("/run_timing_totals_seconds/finalize", steps["finalize"], totals["evaluation_report"]),
    )  # fmt: skip
    for pointer, said, number in sums:
        if abs(said - number) > ROUNDED:
            yield f"{pointer} is {said}; its parts give {number:.3f}"


def _numbers(phases: object) -> dict[str, float]:
    """The phases that are numbers; of a manifest that is none, the step of the reports speaks."""
    found = phases if isinstance(phases, Mapping) else {}
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}


def _rounded(seconds: Mapping[str, float | None]) -> dict[str, float | None]:
    return {k: None if v is None else round(float(v), 3) for k, v in seconds.items()}


def _phases(manifest: Path) -> dict[str, float]:
    found = read_json_object(manifest).get("context", {}).get("timings_seconds") or {}
    return {str(name): float(seconds) for name, seconds in found.items()}


def _total(benchmarks: Iterable[Path]) -> float:
    return math.fsum(seconds for path in benchmarks if (seconds := _seconds(path)) is not None)


def _seconds(benchmark: Path) -> float | None:
    """Wall time in a benchmark file: the column ``s`` of its last row."""
    if not benchmark.is_file() or not benchmark.stat().st_size:  # of a job that failed
        return None
    rows = [line.split("\t") for line in benchmark.read_text().splitlines() if line]
    try:
        return float(rows[-1][rows[0].index("s")])
    except (IndexError, ValueError) as error:
        raise InputError("is no benchmark file", where=str(benchmark)) from error
