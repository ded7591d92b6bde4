"""Modules of two runs held against each other: subject over baseline, as picture and table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from invarlock.counts import counted
from invarlock.pages.panels import Panels, Point, draw_panels
from invarlock.pages.parts import LISTED, Table
from invarlock.pages.plots import Plot
from invarlock.pages.reading import BASELINE, Report, block, columns, evaluated
from invarlock.pages.wording import number, percent

FAR = 20.0  # |ln ratio| of what vanished or appeared, as the spectral guard counts it
# Ratios an axis may mark, most wanted first.
_RATIOS = (
    *(1e8, 1e-8, 1e6, 1e-6, 1e3, 1e-3, 100, 0.01, 10, 0.1, 2, 0.5, 1.5, 0.7, 1.2, 0.8, 1.1, 0.9),
    *(1.05, 0.95, 1.02, 0.98, 1.01, 0.99, 1.005, 0.995, 1.002, 0.998, 1.001, 0.999),
)
TICKS = [math.log(ratio) for ratio in _RATIOS]
Limits = Mapping[str, tuple[float, float]]  # per family, on ln(ratio)


class ModuleChange(Struct, frozen=True):
    """A statistic of a module: subject over baseline; no layer: outside the blocks."""

    name: str
    family: str
    layer: int | None
    log_ratio: float
    stable_rank_ratio: float | None = None


def module_changes(
    report: Report, guard: str, statistic: str, table_name: str = "modules"
) -> list[ModuleChange]:
    """The modules of a guard's table, largest change of the statistic first.

    Args:
        guard: the name of its block.
        statistic: the column; ``BASELINE`` + its name holds the reference.
        table_name: the member of the block that holds the table.
    """
    if not evaluated(report, guard):
        return []
    table = block(block(report, guard), table_name)
    # The baseline's names stand in a column of their own where its modules are others.
    theirs = BASELINE + "name" if BASELINE + "name" in table else "name"
    before = dict(columns(table, (theirs, BASELINE + statistic)))
    ranks = columns(table, ("stable_rank", BASELINE + "stable_rank"))
    found = [
        ModuleChange(
            name=str(name),
            family=str(family),
            layer=layer if isinstance(layer, int) else None,
            log_ratio=log_ratio(number(mine), number(before[name])),
            stable_rank_ratio=_ratio(*ranks[i]) if i < len(ranks) else None,
        )
        for i, (name, family, layer, mine) in enumerate(
            columns(table, ("name", "family", "layer", statistic))
        )
        if name in before
    ]
    return sorted(found, key=lambda m: (-abs(m.log_ratio), m.name))


def log_ratio(mine: float | None, base: float | None) -> float:
    """ln(mine / base) within +-FAR; a number that was lost lies at the far end."""
    if mine is None:
        return FAR
    if base is None or mine <= 0 or base <= 0:
        return 0.0 if mine == base else math.copysign(FAR, mine - (base or 0.0))
    return max(-FAR, min(FAR, math.log(mine / base)))


def _ratio(mine: object, base: object) -> float | None:
    subject, reference = number(mine), number(base)
    return subject / reference if subject is not None and reference else None


def module_plot(
    name: str, title: str, changes: Sequence[ModuleChange], limits: Limits
) -> tuple[Plot, ...]:
    """Panels of subject / baseline, with the extremes in words; none without modules."""
    if not changes:
        return ()
    points = [Point(c.name, c.family, c.layer, c.log_ratio) for c in changes]
    panels = Panels(points, limits, ratio_label, TICKS, "subject / baseline")
    worst = max(panels.points, key=lambda p: (abs(p.value), p.name))
    beyond = sum(map(panels.beyond, panels.points))
    words = (
        f"{counted(len(panels.points), 'module')}, {beyond} beyond the limit of their family; "
        f"the largest change is {panels.label(worst.value)} in {worst.name}. The scale is linear "
        "up to the limit and logarithmic beyond; 1 means no change."
    )
    return (draw_panels(panels).plot(name, title, words, panels.height()),)


def ratio_label(value: float) -> str:
    """A logarithm of a ratio as the ratio."""
    ratio = math.exp(value)
    return f"{ratio:.4g}" if 1e-3 < ratio < 1e4 else f"{ratio:.0e}"


def largest_changes(moved: Sequence[ModuleChange], header: tuple[str, ...]) -> Iterator[Table]:
    """The modules that changed most, of those that changed."""
    if not moved:
        return
    rows = []
    for c in moved[:LISTED]:
        rank = "-" if c.stable_rank_ratio is None else percent(c.stable_rank_ratio)
        far = "beyond measure" if c.log_ratio >= FAR else percent(math.exp(c.log_ratio))
        rows.append((c.name, c.family, far, rank)[: len(header)])
    caption = f"Largest changes ({min(LISTED, len(moved))} of {len(moved)})"
    yield Table(caption, header, tuple(rows))
