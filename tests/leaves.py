"""Every leaf of a report: changed one at a time, and what no verification notices of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from invarlock.reporting.replay import BELIEVED, replay

Place = tuple[str | int, ...]
SAMPLED = 8  # entries of a column beyond which its first, middle and last stand for all


def leaves(value: Any, at: Place = ()) -> Iterator[Place]:
    """The places of all values that hold no others, empty containers included."""
    if isinstance(value, dict) and value:
        for key in value:
            yield from leaves(value[key], (*at, key))
    elif isinstance(value, list) and value:
        plain = len(value) > SAMPLED and not isinstance(value[0], dict | list)
        rows = {0, len(value) // 2, len(value) - 1} if plain else range(len(value))
        for row in sorted(rows):
            yield from leaves(value[row], (*at, row))
    else:
        yield at


def other(value: Any) -> Any:
    """Another value of the same type, where there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value * 1.001 + 0.0137
    return f"{value}x" if isinstance(value, str) else "x"


@contextmanager
def changed(report: Any, place: Place) -> Iterator[Any]:
    """The report with another value at a place, for as long as the context lasts."""
    inner = report
    for part in place[:-1]:
        inner = inner[part]
    before = inner[place[-1]]
    inner[place[-1]] = other(before)
    yield report
    inner[place[-1]] = before


def noticed(report: Any, place: Place) -> bool:
    """Whether the replay notices another value at a place."""
    with changed(report, place):
        return bool(replay(report))


def pointer(place: Place) -> str:
    """The JSON pointer of a place."""
    return "".join(f"/{part}" for part in place)


def unnoticed(report: Any) -> list[str]:
    """The pointers of leaves whose change the replay does not notice."""
    return [pointer(p) for p in leaves(report) if not noticed(report, p)]


def names(pattern: str, where: str) -> bool:
    """Whether an entry of ``BELIEVED`` names a pointer, or something that it lies in."""
    words = [
        ".*" if w == "**" else "[^/]*" if w == "*" else re.escape(w) for w in pattern.split("/")
    ]
    return re.match("/".join(words) + "(/|$)", where) is not None


def believed(where: str) -> bool:
    """Whether a pointer is among what is only believed."""
    return any(names(p, where) for pointers in BELIEVED.values() for p in pointers)
