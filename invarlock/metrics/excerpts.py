"""Where a text became harder to predict: the windows that lost most, token by token.

The excerpts of a report are of the windows whose loss grew most, at most ``WINDOWS`` of them, and
of each at most ``TOKENS`` predicted tokens: the stretch whose loss grew most. With the sums over
the other tokens of a window, the losses of an excerpt give the window's recorded sum in both runs,
so that a reader can hold them to it. Losses are those of a run, float32, with as many decimals as
tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import Closed, Count, NotNegative, Positive, about
from invarlock.metrics.readings import window_differences

if TYPE_CHECKING:
    import numpy as np
else:
    from invarlock import numpy_on_use as np

WINDOWS = 4  # excerpts of a report
TOKENS = 160  # of an excerpt
CHARACTERS = 64  # of a token's text; what is longer ends in an ellipsis
# Losses are summed in float64 by both sides, in another order.
TOLERANCE = 1e-9

Losses = Annotated[list[NotNegative], Meta(min_length=1, max_length=TOKENS)]


class Rest(Closed):
    """The predicted tokens of a window that its excerpt does not show."""

    tokens: Annotated[Positive, about("how many")]
    nll: Annotated[NotNegative, about("their summed loss in the subject's run, nats")]
    baseline_nll: Annotated[NotNegative, about("in the baseline's, nats")]


class Excerpt(Closed, kw_only=True):
    """A stretch of one scored window, as parallel lists of its predicted tokens."""

    window_id: Annotated[str, Meta(max_length=64), about("of the window")]
    before: Annotated[Count, about("predicted tokens of the window before the first of these")]
    tokens: Annotated[
        list[Annotated[str, Meta(max_length=CHARACTERS)]],
        Meta(min_length=1, max_length=TOKENS),
        about(
            "the text of each token, so that together they read as the text does; empty where the"
            " next one completes its character"
        ),
    ]
    nll: Annotated[Losses, about("the subject's loss of each token, nats")]
    baseline_nll: Annotated[Losses, about("the baseline's, nats")]
    rest: Annotated[
        Rest | UnsetType, about("the window's other predicted tokens; absent: there are none")
    ] = UNSET


def worst(final: Mapping[str, Any]) -> list[str]:
    """The ids of the windows that excerpts are of: those whose loss per token grew most.

    Args:
        final: the columns of the scored windows, as a report holds them.
    """
    found = window_differences({"evaluation_windows": {"final": final}})
    return [one.window_id for one in found if one.nats > 0][:WINDOWS]


def stretch(change: Sequence[float]) -> int:
    """Where the ``TOKENS`` tokens begin whose loss grew most, the first of equals.

    Args:
        change: of each predicted token of a window, nats.
    """
    sums = np.cumsum([0.0, *change])
    width = min(TOKENS, len(change))
    return int(np.argmax(sums[width:] - sums[: len(sums) - width]))


def impossible(excerpts: Sequence[Mapping[str, Any]], final: Mapping[str, Any]) -> Iterator[str]:
    """What no run can have recorded: other windows, or losses that the windows' sums deny.

    Args:
        excerpts: as a report holds them.
        final: the columns of its scored windows.
    """
    if [one["window_id"] for one in excerpts] != worst(final):
        yield "/excerpts are not of the windows whose loss grew most"
        return
    rows = {window: row for row, window in enumerate(final["window_ids"])}
    for number, one in enumerate(excerpts):
        row, rest = rows[one["window_id"]], one.get("rest", {})
        shown = len(one["tokens"])
        tokens = final["token_counts"][row]
        if (
            {len(one["nll"]), len(one["baseline_nll"])} != {shown}
            or shown + rest.get("tokens", 0) != tokens
            or shown != min(TOKENS, tokens)
            or one["before"] > rest.get("tokens", 0)
        ):
            yield f"/excerpts/{number} does not have the tokens of its window"
            continue
        for column, sums in (("nll", "nll_sum"), ("baseline_nll", "baseline_nll_sum")):
            total = math.fsum([*map(_single, one[column]), rest.get(column, 0.0)])
            if not math.isclose(total, final[sums][row], rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                yield f"/excerpts/{number}/{column} does not add up to the window's {sums}"


def read_back(excerpts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Excerpts of a report with the members that excerpts have, and no others."""
    found = [_members(one, Excerpt) for one in excerpts]
    return [one | {k: _members(v, Rest) for k, v in one.items() if k == "rest"} for one in found]


def _members(value: Mapping[str, Any], kind: type[Closed]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k in kind.__struct_fields__}


def _single(value: float) -> float:
    """The float32 that a decimal stands for."""
    with np.errstate(over="ignore"):  # what is too large adds up to nothing
        return float(np.float32(value))
