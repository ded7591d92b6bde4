"""What a line shows of what is long: a list by its first names, a text by its beginning."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int, apart: str = ", ", of: int | None = None) -> str:
    """The first names in a row, and how many are left out.

    Args:
        names: what is listed, in the order in which it is shown.
        most: how many are shown.
        apart: what stands between two of them: a semicolon where they may hold commas.
        of: how many there are; all of ``names`` unless it is given.

    Returns:
        ``a, b and 3 more``, or ``a; b; and 3 more``; empty where there are none.
    """
    row = apart.join(names[:most])
    more = (len(names) if of is None else of) - len(names[:most])
    comma = "" if apart == ", " else apart.rstrip()
    return f"{row}{comma} and {more} more" if more > 0 else row


def shortened(text: str, most: int) -> str:
    """The text in at most ``most`` characters; three dots end one that is longer."""
    return text if len(text) <= most else text[: most - 3] + "..."
