"""What an evaluation report says, read so that absent evidence says nothing.

A gate passes only when its flag is there and true. A guard has fired only when it measured
something and found it bad: a metric that was never computed (the subject was rejected before)
and a comparison that stayed inconclusive are no detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.errors import ConfigError
from invarlock.guards import CORE, GUARDS
from invarlock.guards.guard import NEEDS_BOTH, NO_WEIGHTS, SERVED, Guard
from invarlock.metrics.kinds import METRICS
from invarlock.pages.reading import NOT_RUN, NOT_TRIED, Report, block, evaluated, objects, refused
from invarlock.policy import load_policy
from invarlock.reporting.gates import COST_FLAGS, gates_of, in_order

CORE_GUARDS = (*CORE, "primary_metric")


def _first(flag: str) -> Guard:
    """The guard whose flag it is; another that shares the flag comes later in the registry."""
    return next(guard for guard in GUARDS if guard.flag == flag)


REASONS = {
    "primary_metric_acceptable": "primary_metric_fail",
    "preview_final_drift_acceptable": "drift_fail",
    "primary_metric_tail_acceptable": "tail_fail",
    **{guard.flag: _first(guard.flag).fails_as for guard in GUARDS if guard.fails_as},
}
# The block of the report that carries the evidence of a flag.
FLAG_BLOCKS = {
    "primary_metric_acceptable": "primary_metric",
    "preview_final_drift_acceptable": "primary_metric",
    "primary_metric_tail_acceptable": "primary_metric_tail",
    **{guard.flag: _first(guard.flag).name for guard in GUARDS if guard.flag},
}
# Floors of a tier, by the member of the metric that says whether they are met.
FLOORS = {
    f"{what}_ok": f"{what}_below_floor"
    for what in (*(kind.floor for kind in METRICS.values()), "coverage")
}
INCONCLUSIVE, DRIFT_OPEN = "primary_metric_inconclusive", "drift_inconclusive"
NO_EVIDENCE = "not_evaluated:"  # and the flag
METRIC_ONLY = "metric_only"  # the subject is a running server
LACKED = (NEEDS_BOTH, NO_WEIGHTS)
DEGRADED, SHIFT = "primary_metric_degraded", "distribution_fail"
# Why ``primary_metric_acceptable`` is not true; of some the flag or block is named.
METRIC_REASONS = (
    *("primary_metric_acceptable", "primary_metric_fail", INCONCLUSIVE, DEGRADED),
    *("distribution", SHIFT, *FLOORS.values()),
)
# Reasons that name evidence that is lacking, and nothing that was measured and found bad.
LACKING = (
    METRIC_ONLY,
    INCONCLUSIVE,
    DRIFT_OPEN,
    "no_labelled_examples",
    *FLOORS.values(),
    *NOT_TRIED,
)


def gates(report: Report) -> tuple[str, ...]:
    """The flags this report gates on (``context.gates``), the most basic first.

    Reports of older versions list the cost of measuring among them, which is left out.
    """
    listed = block(report, "context").get("gates")
    if not isinstance(listed, list):
        return ()
    return in_order({name for name in listed if isinstance(name, str)}.difference(COST_FLAGS))


def enforces_guards(report: Report) -> bool:
    """Whether the guards decide in the report's tier; a tier that is not ours asks for all."""
    try:
        return load_policy(str(block(report, "auto").get("tier"))).enforce_guards
    except ConfigError:
        return True


def required_gates(report: Report) -> tuple[str, ...]:
    """The flags that a report of this tier has to gate on; with fewer it has not been judged."""
    return gates_of(report, enforces_guards(report))


def pass_reasons(report: Report) -> list[str]:
    """Why the report does not pass, the worst first; empty iff it passes.

    What was measured and found bad comes before evidence that is lacking; of either, the most
    basic comes first.
    """
    metric, asked = block(report, "primary_metric"), gates(report)
    reasons = [f"gate_missing:{name}" for name in required_gates(report) if name not in asked]
    broken = metric.get("degraded") is True or metric.get("invalid") is True
    if broken:
        cause = metric.get("degraded_reason")
        own = cause in NOT_RUN or cause in LACKING
        reasons.insert(0, str(cause) if own else DEGRADED)
    if block(report, "context").get("runs") == SERVED:
        reasons.append(METRIC_ONLY)
    for name in asked:
        found = reasons_of(report, name)
        if found and broken and FLAG_BLOCKS.get(name) == "primary_metric":
            found = [reason for reason in found if reason == NO_EVIDENCE + name]  # said above, once
        reasons += found
    return sorted(reasons, key=lacks_evidence)


def reasons_of(report: Report, flag: str) -> list[str]:
    """Why one gate does not hold; empty where it does."""
    validation = block(report, "validation")
    if validation.get(flag) is True:
        return []
    block_name = FLAG_BLOCKS.get(flag, "")
    if flag not in validation or (block_name and not evaluated(report, block_name)):
        return [NO_EVIDENCE + flag]
    if flag == "primary_metric_acceptable":
        return _metric_reasons(report)
    if flag == "preview_final_drift_acceptable" and below_floor(block(report, "primary_metric")):
        return [DRIFT_OPEN]
    return _guard_reasons(report, flag)


def _guard_reasons(report: Report, flag: str) -> list[str]:
    """Of guards that share a flag, those that do not pass; else that one had no evidence."""
    sharing = [g for g in GUARDS if g.flag == flag]
    failed = [g for g in sharing if block(report, g.name).get("passed") is False]
    if not failed and any(block(report, g.name).get("reason") in LACKED for g in sharing):
        return [NO_EVIDENCE + flag]
    return [guard.fails_as for guard in failed] or [REASONS.get(flag, f"{flag}_false")]


def lacks_evidence(reason: str) -> bool:
    """Whether a reason names evidence that is not there, and not something found bad."""
    return reason in LACKING or reason.startswith(NO_EVIDENCE)


def of_metric(reason: str) -> bool:
    """Whether a reason is one for which ``primary_metric_acceptable`` is not true."""
    flag = reason.rpartition(":")[2]
    return flag in METRIC_REASONS


def below_floor(metric: Mapping[str, Any]) -> list[str]:
    """The floors of the tier that the metric's evidence does not reach."""
    return [reason for flag, reason in FLOORS.items() if metric.get(flag) is False]


def _metric_reasons(report: Report) -> list[str]:
    """Why a metric that was measured is not acceptable."""
    metric, shift = block(report, "primary_metric"), block(report, "distribution")
    found = [SHIFT] if shift_refused(report) else []
    if metric.get("decision") == "fail":
        found.insert(0, REASONS["primary_metric_acceptable"])
    if metric.get("decision") == "inconclusive":
        found.append(INCONCLUSIVE)
    if shift and shift.get("passed") is not True and shift.get("evaluated") is not True:
        found.append(NO_EVIDENCE + "distribution")
    found += below_floor(metric)
    return found or [REASONS["primary_metric_acceptable"]]


def shift_refused(report: Report) -> bool:
    """Whether the distribution shift was measured and is beyond its limit, of all windows or of
    a slice."""
    shift, slices = block(report, "distribution"), block(report, "primary_metric").get("slices")
    refused = [shift, *({"passed": part.get("kl_passed")} for part in objects(slices))]
    return shift.get("evaluated") is True and any(one.get("passed") is False for one in refused)


def primary_metric_fired(report: Report) -> bool:
    """Whether the primary metric was measured and found bad.

    Inconclusive is not bad, and neither is a comparison that passes but on too few tokens; a
    subject whose losses are not finite is, and one whose predictions moved beyond their limit.
    """
    metric = block(report, "primary_metric")
    if not evaluated(report, "primary_metric"):
        return False
    if metric.get("degraded") is True or metric.get("invalid") is True:
        return True
    refused = block(report, "validation").get("primary_metric_acceptable") is False
    return refused and (metric.get("decision", "fail") == "fail" or shift_refused(report))


def guard_flags(report: Report | None) -> dict[str, bool]:
    """Which guards fired, by the published names; all false without a report."""
    report = report or {}
    drift, tail = "preview_final_drift_acceptable", "primary_metric_tail_acceptable"
    metric = block(report, "primary_metric")
    return {
        "primary_metric": primary_metric_fired(report),
        "drift": refused(report, drift, FLAG_BLOCKS[drift]) and metric.get("degraded") is not True,
        "primary_metric_tail": refused(report, tail, FLAG_BLOCKS[tail]),
        **{name: found for guard in GUARDS for name, found in guard.fired(report).items()},
    }


def spoke(fired: Mapping[str, bool], guard: str) -> bool:
    """Whether a guard fired, or one that published documents know by its flag alone.

    Args:
        fired: which guards fired, by name (:func:`guard_flags`).
        guard: one of ``CORE_GUARDS``, whose flag another guard may share.
    """
    shared = {g.flag for g in GUARDS if g.name == guard and g.flag}
    return fired[guard] or any(fired.get(g.name, False) for g in GUARDS if g.flag in shared)


def guard_fired(report: Report | None, guard: str) -> bool:
    """Whether one of ``CORE_GUARDS`` measured something bad."""
    return guard_flags(report)[guard]
