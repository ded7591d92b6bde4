"""``reports/guard_value_all_guard_probe_sweep.json``: what each guard says about the probes.

The primary metric alone lets weak damage pass. The probes are such damage, each aimed at one
guard; the sweep shows which guard finds it, which finds it alone, and which speak on the negative
controls: harmless edits, and changes too small for any guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from invarlock.errors import ConfigError
from invarlock.reporting import signals
from invarlock.reporting.signals import Report, block
from invarlock.scenarios import Scenario
from invarlock.verdict.intervals import rate
from invarlock.verdict.records import UNTOUCHED, Evaluation, Record, noop_reports, units

NAME = "guard_value_all_guard_probe_sweep"
SCHEMA = "invarlock/guard-value-sweep-v1"
PROBES = ("rmt_norm_noise", "spectral_moderate_scale", "ve_mlp_scale_skew")  # error types
Statistic = tuple[str, float, float]  # what it is, its value, and what it is held against


def guard_value(
    scenarios: Sequence[Scenario],
    evaluations: Sequence[Evaluation],
    records: Sequence[Record],
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


def _is_control(record: Record) -> bool:
    """Whether every guard has to be silent: a clean edit, or a change meant to be too small."""
    return record.category == "clean" or record.intent == "negative_control"


def _new(record: Record, noop: Report | None) -> list[str]:
    """The guards that spoke and are silent about the no-op; without one, all that spoke."""
    return [guard for guard in record.spoke if not signals.guard_spoke(noop, guard)]


def _summary(
    guard: str,
    aimed: Sequence[Record],
    controls: Sequence[Record],
    new: Mapping[tuple[str, str, int], frozenset[str]],
) -> dict[str, Any]:
    """One count per model and scenario; all runs of it have to agree."""

    def found(record: Record) -> bool:
        return guard in new[record.model, record.name, record.run_num]

    def alone(record: Record) -> bool:
        return new[record.model, record.name, record.run_num] == {guard}

    return {
        "found": rate("found", units(aimed, found)),
        "found_alone": sum(units(aimed, alone)),
        "metric_alone_passes": sum(units(aimed, _metric_passes)),
        "negative_controls": rate(
            "flagged", [not quiet for quiet in units(controls, lambda r: not r.guard_flags[guard])]
        ),
    }


def _metric_passes(record: Record) -> bool:
    """Whether the primary metric was measured and is acceptable."""
    refused = any(signals.of_metric(reason) for reason in record.reasons)
    return record.decision is not None and not refused


def _row(
    scenario: Scenario, record: Record, report: Report | None, noop: Report | None
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
            "display_ci": list(record.display_ci) if record.display_ci else None,
            "limit": metric.get("limit"),
            "decision": record.decision,
            "alone_passes": _metric_passes(record),
        },
        "guards": {g: _reading(g, report, g in record.spoke, g in new) for g in _GUARDS},
        "unique": new[0] if len(new) == 1 else None,
        "compared_with_noop": noop is not None and noop is not UNTOUCHED,
        "rmt_probe": _members(report, "rmt", ("stable", "decision", "max_edge_ratio")),
        "ve_probe": _members(report, "variance", ("signal", "status", "proposed_scales")),
    }


def _reading(guard: str, report: Report, spoke: bool, new: bool) -> dict[str, Any]:
    found = _GUARDS[guard](block(report, guard)) if signals.evaluated(report, guard) else None
    name, value, threshold = found or (None, None, None)
    margin = None if value is None or threshold is None else value - threshold
    return {
        "spoke": spoke,
        "new": new,
        "statistic": name,
        "value": value,
        "threshold": threshold,
        "margin": margin,  # above 0: beyond the threshold
    }


def _members(report: Report, name: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """Members of a guard's section; None where it measured nothing."""
    section = block(report, name)
    return {key: section.get(key) for key in keys} if signals.evaluated(report, name) else None


def _invariants(section: Mapping[str, Any]) -> Statistic | None:
    return _statistic("violations_found", block(section, "summary").get("violations_found"), 0)


def _spectral(section: Mapping[str, Any]) -> Statistic | None:
    families = block(section, "family_z_summary")
    return _worst(families, "max", lambda family: family.get("kappa"), "z")


def _rmt(section: Mapping[str, Any]) -> Statistic | None:
    families = block(section, "families")
    return _worst(families, "ratio", lambda family: 1 + family["epsilon"], "edge_ratio")


def _variance(section: Mapping[str, Any]) -> Statistic | None:
    gate = block(section, "predictive_gate")
    interval = gate.get("gain_ci") or [None]
    return _statistic("gain_ci_low", interval[0], gate.get("min_effect_lognll"))


def _primary_metric(section: Mapping[str, Any]) -> Statistic | None:
    return _statistic("ratio_vs_baseline", section.get("ratio_vs_baseline"), section.get("limit"))


def _worst(
    families: Mapping[str, Any],
    key: str,
    limit: Callable[[Mapping[str, Any]], float | None],
    name: str,
) -> Statistic | None:
    """The family that is furthest beyond its limit, or closest to it."""
    found = [
        statistic
        for family, values in sorted(families.items())
        if (statistic := _statistic(f"{name}:{family}", values.get(key), limit(values)))
    ]
    return max(found, key=lambda s: s[1] - s[2], default=None)


def _statistic(name: str, value: float | None, threshold: float | None) -> Statistic | None:
    if value is None or threshold is None:
        return None
    return name, float(value), float(threshold)


_GUARDS: Mapping[str, Callable[[Mapping[str, Any]], Statistic | None]] = {
    "invariants": _invariants,
    "spectral": _spectral,
    "rmt": _rmt,
    "variance": _variance,
    "primary_metric": _primary_metric,
}
