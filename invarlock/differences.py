"""Where a stored JSON document departs from the one that is computed again.

The only comparison of documents in the package: of reports with what their evidence gives, of
packs with what building them again would write, of verdicts with their evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from msgspec import msgpack

from invarlock.shown import shortened

ABSENT = object()  # in place of a value: one of the two documents has no such member
_BYTES = msgpack.Encoder(order="sorted")
SHOWN = 60  # characters of a value, or of the name of a member, that a line shows


class Difference(NamedTuple):
    """One value that differs: its JSON pointer, and what stands on both sides (or ABSENT)."""

    pointer: str
    stored: Any
    computed: Any

    def line(self, source: str = "the evidence gives") -> str:
        """One line; it holds what the documents say, so whoever prints it has to escape it."""
        at = self.pointer or "/"
        if self.computed is ABSENT:
            return f"{at} does not follow from any evidence"
        if self.stored is ABSENT:
            return f"{at} is missing; {source} {short(self.computed)}"
        return f"{at} is {short(self.stored)}; {source} {short(self.computed)}"


def differences(
    stored: object,
    computed: object,
    *,
    tolerance: float = 0.0,
    may_lack: Callable[[str], bool] = lambda _: False,
    pointer: str = "",
) -> Iterator[Difference]:
    """Every leaf, and every member, in which two documents differ.

    Args:
        stored: the document that is doubted.
        computed: the document that the evidence gives.
        tolerance: relative and absolute, for numbers; with 0 an integer is no float either.
        may_lack: whether ``stored`` may go without the member at a JSON pointer.
        pointer: where both documents stand in a larger one.
    """
    if isinstance(stored, Mapping) and isinstance(computed, Mapping):
        for key in sorted(stored.keys() | computed.keys()):
            at = f"{pointer}/{key[:SHOWN]}"
            if key not in computed:
                yield Difference(at, stored[key], ABSENT)
            elif key in stored:
                yield from differences(
                    stored[key], computed[key], tolerance=tolerance, may_lack=may_lack, pointer=at
                )
            elif not may_lack(at):
                yield Difference(at, ABSENT, computed[key])
    elif is_list(stored) and is_list(computed) and len(stored) == len(computed):
        for index, (mine, other) in enumerate(zip(stored, computed, strict=True)):
            yield from differences(
                mine, other, tolerance=tolerance, may_lack=may_lack, pointer=f"{pointer}/{index}"
            )
    elif not _same(stored, computed, tolerance):
        yield Difference(pointer, stored, computed)


def equal_text(stored: object, computed: object) -> bool:
    """Whether two values are written with the same bytes, which is quicker than a walk over both.

    MessagePack keeps apart what JSON does: an integer and a float, true and 1, 0.0 and -0.0. What
    it has no bytes for, such as an integer beyond 64 bits, is not the same.

    Args:
        stored: read strictly, so that no number in it is NaN, which would equal another one.
        computed: what it is held against.
    """
    try:
        return _BYTES.encode(stored) == _BYTES.encode(computed)
    except (TypeError, ValueError, OverflowError):
        return False


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Whether JSON has a list for it."""
    return isinstance(value, list | tuple)


def is_number(value: object) -> TypeGuard[float]:
    """Whether JSON has a number for it; true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def short(value: object) -> str:
    """A value as a line shows it."""
    return shortened(repr(value), SHOWN)


def stated(value: object) -> str:
    """A setting as a line shows it; none is one that a file leaves out."""
    return "left out" if value is None else short(value)


def _same(stored: object, computed: object, tolerance: float) -> bool:
    if tolerance and is_number(stored) and is_number(computed):
        return math.isclose(stored, computed, rel_tol=tolerance, abs_tol=tolerance)
    return type(stored) is type(computed) and stored == computed
