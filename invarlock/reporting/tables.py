"""Both runs' guard statistics as compact tables of a report, and back.

A row is a module; the baseline's numbers stand in columns of their own beside the subject's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.guards.rmt import Activation
from invarlock.guards.rmt import from_table as activations_from
from invarlock.guards.rmt import to_table as activations_table
from invarlock.guards.spectral import SIGNIFICANT, Module
from invarlock.guards.spectral import from_table as modules_from
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


def read_spectral(table: Mapping[str, Sequence[Any]]) -> tuple[list[Module], list[Module]]:
    """Baseline and subject of :func:`spectral_table`."""
    head = {key: table[key] for key in HEAD}
    base = {field: table[BASELINE + field] for field in WeightStats.fields()}
    return modules_from(head | base), modules_from(table)


def as_recorded(
    table: Mapping[str, Sequence[Any]], statistics: Sequence[str], *, names_may_differ: bool
) -> bool:
    """Whether a table is one that a report has: these columns, sorted, numbers as rounded.

    Raises:
        TypeError: a statistic that is neither a number nor null.
    """
    differ = names_may_differ and table.get(BASELINE + "name", table["name"]) != table["name"]
    heads = [BASELINE, ""] if differ else [""]
    columns = [head + key for head in heads for key in HEAD] + [
        head + key for head in (BASELINE, "") for key in statistics
    ]
    if table.keys() != set(columns):
        return False
    texts = [table[head + key] for head in heads for key in ("name", "family")]
    names = [table[head + "name"] for head in heads]
    return (
        all(isinstance(text, str) for column in texts for text in column)
        and all(list(column) == sorted(column) for column in names)
        and all(_rounded(table[key]) for key in columns if key.removeprefix(BASELINE) in statistics)
    )


def _rounded(column: Sequence[Any]) -> bool:
    """Whether every number is what :func:`rounded` makes of it, formatted all at once."""
    numbers = [value for value in column if value is not None]
    if not all(map(math.isfinite, numbers)):
        return False
    text = f"%.{SIGNIFICANT}g " * len(numbers) % tuple(numbers)
    return list(map(float, text.split())) == numbers


def activation_table(both: Both, column: str) -> Table:
    """``edge`` or ``variance`` of activations; the baseline's names only where they differ."""
    base, mine = activations_table(both.baseline), activations_table(both.subject)
    table = {key: mine[key] for key in (*HEAD, column)} | {BASELINE + column: base[column]}
    if base["name"] != mine["name"]:
        table |= {BASELINE + key: base[key] for key in HEAD}
    return table


def read_activations(
    table: Mapping[str, Sequence[Any]], column: str
) -> tuple[list[Activation], list[Activation]]:
    """Baseline and subject of :func:`activation_table`; the other number of each is 0."""
    other = {"edge": "variance", "variance": "edge"}[column]
    prefix = BASELINE if BASELINE + "name" in table else ""

    def read(head: str, values: Sequence[Any]) -> list[Activation]:
        columns = {key: table[head + key] for key in HEAD}
        return activations_from(columns | {column: values, other: [0.0] * len(values)})

    return read(prefix, table[BASELINE + column]), read("", table[column])
