"""Looks: when the measurement of a control may end before all windows ran.

A control is there to be refused. It is looked at when a tenth, a quarter, half and three quarters
of the documents ran, and ends as soon as something refuses it. To look oftener is to accuse by
chance more often, so the error ``alpha`` of the interval is shared out: each early look takes a
tenth of it, all windows the rest. By Bonferroni's inequality a subject that keeps to the limit is
then refused by some look with a probability of at most ``alpha``, however the looks depend on one
another (group sequential designs that use the dependence: Pocock, *Biometrika* 64, 1977; here they
would gain a hundredth of a standard error).

Which documents a look sees follows from their names alone: they are taken in the order of a digest,
slice by slice, until the look has its share of the windows. A later look sees those of an earlier
one, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from invarlock.documents.fields import Closed, Positive, about
from invarlock.files import sha256_bytes

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the windows of each slice
SPENT = (0.1, 0.1, 0.1, 0.1, 0.6)  # of the error of the interval


class Planned(Closed):
    """Windows that were to be measured."""

    preview: Annotated[Positive, about("warm-up windows")]
    final: Annotated[Positive, about("scored windows")]


class EarlyDecision(Closed):
    """Looks at a control: the measurement ends with the first one that refuses it."""

    shares: Annotated[list[float], about("of the windows, that each look sees")]
    levels: Annotated[list[float], about("two-sided error of the interval of each look")]
    share: Annotated[float, about("of the look that the report is of; 1: all windows")]
    planned: Planned


def level_of(share: float, alpha: float) -> float:
    """The two-sided error of the interval of a look."""
    return SPENT[SHARES.index(share)] * alpha


def stated(share: float, alpha: float, planned: Mapping[str, int]) -> dict[str, Any]:
    """The block of a report; ``alpha`` is the error of all looks together."""
    return {
        "shares": list(SHARES),
        "levels": [level_of(each, alpha) for each in SHARES],
        "share": share,
        "planned": dict(planned),
    }


def rows_of(share: float, clusters: Sequence[str], slices: Sequence[str] = ()) -> list[int]:
    """The windows of an arm that a look sees: whole documents, in the order of the windows.

    Args:
        share: of each slice's windows, at least.
        clusters: the document of each window.
        slices: the slice of each window; empty where there are none.
    """
    if share >= 1.0:
        return list(range(len(clusters)))
    found: list[int] = []
    names = list(slices) or [""] * len(clusters)
    for name in dict.fromkeys(names):
        mine = [i for i, one in enumerate(names) if one == name]
        found += _first([clusters[i] for i in mine], math.ceil(share * len(mine)), mine)
    return sorted(found)


def _first(clusters: Sequence[str], wanted: int, rows: Sequence[int]) -> list[int]:
    """The rows of the first documents, by the digest of their names, that have so many."""
    found: list[int] = []
    for document in sorted(set(clusters), key=lambda c: sha256_bytes(c.encode())):
        if len(found) >= wanted:
            break
        found += [row for row, one in zip(rows, clusters, strict=True) if one == document]
    return found


def is_look(
    share: float, clusters: Sequence[str], slices: Sequence[str], planned: Mapping[str, int]
) -> bool:
    """Whether windows can be those of a look, as far as they alone say.

    Args:
        share: of the look.
        clusters: the document of each window.
        slices: the slice of each; empty where there are none.
        planned: windows of each slice that there were to be; of "" where there are none.
    """
    names = list(slices) or [""] * len(clusters)
    for name, count in planned.items():
        mine = [one for one, of in zip(clusters, names, strict=True) if of == name]
        last = max(mine, key=lambda c: sha256_bytes(c.encode()), default="")
        wanted = count if share >= 1.0 else math.ceil(share * count)
        without = sum(one != last for one in mine)
        if not (wanted <= len(mine) <= count) or (share < 1.0 and without >= wanted):
            return False
    return set(names) <= set(planned)
