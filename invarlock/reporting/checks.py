"""One row per check, in words, with the distance to its threshold: the primary metric's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from invarlock.reporting import signals
from invarlock.reporting.outcome import need
from invarlock.reporting.page import reason
from invarlock.reporting.signals import Report, block
from invarlock.reporting.wording import fixed, number, share

PASS, FAIL, INCONCLUSIVE, WARNING = "pass", "fail", "inconclusive", "warning"
REPORTED = "reported"  # measured, and held against nothing
NOT_EVALUATED, NOT_MEASURED = "not evaluated", "not measured"


@dataclass(frozen=True)
class Check:
    """One row: what was measured, what it is held against, how far it is from that."""

    name: str
    status: str
    measured: str
    threshold: str
    note: str
    flag: str = ""  # the validation flag that carries the result

    def gates(self, report: Report) -> bool:
        """Whether the report's verdict depends on it."""
        return self.flag in signals.gates(report)


def status_of(report: Report, flag: str, evidence: str) -> str:
    """The result of a flag; what has no evidence neither passes nor fails."""
    if not signals.evaluated(report, evidence):
        return missing(report)
    return PASS if block(report, "validation").get(flag) is True else FAIL


def missing(report: Report) -> str:
    """The result of a check without evidence: because the subject was not run, or otherwise."""
    ran = block(report, "primary_metric").get("degraded_reason") not in signals.NOT_RUN
    return NOT_EVALUATED if ran else NOT_MEASURED


def unmeasured(report: Report, name: str, title: str, flag: str = "") -> Check:
    """The row of a block that holds no measurement."""
    note = f"{reason(report, name)}; counts neither as passed nor as failed"
    return Check(title, missing(report), "-", "-", note, flag)


def is_accuracy(metric: Mapping[str, Any]) -> bool:
    """Whether the metric is a proportion, compared in percentage points."""
    return metric.get("kind") == "accuracy"


def primary_metric(report: Report) -> Check:
    """Ratio of the perplexities, or difference of the accuracies, with its interval."""
    metric = block(report, "primary_metric")
    flag = "primary_metric_acceptable"
    status = status_of(report, flag, "primary_metric")
    if status == FAIL and not signals.primary_metric_spoke(report):
        status = INCONCLUSIVE
    if status == FAIL and metric.get("decision") == PASS:
        status = PASS  # it is the distribution shift, whose row says so, that this gate refuses
    accuracy, limit = is_accuracy(metric), number(metric.get("limit"))
    value, interval = number(metric.get("ratio_vs_baseline")), pair(metric.get("display_ci"))
    measured = "-"
    if value is not None:
        measured = f"difference {value:+.2f} pp" if accuracy else f"ratio {fixed(value)}"
        if interval:
            level = (number(metric.get("ci_level")) or 0.95) * 100
            ends = " to ".join(f"{v:+.2f}" if accuracy else fixed(v) for v in interval)
            measured += f", {level:g} % interval {ends}"
    threshold = "-"
    if limit is not None:
        threshold = f"upper bound at most {fixed(limit)}"
        if accuracy:
            threshold = f"lower bound at least {limit:+.2f} pp"
    note = _metric_note(metric, status, limit, interval)
    return Check("Primary metric", status, measured, threshold, note, flag)


def _metric_note(
    metric: Mapping[str, Any],
    status: str,
    limit: float | None,
    interval: tuple[float, float] | None,
) -> str:
    if metric.get("degraded") is True or metric.get("invalid") is True:
        cause = str(metric.get("degraded_reason", "no reason recorded"))
        if cause in signals.NOT_RUN:
            return f"the subject was not run ({cause.replace('_', ' ')})"
        return f"no usable number: {cause}"
    if interval is None or limit is None:
        return "no interval was recorded"
    low, high = interval
    decision, notes = metric.get("decision"), []
    if decision == PASS and is_accuracy(metric):
        notes.append(f"the lower bound is {low - limit:.2f} pp above the limit")
    elif decision == PASS:
        notes.append(f"the upper bound is {fixed(limit - high)} below the limit")
    elif decision == FAIL and is_accuracy(metric):
        notes.append(f"the whole interval is below the limit, by {limit - high:.2f} pp or more")
    elif decision == FAIL:
        notes.append(f"the whole interval is above the limit, by {fixed(low - limit)} or more")
    elif decision == INCONCLUSIVE:
        notes.append("the limit lies inside the interval")
        needed = metric.get("windows_needed")
        if needed is not None:
            notes.append(f"about {needed} final windows would settle it")
    if status == INCONCLUSIVE:
        lacking = metric.get("evidence_needed")
        found = [need(row) for row in lacking] if isinstance(lacking, list) else []
        notes += [str(n) for n in found if not n.what.endswith("_to_decide")]
    return "; ".join(notes)


def tail(report: Report) -> Check:
    """The quantile of the per-window differences that the policy looks at."""
    section, title = block(report, "primary_metric_tail"), "Tail of the differences"
    flag = "primary_metric_tail_acceptable"
    if not signals.evaluated(report, "primary_metric_tail"):
        return unmeasured(report, "primary_metric_tail", title, flag)
    policy, stats = block(section, "policy"), block(section, "stats")
    level, limit = number(policy.get("quantile")), number(policy.get("quantile_max"))
    observed = number(stats.get("quantile_point"))
    status = status_of(report, flag, "primary_metric_tail")
    if status == PASS and section.get("passed") is False:
        status = WARNING
    low, high = number(stats.get("quantile_low")), number(stats.get("quantile_high"))
    measured = f"{share(level)} quantile {fixed(observed)} nats per token"
    if low is not None:
        measured += f", bounds {fixed(low)} to {fixed(high) if high is not None else 'unknown'}"
    notes = []
    if low is not None and limit is not None:
        side = "below" if low <= limit else "above"
        notes.append(f"the lower bound is {fixed(abs(limit - low))} {side} the limit")
    if section.get("reason"):
        notes.append(str(section["reason"]))
    if status == WARNING:
        notes.append("the policy only warns")
    note = "; ".join(notes)
    return Check(title, status, measured, f"lower bound at most {fixed(limit)}", note, flag)


def drift(report: Report) -> Check:
    """Final over preview, relative to the baseline's."""
    metric, flag = block(report, "primary_metric"), "preview_final_drift_acceptable"
    section = block(metric, "drift")
    value, low, high = (number(section.get(key)) for key in ("ratio", "min", "max"))
    measured, note = "-", ""
    if value is not None:
        words = f"{(value - 1) * 100:+.2f} pp" if is_accuracy(metric) else fixed(value)
        measured = f"{words} relative to the baseline"
    if value is not None and low is not None and high is not None:
        room = min(value - low, high - value)
        note = f"{fixed(abs(room))} {'inside' if room >= 0 else 'outside'} the band"
    status = status_of(report, flag, "primary_metric")
    if status == FAIL and signals.below_floor(metric):
        status = INCONCLUSIVE
        note += "; without an interval, it decides nothing below the tier's floors"
    return Check(
        name="Consistency of the two samples (drift)",
        status=status,
        measured=measured,
        threshold="-" if low is None else f"{fixed(low, 3)} to {fixed(high, 3)}",
        note=note,
        flag=flag,
    )


def pair(value: object) -> tuple[float, float] | None:
    """The two numbers of an interval."""
    if isinstance(value, list) and len(value) == 2:
        low, high = map(number, value)
        return (low, high) if low is not None and high is not None else None
    return None
