"""Readings of detectors: conditions on an evaluation report that a scenario asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.pages.reading import Report, block, evaluated

Detector = Mapping[str, Any]
NOT_EVALUATED = "not evaluated"
NOT_BAD = "not acceptable, but not shown to be bad"
NO_NOOP = "no no-op report"


class Reading(NamedTuple):
    """The result of one detector: its label, whether it is true, why not if that is special."""

    label: str
    hit: bool
    reason: str = ""

    @property
    def open(self) -> bool:
        """Whether more evidence could still make it true."""
        return self.reason in (NOT_EVALUATED, NOT_BAD)

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}" if self.reason else self.label


# A detector, the subject's report and the no-op's (None where there is none).
Reader = Callable[[Detector, Report, Report | None], Reading]


def words(value: object) -> str:
    """A value as labels show it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def same(found: object, expected: object) -> bool:
    """Equal and of one kind: ``1`` is not ``true``."""
    return isinstance(found, bool) == isinstance(expected, bool) and found == expected


def read_member(name: str, detector: Detector, report: Report) -> Reading:
    """The reading of a kind that names a member of the block called ``name``.

    The published harness kept these members in a file of its own, with another name for one.
    """
    field, least = detector["field"], detector.get("min")
    asked = f"={words(detector.get('expected'))}" if least is None else f">={words(least)}"
    label = f"{detector['kind']}.{field}{asked}"
    found = block(report, name).get("signal" if field == "would_enable" else field)
    if found is None or not evaluated(report, name):
        return Reading(label, False, "no probe evidence")
    if isinstance(found, (Sequence, Mapping)) and not isinstance(found, str):
        found = len(found)
    if least is None:
        return Reading(label, same(found, detector.get("expected")))
    counted = isinstance(found, (int, float)) and not isinstance(found, bool)
    return Reading(label, counted and found >= least)
