"""Members of an evaluation report, read so that what is absent says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
BASELINE = "baseline_"  # before the name of a column that holds the baseline's numbers
REJECTED = "rejected_by_invariants"
# Reasons for which the subject was not run at all, so that there is no metric to judge by.
NOT_RUN = (REJECTED, "crashed", "out_of_memory", "timeout")
# Those that are about the machine: they say nothing of the subject.
NOT_TRIED = ("out_of_memory", "timeout")


def block(report: Report, name: str) -> Mapping[str, Any]:
    """A section of the report; empty when it is absent or not an object."""
    found = report.get(name)
    return found if isinstance(found, Mapping) else {}


def objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list of a report."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def columns(table: Mapping[str, Any], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of named columns; none when a column is missing or the lengths differ."""
    found = [table.get(name) for name in names]
    lists = [column for column in found if isinstance(column, list)]
    if len(lists) != len(names) or len({len(column) for column in lists}) != 1:
        return []
    return list(zip(*lists, strict=True))


def evaluated(report: Report, name: str) -> bool:
    """Whether the section holds a measurement.

    The primary metric does unless the subject was not run; the others do unless they are
    absent or say ``evaluated: false``.
    """
    section = block(report, name)
    if name == "primary_metric":
        return bool(section) and section.get("degraded_reason") not in NOT_RUN
    return bool(section) and section.get("evaluated") is not False


def refused(report: Report, flag: str, name: str) -> bool:
    """Whether the section was measured and the validation flag that it carries is false."""
    return block(report, "validation").get(flag) is False and evaluated(report, name)


def limits(report: Report, name: str) -> Mapping[str, Any]:
    """The thresholds of a part of the policy, as the report states them."""
    return block(block(report, "resolved_policy"), name)
