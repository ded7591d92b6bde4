"""What a check of one report finds, and safe ways to reach into a report that may be hostile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

# What hostile evidence of a shape that its schema allows can raise in a check.
UNREADABLE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
Kind = Literal["malformed", "contradiction", "missing", "incomparable", "policy"]


class Finding(NamedTuple):
    """One finding.

    ``kind``: ``malformed`` - no v1 report; ``contradiction`` - two recorded things, or a record
    and its recomputation, disagree; ``missing`` - evidence that is needed is absent;
    ``incomparable`` - recorded honestly, and two runs that cannot be compared; ``policy`` -
    recorded honestly, and not acceptable. ``code`` is a published error code where one exists.
    """

    code: str
    kind: Kind
    message: str


def dig(value: Any, *keys: str) -> Any:
    """``value[key][key]...`` or None where a step is no object or lacks the key."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def number(value: object) -> float | None:
    """A finite JSON number as float, else None (booleans are not numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def numbers(value: object) -> list[float] | None:
    """A list of finite numbers, else None."""
    if not isinstance(value, list):
        return None
    if set(map(type, value)) == {float}:
        return value if all(map(math.isfinite, value)) else None
    found = [number(item) for item in value]
    return None if None in found else [item for item in found if item is not None]


def first_text(*values: object) -> str | None:
    """The first non-empty string."""
    return next((value for value in values if isinstance(value, str) and value), None)
