"""The outline of a rendered report: the same sections for Markdown and HTML.

Cells are text; the templates escape them for their format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from invarlock.files import digest_json
from invarlock.reporting import figures
from invarlock.reporting.checks import Check, checks, fixed, headline, percent, verdict_word
from invarlock.reporting.signals import Report, block

LISTED = 10  # rows of a list of the worst; the JSON holds all


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row names it. ``status`` is the column of a status word."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    status: int | None = None


@dataclass(frozen=True)
class Section:
    """A titled part; empty parts are left out of the page."""

    id: str
    title: str
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    plot: figures.Plot | None = None
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Outline:
    """The whole page."""

    title: str
    verdict: str
    headline: str
    digest: str
    dashboard: Table
    sections: tuple[Section, ...] = field(default_factory=tuple)


def outline(report: Report) -> Outline:
    """The page of an evaluation report; a rejected subject has one too."""
    meta, edit = block(report, "meta"), block(report, "edit")
    subject = edit.get("scenario") or edit.get("name") or "subject"
    found = checks(report)
    return Outline(
        title=f"Evaluation of {subject} on {meta.get('model_id', 'unknown model')}",
        verdict=verdict_word(report),
        headline=headline(report),
        digest=digest_json(report),
        dashboard=_dashboard(found),
        sections=(
            _metric(report),
            _invariants(report),
            _spectral(report),
            _compared(report),
            _policy(report),
            _limits(found),
        ),
    )


def _dashboard(found: Sequence[Check]) -> Table:
    return Table(
        caption="What was checked",
        header=("Check", "Result", "Measured", "Threshold", "Distance or reason"),
        rows=tuple((c.name, c.status, c.measured, c.threshold, c.note or "-") for c in found),
        status=1,
    )


def _metric(report: Report) -> Section:
    metric = block(report, "primary_metric")
    stats = block(block(block(report, "dataset"), "windows"), "stats")
    reference = block(block(report, "baseline_ref"), "primary_metric")
    differences = figures.window_differences(report)
    facts = [
        ("Kind", f"{metric.get('kind', '-')}, perplexity per token, base e"),
        ("Subject, final arm", fixed(metric.get("final"))),
        ("Baseline, final arm", fixed(reference.get("final"))),
        ("Ratio", fixed(metric.get("ratio_vs_baseline"), 6)),
        ("Decision", str(metric.get("decision", "none"))),
    ]
    if metric.get("windows_needed") is not None:
        facts.append(("Final windows that would settle it", str(metric["windows_needed"])))
    facts += [
        ("Paired windows, final arm", str(stats.get("paired_windows", "-"))),
        ("Clusters (documents)", str(stats.get("clusters", "-"))),
    ]
    notes: tuple[str, ...] = ()
    if not differences:
        notes = ("There are no per-window losses: the subject was not run, or nothing was finite.",)
    return Section(
        id="primary-metric",
        title="Primary metric",
        notes=notes,
        facts=tuple(facts),
        plot=figures.windows_plot(differences, metric.get("limit")),
        tables=tuple(_difference_tables(differences)),
    )


def _difference_tables(
    differences: Sequence[figures.WindowDifference],
) -> Iterator[Table]:
    if not differences:
        return
    ascending = sorted(d.nats for d in differences)
    names = (("minimum", 0.0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("maximum", 1.0))
    yield Table(
        caption="Differences per window, nats per token",
        header=("Statistic", "Value"),
        rows=(
            ("token-weighted mean", f"{figures.weighted_mean(differences):+.6f}"),
            *((name, f"{figures.quantile(ascending, q):+.6f}") for name, q in names),
        ),
    )
    yield Table(
        caption=f"The {min(LISTED, len(differences))} windows with the largest loss increase",
        header=("Window", "Document", "Tokens", "Nats per token"),
        rows=tuple(
            (d.window_id, d.cluster, f"{d.tokens:.0f}", f"{d.nats:+.6f}")
            for d in differences[:LISTED]
        ),
    )


def _invariants(report: Report) -> Section:
    section = block(report, "invariants")
    failures = [f for f in section.get("failures", []) if isinstance(f, Mapping)]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    if failures:
        tables = (
            Table(
                caption="Findings",
                header=("Finding", "Severity", "What"),
                rows=tuple(
                    (
                        str(f.get("type", "-")),
                        str(f.get("severity", "-")),
                        str(f.get("message", "-")),
                    )
                    for f in failures
                ),
            ),
        )
    elif section.get("evaluated"):
        notes = ("Names, shapes, types, configuration, tokenizer, tying and finiteness agree.",)
    else:
        notes = (f"Not evaluated: {section.get('reason', 'no reason recorded')}.",)
    return Section("invariants", "Invariants", notes=notes, tables=tables)


def _spectral(report: Report) -> Section:
    section = block(report, "spectral")
    changes = figures.module_changes(report)
    if not changes:
        reason = section.get("reason", "no module statistics are recorded")
        return Section("spectral", "Spectral guard", notes=(f"Not evaluated: {reason}.",))
    families = block(section, "family_z_summary")
    tables = [
        Table(
            caption="Families",
            header=("Family", "Modules", "Largest |z|", "Mean |z|", "Cap (kappa)", "Capped"),
            rows=tuple(
                (
                    str(name),
                    str(row.get("count", "-")),
                    fixed(row.get("max"), 3),
                    fixed(row.get("mean"), 3),
                    fixed(row.get("kappa"), 3),
                    str(row.get("violations", "-")),
                )
                for name, row in sorted(families.items())
                if isinstance(row, Mapping)
            ),
        ),
        *_violations(section.get("violations", [])),
    ]
    moved = [c for c in changes if c.log_ratio != 0.0 or c.stable_rank_ratio != 1.0]
    if moved:
        tables.append(
            Table(
                caption=f"Largest changes ({min(LISTED, len(moved))} of {len(moved)})",
                header=("Module", "Family", "Sigma", "Stable rank"),
                rows=tuple(_change_row(c) for c in moved[:LISTED]),
            )
        )
    return Section(
        id="spectral",
        title="Spectral guard",
        notes=() if moved else ("No weight matrix changed.",),
        plot=figures.spectral_plot(changes, section.get("deadband")),
        tables=tuple(tables),
    )


def _violations(found: Sequence[object]) -> Iterator[Table]:
    rows = [v for v in found if isinstance(v, Mapping)]
    if not rows:
        return
    listed = rows[: 2 * LISTED]
    yield Table(
        caption=f"Violations ({len(listed)} of {len(rows)})",
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


def _change_row(change: figures.ModuleChange) -> tuple[str, ...]:
    ratio = math.exp(change.log_ratio)
    rank = change.stable_rank_ratio
    return (
        change.name,
        change.family,
        percent(ratio),
        percent(rank) if rank is not None else "-",
    )


def _compared(report: Report) -> Section:
    meta, data = block(report, "meta"), block(report, "dataset")
    provenance, windows = block(report, "provenance"), block(data, "windows")
    edit = block(report, "edit")
    sides = {side: block(provenance, side) for side in ("baseline", "subject")}
    return Section(
        id="compared",
        title="What was compared",
        facts=(
            ("Model", str(meta.get("model_id", "-"))),
            ("Scenario", str(edit.get("scenario", "-"))),
            ("Edit", str(edit.get("name", "-"))),
            (
                "Baseline checkpoint",
                _digest(sides["baseline"].get("checkpoint_sha256")),
            ),
            ("Subject checkpoint", _digest(sides["subject"].get("checkpoint_sha256"))),
            ("Text", f"{data.get('provider', '-')}, split {data.get('split', '-')}"),
            (
                "Windows",
                f"{windows.get('preview', '-')} preview + {windows.get('final', '-')} final of "
                f"{data.get('seq_len', '-')} tokens, stride {data.get('stride', '-')}, "
                f"seed {windows.get('seed', '-')}",
            ),
            ("Windows file", _digest(provenance.get("windows_sha256"))),
            ("Tokenizer", _digest(meta.get("tokenizer_hash"))),
            ("Device and precision", f"{meta.get('device', '-')}, {meta.get('dtype', '-')}"),
            ("Execution", str(meta.get("execution_mode", "-"))),
            ("InvarLock", str(meta.get("invarlock_version", "-"))),
        ),
    )


def _digest(value: object) -> str:
    return f"sha256:{value}" if isinstance(value, str) and value else "-"


def _policy(report: Report) -> Section:
    auto, context = block(report, "auto"), block(report, "context")
    metric, section = block(report, "primary_metric"), block(report, "spectral")
    stats = block(block(block(report, "dataset"), "windows"), "stats")
    bootstrap = block(stats, "bootstrap")
    overrides = block(report, "policy_provenance").get("overrides") or ["none"]
    return Section(
        id="policy",
        title="Policy",
        facts=(
            ("Tier", str(auto.get("tier", "-"))),
            ("Policy digest", str(auto.get("policy_digest", "-"))),
            ("Overrides", ", ".join(map(str, overrides))),
            ("Profile", str(context.get("profile", "-"))),
            ("Limit on the ratio", fixed(metric.get("limit"))),
            (
                "Interval",
                f"{bootstrap.get('method', '-')}, {bootstrap.get('replicates', '-')} replicates, "
                f"seed {bootstrap.get('seed', '-')}",
            ),
            ("Spectral deadband", fixed(section.get("deadband"), 2)),
            ("Gates", ", ".join(map(str, context.get("gates", []))) or "none"),
        ),
    )


def _limits(found: Sequence[Check]) -> Section:
    left_out = [c.name for c in found if c.status == "not evaluated"]
    notes = [
        "Perplexity on this text and weight statistics only: no task accuracy, safety or speed.",
        "The result holds for this tokenizer, precision and window length.",
    ]
    if left_out:
        notes.append(f"Not evaluated, and not counted as passed: {', '.join(left_out)}.")
    return Section("limits", "What this does not show", notes=tuple(notes))
