"""The dashboard of a report: one row per check, in words, with the distance to its threshold."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from invarlock.reporting import signals
from invarlock.reporting.signals import Report, block

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
NOT_EVALUATED, NOT_MEASURED = "not evaluated", "not measured"
OTHER_CHECKS = (
    ("rmt", "RMT (activations)"),
    ("variance", "Variance"),
    ("primary_metric_tail", "Tail of the differences"),
    ("guard_overhead", "Guard overhead"),
)
OTHER_FLAGS = {
    "rmt": "rmt_stable",
    "primary_metric_tail": "primary_metric_tail_acceptable",
    "guard_overhead": "guard_overhead_acceptable",
}


@dataclass(frozen=True)
class Check:
    """One row: what was measured, what it is held against, how far it is from that."""

    name: str
    status: str
    measured: str
    threshold: str
    note: str
    gates: bool  # whether the report's verdict depends on it


def fixed(value: object, digits: int = 4) -> str:
    """A number for people: fixed decimals while that is readable; ``-`` when there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{digits}f}"
    return f"{value:.{digits - 1}g}"


def percent(ratio: float) -> str:
    """A ratio as a signed change in percent."""
    change = (ratio - 1.0) * 100.0
    return f"{change:+.2f} %" if abs(change) < 1000 else f"x {ratio:.3g}"


def verdict_word(report: Report) -> str:
    """PASS, FAIL, INCONCLUSIVE, REJECTED (never run) or NOT MEASURED."""
    reasons = signals.pass_reasons(report)
    if not reasons:
        return "PASS"
    if signals.REJECTED in reasons:
        return "REJECTED"
    if any(reason in reasons for reason in signals.NOT_RUN):
        return "NOT MEASURED"
    if set(reasons) == {"primary_metric_inconclusive"}:
        return "INCONCLUSIVE"
    return "FAIL"


def checks(report: Report) -> list[Check]:
    """Every check of the published format, the ones that were not evaluated included."""
    gating = set(signals.gates(report))
    return [
        _primary_metric(report, gating),
        _drift(report, gating),
        _invariants(report, gating),
        _spectral(report, gating),
        *(_other(report, name, title, gating) for name, title in OTHER_CHECKS),
    ]


def _flag(report: Report, name: str, evidence: str) -> str:
    if not signals.evaluated(report, evidence):
        ran = block(report, "primary_metric").get("degraded_reason") not in signals.NOT_RUN
        return NOT_EVALUATED if ran else NOT_MEASURED
    return PASS if block(report, "validation").get(name) is True else FAIL


def _primary_metric(report: Report, gating: set[str]) -> Check:
    metric = block(report, "primary_metric")
    status = _flag(report, "primary_metric_acceptable", "primary_metric")
    if status == FAIL and metric.get("decision") == INCONCLUSIVE:
        status = INCONCLUSIVE
    limit = metric.get("limit")
    ratio, interval = metric.get("ratio_vs_baseline"), _pair(metric.get("display_ci"))
    measured = "-"
    if ratio is not None:
        measured = f"ratio {fixed(ratio)}"
        if interval:
            level = float(metric.get("ci_level", 0.95)) * 100
            measured += f", {level:g} % interval {fixed(interval[0])} to {fixed(interval[1])}"
    return Check(
        name="Primary metric",
        status=status,
        measured=measured,
        threshold=f"upper bound at most {fixed(limit)}" if limit is not None else "-",
        note=_metric_note(metric, status, limit, interval),
        gates="primary_metric_acceptable" in gating,
    )


def _metric_note(
    metric: Mapping[str, Any], status: str, limit: Any, interval: tuple[float, float] | None
) -> str:
    if metric.get("degraded") is True or metric.get("invalid") is True:
        reason = str(metric.get("degraded_reason", "no reason recorded"))
        if reason in signals.NOT_RUN:
            return f"the subject was not run: {reason}"
        return f"no usable number: {reason}"
    if interval is None or limit is None:
        return "no interval was recorded"
    low, high = interval
    notes = []
    decision = metric.get("decision")
    if decision == PASS:
        notes.append(f"the upper bound is {fixed(limit - high)} below the limit")
    elif decision == FAIL:
        notes.append(f"the whole interval is above the limit, by {fixed(low - limit)} or more")
    elif decision == INCONCLUSIVE:
        notes.append("the limit lies inside the interval")
        needed = metric.get("windows_needed")
        if needed is not None:
            notes.append(f"about {needed} final windows would settle it")
    if status == FAIL and decision != FAIL:
        if metric.get("coverage_ok") is False:
            notes.append("too few windows or replicates for the tier")
        if metric.get("tokens_ok") is False:
            notes.append("too few tokens for the tier")
    return "; ".join(notes)


def _drift(report: Report, gating: set[str]) -> Check:
    metric = block(report, "primary_metric")
    band, drift = block(metric, "drift_band"), block(metric, "drift").get("ratio")
    status = _flag(report, "preview_final_drift_acceptable", "primary_metric")
    note = ""
    if drift is not None and band:
        room = min(drift - band["min"], band["max"] - drift)
        note = f"{fixed(abs(room))} {'inside' if room >= 0 else 'outside'} the band"
    return Check(
        name="Drift between the arms",
        status=status,
        measured=f"{fixed(drift)} relative to the baseline" if drift is not None else "-",
        threshold=f"{fixed(band.get('min'), 2)} to {fixed(band.get('max'), 2)}" if band else "-",
        note=note,
        gates="preview_final_drift_acceptable" in gating,
    )


def _invariants(report: Report, gating: set[str]) -> Check:
    section = block(report, "invariants")
    failures = [f for f in section.get("failures", []) if isinstance(f, Mapping)]
    fatal = sum(f.get("severity") == "fatal" for f in failures)
    measured = "-"
    if signals.evaluated(report, "invariants"):
        measured = f"{fatal} fatal, {len(failures) - fatal} warnings"
    return Check(
        name="Invariants",
        status=_flag(report, "invariants_pass", "invariants"),
        measured=measured,
        threshold="no fatal finding",
        note=str(failures[0].get("message", "")) if failures else "",
        gates="invariants_pass" in gating,
    )


def _spectral(report: Report, gating: set[str]) -> Check:
    section = block(report, "spectral")
    caps = signals.spectral_caps(report)
    status = _flag(report, "spectral_stable", "spectral")
    note = str(section.get("reason", ""))
    if caps is not None:
        note = _worst_violation(section) if status == FAIL else _largest_change(section)
    limit = section.get("max_caps")
    return Check(
        name="Spectral (weights)",
        status=status,
        measured=f"{caps} capped, {section.get('fatal_violations', 0)} degenerate modules"
        if caps is not None
        else "-",
        threshold=f"at most {limit} capped, none degenerate" if limit is not None else "-",
        note=note,
        gates="spectral_stable" in gating,
    )


def _largest_change(section: Mapping[str, Any]) -> str:
    largest, deadband = block(section, "summary").get("max_abs_log_ratio"), section.get("deadband")
    if largest is None or deadband is None:
        return ""
    change = math.expm1(largest) * 100
    return f"sigma moved by at most {change:.3g} %, a cap needs more than {deadband * 100:g} %"


def _worst_violation(section: Mapping[str, Any]) -> str:
    """The violation that blocks: a degenerate module, or the largest of too many caps."""
    found = [v for v in section.get("violations", []) if isinstance(v, Mapping)]
    fatal = [v for v in found if v.get("severity") == "fatal"]
    if fatal:
        worst = min(fatal, key=lambda v: (v.get("ratio", 0.0), str(v.get("module"))))
        kind = str(worst.get("type", "")).removeprefix("degenerate_").replace("_", " ")
        return (
            f"{worst.get('module')}: {kind} is {fixed(worst.get('ratio'))} of the baseline's, "
            f"fatal below {fixed(worst.get('threshold'), 2)}"
        )
    caps = [v for v in found if v.get("type") == "family_z_cap"]
    if not caps:
        return ""
    worst = max(caps, key=lambda v: (abs(v.get("z_score", 0.0)), str(v.get("module"))))
    return (
        f"{len(caps)} caps; largest |z| {fixed(abs(worst.get('z_score', 0.0)), 2)} "
        f"in {worst.get('module')}, cap at {fixed(worst.get('kappa'), 3)}"
    )


def _other(report: Report, name: str, title: str, gating: set[str]) -> Check:
    section, flag = block(report, name), OTHER_FLAGS.get(name, "")
    status = NOT_EVALUATED
    if signals.evaluated(report, name):
        found = block(report, "validation").get(flag) if flag else section.get("passed")
        status = PASS if found is True else FAIL
    reason = str(section.get("reason", "not part of this report"))
    return Check(
        name=title,
        status=status,
        measured="-",
        threshold="-",
        note=f"{reason}; counts neither as passed nor as failed" if status == NOT_EVALUATED else "",
        gates=flag in gating,
    )


def _pair(value: object) -> tuple[float, float] | None:
    if isinstance(value, list) and len(value) == 2:
        return float(value[0]), float(value[1])
    return None


def headline(report: Report) -> str:
    """One sentence: the verdict and its reason."""
    word = verdict_word(report)
    rows = [c for c in checks(report) if c.gates and c.status != PASS]
    if word == "PASS":
        return "Every gate that was evaluated holds."
    if word == "REJECTED":
        note = next((c.note for c in rows if c.name == "Invariants"), "")
        return f"The subject was refused before it was run: {note or 'invariants'}."
    missing = [r for r in signals.pass_reasons(report) if r.startswith("gate_missing:")]
    if missing:
        return f"The report does not gate on {', '.join(m.split(':', 1)[1] for m in missing)}."
    return "; ".join(f"{c.name}: {c.status}" + (f" ({c.note})" if c.note else "") for c in rows)


def explain(report: Report) -> str:
    """Why a report passes or fails: each check with its number, threshold and distance.

    Plain text; names from the report are shown as they stand there, control characters escaped.
    """
    meta, edit = block(report, "meta"), block(report, "edit")
    subject = edit.get("scenario") or edit.get("name") or "subject"
    lines = [
        f"{verdict_word(report)}: {subject} on {meta.get('model_id', 'unknown model')}",
        headline(report),
        "",
    ]
    for check in checks(report):
        mark = "" if check.gates else "  (does not gate)"
        lines.append(f"{check.name}: {check.status}{mark}")
        if check.measured != "-":
            lines.append(f"    measured   {check.measured}")
        if check.threshold != "-" and check.measured != "-":
            lines.append(f"    threshold  {check.threshold}")
        if check.note:
            lines.append(f"    {check.note}")
    return "\n".join(visible(line) for line in lines) + "\n"


def visible(text: str) -> str:
    """Text without characters that hide or reorder: controls and format marks as escapes."""
    return "".join(
        c
        if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
        else f"\\u{ord(c):04x}"
        for c in text
    )
