"""Numbers and names as people read them."""

from __future__ import annotations

import math
import unicodedata


def number(value: object) -> float | None:
    """The finite number that a field of a report holds, None when it holds something else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def pair(value: object) -> tuple[float, float] | None:
    """The two numbers of an interval."""
    if isinstance(value, list) and len(value) == 2:
        low, high = map(number, value)
        return (low, high) if low is not None and high is not None else None
    return None


def fixed(value: object, digits: int = 4) -> str:
    """A number for people: fixed decimals while that is readable; ``-`` when there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.{digits}f}"
    return f"{value:.{digits - 1}g}"


def vocabulary_use(used: object, size: object) -> str:
    """How much of a vocabulary windows use: ``6,806 of 49,152 token ids (13.8 %)``."""
    found, known = number(used), number(size)
    if found is None:
        return "not recorded"
    if not known:
        return f"{found:,.0f} token ids of a vocabulary of unknown size"
    return f"{found:,.0f} of {known:,.0f} token ids ({found / known * 100:.1f} %)"


def percent(ratio: float) -> str:
    """A ratio as a signed change in percent."""
    change = (ratio - 1.0) * 100.0
    return f"{change:+.2f} %" if abs(change) < 1000 else f"x {ratio:.3g}"


def share(value: object) -> str:
    """A fraction as percent without a sign."""
    found = number(value)
    return "-" if found is None else f"{found * 100:.3g} %"


def yes(value: object) -> str:
    """``yes``, ``no``, or ``-`` where the report says neither."""
    return {True: "yes", False: "no"}.get(value, "-") if isinstance(value, bool) else "-"


def visible(text: str) -> str:
    """Text without characters that hide or reorder: controls and format marks as escapes."""
    return "".join(
        c
        if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
        else f"\\u{ord(c):04x}"
        for c in text
    )
