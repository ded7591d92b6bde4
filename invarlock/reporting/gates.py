"""Which validation flags decide whether a report passes."""

from __future__ import annotations

from invarlock.guards import GUARDS
from invarlock.pages.reading import Report

OF_METRIC = (
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "primary_metric_tail_acceptable",
)
_DECIDING = [guard for guard in GUARDS if guard.flag and guard.gates]
_OF_FILES = tuple(guard.flag for guard in _DECIDING if guard.of_files)
# The validation flags that decide, in the tiers that enforce guards, of every model.
GATES = (*OF_METRIC, *dict.fromkeys(guard.flag for guard in _DECIDING if guard.every_model))
EXPLORING_GATES = (OF_METRIC[0], *_OF_FILES)  # tier none
# Published flags of what measuring costs: recorded, and never held against a subject.
COST_FLAGS = tuple(guard.flag for guard in GUARDS if guard.flag and not guard.gates)
# The order in which flags are named, the most basic first: what the files are, what the metric
# says, what the guards say.
NAMED_FIRST = (
    *_OF_FILES,
    *OF_METRIC,
    *dict.fromkeys(guard.flag for guard in _DECIDING if not guard.of_files),
)


def gates_of(report: Report, enforce_guards: bool) -> tuple[str, ...]:
    """The flags that decide on a report with these blocks."""
    if not enforce_guards:
        return EXPLORING_GATES
    there = (g.flag for g in _DECIDING if not g.every_model and g.name in report)
    return tuple(dict.fromkeys((*GATES, *there)))


def in_order(flags: set[str]) -> tuple[str, ...]:
    """Flags in the order in which they are named; ones of other versions come last, by name."""
    known = [flag for flag in NAMED_FIRST if flag in flags]
    return (*known, *sorted(flags.difference(known)))
