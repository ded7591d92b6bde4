"""What ``invarlock evaluate`` writes beside the run report: report, manifest, outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock import __version__
from invarlock.contracts import validate
from invarlock.files import (
    canonical_json,
    read_json_object,
    sha256_file,
    write_bytes,
    write_json,
)
from invarlock.metrics.cost import cost
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.looks import level_of, stated
from invarlock.metrics.perplexity import Bootstrap
from invarlock.policy import POLICY_PACK
from invarlock.reporting import probes
from invarlock.reporting.dashboard import told
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.runs import Comparison, of_windows
from invarlock.reporting.runtime_manifest import Circumstances, write_runtime_manifest
from invarlock.run.determinism import network_allowed, plugins_allowed, set_offline
from invarlock.scenarios import CUSTOM_SPEC
from invarlock.verdict.timings import GUARD_PHASES

if TYPE_CHECKING:
    from invarlock.cli.job import Job
    from invarlock.metrics.distribution import TokenShift

EVALUATION_NAME, OUTCOME_NAME = "evaluation.report.json", "outcome.json"


@dataclass(frozen=True)
class Result:
    """How an evaluation ended and what was measured."""

    baseline: Mapping[str, Any]
    subject: Mapping[str, Any]
    status: str
    exit_code: int = 0
    error: str | None = None
    shift: TokenShift | None = None
    excerpts: Sequence[Mapping[str, Any]] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    memory_mb: Mapping[str, float] = field(default_factory=dict)
    share: float | None = None  # of the look that it is of; None: nobody looked before the end


def comparison_for(job: Job, result: Result) -> Comparison:
    """The comparison of an evaluation; of the baseline's windows those that the subject ran."""
    metric = METRICS[result.baseline["meta"]["metric"]]
    alpha, early = job.alpha, None
    if result.share is not None:
        alpha = level_of(result.share, job.alpha)
        planned = {arm: len(rows["window_ids"]) for arm, rows in _arms(result.baseline).items()}
        early = stated(result.share, job.alpha, planned)
    return Comparison(
        baseline=of_windows(result.baseline, result.subject) if early else result.baseline,
        subject=result.subject,
        bootstrap=Bootstrap(job.replicates, alpha, job.seed, metric.interval),
        profile=job.profile,
        assurance=job.assurance,
        reason_not_run="" if result.status == "reported" else result.status,
        shift=result.shift,
        accepted=job.accept,
        early=early,
    )


def _arms(run: Mapping[str, Any]) -> Mapping[str, Any]:
    arms: Mapping[str, Any] = run["evaluation_windows"]
    return arms


def write_results(job: Job, result: Result) -> None:
    """Write ``evaluation.report.json``, ``runtime.manifest.json`` and, last, ``outcome.json``."""
    out = job.out
    measured = result.status in ("reported", "rejected_by_invariants")
    policy, preset = job.policy(result.baseline["meta"]["checkpoint_sha256"])
    overlay = job.overlay()
    comparison = replace(
        comparison_for(job, result),
        invariants_evaluated=measured and not job.backend,
        excerpts=result.excerpts,
        preset_sha256=preset,
        policy_pack=overlay.named if overlay else None,
    )
    report = evaluation_report(comparison, policy)
    validate(report, "evaluation-report", str(out / EVALUATION_NAME))
    write_bytes(out / EVALUATION_NAME, canonical_json(report) + b"\n")
    if overlay:
        write_json(out / POLICY_PACK, dict(overlay.document))
    for name in probes.wanted(job.entry.get("requirements", {}), report):
        probe = probes.probe_of(name, report)
        validate(probe, probes.CONTRACTS[name], str(out / name))
        write_json(out / name, probe)
    write_runtime_manifest(
        out / EVALUATION_NAME,
        Circumstances(
            network=network_allowed() or bool(job.backend),
            remote_code=job.allow_remote_code,
            third_party_plugins=plugins_allowed(),
            execution=job.execution,
            config=job.config_record,
        ),
        _context(job, result),
    )
    write_json(out / OUTCOME_NAME, _outcome(job, result, report))


def _context(job: Job, result: Result) -> dict[str, Any]:
    return {
        "command": "evaluate",
        "profile": job.profile,
        "tier": job.tier,
        "assurance": job.assurance,
        "attempt": job.attempt,
        "invarlock_version": __version__,
        "timings_seconds": dict(result.timings),
        "memory_mb": dict(result.memory_mb),
        "telemetry": cost(result.timings, result.memory_mb, _tokens(result.subject)),
        "guard_overhead": guard_overhead(result.timings, result.memory_mb),
    }


def _tokens(run: Mapping[str, Any]) -> int:
    """Predicted tokens of a run's windows; 0 where it has none."""
    return sum(sum(rows["token_counts"]) for rows in run["evaluation_windows"].values())


def guard_overhead(
    timings: Mapping[str, float], memory_mb: Mapping[str, float]
) -> dict[str, Any] | None:
    """Time and memory of the guards over those of the bare pass; None where nothing ran."""
    if not timings:
        return None
    guards = {name: timings[name] for name in GUARD_PHASES}
    return {
        "seconds": guards,
        "time_ratio": round(sum(guards.values()) / timings["forward"], 4),
        "memory_ratio": round(memory_mb["with_guards"] / memory_mb["forward"], 4),
    }


def _outcome(job: Job, result: Result, report: Mapping[str, Any]) -> dict[str, Any]:
    from invarlock.verdict.detectors import evaluate_detectors

    entry = job.entry
    found = evaluate_detectors(entry.get("requirements", {}), report)
    usable = result.status in ("reported", "rejected_by_invariants")
    subject = result.subject["meta"]["checkpoint_sha256"]
    injected = None
    if job.edit_metadata and entry.get("generation", {}).get("kind") == "error":
        injected = read_json_object(job.edit_metadata).get("injected") is True
    return {
        "schema": "invarlock/outcome-v1",
        "model_id": job.model_id,
        "scenario": entry.get("id", job.edit_label or CUSTOM_SPEC),
        "run": job.run_number,
        "status": result.status,
        "exit_code": result.exit_code,
        "injected": injected,
        "detectors_hit": found.hit if usable else [],
        "detectors_missed": found.missed,
        "windows_sha256": sha256_file(job.windows),
        "subject_sha256": subject,
        "baseline_sha256": result.baseline["meta"]["checkpoint_sha256"],
        "preset_sha256": report["policy_provenance"]["preset_sha256"],
        "attempt": job.attempt,
        "token_budget": job.token_budget,
        "error": result.error,
    }


def record_failure(job: Job, status: str, exit_code: int, error: str) -> None:
    """Record an evaluation that measured nothing: it never passes and never detects."""
    set_offline(job.allow_network)  # as the worker did, whose switches are recorded
    out = job.out
    baseline = read_json_object(job.reference / "report.json")
    subject: dict[str, Any] = {
        "meta": {**baseline["meta"], "run_id": f"not-run-{status}", "checkpoint_sha256": None},
        "checkpoint": None,
        "edit": {"name": job.edit_label or CUSTOM_SPEC, "scenario": job.scenario_id},
        "guards": [],
        "evaluation_windows": {},
    }
    write_json(out / "report.json", {"schema": "invarlock/run-report-v1", **subject})
    write_bytes(out / "events.jsonl", canonical_json({"seq": 0, "event": status}) + b"\n")
    if job.edit_metadata:
        write_bytes(out / job.edit_metadata.name, job.edit_metadata.read_bytes())
    write_results(job, Result(baseline, subject, status, exit_code, error))


def summary_line(out: Path) -> str:
    """One line for the person who typed the command."""
    outcome = read_json_object(out / OUTCOME_NAME)
    report = read_json_object(out / EVALUATION_NAME)
    return f"{outcome['scenario']}: {outcome['status']}; {told(report)}"


def telemetry_line(out: Path) -> str:
    """The line that ``INVARLOCK_TELEMETRY`` asks for."""
    return str(read_json_object(out / EVALUATION_NAME)["telemetry"]["summary_line"])
