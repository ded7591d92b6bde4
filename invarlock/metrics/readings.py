"""What the pictures and tables of the windows show, read from the columns of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from invarlock.pages.reading import Report, block, columns
from invarlock.pages.wording import number


@dataclass(frozen=True)
class WindowDifference:
    """Loss of the subject minus loss of the baseline on one window, nats per token."""

    window_id: str
    cluster: str
    tokens: float
    nats: float


def window_differences(report: Report) -> list[WindowDifference]:
    """The scored windows, worst first; windows without a finite loss are left out."""
    final = block(block(report, "evaluation_windows"), "final")
    names = ("window_ids", "clusters", "token_counts", "nll_sum", "baseline_nll_sum")
    found = []
    for name, cluster, tokens, mine, base in columns(final, names):
        n, subject, reference = number(tokens), number(mine), number(base)
        if n and n > 0 and subject is not None and reference is not None:
            difference = (subject - reference) / n
            found.append(WindowDifference(str(name), str(cluster), n, difference))
    return sorted(found, key=lambda d: (-d.nats, d.window_id))


def weighted_mean(differences: Sequence[WindowDifference]) -> float:
    """Token-weighted mean difference, nats per token: the logarithm of the ratio."""
    return sum(d.nats * d.tokens for d in differences) / sum(d.tokens for d in differences)


def quantile(ascending: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    place = q * (len(ascending) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])
