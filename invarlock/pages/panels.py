"""Points per layer in one panel per family, each with its own limits drawn in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from invarlock.counts import counted
from invarlock.pages.plots import LEFT, MARK, MARKERS, Canvas, scale

RIGHT = 618  # leaves room for the names of the limits
PANEL, GAP = 78, 28
NAMED = 20  # marks beyond a limit that carry their module's name
OUTSIDE = 10  # px from the axis to what belongs to no layer
APART = 13  # px between two numbers of an axis


class Point(Struct, frozen=True):
    """A module's change; 0 is none, no layer: outside the blocks."""

    name: str
    family: str
    layer: int | None
    value: float


class Panels(Struct, frozen=True):
    """What is drawn.

    ``limits`` holds per family the values below and above which a point violates, infinite where
    there is none. The vertical scale is linear up to about the limit and
    logarithmic beyond (asinh), the same in units of the limit in every panel. ``label`` writes
    a value; ``ticks`` are the values that may be marked, most wanted first.
    """

    points: Sequence[Point]
    limits: Mapping[str, tuple[float, float]]
    label: Callable[[float], str]
    ticks: Sequence[float]
    y_label: str

    def families(self) -> list[str]:
        """Families that have points, in the order of their markers."""
        there = {p.family for p in self.points}
        return [f for f in MARKERS if f in there] + sorted(there - set(MARKERS))

    def unit(self, family: str) -> float:
        """One unit of the bent scale: the family's limit, a tenth where it has none."""
        finite = [abs(v) for v in self.limits.get(family, ()) if math.isfinite(v) and v != 0]
        return max(finite, default=0.1)

    def beyond(self, point: Point) -> bool:
        """Whether a point lies outside its family's limits."""
        low, high = self.limits.get(point.family, (-math.inf, math.inf))
        return not low <= point.value <= high

    def height(self) -> int:
        """Of the whole picture."""
        return len(self.families()) * (PANEL + GAP) + 38


class _Frame(Struct, frozen=True):
    """Where a panel lies and how it is scaled; ``y`` takes values in units of the limit."""

    top: float
    bottom: float
    x: Callable[[float], float]
    y: Callable[[float], float]
    unit: float

    def at(self, value: float) -> float:
        """The height of a value."""
        return self.y(math.asinh(value / self.unit))


def draw_panels(panels: Panels) -> Canvas:
    """Draw the panels below each other, over a common axis of layers."""
    canvas = Canvas()
    layers = [p.layer for p in panels.points if p.layer is not None]
    last = max(layers, default=0)
    outside = any(p.layer is None for p in panels.points)
    x = scale(-0.5, last + 0.5, LEFT + (2 * OUTSIDE if outside else 0), RIGHT)
    bent = [math.asinh(p.value / panels.unit(p.family)) for p in panels.points]
    side = math.asinh(1.6)
    below, above = (
        any(math.isfinite(limits[end]) for limits in panels.limits.values()) for end in (0, 1)
    )
    low = min(*bent, -side if below else -0.3) * 1.08
    high = max(*bent, side if above else 0.3) * 1.08
    for i, family in enumerate(panels.families()):
        top = float(GAP + i * (PANEL + GAP))
        y = scale(low, high, top + PANEL, top)
        _panel(canvas, panels, family, _Frame(top, top + PANEL, x, y, panels.unit(family)))
    bottom = len(panels.families()) * (PANEL + GAP)
    step = max(1, math.ceil((last + 1) / 16))
    for layer in range(0, last + 1, step) if layers else ():
        canvas.write("tick", x(layer), bottom + 14, str(layer), "middle")
    if outside:
        canvas.write("tick", LEFT + OUTSIDE, bottom + 14, "-", "middle")
    canvas.write(
        "label", RIGHT, bottom + 31, "layer (-: outside the blocks)" if outside else "layer", "end"
    )
    canvas.write_upwards(bottom / 2 + GAP / 2, panels.y_label)
    return canvas


def _panel(canvas: Canvas, panels: Panels, family: str, frame: _Frame) -> None:
    points = [p for p in panels.points if p.family == family]
    marker = MARKERS.get(family, MARKERS["other"])
    canvas.draw("axis", f"M{LEFT} {frame.top:g}V{frame.bottom:g}H{RIGHT}")
    canvas.draw("within", marker(LEFT + 4, frame.top - 9, MARK))
    count = counted(len(points), "module")
    canvas.write("family", LEFT + 12, frame.top - 5, f"{family}, {count}")
    _ticks(canvas, panels, frame)
    _limits(canvas, panels, family, frame)
    within, beyond = "", ""
    named = 0
    for p in sorted(points, key=lambda p: (-abs(p.value), p.name)):
        x = LEFT + OUTSIDE if p.layer is None else frame.x(p.layer)
        y = frame.at(p.value)
        if not panels.beyond(p):
            within += marker(x, y, MARK)
        elif named < NAMED:
            named += 1
            name = f"{p.name}: {panels.label(p.value)}"
            canvas.draw("beyond", marker(x, y, MARK * 1.5), name)
        else:
            beyond += marker(x, y, MARK * 1.5)
    for style, paths in (("within", within), ("beyond", beyond)):
        if paths:
            canvas.draw(style, paths)


def _limits(canvas: Canvas, panels: Panels, family: str, frame: _Frame) -> None:
    """The limits of a family with their values beside the panel."""
    limits = [v for v in panels.limits.get(family, ()) if math.isfinite(v)]
    for limit in limits:
        canvas.level(frame.at(limit), "limit", right=RIGHT)
    if not limits:
        canvas.write("level", RIGHT + 6, frame.at(0) + 4, "no limit")
    elif len(limits) == 2 and frame.at(limits[0]) - frame.at(limits[1]) < APART:  # no room for two
        words = " / ".join(map(panels.label, limits))
        canvas.write("level", RIGHT + 6, frame.at(0) + 4, words)
    else:
        for limit in limits:
            words = f"limit {panels.label(limit)}"
            canvas.write("level", RIGHT + 6, frame.at(limit) + 4, words)


def _ticks(canvas: Canvas, panels: Panels, frame: _Frame) -> None:
    """Grid lines at as many of the wanted values as there is room for."""
    taken: list[float] = []
    for value in (0.0, *panels.ticks):
        y = frame.at(value)
        room = frame.top <= y <= frame.bottom and all(abs(y - t) >= APART for t in taken)
        if room and len(taken) < 5:
            taken.append(y)
            canvas.level(y, "zero" if value == 0 else "grid", right=RIGHT)
            canvas.write("tick", LEFT - 6, y + 4, panels.label(value), "end")
