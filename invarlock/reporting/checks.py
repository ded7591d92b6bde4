"""One row per check, in words, with the distance to its threshold: the primary metric's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.metrics.kind import Metric
from invarlock.metrics.kinds import metric_named
from invarlock.pages.parts import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    REPORTED,
    WARNING,
    Check,
    status_of,
    unmeasured,
)
from invarlock.pages.reading import NOT_RUN, Report, block, evaluated, limits, objects
from invarlock.pages.wording import fixed, number, pair, share
from invarlock.reporting import signals
from invarlock.reporting.outcome import need


def primary_metric(report: Report) -> Check:
    """Ratio of the perplexities, or difference of the accuracies, with its interval."""
    metric = block(report, "primary_metric")
    flag = "primary_metric_acceptable"
    status = status_of(report, flag, "primary_metric")
    if status == FAIL and not signals.primary_metric_fired(report):
        status = INCONCLUSIVE
    if status == FAIL and metric.get("decision") == PASS:
        status = PASS  # it is the distribution shift, whose row says so, that this gate refuses
    kind, limit = metric_named(metric.get("kind")), number(metric.get("limit"))
    value, interval = number(metric.get("ratio_vs_baseline")), pair(metric.get("display_ci"))
    measured = "-"
    if value is not None:
        measured = f"{kind.noun} {kind.words(value)}{kind.suffix}"
        if interval:
            level = (number(metric.get("ci_level")) or 0.95) * 100
            ends = " to ".join(map(kind.words, interval))
            measured += f", {level:g} % interval {ends}"
    threshold = "-" if limit is None else kind.threshold(limit)
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
        if cause in NOT_RUN:
            return f"the subject was not run ({cause.replace('_', ' ')})"
        return f"no usable number: {cause}"
    if interval is None or limit is None:
        return "no interval was recorded"
    low, high = interval
    kind, decision, notes = metric_named(metric.get("kind")), metric.get("decision"), []
    slices = objects(metric.get("slices"))
    if slices:
        notes += _slice_notes(slices, kind, str(decision))
    elif decision == PASS:
        notes.append(kind.passed(low, high, limit))
    elif decision == FAIL:
        notes.append(kind.failed(low, high, limit))
    elif decision == INCONCLUSIVE:
        notes.append("the limit lies inside the interval")
        needed = metric.get("windows_needed")
        if needed is not None:
            notes.append(f"about {needed} scored windows are needed to decide")
    if status == INCONCLUSIVE:
        lacking = metric.get("evidence_needed")
        found = [need(row) for row in lacking] if isinstance(lacking, list) else []
        notes += [str(n) for n in found if not n.what.endswith("_to_decide")]
    return "; ".join(notes)


def _slice_notes(slices: list[Mapping[str, Any]], kind: Metric, decision: str) -> list[str]:
    """Which slices decided, with their numbers; where all pass, the one nearest to the limit."""
    found = [part for part in slices if part.get("decision") == decision]
    names = ", ".join(str(part.get("name")) for part in slices)
    if not found and decision == PASS:
        return [f"no slice passes ({names}), which contradicts the decision"]
    if decision == PASS:
        nearest = max(found, key=lambda part: (pair(part.get("display_ci")) or (0.0, 0.0))[1])
        name, words = nearest.get("name"), _slice(nearest, kind)
        return [f"every slice passes ({names}); nearest to the limit: {name}, {words}"]
    if not found:
        return [f"decided by all windows together, not by a slice alone ({names})"]
    words = "fails" if decision == FAIL else "is open"
    return [f"slice {part.get('name')} {words}: {_slice(part, kind)}" for part in found]


def _slice(part: Mapping[str, Any], kind: Metric) -> str:
    """A slice in words: its ratio, its interval, and what would settle it."""
    value, interval = number(part.get("ratio_vs_baseline")), pair(part.get("display_ci"))
    words = kind.words(value) if value is not None else "-"
    words += f" ({' to '.join(map(kind.words, interval))})" if interval else ", too few documents"
    needed = part.get("windows_needed")
    return words + (f", about {needed} scored windows are needed to decide" if needed else "")


def tail(report: Report) -> Check:
    """The quantile of the per-window differences that the policy looks at."""
    section, title = block(report, "primary_metric_tail"), "Tail of the differences"
    flag = "primary_metric_tail_acceptable"
    if not evaluated(report, "primary_metric_tail"):
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
        words = metric_named(metric.get("kind")).drift_words(value)
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


def distribution(report: Report) -> Check:
    """How far the predictions moved, token by token."""
    section, title = block(report, "distribution"), "Distribution shift"
    if not evaluated(report, "distribution"):
        return unmeasured(report, "distribution", title)
    policy = limits(report, "distribution")
    mean = number(block(section, "kl").get("mean"))
    flips = number(block(section, "flips").get("fraction"))
    gates = [
        (f"mean KL at most {fixed(limit)}", None if mean is None else limit - mean)
        for limit in [number(policy.get("kl_mean_max"))]
        if limit is not None
    ] + [
        (f"flips at most {share(limit)}", None if flips is None else limit - flips)
        for limit in [number(policy.get("flip_fraction_max"))]
        if limit is not None
    ]
    status = REPORTED
    if section.get("gated") is True:
        status = PASS if section.get("passed") is True else FAIL
    refused = [
        f"slice {part.get('name')} {fixed(part.get('kl_mean'))}, above it"
        for part in objects(block(report, "primary_metric").get("slices"))
        if part.get("kl_passed") is False
    ]
    if refused:
        status = FAIL
    room = [f"{fixed(abs(r))} {'below' if r >= 0 else 'above'}" for _, r in gates if r is not None]
    return Check(
        name=title,
        status=status,
        measured=f"mean KL {fixed(mean)} nats, {share(flips)} of tokens flipped",
        threshold="; ".join(words for words, _ in gates) or "none",
        note="; ".join([*room, *refused]) or "the policy sets no limit",
        flag="primary_metric_acceptable" if section.get("gated") is True else "",
    )
