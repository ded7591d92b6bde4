"""Clopper-Pearson interval of a proportion (Biometrika 26, 1934), without scipy.

The bounds are the p at which the binomial tail of what was seen, or of more extreme counts,
equals half of 1 - level. Each tail is a sum of terms that are computed in logarithms; the
root is found by bisection until neighbouring doubles are reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LEVEL = 0.95
DIGITS = 6  # decimals of a recorded interval bound


def binomial_tail(k: int, n: int, p: float) -> float:
    """``P(X >= k)`` for X ~ Binomial(n, p), 0 < p < 1."""
    log_p, log_q = math.log(p), math.log1p(-p)
    constant = math.lgamma(n + 1)
    # In logarithms: a binomial coefficient of n = 1030 already overflows a double.
    terms = (
        math.exp(
            constant - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q
        )
        for i in range(k, n + 1)
    )
    return min(1.0, math.fsum(terms))


def clopper_pearson(k: int, n: int, level: float = LEVEL) -> tuple[float, float] | None:
    """Exact two-sided interval of a proportion after ``k`` of ``n``; None when n is 0.

    Raises:
        ValueError: k outside 0..n or level outside (0, 1).
    """
    if not 0 <= k <= n or not 0.0 < level < 1.0:
        raise ValueError(f"k={k}, n={n}, level={level}")
    if n == 0:
        return None
    alpha = (1.0 - level) / 2.0
    low = 0.0 if k == 0 else _root(k, n, alpha)
    # P(X <= k) at p is P(X >= n - k) at 1 - p
    high = 1.0 if k == n else 1.0 - _root(n - k, n, alpha)
    return low, high


def _root(k: int, n: int, target: float) -> float:
    """The p with ``P(X >= k) = target``; the tail grows with p."""
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2.0
        if middle in (low, high):
            return middle
        if binomial_tail(k, n, middle) < target:
            low = middle
        else:
            high = middle


def rate(name: str, values: Sequence[bool]) -> dict[str, Any]:
    """k of n with its Clopper-Pearson interval; ``name`` is the key of k."""
    bounds = clopper_pearson(sum(values), len(values))
    return {
        name: sum(values),
        "total": len(values),
        "lower": round(bounds[0], DIGITS) if bounds else None,
        "upper": round(bounds[1], DIGITS) if bounds else None,
        "level": LEVEL,
    }
