"""Rows of embeddings, heads and position tables: did some change far beyond what the others did?

A row that no window uses moves no loss, and hardly a singular value. Each row is therefore held
against the baseline's row of the same number (:mod:`invarlock.guards.row_changes` measures it):

* ``change``: distance of the two over the distance of the baseline's row from the mean row (at
  least half the table's median of it), after what all rows have in common is taken away.
* ``typical``: the table's median change.

A row has **changed** where ``change > limit``, ``limit = factor * typical`` within ``limit_min``
and ``limit_max``, rounded up to a step of the recorded counts. It has **moved** where ``change >=
moved_min`` and another baseline row is at most ``nearer`` times as far away as its own: rows that
were alike and are exchanged change little, and are still somebody else's. One such row blocks,
unless all of them are rows of special tokens, none has moved, and the user accepts that: whoever
trains a model to talk trains the rows of the tokens that chats are written with.

The counts and the listed rows are recorded, not the decision alone: a reader decides again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.policy import RowPolicy
from invarlock.shown import listed

STEP = 0.05  # of the counts: how many rows changed by more than STEP, 2 STEP, ...
STEPS = 40
LISTED = 16  # rows recorded by their number: that many of the largest change, as many moved ones
EXAMINED = 64  # rows of the largest change, which are compared with every row of the baseline
MIN_ROWS = 16  # of a table; fewer do not say what the others did
ANCHORS_PER_COLUMN, MAX_ANCHORS = 4, 16_384
SEED = 20_240  # of the choice of anchors
TRANSFORM_ABOVE = 0.25  # typical change from which on a common rotation is looked for

CONTRACT = {
    "statistic": "distance/max(distance_from_mean, median/2)",
    "common": "median_shift, trimmed_procrustes_with_scale",
    "transform_above": TRANSFORM_ABOVE,
    "anchors": {"per_column": ANCHORS_PER_COLUMN, "max": MAX_ANCHORS, "seed": SEED},
    "examined": EXAMINED,
    "listed": LISTED,
    "min_rows": MIN_ROWS,
    "step": STEP,
    "steps": STEPS,
}
TOKEN, OTHER = "token", "other"  # what a row stands for
ROW_FINDINGS = TOKEN_ROWS, OTHER_ROWS = "token_rows", "table_rows"  # types of finding
SPECIAL_ROWS = "special_token_rows"  # a user accepts changed rows of special tokens by it


class ListedRow(NamedTuple):
    """One row of a table that changed by more than ``STEP``."""

    row: int
    token: str | None  # printable ASCII; None for rows of no token, or without a tokenizer
    change: float
    nearest: int  # the baseline's other row that is closest to it
    nearest_token: str | None
    nearest_change: float  # distance from that one, in the unit of ``change``
    special: bool = False  # whether the token is a special one of the baseline's tokenizer


class RowTable(NamedTuple):
    """How far the rows of one table moved, baseline to subject."""

    name: str  # of the baseline's tensor
    family: str
    kind: str  # TOKEN, or OTHER: positions, buckets of distance
    rows: int  # compared: those that both have
    baseline_only: int  # rows that are judged by nothing
    subject_only: int
    transform: str  # what was taken away before comparing: shift, or rotation too
    typical: float
    above: tuple[int, ...]  # rows that changed by more than STEP, 2 STEP ...; no zeros at the end
    listed: tuple[ListedRow, ...]  # largest change first


def to_json(tables: Sequence[RowTable]) -> list[dict[str, Any]]:
    """Tables as a report records them."""
    return [
        {
            **table._asdict(),
            "above": list(table.above),
            "listed": [_row_json(row) for row in table.listed],
        }
        for table in tables
    ]


def _row_json(row: ListedRow) -> dict[str, Any]:
    """A row as it is recorded; that it is special is said where it is."""
    return {key: value for key, value in row._asdict().items() if value is not False}


def from_json(tables: Sequence[Mapping[str, Any]]) -> list[RowTable]:
    """The inverse of :func:`to_json`.

    Raises:
        LookupError, TypeError, ValueError: of another shape.
    """
    found = [
        RowTable(
            **{
                **table,
                "above": tuple(map(int, table["above"])),
                "listed": tuple(ListedRow(**row) for row in table["listed"]),
            }
        )
        for table in tables
    ]
    if to_json(found) != [dict(table) for table in tables]:
        raise ValueError("row_tables is not the record that a report has")
    return found


def limit_of(typical: float, policy: RowPolicy) -> float:
    """The change beyond which a row is a finding, a multiple of ``STEP``."""
    wanted = min(max(policy.factor * typical, policy.limit_min), policy.limit_max)
    return round(STEP * math.ceil(round(wanted / STEP, 9)), 9)


def judge(tables: Sequence[RowTable], policy: RowPolicy) -> list[dict[str, Any]]:
    """For every table: its limit, how many rows are beyond it or moved, and which."""
    return [_judged(table, policy) for table in tables]


def _judged(table: RowTable, policy: RowPolicy) -> dict[str, Any]:
    limit = limit_of(table.typical, policy)
    step = round(limit / STEP)  # above[0] counts beyond one step
    changed = table.above[step - 1] if step <= len(table.above) else 0
    moved = [row for row in table.listed if _moved(row, policy)]
    bad = [row for row in table.listed if row.change > limit or row in moved]
    return {
        "module": table.name,
        "family": table.family,
        "kind": table.kind,
        "compared": table.rows,
        "typical": table.typical,
        "largest": table.listed[0].change if table.listed else None,  # null: at most STEP
        "limit": limit,
        "rows": changed + sum(row.change <= limit for row in moved),
        "listed": [_named(row, row in moved) for row in bad[:LISTED]],
    }


def findings(judged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One fatal finding a table with such rows, as violations of the spectral guard."""
    kept = ("module", "family", "compared", "typical", "limit", "rows", "listed")
    return [
        {
            "type": TOKEN_ROWS if table["kind"] == TOKEN else OTHER_ROWS,
            **{key: table[key] for key in kept},
            "severity": "fatal",
            **({"accept": SPECIAL_ROWS} if _only_special(table) else {}),
        }
        for table in judged
        if table["rows"]
    ]


def _only_special(table: Mapping[str, Any]) -> bool:
    """Whether all rows of a finding are known, special tokens', and still their own."""
    listed = table["listed"]
    known = len(listed) == table["rows"]
    return known and all(row.get("special") and "closest" not in row for row in listed)


def _moved(row: ListedRow, policy: RowPolicy) -> bool:
    return row.change >= policy.moved_min and row.nearest_change <= policy.nearer * row.change


def _named(row: ListedRow, moved: bool) -> dict[str, Any]:
    """A row of a finding; ``closest``: the row of the baseline that it moved to."""
    named: dict[str, Any] = {"row": row.row, "token": row.token, "change": row.change}
    named |= {"special": True} if row.special else {}
    return named | ({"closest": row.nearest, "closest_token": row.nearest_token} if moved else {})


def sentence(finding: Mapping[str, Any], most: int = 6, through: Collection[str] = ()) -> str:
    """A finding in words: how many rows, and which of them first; ``through``: accepted names."""
    names = listed([_words(row) for row in finding["listed"]], most, of=finding["rows"])
    what = "token rows" if finding["type"] == TOKEN_ROWS else "rows"
    limits = f"limit {finding['limit']:.2f}, half of all within {finding['typical']:.3g}"
    count = f"{finding['rows']} of {finding['compared']} {what}"
    end = ""
    if "accept" in finding:
        said = "accepted by name:" if finding["accept"] in through else "to be accepted as"
        end = f"; all are special tokens, {said} {finding['accept']}"
    return f"{finding['module']}: {count} changed far beyond the others ({limits}): {names}{end}"


def _words(row: Mapping[str, Any]) -> str:
    name = _name(row["row"], row["token"])
    if "closest" not in row:
        return name
    return f"{name} (now closest to {_name(row['closest'], row.get('closest_token'))})"


def _name(row: object, token: object) -> str:
    return str(row) if token is None else f"{row} '{token}'"


def contradictions(tables: Sequence[RowTable]) -> list[str]:
    """What of a record cannot be: counts, median and listed rows have to agree."""
    found = []
    for table in tables:
        counts = (table.rows, *table.above)
        changes = [row.change for row in table.listed]
        numbers = [table.typical, *changes, *(row.nearest_change for row in table.listed)]
        ids = [row.row for row in table.listed]
        sound = (
            table.kind in (TOKEN, OTHER)
            and table.rows >= MIN_ROWS
            and min(table.baseline_only, table.subject_only, *counts) >= 0
            and list(counts) == sorted(counts, reverse=True)
            and len(table.above) <= STEPS
            and table.above[-1:] != (0,)
            and all(math.isfinite(number) and number >= 0 for number in numbers)
            and changes == sorted(changes, reverse=True)
            and len(set(ids)) == len(ids) <= 2 * LISTED
            and all(0 <= i < table.rows for i in ids)
            and all(0 <= r.nearest < table.rows + table.baseline_only for r in table.listed)
        )
        if not sound or not all(
            min(LISTED, count) <= sum(c > edge for c in changes) <= count
            and (count <= table.rows // 2 if edge >= table.typical else 2 * count >= table.rows)
            for edge, count in _edges(table)
        ):
            found.append(f"{table.name}: counts, median and listed rows disagree")
    return found


def _edges(table: RowTable) -> list[tuple[float, int]]:
    """Every step with the number of rows that changed by more."""
    counts = (*table.above, *[0] * (STEPS - len(table.above)))
    return [(edge_of(step), count) for step, count in enumerate(counts, 1)]


def edge_of(step: int) -> float:
    """The change that the count of a step is beyond, a number without rounding noise."""
    return round(STEP * step, 9)
