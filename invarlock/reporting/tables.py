"""Both runs' guard statistics as compact tables of a report.

A row is a module; the baseline's numbers stand in columns of their own beside the subject's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.guards.rmt import to_table as activations_table
from invarlock.guards.spectral import to_table as modules_table
from invarlock.guards.weight_stats import WeightStats

Table = dict[str, list[Any]]
HEAD = ("name", "family", "layer")
BASELINE = "baseline_"


@dataclass(frozen=True)
class Both:
    """One guard's statistics of two runs."""

    baseline: Sequence[Any]
    subject: Sequence[Any]


def spectral_table(both: Both) -> Table:
    """The statistics of all weights; both runs hold the same ones."""
    base = modules_table(both.baseline)
    columns = {BASELINE + field: base[field] for field in WeightStats.fields()}
    return modules_table(both.subject) | columns


def activation_table(both: Both, column: str) -> Table:
    """``edge`` or ``variance`` of activations; the baseline's names only where they differ."""
    base, mine = activations_table(both.baseline), activations_table(both.subject)
    table = {key: mine[key] for key in (*HEAD, column)} | {BASELINE + column: base[column]}
    if base["name"] != mine["name"]:
        table |= {BASELINE + key: base[key] for key in HEAD}
    return table
