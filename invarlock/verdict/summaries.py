"""The summaries, the artefact summary and the counts: all that follows from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from invarlock.pages.reading import block
from invarlock.reporting.signals import CORE_GUARDS
from invarlock.scenarios import Scenario
from invarlock.verdict.records import Evaluation, VerdictRecord

SUMMARIES = (
    "category_summary",
    "guard_signal_summary",
    "guard_intervention_summary",
    "scenario_signal_summary",
)
ANALYSIS = "analysis/"  # in an output folder beside reports/, in a pack below results/
# Every document beside the verdict, by its name below the folder of results.
DOCUMENTS = (*SUMMARIES, "verification_summary", f"{ANALYSIS}edit_artifact_summary")
ARTIFACT_SUMMARY_SCHEMA = "invarlock/evidence-pack-edit-artifact-summary-v1"
LANES = {
    "validation_subject_checkpoint": "validation_subjects",
    "deployable_optimized_subject": "deployable_subjects",
    "fault_injection_fixture": "fault_injection",
}


def category_summary(records: Sequence[VerdictRecord]) -> dict[str, dict[str, int]]:
    """``reports/category_summary.json``."""
    result: dict[str, dict[str, int]] = {}
    for category in sorted({r.category for r in records}):
        members = [r for r in records if r.category == category]
        result[category] = {
            "scenarios": len({r.name for r in members}),
            "reports": len(members),
            "primary_metric_fail": _count(r.guard_flags["primary_metric"] for r in members),
            "invariants_fail": _count(r.guard_flags["invariants_fail"] for r in members),
            "invariants_warn": _count(r.guard_flags["invariants_warn"] for r in members),
            "any_flag": _count(r.any_core_guard_flag for r in members),
        }
    return result


def _count(values: Iterable[bool]) -> int:
    return sum(values)


def _signals(rows: Sequence[Mapping[str, bool]], names: Sequence[str]) -> dict[str, Any]:
    """How often each signal was there, and how often it was the only one."""
    signals = {
        name: {
            "flagged": _count(row[name] for row in rows),
            "unique": _count(row[name] and sum(row.values()) == 1 for row in rows),
        }
        for name in names
    }
    return {"records_total": len(rows), "signals": signals}


def guard_signal_summary(records: Sequence[VerdictRecord]) -> dict[str, Any]:
    """``reports/guard_signal_summary.json``: which core guard fired, and which fired alone."""
    rows = [{g: r.guard_flags[g] for g in CORE_GUARDS} for r in records]
    return _signals(rows, CORE_GUARDS)


def guard_intervention_summary(records: Sequence[VerdictRecord]) -> dict[str, Any]:
    """``reports/guard_intervention_summary.json``: caps and variance signals."""
    rows = [
        {
            "spectral_caps": (r.spectral_caps_applied or 0) >= 1,
            "ve_signal": r.guard_flags["variance"],
        }
        for r in records
    ]
    return _signals(rows, ("spectral_caps", "ve_signal"))


def scenario_signal_summary(
    scenarios: Sequence[Scenario], records: Sequence[VerdictRecord]
) -> list[dict[str, Any]]:
    """``reports/scenario_signal_summary.json``: one entry per scenario, in manifest order."""
    return [_scenario_row(s, [r for r in records if r.name == s.id]) for s in scenarios]


def _scenario_row(scenario: Scenario, records: Sequence[VerdictRecord]) -> dict[str, Any]:
    return {
        "id": scenario.id,
        "category": scenario.category,
        "strictness": scenario.strictness,
        "intent": scenario.intent,
        "primary_guard": scenario.primary_guard,
        "primary_guard_required": scenario.primary_guard_required,
        "reports": len(records),
        "passed": _count(r.passed for r in records),
        "failed": _count(not r.passed for r in records),
        "detector_hits": _count(r.detectors_hit for r in records),
        "signaled": _count(r.any_core_guard_flag for r in records),
        "primary_guard_hits": _count(r.primary_guard_hit for r in records),
    }


def verification_counts(records: Sequence[VerdictRecord]) -> dict[str, int]:
    """How many reports of which kind a pack holds, and how many contradict their scenario."""
    return {
        "clean_reports": _count(r.category in ("clean", "custom") and r.passed for r in records),
        "error_injection_reports": _count(r.category == "error_injection" for r in records),
        "expected_failure_reports": _count(
            r.strictness in ("must_fail", "must_detect") and r.as_expected for r in records
        ),
        "failed_reports": _count(not r.as_expected for r in records),
    }


def verification_summary(
    verdict: Mapping[str, Any], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """``reports/verification_summary.json``: the verdict's counts, and by whose demands."""
    profiles = {str(block(e.report, "context").get("profile")) for e in evaluations if e.report}
    names = ("clean_reports", "error_injection_reports", "expected_failure_reports")
    return {
        **{name: verdict["counts"][name] for name in (*names, "failed_reports")},
        "policy_profile": ",".join(sorted(profiles)) or None,
    }


def documents(
    verdict: Mapping[str, Any], scenarios: Sequence[Scenario], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """What ``DOCUMENTS`` names, by those names."""
    more = (
        verification_summary(verdict, evaluations),
        edit_artifact_summary(scenarios, evaluations),
    )
    return dict(zip(DOCUMENTS, (*(verdict[name] for name in SUMMARIES), *more), strict=True))


def edit_artifact_summary(
    scenarios: Sequence[Scenario], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """``analysis/edit_artifact_summary.json``: what the subjects were, by their metadata."""
    classes: Counter[str] = Counter()
    by_scenario: dict[str, dict[str, Any]] = {}
    for scenario in scenarios:
        members = [e for e in evaluations if e.scenario == scenario.id]
        classes[scenario.artifact_class] += len(members)
        named = [e.metadata for e in members if e.metadata is not None]
        by_scenario[scenario.id] = {
            "artifact_class": scenario.artifact_class,
            "category": scenario.category,
            "failure_class": str(scenario.entry["failure_class"]),
            "generation_kind": scenario.kind,
            "edit_type": scenario.edit_type or scenario.error_type,
            "storage_format": _text(named[0].get("actual_storage_format")) if named else None,
            "metadata_present": bool(members) and len(named) == len(members),
            "deployable_validation_ok": _all_say(members, "ok", scenario),
            "load_smoke": _all_say(members, "load_smoke", scenario),
            "inference_smoke": _all_say(members, "inference_smoke", scenario),
        }
    return {
        "schema": ARTIFACT_SUMMARY_SCHEMA,
        "counts": dict(sorted(classes.items())),
        "evidence_lanes": {lane: classes[name] for name, lane in LANES.items()},
        "deployable_subjects": _deployable_subjects(scenarios, evaluations),
        "by_scenario": by_scenario,
    }


def _all_say(
    evaluations: Sequence[Evaluation], member: str, scenario: Scenario | None = None
) -> bool | None:
    """Whether every deployable subject is recorded so; None where there is none."""
    if not evaluations or (scenario is not None and not scenario.is_deployable):
        return None
    return all(e.deployable is not None and e.deployable.get(member) is True for e in evaluations)


def _deployable_subjects(
    scenarios: Sequence[Scenario], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """The deployable lane in a few words."""
    names = {scenario.id for scenario in scenarios if scenario.is_deployable}
    members = [e for e in evaluations if e.scenario in names]
    ran = {_ran(e.deployable) for e in members if e.deployable is not None}
    return {
        "count": len({(e.model, e.scenario) for e in members}),
        "backends": sorted(filter(None, ran)),
        "all_reload_smokes_passed": _all_say(members, "load_smoke"),
        "all_inference_smokes_passed": _all_say(members, "inference_smoke"),
    }


def _ran(document: Mapping[str, Any]) -> str | None:
    """What ran a subject, and the format of its files; None where nothing did."""
    backend = _text(document.get("backend"))
    return f"{backend} ({document.get('format')})" if backend else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
