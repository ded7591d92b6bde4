"""The verdict of a report, its checks in order, and the same as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from invarlock.guards import GUARDS
from invarlock.guards.invariants_decision import acceptance_notes, accepted_names
from invarlock.metrics.kinds import METRICS
from invarlock.pages.parts import FAIL, PASS, Check, Table
from invarlock.pages.reading import NOT_RUN, REJECTED, Report, block
from invarlock.pages.wording import visible
from invarlock.reporting import checks, signals
from invarlock.reporting.judged import judged_line
from invarlock.reporting.outcome import INCONCLUSIVE, needed, outcome_of, too_little

IDLE = "does not gate"  # the verdict does not depend on it


def verdict_word(report: Report) -> str:
    """PASS, FAIL, INCONCLUSIVE, REJECTED (never run) or NOT MEASURED."""
    reasons = signals.pass_reasons(report)
    if REJECTED in reasons:
        return "REJECTED"
    if any(reason in reasons for reason in NOT_RUN):
        return "NOT MEASURED"
    return outcome_of(reasons).upper()


def all_checks(report: Report) -> list[Check]:
    """Every check of the format, the ones that were not evaluated included."""
    special = [g for g in GUARDS if not g.every_model and block(report, g.name)]
    return [
        checks.primary_metric(report),
        checks.tail(report),
        checks.drift(report),
        *(guard.check(report) for guard in GUARDS if guard.every_model),
        checks.distribution(report),
        *(guard.check(report) for guard in special),
    ]


def gates(check: Check, report: Report) -> bool:
    """Whether the report's verdict depends on a check."""
    return check.flag in signals.gates(report)


def dashboard(report: Report) -> Table:
    """The overall result, then every check."""
    rows = [_overall(report), *all_checks(report)]
    return Table(
        caption="What was checked",
        header=("Check", "Result", "Measured", "Threshold", "Distance or reason"),
        rows=tuple((c.name, c.status, c.measured, c.threshold, _note(report, c)) for c in rows),
        status=1,
    )


def _note(report: Report, check: Check) -> str:
    """The note of a row; a flag that is false says so where the verdict does not depend on it."""
    idle = check.status == FAIL and check.flag and not gates(check, report)
    return "; ".join(part for part in (check.note, IDLE if idle else "") if part) or "-"


def _overall(report: Report) -> Check:
    asked = signals.gates(report)
    reasons = {gate: found for gate in asked if (found := signals.reasons_of(report, gate))}
    return Check(
        name="Overall",
        status=verdict_word(report).lower(),
        measured=f"{len(asked) - len(reasons)} of {len(asked)} gates hold",
        threshold="every gate",
        note=_open(reasons),
    )


def _open(reasons: Mapping[str, Sequence[str]]) -> str:
    """The gates that do not hold: what failed first, and apart from it what is not known."""
    found: dict[str, list[str]] = {"failed": [], "not decided": [], "not evaluated": []}
    for gate, why in reasons.items():
        if not all(map(signals.lacks_evidence, why)):
            word = "failed"
        elif all(reason == signals.NO_EVIDENCE + gate for reason in why):
            word = "not evaluated"
        else:
            word = "not decided"
        found[word].append(gate.removesuffix("_acceptable").removesuffix("_pass"))
    return "; ".join(
        f"{word}: {', '.join(gate.replace('_', ' ') for gate in gates)}"
        for word, gates in found.items()
        if gates
    )


def headline(report: Report) -> str:
    """One sentence: the verdict and its reason, the worst finding first."""
    word = verdict_word(report)
    asked = signals.gates(report)
    rows = sorted(
        (c for c in all_checks(report) if gates(c, report) and c.status != PASS),
        key=lambda c: (c.status != FAIL, asked.index(c.flag)),
    )
    if word == "PASS":
        through = accepted_names(report)
        but = f", and the user accepted by name: {', '.join(through)}" if through else ""
        if not signals.enforces_guards(report):
            return f"The metric holds, and guards decide nothing in a tier that explores{but}."
        return f"Every gate that was evaluated holds{but}."
    if word == "REJECTED":
        by = next(guard for guard in GUARDS if guard.of_files)
        note = next((c.note for c in rows if c.name == by.title), "")
        return f"The subject was refused before it was run: {note or by.name}."
    missing = [r for r in signals.pass_reasons(report) if r.startswith("gate_missing:")]
    if missing:
        return f"The report does not gate on {', '.join(m.split(':', 1)[1] for m in missing)}."
    if word == "INCONCLUSIVE":
        why = too_little(needed(report), signals.pass_reasons(report))
        return f"Nothing that was measured is bad, and nothing is decided: {why}."
    return "; ".join(f"{c.name}: {c.status}" + (f" ({c.note})" if c.note else "") for c in rows)


def title(report: Report) -> str:
    """What was evaluated, on what."""
    meta, edit = block(report, "meta"), block(report, "edit")
    subject = edit.get("scenario") or edit.get("name") or "subject"
    return f"{subject} on {meta.get('model_id', 'unknown model')}"


def explain(report: Report) -> str:
    """Why a report passes or fails: each check with its number, threshold and distance.

    Plain text; names from the report are shown as they stand there, control characters escaped.
    """
    lines = [f"{verdict_word(report)}: {title(report)}", headline(report)]
    if line := judged_line(report):
        lines.append(line)
    lines.append("")
    for check in all_checks(report):
        mark = "" if gates(check, report) else f"  ({IDLE})"
        lines.append(f"{check.name}: {check.status}{mark}")
        if check.measured != "-":
            lines.append(f"    measured   {check.measured}")
        if check.threshold != "-" and check.measured != "-":
            lines.append(f"    threshold  {check.threshold}")
        if check.note:
            lines.append(f"    {check.note}")
    return "\n".join(visible(line) for line in lines) + "\n"


def told(report: Report) -> str:
    """What a report says of its subject, in one line."""
    what, reasons = _point(report["primary_metric"]), signals.pass_reasons(report)
    return "; ".join([what, _result(report, reasons), *acceptance_notes(report)])


def _result(report: Report, reasons: Sequence[str]) -> str:
    """Whether the gates hold; if not, why, the worst first."""
    if not reasons:
        return "all gates hold"
    if outcome_of(reasons) == INCONCLUSIVE:
        return f"{INCONCLUSIVE}: {too_little(needed(report), reasons)}"
    return "FAIL: " + headline(report)


def _point(metric: Report) -> str:
    """The metric with its interval and decision."""
    if "ratio_vs_baseline" not in metric:
        return f"not measured ({metric['degraded_reason']})"
    name, form, unit = METRICS[metric["kind"]].short
    ci = metric.get("display_ci")
    interval = "[" + ", ".join(format(v, form) for v in ci) + "]" if ci else "without interval"
    return f"{name} {metric['ratio_vs_baseline']:{form}}{unit} {interval} {metric['decision']}"
