"""The pictures of a report, each with its thresholds and the same facts in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from invarlock.counts import counted
from invarlock.metrics.readings import WindowDifference, quantile, weighted_mean
from invarlock.pages.plots import (
    LEFT,
    RIGHT,
    Canvas,
    Plot,
    disc,
    linear_axis,
    round_step,
    scale,
)
from invarlock.pages.reading import block
from invarlock.pages.wording import fixed, number, share

ROW = 24  # px of a slice
NAME = 20  # characters of a slice's name beside its row
MAX_DOTS = 400  # more windows are shown as that many quantiles
TOP, BOTTOM, HEIGHT = 16, 222, 260
BARS = 150  # height of a histogram's tallest bar


class SliceResult(Struct, frozen=True):
    """The metric of a slice."""

    name: str
    value: float | None
    interval: tuple[float, float] | None


def windows_plot(differences: Sequence[WindowDifference], limit: float | None) -> Plot | None:
    """Sorted per-window differences with their mean and the limit; None without windows.

    Args:
        differences: nats per token.
        limit: of the perplexity ratio.
    """
    if not differences:
        return None
    ascending = sorted(d.nats for d in differences)
    mean = weighted_mean(differences)
    bar = math.log(limit) if limit and limit > 0 else None
    shown = ascending
    if len(shown) > MAX_DOTS:
        shown = [quantile(ascending, i / (MAX_DOTS - 1)) for i in range(MAX_DOTS)]
    low, high = _span([*shown, 0.0, mean, *([] if bar is None else [bar])])
    y = scale(low, high, BOTTOM, TOP)
    x = scale(0, max(len(shown) - 1, 1), LEFT + 8, RIGHT - 8)
    canvas = _axes((low, high), "subject - baseline, nats per token")
    canvas.draw("dot", "".join(disc(x(i), y(v), 2.0) for i, v in enumerate(shown)))
    # The dots rise to the right: there is room above the higher line at the left and below the
    # lower one at the right.
    higher = bar is None or mean > bar
    _level(canvas, y(mean), f"mean {mean:+.4f}", "mean", left=higher)
    if bar is not None:
        _level(canvas, y(bar), f"limit {bar:+.4f}", "limit", left=not higher)
    canvas.write("label", RIGHT, HEIGHT - 22, "scored windows, best to worst", "end")
    above = sum(v > 0 for v in ascending)
    words = (
        f"{counted(len(ascending), 'window')}; mean {mean:+.4f} nats per token, smallest "
        f"{ascending[0]:+.4f}, largest {ascending[-1]:+.4f}; worse than the baseline: "
        f"{above}" + (f"; the limit is {bar:+.4f}." if bar is not None else ".")
    )
    return canvas.plot("windows", "Difference per window, sorted", words, HEIGHT)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a margin."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low or 1.0)
    return low - margin, high + margin


def _axes(span: tuple[float, float], label: str) -> Canvas:
    """A canvas with a vertical axis in nats."""
    canvas = Canvas()
    linear_axis(canvas, span, scale(*span, BOTTOM, TOP))
    canvas.draw("axis", f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}")
    canvas.write_upwards((TOP + BOTTOM) / 2, label)
    return canvas


def _level(
    canvas: Canvas, y: float, label: str, style: str, *, left: bool, below: bool | None = None
) -> None:
    """A horizontal line with its label above its left end or below its right one."""
    canvas.level(y, style)
    x, anchor = (LEFT + 6, "start") if left else (RIGHT - 4, "end")
    under = not left if below is None else below
    canvas.write("level", x, y + 14 if under else y - 4, label, anchor)


def slices_plot(slices: Sequence[SliceResult], limit: float | None, noun: str) -> Plot | None:
    """The result of each slice with its interval and the limit; None with fewer than two.

    Args:
        slices: in the order of the report.
        limit: of the metric.
        noun: what the result is, such as ratio.
    """
    if len(slices) < 2:
        return None
    values = [v for s in slices for v in (s.value, *(s.interval or ())) if v is not None]
    left, bottom = 150, TOP + ROW * len(slices)
    low, high = _span([*values, *([] if limit is None else [limit])])
    x = scale(low, high, left, RIGHT - 60)
    canvas = Canvas()
    canvas.draw("axis", f"M{left} {TOP}V{bottom}H{RIGHT - 60}")
    step = round_step(low, high)
    digits = max(0, -math.floor(math.log10(step)))
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        canvas.draw("grid", f"M{x(i * step)} {TOP}V{bottom}")
        canvas.write("tick", x(i * step), bottom + 14, f"{i * step:.{digits}f}", "middle")
    if limit is not None:
        canvas.draw("limit", f"M{x(limit)} {TOP}V{bottom}")
    for row, one in enumerate(slices):
        y = TOP + ROW * (row + 0.5)
        name = (
            one.name if len(one.name) <= NAME else one.name[: NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
        )
        canvas.write("tick", left - 8, y + 4, name, "end")
        if one.interval:
            ends = [x(end) for end in one.interval]
            canvas.draw(
                "mean", f"M{ends[0]} {y - 4:g}v8M{ends[1]} {y - 4:g}v8M{ends[0]} {y:g}H{ends[1]}"
            )
        if one.value is not None:
            canvas.draw("dot", disc(x(one.value), y, 4.0), f"{one.name}: {fixed(one.value)}")
            canvas.write("tick", RIGHT - 54, y + 4, fixed(one.value), "start")
    words = "; ".join(f"{one.name} {fixed(one.value)}" for one in slices) + "."
    words += f" The line is the limit, {fixed(limit)}." if limit is not None else ""
    return canvas.plot(
        "slices", f"{noun.capitalize()} by slice, with its interval", words, bottom + 24
    )


def tail_plot(differences: Sequence[WindowDifference], tail: Mapping[str, Any]) -> Plot | None:
    """The worse half of the windows: difference at each token-weighted quantile.

    Drawn in: the policy's quantile with its order-statistic bound, and its limit.
    """
    policy, stats = block(tail, "policy"), block(tail, "stats")
    level, limit = number(policy.get("quantile")), number(policy.get("quantile_max"))
    if not differences or level is None or tail.get("evaluated") is not True:
        return None
    lower, upper = (number(stats.get(key)) for key in ("quantile_low", "quantile_high"))
    observed = number(stats.get("quantile_point"))
    total = sum(d.tokens for d in differences)
    dots, weight = [], 0.0
    for d in sorted(differences, key=lambda d: d.nats):
        place = (weight + d.tokens / 2) / total  # the middle of the window's step
        weight += d.tokens
        if place >= 0.5:
            dots.append((place, d.nats))
    dots = dots[:: math.ceil(len(dots) / MAX_DOTS)] + dots[-1:]
    known = [v for v in (lower, upper, observed, limit) if v is not None]
    low, high = _span([0.0, *known, *(nats for _, nats in dots)])
    y, x = scale(low, high, BOTTOM, TOP), scale(0.5, 1.0, LEFT + 8, RIGHT - 8)
    canvas = _axes((low, high), "nats per token")
    canvas.draw("dot", "".join(disc(x(q), y(v), 2.0) for q, v in dots))
    canvas.draw("mean", f"M{x(level)} {TOP}V{BOTTOM}")
    if lower is not None:  # an unknown upper bound leaves the bar open
        end = TOP if upper is None else y(upper)
        cap = "" if upper is None else f"M{x(level) - 7:g} {end}h14"
        canvas.draw("bound", f"M{x(level) - 7:g} {y(lower)}h14M{x(level)} {y(lower)}V{end}{cap}")
    if limit is not None:
        under = limit < dots[0][1]
        _level(canvas, y(limit), f"limit {limit:+.4f}", "limit", left=True, below=under)
    for q in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        canvas.write("tick", x(q), BOTTOM + 14, f"{q * 100:g} %", "middle")
    canvas.write("label", RIGHT, HEIGHT - 4, "quantile of the windows, by tokens", "end")
    words = f"The {share(level)} quantile is {_signed(observed)} nats per token"
    if lower is not None:
        words += f"; its bounds (bar) are {_signed(lower)} and "
        words += "unknown" if upper is None else _signed(upper)
    words += f"; the lower one may be at most {_signed(limit)}." if limit is not None else "."
    return canvas.plot("tail", "Tail of the differences", words, HEIGHT)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def distribution_plots(section: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Plot]:
    """Histograms of the KL divergence and of the change of the correct token's probability."""
    kl, change = block(section, "kl"), block(section, "probability_change")
    counts = block(section, "histograms")
    flips = block(section, "flips")
    first = _histogram(
        ("kl", "KL divergence per token", "nats, a lower bound of the full divergence"),
        block(counts, "kl"),
        [("mean", kl.get("mean"), "mean"), ("99 % quantile", kl.get("p99"), "mean"),
         ("limit of the mean", limits.get("kl_mean_max"), "limit")],
    )  # fmt: skip
    second = _histogram(
        ("probability", "Change of the correct token's probability", "subject - baseline"),
        block(counts, "probability_change"),
        [("1 % quantile", change.get("q01"), "mean"), ("mean", change.get("mean"), "mean"),
         ("99 % quantile", change.get("q99"), "mean")],
        f" The most probable token differs at {share(flips.get('fraction'))} of the tokens.",
    )  # fmt: skip
    return [plot for plot in (first, second) if plot is not None]


def _histogram(
    names: tuple[str, str, str],
    bins: Mapping[str, Any],
    lines: Sequence[tuple[str, Any, str]],
    more: str = "",
) -> Plot | None:
    """Bars of equal width on a logarithmic scale of counts; None without tokens.

    Args:
        names: identifier, title and label of the horizontal axis.
        bins: ``edges`` (one more than counts) and ``counts``.
        lines: name, value and style of the values that are marked.
        more: a sentence for the description.
    """
    edges, counts = bins.get("edges", []), bins.get("counts", [])
    if len(edges) != len(counts) + 1 or not counts or not max(counts) > 0:
        return None
    marked = [(n, value, s) for n, v, s in lines if (value := number(v)) is not None]
    top = 22 + 14 * len(marked)
    bottom = top + BARS
    x = scale(0, len(counts), LEFT + 1, RIGHT)
    y = scale(0, math.log1p(max(counts)), bottom, top)
    canvas = Canvas()
    for exponent in range(math.ceil(math.log10(max(counts) + 1))):
        at = y(math.log1p(10**exponent))
        canvas.level(at, "grid")
        canvas.write("tick", LEFT - 6, at + 4, f"{10**exponent:,}", "end")
    bars = [f"M{x(i)} {bottom}V{y(math.log1p(n))}H{x(i + 1)}V{bottom}z"
            for i, n in enumerate(counts) if n > 0]  # fmt: skip
    canvas.draw("bars", "".join(bars))
    canvas.draw("axis", f"M{LEFT} {top}V{bottom}H{RIGHT}")
    for i in range(0, len(edges), math.ceil(len(edges) / 9)):
        canvas.write("tick", x(i), bottom + 14, f"{edges[i]:.3g}", "middle")
    for i, (name, value, style) in enumerate(marked):
        at = x(_place(edges, value))
        label_y = 14 + 14 * i
        canvas.draw(style, f"M{at} {label_y + 3}V{bottom}")
        side, anchor = (-4, "end") if at > (LEFT + RIGHT) / 2 else (4, "start")
        canvas.write("level", at + side, label_y + 3, f"{name} {fixed(value)}", anchor)
    canvas.write("label", RIGHT, bottom + 31, names[2], "end")
    canvas.write_upwards((top + bottom) / 2, "tokens, log scale")
    found = ", ".join(f"{name} {fixed(value)}" for name, value, _ in marked)
    description = f"{sum(counts):,} tokens: {found}.{more}"
    return canvas.plot(names[0], names[1], description, bottom + 38)


def _place(edges: Sequence[float], value: float) -> float:
    """Where a value lies on an axis of bins of equal width, within its ends."""
    for i in range(len(edges) - 1):
        if value <= edges[i + 1]:
            return i + max(0.0, (value - edges[i]) / ((edges[i + 1] - edges[i]) or 1.0))
    return float(len(edges) - 1)
