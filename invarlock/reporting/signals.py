"""What an evaluation report says, read so that absent evidence says nothing.

A gate passes only when its flag is there and true. A guard has spoken only when it measured
something and found it bad: a metric that was never computed (the subject was rejected before)
and a comparison that stayed inconclusive are no detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.errors import ConfigError
from invarlock.policy import load_policy
from invarlock.reporting.gates import COST_FLAGS, EXPLORING_GATES, GATES, MIXTURE_GATE, in_order
from invarlock.severity import NOTHING_EDITED, worst_first

CORE_GUARDS = ("invariants", "spectral", "rmt", "variance", "primary_metric")
REASONS = {
    "primary_metric_acceptable": "primary_metric_fail",
    "preview_final_drift_acceptable": "drift_fail",
    "invariants_pass": "invariants_fail",
    "spectral_stable": "spectral_fail",
    "rmt_stable": "rmt_fail",
    "primary_metric_tail_acceptable": "tail_fail",
    MIXTURE_GATE: "moe_fail",
}
# The block of the report that carries the evidence of a flag.
FLAG_BLOCKS = {
    "primary_metric_acceptable": "primary_metric",
    "preview_final_drift_acceptable": "primary_metric",
    "primary_metric_tail_acceptable": "primary_metric_tail",
    "invariants_pass": "invariants",
    "spectral_stable": "spectral",
    "rmt_stable": "rmt",
    "guard_overhead_acceptable": "guard_overhead",
    MIXTURE_GATE: "moe",
}
REJECTED = "rejected_by_invariants"
# Reasons for which the subject was not run at all, so that there is no metric to judge by.
NOT_RUN = (REJECTED, "crashed", "out_of_memory", "timeout")
# Those that are about the machine: they say nothing of the subject.
NOT_TRIED = ("out_of_memory", "timeout")
# Floors of a tier, by the member of the metric that says whether they are met.
FLOORS = {
    "tokens_ok": "tokens_below_floor",
    "examples_ok": "examples_below_floor",
    "coverage_ok": "coverage_below_floor",
}
INCONCLUSIVE, DRIFT_OPEN = "primary_metric_inconclusive", "drift_inconclusive"
NO_EVIDENCE = "not_evaluated:"  # and the flag
DEGRADED, SHIFT = "primary_metric_degraded", "distribution_fail"
# Why ``primary_metric_acceptable`` is not true; of some the flag or block is named.
METRIC_REASONS = (
    *("primary_metric_acceptable", "primary_metric_fail", INCONCLUSIVE, DEGRADED),
    *("distribution", SHIFT, *FLOORS.values()),
)
# Reasons that name evidence that is lacking, and nothing that was measured and found bad.
LACKING = (INCONCLUSIVE, DRIFT_OPEN, "no_labelled_examples", *FLOORS.values(), *NOT_TRIED)

Report = Mapping[str, Any]


def block(report: Report, name: str) -> Mapping[str, Any]:
    """A section of the report; empty when it is absent or not an object."""
    found = report.get(name)
    return found if isinstance(found, Mapping) else {}


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
    if not enforces_guards(report):
        return EXPLORING_GATES
    return (*GATES, MIXTURE_GATE) if "moe" in report else GATES


def evaluated(report: Report, name: str) -> bool:
    """Whether the section holds a measurement.

    The primary metric does unless the subject was not run; the others do unless they are
    absent or say ``evaluated: false``.
    """
    section = block(report, name)
    if name == "primary_metric":
        return bool(section) and section.get("degraded_reason") not in NOT_RUN
    return bool(section) and section.get("evaluated") is not False


def pass_reasons(report: Report) -> list[str]:
    """Why the report does not pass, the worst first; empty iff it passes.

    What was measured and found bad comes before evidence that is lacking; of either, the most
    basic comes first.
    """
    validation, metric = block(report, "validation"), block(report, "primary_metric")
    asked = gates(report)
    reasons = [f"gate_missing:{name}" for name in required_gates(report) if name not in asked]
    broken = metric.get("degraded") is True or metric.get("invalid") is True
    if broken:
        cause = metric.get("degraded_reason")
        own = cause in NOT_RUN or cause in LACKING
        reasons.insert(0, str(cause) if own else DEGRADED)
    for name in asked:
        if validation.get(name) is True:
            continue
        block_name = FLAG_BLOCKS.get(name, "")
        if name not in validation or (block_name and not evaluated(report, block_name)):
            reasons.append(NO_EVIDENCE + name)
        elif block_name == "primary_metric" and broken:
            continue  # said above, once
        elif name == "primary_metric_acceptable":
            reasons += _metric_reasons(report)
        elif name == "preview_final_drift_acceptable" and below_floor(metric):
            reasons.append(DRIFT_OPEN)
        else:
            reasons.append(REASONS.get(name, f"{name}_false"))
    return sorted(reasons, key=lacks_evidence)


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
    """Whether the distribution shift was measured and is beyond its limit."""
    shift = block(report, "distribution")
    return shift.get("evaluated") is True and shift.get("passed") is False


def findings(report: Report) -> list[Mapping[str, Any]]:
    """The findings of the invariants, the worst first: the first is the reason of a rejection."""
    listed = block(report, "invariants").get("failures")
    failures = listed if isinstance(listed, list) else []
    return worst_first([failure for failure in failures if isinstance(failure, Mapping)])


def primary_metric_spoke(report: Report) -> bool:
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


def invariants_status(report: Report) -> str | None:
    """``ok``, ``warn``, ``fail`` or ``error``; None when the guard did not run."""
    status = block(report, "invariants").get("status")
    return status if isinstance(status, str) and evaluated(report, "invariants") else None


def accepted(report: Report) -> list[str]:
    """Names by which the user accepted findings that would have refused the subject, sorted."""
    found = block(report, "invariants").get("accepted")
    return sorted(map(str, found)) if isinstance(found, list) else []


def acceptance_notes(report: Report) -> list[str]:
    """What the user accepted by name, and what was named and not found."""
    through, asked = accepted(report), block(report, "context").get("accept")
    unused = sorted({*map(str, asked if isinstance(asked, list) else [])} - {*through})
    notes = [f"accepted by name: {', '.join(through)}"] if through else []
    return [*notes, f"accept names what was not found: {', '.join(unused)}"] if unused else notes


def blocking(report: Report) -> list[Mapping[str, Any]]:
    """The findings of the invariants guard that refuse the subject: fatal, and not accepted."""
    failures, through = block(report, "invariants").get("failures"), accepted(report)
    return [
        item
        for item in (failures if isinstance(failures, list) else [])
        if isinstance(item, Mapping)
        and item.get("severity") == "fatal"
        and item.get("accept") not in through
    ]


def unedited(report: Report) -> bool:
    """Whether the only thing that refuses the subject is that nothing was edited."""
    return {item.get("type") for item in blocking(report)} == {NOTHING_EDITED}


def spectral_caps(report: Report) -> int | None:
    """How many modules the spectral guard capped; None when it did not run."""
    caps = block(report, "spectral").get("caps_applied")
    known = isinstance(caps, int) and not isinstance(caps, bool)
    return caps if known and evaluated(report, "spectral") else None


def capped_modules(report: Report) -> set[str]:
    """Names of the modules that the spectral guard capped."""
    violations = block(report, "spectral").get("violations")
    if not isinstance(violations, list) or not evaluated(report, "spectral"):
        return set()
    return {
        str(item.get("module"))
        for item in violations
        if isinstance(item, Mapping) and item.get("type") == "family_z_cap"
    }


def variance_spoke(report: Report) -> bool:
    """Whether the variance guard proposed a scale and found that it lowers the loss."""
    return evaluated(report, "variance") and block(report, "variance").get("signal") is True


def guard_flags(report: Report | None) -> dict[str, bool]:
    """Who spoke, by the published names; all false without a report."""
    report = report or {}
    validation = block(report, "validation")
    status = invariants_status(report)

    def refused(flag: str) -> bool:
        return validation.get(flag) is False and evaluated(report, FLAG_BLOCKS[flag])

    failed = status in ("fail", "error") or refused("invariants_pass")
    return {
        "invariants": failed or status == "warn",
        "invariants_fail": failed,
        "invariants_warn": status == "warn",
        "primary_metric": primary_metric_spoke(report),
        "spectral": refused("spectral_stable") or (spectral_caps(report) or 0) >= 1,
        "rmt": refused("rmt_stable"),
        "variance": variance_spoke(report),
        "drift": refused("preview_final_drift_acceptable")
        and block(report, "primary_metric").get("degraded") is not True,
        "primary_metric_tail": refused("primary_metric_tail_acceptable"),
        "overhead": False,  # published name; a cost of measuring says nothing of the subject
        "moe": refused(MIXTURE_GATE),
    }


def guard_spoke(report: Report | None, guard: str) -> bool:
    """Whether one of ``CORE_GUARDS`` measured something bad."""
    return guard_flags(report)[guard]
