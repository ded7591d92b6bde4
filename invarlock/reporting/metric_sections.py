"""The sections on what the model does: primary metric, tail, distribution shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from invarlock.counts import counted
from invarlock.metrics import readings
from invarlock.metrics.kind import Facts, Metric
from invarlock.metrics.kinds import metric_named
from invarlock.metrics.readings import WindowDifference
from invarlock.pages.parts import LISTED, Section, Table, not_evaluated
from invarlock.pages.reading import Report, block, evaluated, limits, objects
from invarlock.pages.wording import fixed, number, pair, share, yes
from invarlock.reporting import figures

HEAVY = 18  # kurtosis from which 3 % and more pass at exactly the limit (docs/method.md, section 4)


def primary_metric(report: Report) -> Section:
    """The comparison, its windows and how sure it is."""
    metric = block(report, "primary_metric")
    differences = readings.window_differences(report)
    kind = metric_named(metric.get("kind"))
    stats = block(block(block(report, "dataset"), "windows"), "stats")
    facts = [
        *kind.facts(report),
        ("Decision", str(metric.get("decision", "none"))),
        *_if(metric, "windows_needed", "Scored windows needed to decide"),
        ("Scored windows, paired", str(stats.get("paired_windows", "-"))),
        ("Clusters (documents)", str(stats.get("clusters", "-"))),
        *_confidence(block(report, "confidence"), kind),
        *_power(block(report, "confidence"), kind, str(stats.get("paired_windows", "-"))),
        *_kurtosis(metric),
    ]
    notes: tuple[str, ...] = ()
    if not differences and kind.by_losses:
        notes = ("There are no per-window losses: the subject was not run, or nothing was finite.",)
    plot = figures.windows_plot(differences, kind.plot_limit(number(metric.get("limit"))))
    return Section(
        id="primary-metric",
        title="Primary metric",
        notes=notes,
        facts=tuple(facts),
        plots=(plot,) if plot else (),
        tables=(*_slice_table(report, kind), *_difference_tables(differences)),
    )


def _slice_table(report: Report, kind: Metric) -> Iterator[Table]:
    """Every slice by itself, with its text and the tokens of its windows."""
    parts = objects(block(report, "primary_metric").get("slices"))
    texts = {str(s.get("name")): s for s in objects(block(report, "dataset").get("slices"))}
    rows = []
    for part in parts:
        text = texts.get(str(part.get("name")), {})
        interval = pair(part.get("display_ci"))
        rows.append(
            (
                str(part.get("name")),
                str(block(text, "source").get("name", "-")),
                str(text.get("seq_len", "-")),
                f"{part.get('windows', '-')} of {part.get('clusters', '-')}",
                fixed(part.get("ratio_vs_baseline")),
                " to ".join(map(kind.words, interval)) if interval else "-",
                fixed(part.get("kl_mean")),
                str(part.get("decision", "-")),
            )
        )
    if rows:
        yield Table(
            caption="Slices: each has to pass by itself",
            header=("Slice", "Text", "Tokens of a window", "Scored windows of documents",
                    kind.noun.capitalize(), "Interval", "Mean KL, nats", "Decision"),
            rows=tuple(rows),
        )  # fmt: skip


def _if(section: Mapping[str, Any], key: str, name: str) -> Facts:
    """A fact where the report states it."""
    return [] if section.get(key) is None else [(name, str(section[key]))]


def _confidence(section: Mapping[str, Any], kind: Metric) -> Facts:
    if not section:
        return [("Confidence label", "not evaluated")]
    width, threshold = (f"{fixed(section.get(key))}{kind.suffix}" for key in ("width", "threshold"))
    words = f"interval width {width}; High needs {threshold} or less"
    words += "; unstable" if section.get("unstable") is True else ""
    return [("Confidence label", f"{section.get('label', '-')} ({words})")]


def _power(section: Mapping[str, Any], kind: Metric, windows: str) -> Facts:
    half, most = (number(section.get(key)) for key in ("pass_50", "pass_95"))
    if half is None or most is None:
        return []
    values = [f"{kind.words(value)}{kind.suffix}" for value in (half, most)]
    words = f"a true {kind.noun} of {values[0]} passes with 50 %, of {values[1]} with 95 %"
    return [(f"Power on {windows} scored windows", words)]


def _kurtosis(metric: Mapping[str, Any]) -> Facts:
    weight = number(metric.get("kurtosis"))
    if weight is None:
        return []
    words = f"kurtosis {weight:.1f} over documents (normal: 3)"
    if weight >= HEAVY:
        words += "; of subjects at exactly the limit 3 % pass with 18, 4 % with 25, 6 % with 51"
    return [("Tails of the differences", words)]


def _difference_tables(differences: Sequence[WindowDifference]) -> Iterator[Table]:
    if not differences:
        return
    ascending = sorted(d.nats for d in differences)
    names = (("minimum", 0.0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("maximum", 1.0))
    yield Table(
        caption="Differences per window, nats per token",
        header=("Statistic", "Value"),
        rows=(
            ("token-weighted mean", f"{readings.weighted_mean(differences):+.6f}"),
            *((name, f"{readings.quantile(ascending, q):+.6f}") for name, q in names),
        ),
    )
    listed = counted(min(LISTED, len(differences)), "window")
    yield Table(
        caption=f"The {listed} with the largest loss increase",
        header=("Window", "Document", "Tokens", "Nats per token"),
        rows=tuple(
            (d.window_id, d.cluster, f"{d.tokens:.0f}", f"{d.nats:+.6f}")
            for d in differences[:LISTED]
        ),
    )


def tail(report: Report) -> Section:
    """The worst windows and what the policy asks of them."""
    title, section = "Tail of the differences", block(report, "primary_metric_tail")
    if not evaluated(report, "primary_metric_tail"):
        return not_evaluated(report, "primary_metric_tail", title)
    policy, stats = block(section, "policy"), block(section, "stats")
    plot = figures.tail_plot(readings.window_differences(report), section)
    rows = [
        (
            " in slice ".join(str(v[key]) for key in ("type", "slice") if key in v),
            fixed(v.get("observed")),
            fixed(v.get("threshold")),
        )
        for v in objects(section.get("violations"))
    ]
    found = Table("Violations", ("Violation", "Observed", "Threshold"), tuple(rows))
    return Section(
        id="primary-metric-tail",
        title=title,
        facts=(
            ("Mode", str(section.get("mode", "-"))),
            ("Windows", f"{stats.get('n', '-')}, at least {policy.get('min_windows', '-')}"),
            ("Effective sample size", str(stats.get("n_effective", "-"))),
            *((f"{q} % quantile", fixed(stats.get(f"q{q}"))) for q in (50, 90, 95, 99)),
            ("Maximum", fixed(stats.get("max"))),
            (
                f"Tokens in windows above {fixed(stats.get('epsilon'))}",
                f"{share(stats.get('tail_mass_weighted'))}, at most "
                f"{share(policy.get('mass_max'))}",
            ),
        ),
        plots=(plot,) if plot else (),
        tables=(found,) if rows else (),
    )


def _limit(value: object, write: Callable[[object], str]) -> str:
    return "none" if number(value) is None else write(value)


def distribution(report: Report) -> Section:
    """How the predictions moved, token by token."""
    title, section = "Distribution shift", block(report, "distribution")
    if not evaluated(report, "distribution"):
        return not_evaluated(report, "distribution", title)
    kl, flips = block(section, "kl"), block(section, "flips")
    change = block(section, "probability_change")
    policy = limits(report, "distribution")
    named = (("mean", "mean"), ("1 %", "q01"), ("5 %", "q05"), ("median", "q50"),
             ("95 %", "q95"), ("99 %", "q99"))  # fmt: skip
    return Section(
        id="distribution",
        title=title,
        notes=(
            "KL(baseline || subject) over the baseline's "
            f"{section.get('top_k', '-')} most probable tokens and one bucket for the rest: a "
            "lower bound of the full divergence.",
        ),
        facts=(
            ("Tokens", f"{number(section.get('tokens')) or 0:,.0f}"),
            ("KL, nats", f"mean {fixed(kl.get('mean'))}, 99 % {fixed(kl.get('p99'))}, "
             f"largest {fixed(kl.get('max'))}"),
            ("Most probable token changed",
             f"{counted(flips.get('count', '-'), 'token')}, {share(flips.get('fraction'))}"),
            ("Limit of the mean KL", _limit(policy.get("kl_mean_max"), fixed)),
            ("Limit of the changed tokens", _limit(policy.get("flip_fraction_max"), share)),
            ("Decides", yes(section.get("gated"))),
        ),
        plots=tuple(figures.distribution_plots(section, policy)),
        tables=(
            Table(
                caption="Change of the correct token's probability",
                header=("Statistic", "Subject - baseline"),
                rows=tuple(
                    (name, f"{value:+.6f}") for name, key in named
                    if (value := number(change.get(key))) is not None
                ),
            ),
        ),
    )  # fmt: skip
