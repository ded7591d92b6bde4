"""Drawing: what a picture is made of, its marks and axes.

Coordinates are SVG user units (about a CSS pixel), rounded to a tenth so that bytes repeat.
A picture is paths and texts; the template writes them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from msgspec import Struct, field

WIDTH = 720
LEFT, RIGHT = 64, 704  # the plotting area
MARK = 2.6  # half the size of a marker


class Shape(Struct, frozen=True):
    """An SVG path, the class that styles it and, if it has one, its name."""

    style: str
    path: str
    name: str = ""


class Text(Struct, frozen=True):
    """Words at a place; ``anchor`` is start, middle or end, ``upright`` reads upwards."""

    style: str
    x: float
    y: float
    text: str
    anchor: str = "start"
    upright: bool = False


class Plot(Struct, frozen=True):
    """A picture with its title and its description in words."""

    id: str
    title: str
    description: str
    height: int
    shapes: tuple[Shape, ...]
    texts: tuple[Text, ...]
    width: int = WIDTH


class Canvas(Struct):
    """Collects the shapes and texts of a picture."""

    shapes: list[Shape] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)

    def draw(self, style: str, path: str, name: str = "") -> None:
        """Add a path."""
        self.shapes.append(Shape(style, path, name))

    def write(self, style: str, x: float, y: float, text: str, anchor: str = "start") -> None:
        """Add words."""
        self.texts.append(Text(style, round(x, 1), round(y, 1), text, anchor))

    def write_upwards(self, y: float, text: str) -> None:
        """Name the vertical axis."""
        self.texts.append(Text("label", 12, round(y, 1), text, "middle", upright=True))

    def level(self, y: float, style: str, left: float = LEFT, right: float = RIGHT) -> None:
        """A horizontal line."""
        self.draw(style, f"M{left} {y}H{right}")

    def plot(self, name: str, title: str, description: str, height: int) -> Plot:
        """The finished picture."""
        return Plot(name, title, description, height, tuple(self.shapes), tuple(self.texts))


def disc(x: float, y: float, r: float = MARK) -> str:
    """A filled circle."""
    return f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"


def _square(x: float, y: float, r: float = MARK) -> str:
    return f"M{x - r:.1f} {y - r:.1f}h{2 * r:g}v{2 * r:g}h{-2 * r:g}z"


def _triangle(x: float, y: float, r: float = MARK) -> str:
    r *= 1.25
    return f"M{x:.1f} {y - r:.1f}l{r:g} {2 * r:g}h{-2 * r:g}z"


def _diamond(x: float, y: float, r: float = MARK) -> str:
    r *= 1.35
    return f"M{x:.1f} {y - r:.1f}l{r:g} {r:g}l{-r:g} {r:g}l{-r:g} {-r:g}z"


def _bar(x: float, y: float, r: float = MARK) -> str:
    return f"M{x - r / 2:.1f} {y - 1.4 * r:.1f}h{r:g}v{2.8 * r:g}h{-r:g}z"


def _wedge(x: float, y: float, r: float = MARK) -> str:
    r *= 1.25
    return f"M{x:.1f} {y + r:.1f}l{r:g} {-2 * r:g}h{-2 * r:g}z"


# family -> marker; a shape each, so that the picture reads without colour
MARKERS: Mapping[str, Callable[[float, float, float], str]] = {
    "attn": disc,
    "ffn": _square,
    "expert": _triangle,
    "router": _diamond,
    "embed": _bar,
    "other": _wedge,
}


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear map from [low, high] to [start, end], rounded to a tenth."""
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def round_step(low: float, high: float) -> float:
    """The distance of about five round numbers between two values."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= (high - low) / 5)


def linear_axis(canvas: Canvas, span: tuple[float, float], y: Callable[[float], float]) -> None:
    """Grid lines and numbers of a linear vertical axis."""
    low, high = span
    step = round_step(low, high)
    digits = max(0, -math.floor(math.log10(step)))
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        canvas.level(y(i * step), "grid")
        canvas.write("tick", LEFT - 6, y(i * step) + 4, f"{i * step:.{digits}f}", "end")
