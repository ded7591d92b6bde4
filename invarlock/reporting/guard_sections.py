"""The sections of the guards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from invarlock.guards.rows import ROW_FINDINGS, STEP
from invarlock.guards.rows import sentence as row_sentence
from invarlock.reporting import figures, readings, signals
from invarlock.reporting.page import LISTED, Section, Table, not_evaluated, objects
from invarlock.reporting.plots import Plot
from invarlock.reporting.readings import Change
from invarlock.reporting.signals import Report, block
from invarlock.reporting.wording import fixed, number, percent, share, yes
from invarlock.severity import worst_first


def invariants(report: Report) -> Section:
    """The findings on the checkpoint and the loaded model."""
    section = block(report, "invariants")
    failures = signals.findings(report)
    if failures:
        keys = ("type", "severity", "message", "accept")
        rows = tuple(tuple(str(f.get(key, "-")) for key in keys) for f in failures)
        table = Table("Findings", ("Finding", "Severity", "What", "Accepted by the name"), rows)
        notes = tuple(_sentence(note) for note in signals.acceptance_notes(report))
        return Section("invariants", "Invariants", notes=notes, tables=(table,))
    if not section.get("evaluated"):
        return not_evaluated(report, "invariants", "Invariants")
    agree = "Names, shapes, types, configuration, tokenizer, tying and finiteness agree."
    return Section("invariants", "Invariants", notes=(agree,))


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def spectral(report: Report) -> Section:
    """The weights: largest singular value and stable rank of each matrix."""
    title, section = "Spectral guard (weights)", block(report, "spectral")
    changes = readings.module_changes(report, "spectral", "sigma_max")
    if not changes:
        return not_evaluated(report, "spectral", title)
    caps = readings.spectral_limits(report)
    rows = tuple(
        (
            str(name),
            str(row.get("count", "-")),
            fixed(row.get("max"), 3),
            fixed(row.get("mean"), 3),
            fixed(row.get("kappa"), 3),
            percent(math.exp(caps[name][1])) if name in caps else "-",
            str(row.get("violations", "-")),
        )
        for name, row in sorted(block(section, "family_z_summary").items())
        if isinstance(row, Mapping)
    )
    header = ("Family", "Modules", "Largest |z|", "Mean |z|", "Cap (kappa)", "As change", "Capped")
    moved = [c for c in changes if c.log_ratio != 0.0 or c.stable_rank_ratio not in (None, 1.0)]
    found = objects(section.get("violations"))
    return Section(
        id="spectral",
        title=title,
        notes=(
            *(() if moved else ("No weight matrix changed.",)),
            *map(row_sentence, readings.row_findings(report)),
        ),
        plots=_some(figures.spectral_plot(changes, caps)),
        tables=(
            Table("Families", header, rows),
            *_violations([v for v in found if v.get("type") not in ROW_FINDINGS]),
            *_row_tables(objects(section.get("row_changes"))),
            *_largest(moved, ("Module", "Family", "Sigma", "Stable rank")),
        ),
    )


def _some(plot: Plot | None) -> tuple[Plot, ...]:
    return (plot,) if plot else ()


def _largest(moved: Sequence[Change], header: tuple[str, ...]) -> Iterator[Table]:
    """The modules that changed most, of those that changed."""
    if not moved:
        return
    rows = []
    for c in moved[:LISTED]:
        rank = "-" if c.stable_rank_ratio is None else percent(c.stable_rank_ratio)
        far = "beyond measure" if c.log_ratio >= readings.FAR else percent(math.exp(c.log_ratio))
        rows.append((c.name, c.family, far, rank)[: len(header)])
    caption = f"Largest changes ({min(LISTED, len(moved))} of {len(moved)})"
    yield Table(caption, header, tuple(rows))


def _violations(found: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    if not found:
        return
    listed = worst_first(found)[: 2 * LISTED]
    yield Table(
        caption=f"Violations ({len(listed)} of {len(found)})",
        header=("Module", "Kind", "Severity", "Measured", "Threshold"),
        rows=tuple(
            (
                str(v.get("module", "-")),
                str(v.get("type", "-")),
                str(v.get("severity", "-")),
                f"z {fixed(v['z_score'], 2)}" if "z_score" in v else f"x {fixed(v.get('ratio'))}",
                f"|z| {fixed(v['kappa'], 3)}"
                if "kappa" in v
                else f"x {fixed(v.get('threshold'), 2)}",
            )
            for v in listed
        ),
    )


def _row_tables(judged: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The tables of embedding, head and positions, and the rows of them that are findings."""
    if not judged:
        return
    yield Table(
        caption="Rows of embedding, head and positions: change relative to the baseline's row",
        header=("Table", "Rows compared", "Half within", "Largest", "Limit", "Beyond, or moved"),
        rows=tuple(
            (
                str(t.get("module", "-")),
                str(t.get("compared", "-")),
                fixed(t.get("typical"), 3),
                f"at most {STEP}" if t.get("largest") is None else fixed(t.get("largest"), 3),
                fixed(t.get("limit"), 2),
                str(t.get("rows", "-")),
            )
            for t in judged
        ),
    )
    for table in judged:
        listed = objects(table.get("listed"))
        if listed:
            yield Table(
                caption=f"Rows of {table.get('module')} ({len(listed)} of {table.get('rows')})",
                header=("Row", "Token", "Change", "Now closest to"),
                rows=tuple(
                    (
                        str(row.get("row", "-")),
                        str(row.get("token") or "-"),
                        fixed(row.get("change"), 3),
                        " ".join(str(row.get(key) or "") for key in ("closest", "closest_token"))
                        if "closest" in row
                        else "-",
                    )
                    for row in listed
                ),
            )


def rmt(report: Report) -> Section:
    """The activations: edge risk of each probed module."""
    title, section = "RMT guard (activations)", block(report, "rmt")
    if not signals.evaluated(report, "rmt"):
        return not_evaluated(report, "rmt", title)
    changes = readings.module_changes(report, "rmt", "edge")
    numbers = ("edge_base", "edge_cur", "ratio", "allowed", "epsilon")
    families = tuple(
        (str(name), *(fixed(row.get(key)) for key in numbers))
        for name, row in sorted(block(section, "families").items())
        if isinstance(row, Mapping)
    )
    violations = readings.edge_violations(report)
    listed = tuple(
        (
            str(v.get("module", "-")),
            str(v.get("family", "-")),
            *(fixed(v.get(key)) for key in ("edge_base", "edge_cur", "allowed")),
        )
        for v in violations[: 2 * LISTED]
    )
    tables = [
        Table(
            caption="Families, by their module with the largest ratio",
            header=("Family", "Baseline", "Subject", "Ratio", "Allowed", "Epsilon"),
            rows=families,
        )
    ]
    if listed:
        tables.append(
            Table(
                caption=f"Violations ({len(listed)} of {len(violations)})",
                header=("Module", "Family", "Baseline", "Subject", "Allowed"),
                rows=listed,
            )
        )
    moved = [c for c in changes if c.log_ratio != 0.0]
    calibration = block(section, "calibration")
    return Section(
        id="rmt",
        title=title,
        notes=() if moved else ("No activation changed.",),
        facts=(
            ("Calibration windows", str(calibration.get("windows", "-"))),
            ("Calibration tokens", str(calibration.get("tokens", "-"))),
            ("Same measurement in both runs", yes(section.get("measurement_contract_match"))),
        ),
        plots=_some(figures.edge_plot(changes, readings.edge_limits(report))),
        tables=(*tables, *_largest(moved, ("Module", "Family", "Edge risk"))),
    )


def variance(report: Report) -> Section:
    """The outputs of the target projections and the scales that would restore them."""
    title, section = "Variance guard", block(report, "variance")
    if not signals.evaluated(report, "variance"):
        return not_evaluated(report, "variance", title)
    changes = readings.module_changes(report, "variance", "variance")
    deadband = number(section.get("deadband"))
    bounds = readings.variance_limits(report, {c.family for c in changes})
    scales, gate = block(section, "proposed_scales"), block(section, "predictive_gate")
    moved = [c for c in changes if c.log_ratio != 0.0]
    proposed = Table(
        caption=f"Proposed scales ({min(2 * LISTED, len(scales))} of {len(scales)})",
        header=("Module", "Scale"),
        rows=tuple((str(m), fixed(s)) for m, s in sorted(scales.items())[: 2 * LISTED]),
    )
    gain = gate.get("gain_ci")
    interval = " to ".join(map(fixed, gain)) if isinstance(gain, list) else "-"
    return Section(
        id="variance",
        title=title,
        notes=(
            "This guard reports what a scale would mend; it changes no weight and blocks nothing.",
        ),
        facts=(
            ("Deadband of a scale", share(deadband)),
            ("Scales proposed", str(len(scales))),
            ("Held-out test", str(gate.get("reason", "not made")).replace("_", " ")),
            ("Gain, nats per token", interval),
            ("Speaks", yes(section.get("signal"))),
        ),
        plots=_some(figures.variance_plot(changes, bounds)),
        tables=(
            *((proposed,) if scales else ()),
            *_largest(moved, ("Module", "Family", "Output variance")),
        ),
    )


def moe(report: Report) -> Section:
    """Routers and experts."""
    title, section = "Mixture of experts", block(report, "moe")
    if not signals.evaluated(report, "moe"):
        return not_evaluated(report, "moe", title)
    changes = readings.router_changes(report)
    columns = ("name", "baseline_entropy", "entropy", "baseline_dead", "dead")
    rows = [
        (str(name), fixed(base), fixed(mine), _experts(dead), _experts(died))
        for name, base, mine, dead, died in readings.rows(block(section, "routers"), columns)
    ]
    return Section(
        id="moe",
        title=title,
        facts=(
            ("Experts a token is sent to", str(section.get("top_k", "-"))),
            ("Mean router entropy, nats", fixed(section.get("router_entropy"))),
            ("Change of the mean", fixed(section.get("delta_router_entropy"))),
            (
                "Largest fall of a router's entropy",
                f"{share(section.get('max_entropy_drop'))}, at "
                f"most {share(section.get('entropy_drop_max'))}",
            ),
            (
                "New dead experts",
                f"{section.get('new_dead_experts', '-')}, at most "
                f"{section.get('new_dead_experts_max', '-')}",
            ),
            ("Mean utilization", fixed(section.get("utilization_mean"))),
        ),
        plots=_some(figures.router_plot(changes, readings.router_limits(report))),
        tables=(
            Table(
                caption="Routers: entropy in nats, experts that no token chose",
                header=("Router", "Baseline", "Subject", "Dead, baseline", "Dead, subject"),
                rows=tuple(rows),
            ),
        ),
    )


def _experts(dead: object) -> str:
    return ", ".join(map(str, dead)) or "none" if isinstance(dead, list) else "-"


def overhead(report: Report) -> Section:
    """What measuring with guards changed and cost."""
    title, section = "Guard overhead", block(report, "guard_overhead")
    if not signals.evaluated(report, "guard_overhead"):
        return not_evaluated(report, "guard_overhead", title)
    checks = block(section, "checks")
    return Section(
        id="guard-overhead",
        title=title,
        notes=tuple(str(d.get("message", "")) for d in objects(section.get("diagnostics"))),
        facts=(
            ("Mode", str(section.get("mode", "-"))),
            ("Metric with guards over without", fixed(section.get("overhead_ratio"), 6)),
            ("Allowed change", share(section.get("overhead_threshold"))),
            ("Extra work", f"{share(section.get('work_ratio'))} of the forward pass, at most "
             f"{share(section.get('work_max'))}"),
            ("Memory of the probes", f"{number(section.get('probe_bytes')) or 0:,.0f} bytes"),
            *((str(name).replace("_", " "), yes(ok)) for name, ok in sorted(checks.items())),
        ),
    )  # fmt: skip
