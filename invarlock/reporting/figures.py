"""Geometry of the two pictures of a report; the templates turn it into SVG.

Coordinates are SVG user units (about a CSS pixel), rounded to a tenth so that bytes repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from invarlock.reporting import signals
from invarlock.reporting.signals import Report, block

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 704, 16, 222  # the plotting area
LEGEND_STEP = 76
MAX_DOTS = 400  # more windows are shown as that many quantiles
MARK = 2.6  # half the size of a marker


@dataclass(frozen=True)
class Mark:
    """One marker: an SVG path and the class that styles it."""

    path: str
    style: str


@dataclass(frozen=True)
class Level:
    """A horizontal line with its label, whose baseline is at ``label_y``."""

    y: float
    label: str
    style: str
    x: float
    anchor: str
    label_y: float


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A picture with its title and its description in words."""

    id: str
    title: str
    description: str
    marks: tuple[Mark, ...]
    levels: tuple[Level, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    y_label: str
    legend: tuple[Mark, ...] = ()
    legend_labels: tuple[tuple[float, str], ...] = ()
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class WindowDifference:
    """Loss of the subject minus loss of the baseline on one window, nats per token."""

    window_id: str
    cluster: str
    tokens: float
    nats: float


def window_differences(report: Report) -> list[WindowDifference]:
    """The final arm's windows, worst first; windows without a finite loss are left out."""
    rows = block(block(report, "evaluation_windows"), "final")
    columns = [
        rows.get(key, [])
        for key in ("window_ids", "clusters", "token_counts", "nll_sum", "baseline_nll_sum")
    ]
    if len({len(column) for column in columns}) != 1:
        return []
    found = [
        WindowDifference(str(name), str(cluster), float(n), (mine - base) / n)
        for name, cluster, n, mine, base in zip(*columns, strict=True)
        if _finite(mine) and _finite(base) and _finite(n) and n > 0
    ]
    return sorted(found, key=lambda d: (-d.nats, d.window_id))


def _finite(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def weighted_mean(differences: Sequence[WindowDifference]) -> float:
    """Token-weighted mean difference, nats per token: the logarithm of the ratio."""
    return sum(d.nats * d.tokens for d in differences) / sum(d.tokens for d in differences)


def quantile(ascending: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    place = q * (len(ascending) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def _nice_step(span: float) -> float:
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= raw)


def _disc(x: float, y: float, r: float = MARK) -> str:
    return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"


def _square(x: float, y: float, r: float = MARK) -> str:
    return f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"


def _triangle(x: float, y: float, r: float = MARK * 1.25) -> str:
    return f"M{x:.1f} {y - r:.1f}l{r} {2 * r}h{-2 * r}z"


def _diamond(x: float, y: float, r: float = MARK * 1.35) -> str:
    return f"M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z"


def _cross(x: float, y: float, r: float = MARK) -> str:
    return f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m{-2 * r} 0l{2 * r} {-2 * r}"


# family -> marker; a shape each, so that the picture reads without colour
MARKERS: Mapping[str, Callable[[float, float], str]] = {
    "attn": _disc,
    "ffn": _square,
    "expert": _triangle,
    "router": _diamond,
    "embed": _cross,
    "other": _diamond,
}


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
    low, high = min(shown[0], 0.0), max(shown[-1], 0.0, mean)
    if bar is not None:
        low, high = min(low, bar), max(high, bar)
    margin = 0.06 * (high - low or 1.0)
    low, high = low - margin, high + margin
    y = _scale(low, high, BOTTOM, TOP)
    x = _scale(0, max(len(shown) - 1, 1), LEFT + 8, RIGHT - 8)
    # The dots rise to the right, so there is room below the mean there and above the limit here.
    levels = [_level(y(mean), f"mean {mean:+.4f}", "mean", below=True)]
    if bar is not None:
        label = f"limit {bar:+.4f}"
        levels.append(_level(y(bar), label, "limit", below=bar < mean, left=True))
    above = sum(v > 0 for v in ascending)
    return Plot(
        id="windows",
        title="Difference per window, sorted",
        description=(
            f"{len(ascending)} windows; mean {mean:+.4f} nats per token, smallest "
            f"{ascending[0]:+.4f}, largest {ascending[-1]:+.4f}; {above} are worse than the "
            "baseline" + (f"; the limit is {bar:+.4f}." if bar is not None else ".")
        ),
        marks=tuple(Mark(_disc(x(i), y(v), 2.0), "dot") for i, v in enumerate(shown)),
        levels=tuple(levels),
        x_ticks=(),
        y_ticks=_linear_ticks(low, high, y),
        x_label="windows of the final arm, best to worst",
        y_label="subject - baseline, nats per token",
    )


def _level(y: float, label: str, style: str, *, below: bool = False, left: bool = False) -> Level:
    """A line with its label at one of its ends, above it or below."""
    x, anchor = (LEFT + 6, "start") if left else (RIGHT - 4, "end")
    return Level(y, label, style, x, anchor, round(y + 14 if below else y - 4, 1))


def _linear_ticks(low: float, high: float, y: Callable[[float], float]) -> tuple[Tick, ...]:
    step = _nice_step(high - low)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step), math.floor(high / step)
    return tuple(Tick(y(i * step), f"{i * step:.{digits}f}") for i in range(first, last + 1))


@dataclass(frozen=True)
class ModuleChange:
    """``ln(sigma_subject / sigma_baseline)`` of a weight matrix; no layer: outside the blocks."""

    name: str
    family: str
    layer: int | None
    log_ratio: float
    stable_rank_ratio: float | None


def module_changes(report: Report) -> list[ModuleChange]:
    """The recorded modules, largest change of sigma first."""
    table = block(block(report, "spectral"), "modules")
    if not signals.evaluated(report, "spectral") or not table:
        return []
    columns = [
        table.get(key, [])
        for key in (
            "name",
            "family",
            "layer",
            "sigma_max",
            "baseline_sigma_max",
            "stable_rank",
            "baseline_stable_rank",
        )
    ]
    if len({len(column) for column in columns}) != 1:
        return []
    found = [
        ModuleChange(
            name=str(name),
            family=str(family),
            layer=layer if isinstance(layer, int) else None,
            log_ratio=_log_ratio(float(mine), float(base)),
            stable_rank_ratio=rank / base_rank if base_rank else None,
        )
        for name, family, layer, mine, base, rank, base_rank in zip(*columns, strict=True)
    ]
    return sorted(found, key=lambda m: (-abs(m.log_ratio), m.name))


def _log_ratio(mine: float, base: float) -> float:
    """As the spectral guard counts it: a vanished or newborn sigma is e**(+-20)."""
    if mine <= 0 or base <= 0:
        return 0.0 if mine == base else math.copysign(20.0, mine - base)
    return math.log(mine / base)


def spectral_plot(changes: Sequence[ModuleChange], deadband: float | None) -> Plot | None:
    """Change of sigma per layer and family with the cap; None without modules.

    The vertical axis is linear up to about the cap and logarithmic beyond (asinh).
    """
    if not changes:
        return None
    cap = math.log1p(deadband) if deadband and deadband > 0 else 0.1
    reach = max(1.6 * cap, *(abs(c.log_ratio) for c in changes))
    bend = math.asinh(reach / cap) * 1.06
    straight = _scale(-bend, bend, BOTTOM, TOP)

    def y(value: float) -> float:
        return straight(math.asinh(value / cap))

    layers = sorted({c.layer for c in changes if c.layer is not None})
    outside = any(c.layer is None for c in changes)
    first = -1 if outside else 0
    x = _scale(first - 0.5, (layers[-1] if layers else 0) + 0.5, LEFT, RIGHT)
    families = [f for f in MARKERS if any(c.family == f for c in changes)]
    apart = min(7.0, (RIGHT - LEFT) / (4.0 * max(len(layers), 1)))  # families side by side
    shift = {f: (i - (len(families) - 1) / 2) * apart for i, f in enumerate(families)}
    marks = [
        Mark(
            MARKERS.get(c.family, _diamond)(
                x(-1 if c.layer is None else c.layer) + shift.get(c.family, 0.0), y(c.log_ratio)
            ),
            "beyond" if abs(c.log_ratio) > cap else "within",
        )
        for c in sorted(changes, key=lambda c: c.name)
    ]
    step = max(1, math.ceil(len(layers) / 16))
    ticks = [Tick(x(layer), str(layer)) for layer in layers[::step]]
    if outside:
        ticks.insert(0, Tick(x(-1), "none"))
    beyond = sum(abs(c.log_ratio) > cap for c in changes)
    marks_of = [v for v in (1.0, 5.0, 20.0) if cap * 1.8 < v <= reach]
    return Plot(
        id="spectral",
        title="Largest singular value per layer and family",
        description=(
            f"{len(changes)} weight matrices; {beyond} moved by more than {cap:.4f}; the largest "
            f"change is {changes[0].log_ratio:+.4f} in {changes[0].name}. The scale is linear near "
            "zero and logarithmic beyond the cap."
        ),
        marks=tuple(marks),
        levels=(
            _level(y(cap), f"cap {cap:+.4f}", "limit"),
            _level(y(-cap), f"cap {-cap:+.4f}", "limit", below=True),
        ),
        x_ticks=tuple(ticks),
        y_ticks=tuple(
            Tick(y(v), f"{v:g}") for v in sorted([0.0, *marks_of, *(-v for v in marks_of)])
        ),
        x_label="layer",
        y_label="ln(sigma ratio)",
        legend=tuple(
            Mark(MARKERS[family](LEFT + 8 + LEGEND_STEP * i, HEIGHT - 12), "within")
            for i, family in enumerate(families)
        ),
        legend_labels=tuple(
            (LEFT + 16 + LEGEND_STEP * i, family) for i, family in enumerate(families)
        ),
    )
