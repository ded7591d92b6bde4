"""Detector kinds: conditions on an evaluation report that a scenario asks for.

A set of detectors is satisfied iff at least one of ``detectors_any_of`` is true (or none is
listed), every one of ``detectors_all_of`` is true, and at least one is listed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.reporting import signals
from invarlock.reporting.gates import COST_FLAGS
from invarlock.reporting.signals import Report

Detector = Mapping[str, Any]


NOT_EVALUATED = "not evaluated"
NOT_BAD = "not acceptable, but not shown to be bad"
COST = "a cost of measuring, which says nothing of the subject"


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


def read_all(
    detectors: Sequence[Detector], report: Report, baseline_report: Report | None
) -> list[Reading]:
    """Each detector's reading, in order."""
    return [_KINDS[d["kind"]](d, report, baseline_report) for d in detectors]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _same(found: object, expected: object) -> bool:
    """Equal and of one kind: ``1`` is not ``true``."""
    return isinstance(found, bool) == isinstance(expected, bool) and found == expected


def _validation_flag(detector: Detector, report: Report, _: Report | None) -> Reading:
    flag, expected = detector["flag"], detector["expected"]
    label = f"{flag}={_value(expected)}"
    found = signals.block(report, "validation").get(flag)
    if flag in COST_FLAGS:
        return Reading(label, False, COST)
    if found is None or not signals.evaluated(report, signals.FLAG_BLOCKS[flag]):
        return Reading(label, False, NOT_EVALUATED)
    if flag == "primary_metric_acceptable" and found is False:
        spoke = signals.primary_metric_spoke(report)
        return Reading(label, spoke and not expected, "" if spoke else NOT_BAD)
    return Reading(label, _same(found, expected))


def _primary_metric(detector: Detector, report: Report, _: Report | None) -> Reading:
    field, expected = detector["field"], detector["expected"]
    label = f"primary_metric.{field}={_value(expected)}"
    if not signals.evaluated(report, "primary_metric"):
        return Reading(label, False, NOT_EVALUATED)
    return Reading(label, _same(signals.block(report, "primary_metric").get(field), expected))


def _invariants_status(detector: Detector, report: Report, _: Report | None) -> Reading:
    status = signals.invariants_status(report)
    label = "invariants_status=" + "|".join(detector["allowed"])
    return Reading(label, status in detector["allowed"], "" if status else NOT_EVALUATED)


def _spectral_caps(detector: Detector, report: Report, _: Report | None) -> Reading:
    caps = signals.spectral_caps(report)
    label = f"spectral_caps_applied>={detector['min']}"
    if caps is None:
        return Reading(label, False, NOT_EVALUATED)
    return Reading(label, caps >= detector["min"])


def _spectral_relative(detector: Detector, report: Report, noop: Report | None) -> Reading:
    least_new, least_more = detector.get("min_new_modules", 0), detector.get("min_delta_count", 0)
    label = f"spectral_caps_baseline_relative>={least_new} new,>={least_more} more"
    caps = signals.spectral_caps(report)
    before = signals.spectral_caps(noop) if noop is not None else None
    if caps is None or before is None or noop is None:
        return Reading(label, False, "no no-op report" if noop is None else NOT_EVALUATED)
    new = signals.capped_modules(report) - signals.capped_modules(noop)
    return Reading(label, len(new) >= least_new and caps - before >= least_more)


def _guard_relative(detector: Detector, report: Report, noop: Report | None) -> Reading:
    guard = detector["guard"]
    label = f"guard_signal_baseline_relative={guard}"
    if noop is None:
        return Reading(label, False, "no no-op report")
    if guard == "spectral" and ("min_new_modules" in detector or "min_delta_count" in detector):
        return Reading(label, *_spectral_relative(detector, report, noop)[1:])
    spoke = signals.guard_spoke(report, guard) and not signals.guard_spoke(noop, guard)
    return Reading(label, spoke)


# The report's block that holds what the published harness kept in a file of its own.
_PROBES = {"rmt_probe": "rmt", "ve_probe": "variance"}


def _probe(detector: Detector, report: Report, _: Report | None) -> Reading:
    name, field, least = detector["kind"], detector["field"], detector.get("min")
    asked = f"={_value(detector.get('expected'))}" if least is None else f">={_value(least)}"
    label = f"{name}.{field}{asked}"
    section = signals.block(report, _PROBES[name])
    found = section.get("signal" if field == "would_enable" else field)
    if found is None or not signals.evaluated(report, _PROBES[name]):
        return Reading(label, False, "no probe evidence")
    if isinstance(found, (Sequence, Mapping)) and not isinstance(found, str):
        found = len(found)
    if least is None:
        return Reading(label, _same(found, detector.get("expected")))
    counted = isinstance(found, (int, float)) and not isinstance(found, bool)
    return Reading(label, counted and found >= least)


_KINDS: Mapping[str, Callable[[Detector, Report, Report | None], Reading]] = {
    "validation_flag": _validation_flag,
    "primary_metric": _primary_metric,
    "invariants_status": _invariants_status,
    "spectral_caps_applied": _spectral_caps,
    "spectral_caps_baseline_relative": _spectral_relative,
    "guard_signal_baseline_relative": _guard_relative,
    "rmt_probe": _probe,
    "ve_probe": _probe,
}
DETECTOR_KINDS = tuple(_KINDS)
