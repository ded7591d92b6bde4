"""Accuracy of two runs on the same labelled examples, in percentage points.

``difference = 100 * (correct_s - correct_b) / examples``, paired by example: only the examples
that exactly one of both runs got right carry information. Interval: BCa over clusters, as for
perplexity. Decision (non-inferiority): *pass* iff the lower bound and the point are at least
``delta_min_pp - hysteresis``, *fail* iff the upper bound is below it, *inconclusive* otherwise.
McNemar's exact p (Psychometrika 12, 1947) of "no difference" is recorded and decides nothing.

The bootstrap knows no outcome that it has not seen: with fewer than about ten discordant
examples the interval is too narrow, with none it is [0, 0].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

from invarlock.documents.fields import Closed
from invarlock.errors import InputError
from invarlock.metrics.bootstrap import Interval, cluster_sums
from invarlock.metrics.perplexity import Bootstrap, decide, windows_needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from invarlock.policy import Policy

    Bools = NDArray[np.bool_]
else:
    from invarlock import numpy_on_use as np

MAX_EXACT = 5000  # discordant examples: whole numbers beyond get slow (their square)


class AccuracyPolicy(Closed):
    """Thresholds of an accuracy metric, differences in percentage points."""

    delta_min_pp: float
    min_examples: int
    hysteresis_delta_pp: float
    drift_max_pp: float  # of the difference between the arms, either way; presets leave it alone

    @classmethod
    def of(cls, policy: Policy) -> AccuracyPolicy:
        """Those of a tier."""
        return policy.limits("accuracy", cls)


@dataclass(frozen=True)
class Examples:
    """What both runs answered on one arm; all sequences (examples,)."""

    ids: Sequence[str]
    clusters: Sequence[str]
    subject: Bools  # answered correctly
    baseline: Bools

    @property
    def difference(self) -> NDArray[np.float64]:
        """Per example: 100 gained, -100 lost, 0 as before (percentage points)."""
        return 100.0 * (self.subject.astype(np.float64) - self.baseline.astype(np.float64))


class AccuracyResult(Struct, frozen=True):
    """The primary metric of a comparison and what was decided from it."""

    preview: float  # share of correct answers of the subject
    final: float
    baseline_preview: float
    baseline_final: float
    delta_pp: float  # percentage points, final arm
    interval: Interval | None  # of delta_pp
    limit_pp: float
    decision: str  # pass | fail | inconclusive
    examples_needed: int | None
    hysteresis_applied: bool
    gained: int  # wrong in the baseline, right in the subject
    lost: int
    mcnemar_p: float
    n_final: int
    drift_pp: float  # (final - preview)_s - (final - preview)_b
    drift_ok: bool
    coverage_ok: bool
    examples_ok: bool

    @property
    def acceptable(self) -> bool:
        """Whether every part of the gate holds."""
        return self.decision == "pass" and self.coverage_ok and self.examples_ok


def labelled(ids: Sequence[str], correct: Sequence[bool | None]) -> Bools:
    """Correctness of each example as an array; nothing is assumed of a missing label.

    Raises:
        InputError: another number of answers than examples, or an example without true or false.
    """
    if len(ids) != len(correct):
        raise InputError(
            "not one answer for each example", expected=str(len(ids)), found=str(len(correct))
        )
    missing = [i for i, value in zip(ids, correct, strict=True) if not _is_bool(value)]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} examples are unlabelled, first {missing[0]}",
            expected="every example with its label, judged true or false",
            hint="accuracy is not guessed: label them or leave them out of the data",
        )
    return np.asarray(correct, dtype=np.bool_)


def compare_accuracy(
    preview: Examples, final: Examples, policy: Policy, bootstrap: Bootstrap
) -> AccuracyResult:
    """Compare subject and baseline; both arms must be non-empty."""
    difference = final.difference
    n = len(difference)
    delta = float(difference.mean())
    interval = bootstrap.interval(*cluster_sums(final.clusters, difference, np.ones(n)))
    limits = AccuracyPolicy.of(policy)
    limit = limits.delta_min_pp - limits.hysteresis_delta_pp
    decision = decide(-delta, _mirrored(interval), -limit)
    gained = int((final.subject & ~final.baseline).sum())
    lost = int((final.baseline & ~final.subject).sum())
    drift = delta - float(preview.difference.mean())
    return AccuracyResult(
        preview=float(preview.subject.mean()),
        final=float(final.subject.mean()),
        baseline_preview=float(preview.baseline.mean()),
        baseline_final=float(final.baseline.mean()),
        delta_pp=delta,
        interval=interval,
        limit_pp=limit,
        decision=decision,
        examples_needed=windows_needed(-delta, _mirrored(interval), -limit, n)
        if decision == "inconclusive"
        else None,
        hysteresis_applied=decision == "pass"
        and interval is not None
        and interval.low < limits.delta_min_pp,
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_exact(gained, lost),
        n_final=n,
        drift_pp=drift,
        drift_ok=abs(drift) <= limits.drift_max_pp,
        coverage_ok=bootstrap.replicates >= policy.coverage.replicates
        and bootstrap.alpha <= policy.coverage.alpha,
        examples_ok=n >= limits.min_examples,
    )


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact p: that a fair coin splits the discordant examples as unevenly or more."""
    n = gained + lost
    if n > MAX_EXACT:
        return min(1.0, 2 * lower_tail(n, min(gained, lost)))
    term, total = 1, 1  # whole numbers: exact
    for k in range(min(gained, lost)):
        term = term * (n - k) // (k + 1)
        total += term
    return float(min(1.0, 2 * total / (1 << n)))


def lower_tail(n: int, k: int) -> float:
    """Probability of at most ``k`` heads of ``n`` thrown fair coins, for n in the thousands.

    The largest term from its deviance and Stirling's series (Loader, *Fast and Accurate
    Computation of Binomial Probabilities*, 2000), which keeps the digits that a difference of
    logarithms of factorials loses; the others by their ratios, until they no longer count.
    """
    if k == 0:
        return 0.0  # 2**-n underflows
    away = (n - 2 * k) / n
    deviance = n / 2 * ((1 - away) * math.log1p(-away) + (1 + away) * math.log1p(away))
    series = _stirling(n) - _stirling(k) - _stirling(n - k)
    term = math.sqrt(n / (2 * math.pi * k * (n - k))) * math.exp(series - deviance)
    total = 0.0
    while k >= 0 and term > total * 2.0**-60:
        total += term
        term *= k / (n - k + 1)
        k -= 1
    return total


def _stirling(n: int) -> float:
    """``ln n!`` less its leading terms ``n ln n - n + ln(2 pi n) / 2``."""
    return (1 / 12 - (1 / 360 - 1 / (1260 * n * n)) / (n * n)) / n


def _is_bool(value: object) -> bool:
    return isinstance(value, bool | np.bool_)


def _mirrored(interval: Interval | None) -> Interval | None:
    """The interval of the loss: the decision on perplexity, where less is better, then serves."""
    if interval is None:
        return None
    return Interval(
        -interval.point,
        -interval.high,
        -interval.low,
        interval.standard_error,
        interval.n_clusters,
    )
