"""``reports/guard_value_all_guard_probe_sweep.json``: what each guard says about the probes.

The primary metric alone lets weak damage pass. The probes are such damage, each aimed at one
guard; the sweep shows which guard finds it, which finds it alone, and which speak on the negative
controls: harmless edits, and changes too small for any guard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from invarlock.errors import ConfigError
from invarlock.guards import BY_NAME, GUARDS
from invarlock.guards.guard import Statistic, statistic
from invarlock.pages.reading import Report, block, evaluated
from invarlock.reporting import signals
from invarlock.scenarios import Scenario
from invarlock.verdict.intervals import rate
from invarlock.verdict.records import (
    NOTHING_FOUND,
    Evaluation,
    VerdictRecord,
    in_every_run,
    noop_reports,
)

NAME = "guard_value_all_guard_probe_sweep"
SCHEMA = "invarlock/guard-value-sweep-v1"
PROBES = ("rmt_norm_noise", "spectral_moderate_scale", "ve_mlp_scale_skew")  # error types


def guard_value(
    scenarios: Sequence[Scenario],
    evaluations: Sequence[Evaluation],
    records: Sequence[VerdictRecord],
) -> dict[str, Any]:
    """The document, from judged evaluations in the order of their records.

    Raises:
        ConfigError: no scenario of the selection is a probe.
    """
    by_id = {s.id: s for s in scenarios}
    probes = {s.id for s in scenarios if s.error_type in PROBES}
    if not probes:
        raise ConfigError(
            "no scenario of the selection is a guard's probe",
            expected=f"an injection of {', '.join(PROBES)}",
        )
    by_key = {e.key: e for e in evaluations}
    noops = noop_reports(scenarios, evaluations)
    rows = []
    new: dict[tuple[str, str, int], frozenset[str]] = {}
    for record in records:
        key = record.model, record.name, record.run_num
        noop = noops.get(record.model)
        new[key] = frozenset(_new(record, noop))
        if record.name in probes:
            rows.append(_row(by_id[record.name], record, by_key[key].report, noop))
    aimed = [r for r in records if r.name in probes and not _is_control(r)]
    controls = [r for r in records if _is_control(r) and r.measured]
    return {
        "schema": SCHEMA,
        "core_guard_order": list(signals.CORE_GUARDS),
        "rows": rows,
        "summary": {
            guard: _summary(guard, [r for r in aimed if r.primary_guard == guard], controls, new)
            for guard in signals.CORE_GUARDS
        },
    }


def _is_control(record: VerdictRecord) -> bool:
    """Whether every guard has to be silent: a clean edit, or a change meant to be too small."""
    return record.category == "clean" or record.intent == "negative_control"


def _new(record: VerdictRecord, noop: Report | None) -> list[str]:
    """The guards that fired and do not fire for the no-op; without one, all that fired."""
    return [guard for guard in record.fired if not signals.guard_fired(noop, guard)]


def _summary(
    guard: str,
    aimed: Sequence[VerdictRecord],
    controls: Sequence[VerdictRecord],
    new: Mapping[tuple[str, str, int], frozenset[str]],
) -> dict[str, Any]:
    """One count per model and scenario; all runs of it have to agree."""

    def found(record: VerdictRecord) -> bool:
        return guard in new[record.model, record.name, record.run_num]

    def alone(record: VerdictRecord) -> bool:
        return new[record.model, record.name, record.run_num] == {guard}

    return {
        "found": rate("found", in_every_run(aimed, found)),
        "found_alone": sum(in_every_run(aimed, alone)),
        "metric_alone_passes": sum(in_every_run(aimed, _metric_passes)),
        "negative_controls": rate(
            "flagged",
            [not quiet for quiet in in_every_run(controls, lambda r: not r.guard_flags[guard])],
        ),
    }


def _metric_passes(record: VerdictRecord) -> bool:
    """Whether the primary metric was measured and is acceptable."""
    refused = any(signals.of_metric(reason) for reason in record.reasons)
    return record.decision is not None and not refused


def _row(
    scenario: Scenario, record: VerdictRecord, report: Report | None, noop: Report | None
) -> dict[str, Any]:
    report = report if record.measured and report is not None else {}
    new = _new(record, noop)
    metric = block(report, "primary_metric")
    return {
        "model": record.model,
        "scenario": record.name,
        "run": record.run_num,
        "status": record.status,
        "error_type": scenario.error_type,
        "parameters": dict(scenario.parameters),
        "strictness": record.strictness,
        "primary_guard": record.primary_guard,
        "primary_metric": {
            "kind": record.metric,
            "ratio_vs_baseline": record.ratio_vs_baseline,
            "display_ci": record.display_ci,
            "limit": metric.get("limit"),
            "decision": record.decision,
            "alone_passes": _metric_passes(record),
        },
        "guards": {
            g: _reading(g, report, g in record.fired, g in new) for g in signals.CORE_GUARDS
        },
        "unique": new[0] if len(new) == 1 else None,
        "compared_with_noop": noop is not None and noop is not NOTHING_FOUND,
        **{
            guard.probe_file.detector: _members(report, guard.name, guard.probe_file.members)
            for guard in GUARDS
            if guard.probe_file
        },
    }


def _reading(guard: str, report: Report, fired: bool, new: bool) -> dict[str, Any]:
    found = None
    if evaluated(report, guard):
        section = block(report, guard)
        found = BY_NAME[guard].statistic(section) if guard in BY_NAME else _of_metric(section)
    name, value, threshold = found or (None, None, None)
    margin = None if value is None or threshold is None else value - threshold
    return {
        "spoke": fired,
        "new": new,
        "statistic": name,
        "value": value,
        "threshold": threshold,
        "margin": margin,  # above 0: beyond the threshold
    }


def _members(report: Report, name: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """Members of a guard's section; None where it measured nothing."""
    section = block(report, name)
    return {key: section.get(key) for key in keys} if evaluated(report, name) else None


def _of_metric(section: Mapping[str, Any]) -> Statistic | None:
    return statistic("ratio_vs_baseline", section.get("ratio_vs_baseline"), section.get("limit"))
