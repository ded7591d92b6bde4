"""Counts as people read them: ``1 tensor``, ``2 tensors``."""

from __future__ import annotations


def counted(number: object, noun: str, plural: str | None = None) -> str:
    """A count with its noun.

    Args:
        number: how many; what a report holds in place of a number is shown as it stands.
        noun: what was counted, in the singular.
        plural: of more than one, or of none; ``noun`` with an s unless it is given.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
