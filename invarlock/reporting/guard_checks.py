"""The rows of the guards and of what is measured beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from invarlock.guards.rows import ROW_FINDINGS
from invarlock.guards.rows import sentence as row_sentence
from invarlock.reporting import signals
from invarlock.reporting.checks import (
    FAIL,
    PASS,
    REPORTED,
    WARNING,
    Check,
    status_of,
    unmeasured,
)
from invarlock.reporting.page import objects
from invarlock.reporting.readings import edge_violations, row_findings
from invarlock.reporting.signals import Report, block
from invarlock.reporting.wording import fixed, number, share


def limits(report: Report, name: str) -> Mapping[str, Any]:
    """The thresholds of a part of the policy, as the report states them."""
    return block(block(report, "resolved_policy"), name)


def invariants(report: Report) -> Check:
    """What the checkpoint and the loaded model must not have changed."""
    failures = signals.findings(report)
    fatal = sum(f.get("severity") == "fatal" for f in failures)
    through = signals.accepted(report)
    allowed = sum(f.get("severity") == "fatal" and f.get("accept") in through for f in failures)
    measured = "-"
    if signals.evaluated(report, "invariants"):
        accepted = f"{allowed} accepted by name, " if allowed else ""
        measured = f"{fatal - allowed} fatal, {accepted}{len(failures) - fatal} warnings"
    return Check(
        name="Invariants",
        status=status_of(report, "invariants_pass", "invariants"),
        measured=measured,
        threshold="no fatal finding",
        note=str(failures[0].get("message", "")) if failures else "",
        flag="invariants_pass",
    )


def spectral(report: Report) -> Check:
    """Largest singular values and ranks of the weights."""
    section, caps = block(report, "spectral"), signals.spectral_caps(report)
    title, flag = "Spectral (weights)", "spectral_stable"
    if caps is None:
        return unmeasured(report, "spectral", title, flag)
    status = status_of(report, flag, "spectral")
    found = objects(section.get("violations"))
    degenerate = sum(
        v.get("severity") == "fatal" and v.get("type") not in ROW_FINDINGS for v in found
    )
    tables = objects(section.get("row_changes"))  # of published reports there are none
    beyond = sum(int(number(table.get("rows")) or 0) for table in tables)
    return Check(
        name=title,
        status=status,
        measured=f"{caps} capped, {degenerate} degenerate modules"
        + (f", {beyond} rows far beyond the others" if tables else ""),
        threshold=f"at most {section.get('max_caps', '-')} capped, none degenerate"
        + (", no such row" if tables else ""),
        note=_why(report, section) if status == FAIL else _largest_change(section),
        flag=flag,
    )


def _why(report: Report, section: Mapping[str, Any]) -> str:
    """Rows before matrices: they have names that a user knows."""
    rows = row_findings(report)
    return row_sentence(max(rows, key=lambda v: v["rows"])) if rows else _worst_violation(section)


def _largest_change(section: Mapping[str, Any]) -> str:
    largest = number(block(section, "summary").get("max_abs_log_ratio"))
    if largest is None:
        return ""
    note = f"sigma moved by at most {math.expm1(largest) * 100:.3g} %"
    z, kappa = _closest_family(section)
    return note + (f"; largest |z| {fixed(z, 2)}, capped beyond {fixed(kappa, 3)}" if kappa else "")


def _closest_family(section: Mapping[str, Any]) -> tuple[float, float | None]:
    """|z| and kappa of the family that is closest to its cap."""
    rows = [
        (z, kappa)
        for row in block(section, "family_z_summary").values()
        if isinstance(row, Mapping)
        and (z := number(row.get("max"))) is not None
        and (kappa := number(row.get("kappa")))
    ]
    return max(rows, key=lambda row: row[0] / row[1], default=(0.0, None))


def _worst_violation(section: Mapping[str, Any]) -> str:
    """The violation that blocks: a degenerate module, or the largest of too many caps."""
    found = objects(section.get("violations"))
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


def rmt(report: Report) -> Check:
    """Largest singular value of the activations against 1 + epsilon."""
    section, title = block(report, "rmt"), "RMT (activations)"
    if not signals.evaluated(report, "rmt"):
        return unmeasured(report, "rmt", title, "rmt_stable")
    violations = edge_violations(report)
    rows = {
        str(name): (number(row.get("ratio")), number(row.get("epsilon")))
        for name, row in block(section, "families").items()
        if isinstance(row, Mapping)
    }
    allowed = {f: 1 + e for f, (_, e) in sorted(rows.items()) if e is not None}
    words = [f"{family} {fixed(value)}" for family, value in allowed.items()]
    if len(set(allowed.values())) == 1:
        words = [fixed(next(iter(allowed.values())))]
    closest = max(
        ((r - allowed[f], f, r) for f, (r, _) in rows.items() if f in allowed and r is not None),
        default=None,
    )
    note = ""
    if closest is not None:
        side = "below" if closest[0] <= 0 else "above"
        note = f"{closest[1]} is closest to its limit, {fixed(abs(closest[0]))} {side}"
    if violations:
        worst = str(violations[0].get("module"))
        note = f"{len(violations)} modules beyond, the furthest {worst}"
    return Check(
        name=title,
        status=status_of(report, "rmt_stable", "rmt"),
        measured=f"largest edge ratio {fixed(section.get('max_edge_ratio'))}",
        threshold="ratio at most " + ", ".join(words) if words else "-",
        note=note,
        flag="rmt_stable",
    )


def variance(report: Report) -> Check:
    """Output variance; this guard reports and never blocks."""
    section = block(report, "variance")
    if not signals.evaluated(report, "variance"):
        return unmeasured(report, "variance", "Variance")
    scales, gate = block(section, "proposed_scales"), block(section, "predictive_gate")
    spoke = section.get("signal") is True or section.get("passed") is False
    note = "no output variance left the deadband"
    if scales:
        gain = number(gate.get("mean_delta"))
        reason = str(gate.get("reason", "not made")).replace("_", " ")
        note = f"held-out test: {reason}"
        note += f", loss changes by {fixed(gain)} nats" if gain is not None else ""
    return Check(
        name="Variance",
        status=WARNING if spoke else PASS,
        measured=f"scales proposed: {len(scales)}",
        threshold=f"scales within {share(section.get('deadband'))} of 1",
        note=note + "; never blocks",
    )


def overhead(report: Report) -> Check:
    """What the guards changed and cost; a cost of measuring, which never blocks."""
    section, title = block(report, "guard_overhead"), "Guard overhead"
    if not signals.evaluated(report, "guard_overhead"):
        return unmeasured(report, "guard_overhead", title)
    ratio, limit = number(section.get("overhead_ratio")), number(section.get("overhead_threshold"))
    work, most = number(section.get("work_ratio")), number(section.get("work_max"))
    return Check(
        name=title,
        status=PASS if section.get("passed") is True else WARNING,
        measured=f"metric ratio {fixed(ratio)}, extra work {share(work)}",
        threshold=f"ratio at most {fixed(None if limit is None else 1 + limit)}, "
        f"work at most {share(most)}",
        note=_cost(work, most) + "a cost of measuring; never blocks",
    )


def _cost(work: float | None, most: float | None) -> str:
    """How far the guards' extra work, as a share of the pass, is from its limit."""
    if work is None or most is None:
        return ""
    side = "below" if work <= most else "above"
    return f"{abs(most - work) * 100:.3g} points {side} the limit; "


def distribution(report: Report) -> Check:
    """How far the predictions moved, token by token."""
    section, title = block(report, "distribution"), "Distribution shift"
    if not signals.evaluated(report, "distribution"):
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
    room = [f"{fixed(abs(r))} {'below' if r >= 0 else 'above'}" for _, r in gates if r is not None]
    return Check(
        name=title,
        status=status,
        measured=f"mean KL {fixed(mean)} nats, {share(flips)} of tokens flipped",
        threshold="; ".join(words for words, _ in gates) or "none",
        note="; ".join(room) or "the policy sets no limit",
        flag="primary_metric_acceptable" if section.get("gated") is True else "",
    )


def moe(report: Report) -> Check:
    """Routers and experts of a mixture."""
    section, title = block(report, "moe"), "Mixture of experts"
    if not signals.evaluated(report, "moe"):
        return unmeasured(report, "moe", title, "moe_identity_ok")
    change = number(section.get("delta_router_entropy"))
    measured = f"router entropy {fixed(section.get('router_entropy'))} nats"
    measured += f" ({change:+.4f})" if change is not None else ""
    drop, most = number(section.get("max_entropy_drop")), number(section.get("entropy_drop_max"))
    note = ""
    if drop is not None and most is not None:
        side = "below" if drop <= most else "above"
        note = f"the largest fall of a router's entropy is {share(drop)}, {share(abs(most - drop))}"
        note += f" {side} the limit"
    return Check(
        name=title,
        status=status_of(report, "moe_identity_ok", "moe"),
        measured=f"{measured}, {section.get('new_dead_experts', '-')} new dead experts",
        threshold=f"entropy falls by at most {share(most)}, at most "
        f"{section.get('new_dead_experts_max', '-')} new dead experts",
        note=note,
        flag="moe_identity_ok",
    )
