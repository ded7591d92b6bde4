"""Detector kinds: conditions on an evaluation report that a scenario asks for.

A set of detectors is satisfied iff at least one of ``detectors_any_of`` is true (or none is
listed), every one of ``detectors_all_of`` is true, and at least one is listed at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.guards import BY_NAME, GUARDS
from invarlock.guards.detector import (
    NO_NOOP,
    NOT_BAD,
    NOT_EVALUATED,
    Detector,
    Reader,
    Reading,
    same,
    words,
)
from invarlock.pages.reading import Report, block, evaluated
from invarlock.reporting import signals
from invarlock.reporting.gates import COST_FLAGS

COST = "a cost of measuring, which says nothing of the subject"


class Evaluated(NamedTuple):
    """The result of a scenario's detectors."""

    hit: list[str]
    missed: list[str]
    satisfied: bool


def evaluate_detectors(
    requirements: Mapping[str, Any], report: Report, baseline_report: Report | None = None
) -> Evaluated:
    """Evaluate a scenario's detectors on one report.

    Args:
        requirements: the ``requirements`` object of the scenario.
        report: the subject's evaluation report.
        baseline_report: the no-op's evaluation report, for the baseline-relative kinds.

    Returns:
        detectors that were true, those that were not (with a reason where there is one), and
        whether the requirement is satisfied.
    """
    any_of = read_all(requirements.get("detectors_any_of", ()), report, baseline_report)
    all_of = read_all(requirements.get("detectors_all_of", ()), report, baseline_report)
    listed = [*any_of, *all_of]
    satisfied = (
        bool(listed) and (not any_of or any(r.hit for r in any_of)) and all(r.hit for r in all_of)
    )
    return Evaluated(
        hit=[r.label for r in listed if r.hit],
        missed=[str(r) for r in listed if not r.hit],
        satisfied=satisfied,
    )


def settled(requirements: Mapping[str, Any], report: Report) -> bool:
    """Whether a report shows all that a scenario asks for, as far as the report alone can: what is
    read against the no-op's report is about guards, and is not asked."""
    alone = {
        name: [r for r in read_all(requirements.get(name, ()), report, None) if r.reason != NO_NOOP]
        for name in ("detectors_any_of", "detectors_all_of")
    }
    any_of, all_of = alone.values()
    return (not any_of or any(r.hit for r in any_of)) and all(r.hit for r in all_of)


def read_all(
    detectors: Sequence[Detector], report: Report, baseline_report: Report | None
) -> list[Reading]:
    """Each detector's reading, in order."""
    return [_KINDS[d["kind"]](d, report, baseline_report) for d in detectors]


def _validation_flag(detector: Detector, report: Report, _: Report | None) -> Reading:
    flag, expected = detector["flag"], detector["expected"]
    label = f"{flag}={words(expected)}"
    found = block(report, "validation").get(flag)
    if flag in COST_FLAGS:
        return Reading(label, False, COST)
    if found is None or not evaluated(report, signals.FLAG_BLOCKS[flag]):
        return Reading(label, False, NOT_EVALUATED)
    if flag == "primary_metric_acceptable" and found is False:
        fired = signals.primary_metric_fired(report)
        return Reading(label, fired and not expected, "" if fired else NOT_BAD)
    return Reading(label, same(found, expected))


def _primary_metric(detector: Detector, report: Report, _: Report | None) -> Reading:
    field, expected = detector["field"], detector["expected"]
    label = f"primary_metric.{field}={words(expected)}"
    if not evaluated(report, "primary_metric"):
        return Reading(label, False, NOT_EVALUATED)
    return Reading(label, same(block(report, "primary_metric").get(field), expected))


def _guard_relative(detector: Detector, report: Report, noop: Report | None) -> Reading:
    guard = detector["guard"]
    label = f"guard_signal_baseline_relative={guard}"
    if noop is None:
        return Reading(label, False, NO_NOOP)
    own = BY_NAME[guard].fired_since(detector, report, noop) if guard in BY_NAME else None
    if own is not None:
        return Reading(label, own.hit, own.reason)
    return Reading(
        label, signals.guard_fired(report, guard) and not signals.guard_fired(noop, guard)
    )


_KINDS: Mapping[str, Reader] = {
    "validation_flag": _validation_flag,
    "primary_metric": _primary_metric,
    "guard_signal_baseline_relative": _guard_relative,
    **{kind: reader for guard in GUARDS for kind, reader in guard.detectors().items()},
}
DETECTOR_KINDS = tuple(_KINDS)
