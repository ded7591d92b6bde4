"""Interval of a ratio of sums over clusters: the BCa bootstrap, widened for what was not seen.

The statistic is ``theta = sum_c D_c / sum_c N_c`` over clusters ``c`` (documents), where
``D_c`` is the sum of the paired log-loss differences (nats) of the cluster's windows and
``N_c`` its number of predicted tokens. Clusters are drawn with replacement, with equal
probability (the pairs bootstrap of a ratio estimator); windows of one document are dependent
and are never separated.

Interval: bias-corrected and accelerated, Efron and Tibshirani, *An Introduction to the
Bootstrap* (1993), section 14.3; the acceleration from the leave-one-cluster-out jackknife,
which is closed-form here: ``theta_(c) = (D - D_c) / (N - N_c)``.

Resampled clusters vary less than clusters do, and the plain interval is too narrow for it (93 %
instead of 95 % on 60 documents of 1-12 windows). Its normal quantile is therefore expanded to
``t_df * sqrt((df + 1) / df)`` (Hesterberg, *The American Statistician* 69, 2015, section 4.3)
with ``df + 1`` the effective number of clusters, which counts a few large ones as few
(:func:`effective_clusters`).

What no document of the sample shows cannot be resampled: of 180 documents of which one in 180 is
far out, 37 % of the samples have none such. :func:`widened_interval` therefore adds two documents,
one on each side of the estimate, as far out as the farthest that was seen; two balanced points
were proposed for the empirical likelihood by Emerson and Owen, *Electronic Journal of Statistics*
3 (2009), 1161-1192. ``benchmarks/coverage.py`` measures the result by tail weight.

A report names its method. Each stays as it is, because reports are judged by it for ever.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from statistics import NormalDist

    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
else:
    from invarlock import numpy_on_use as np

MOST_DRAWS = 1_000_000  # clusters drawn at a time: 8 MB an array


@functools.cache
def normal() -> NormalDist:
    """The standard normal law, loaded with the first interval."""
    from statistics import NormalDist  # brings random and fractions, which nothing else needs

    return NormalDist()


class Interval(Struct, frozen=True):
    """A point estimate with its interval, in the units of the statistic."""

    point: float
    low: float
    high: float
    standard_error: float  # of the bootstrap distribution
    n_clusters: int
    kurtosis: float | None = None  # of the clusters' residuals, 3: normal; None: not stated


def cluster_sums(
    clusters: Sequence[str], difference: Floats, tokens: Floats
) -> tuple[Floats, Floats]:
    """Sum differences and tokens by cluster, clusters in sorted order.

    Args:
        clusters: (windows,) cluster of each window.
        difference: (windows,) nll_subject - nll_baseline, nats.
        tokens: (windows,) predicted tokens.

    Returns:
        two arrays (clusters,).
    """
    return sums_at(places_of(tuple(clusters)), difference, tokens)


def sums_at(index: NDArray[np.int64], difference: Floats, tokens: Floats) -> tuple[Floats, Floats]:
    """:func:`cluster_sums` where the place of each window's cluster is known: (windows,)."""
    n = int(index.max()) + 1 if len(index) else 0
    return (
        np.bincount(index, weights=difference, minlength=n).astype(np.float64),
        np.bincount(index, weights=tokens, minlength=n).astype(np.float64),
    )


@functools.lru_cache(maxsize=16)  # all reports of a suite are of the same documents
def places_of(clusters: tuple[str, ...]) -> NDArray[np.int64]:
    """The place of each window's cluster among all clusters in sorted order: (windows,)."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    index.setflags(write=False)
    return index


@functools.lru_cache(maxsize=4)  # all reports of a suite draw the same
def resample_counts(n_clusters: int, replicates: int, seed: int, skip: int = 0) -> Floats:
    """How often each cluster is drawn in each replicate: (replicates, clusters).

    ``skip``: replicates that come first in the stream.

    Indices come from the raw PCG64 stream by multiply-and-shift, because the raw stream is
    the part that NumPy keeps stable between versions: a verifier must draw the same.
    The bias of multiply-and-shift is below clusters / 2**32.
    """
    stream = np.random.PCG64(seed).advance(skip * n_clusters)
    index = stream.random_raw(replicates * n_clusters).reshape(replicates, n_clusters)
    index >>= np.uint64(32)  # in place: the working memory is that of two such arrays
    index *= np.uint64(n_clusters)
    index >>= np.uint64(32)
    index += np.arange(0, replicates * n_clusters, n_clusters, dtype=np.uint64)[:, None]
    counts = np.bincount(index.ravel().view(np.int64), minlength=replicates * n_clusters)
    del index
    drawn: Floats = counts.reshape(replicates, n_clusters).astype(np.float64)
    drawn.setflags(write=False)
    return drawn


def _resampled_ratios(difference: Floats, tokens: Floats, replicates: int, seed: int) -> Floats:
    """The statistic of every replicate, sorted; at most ``MOST_DRAWS`` are held at a time."""
    n = len(difference)
    rows = max(1, MOST_DRAWS // n)
    ratios = []
    for first in range(0, replicates, rows):
        counts = resample_counts(n, min(rows, replicates - first), seed, first)
        ratios.append((counts @ difference) / (counts @ tokens))
    return np.sort(np.concatenate(ratios))


def quantile_of_sorted(values: Floats, level: float) -> float:
    """``np.quantile(values, level)`` of sorted values, bit for bit, without what it imports."""
    place = level * (len(values) - 1)
    below = min(math.floor(place), len(values) - 1)
    low, high = float(values[below]), float(values[min(below + 1, len(values) - 1)])
    share = place - below
    step = (high - low) * share
    return high - (high - low) * (1 - share) if share >= 0.5 else low + step


def jackknife_acceleration(difference: Floats, tokens: Floats) -> float:
    """The BCa acceleration ``a`` from the leave-one-cluster-out values; 0 when they are equal."""
    loo = (difference.sum() - difference) / (tokens.sum() - tokens)
    centred = loo.mean() - loo
    spread = float(np.sum(centred**2))
    return float(np.sum(centred**3)) / (6.0 * spread**1.5) if spread > 0 else 0.0


def effective_clusters(tokens: Floats) -> float:
    """Clusters of equal size that know as much about the variance: (sum N^2)^2 / sum N^4.

    Satterthwaite (*Biometrics Bulletin* 2, 1946), for a sum over clusters whose standard
    deviations are proportional to their size; the number itself when all are equal.
    """
    squares = (tokens / tokens.max()) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def expanded_quantile(p: float, df: float) -> float:
    """``t_df * sqrt((df + 1) / df)`` at probability p, for df >= 1.

    t by its expansion around the normal (Abramowitz and Stegun 26.7.5), good to 1 % from df = 3.
    """
    z = normal().inv_cdf(p)
    t = z + (z**3 + z) / (4 * df)
    t += (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    return t * math.sqrt((df + 1) / df)


def bca_interval(
    difference: Floats, tokens: Floats, *, replicates: int, alpha: float, seed: int
) -> Interval | None:
    """Expanded BCa interval of ``sum(difference) / sum(tokens)`` over clusters.

    Args:
        difference: (clusters,) nats.
        tokens: (clusters,) predicted tokens, positive.
        replicates: bootstrap replicates.
        alpha: the two-sided error; 0.05 gives a 95 % interval.
        seed: of the resampling.

    Returns:
        None with fewer than two clusters: one cluster says nothing about its own variation.
    """
    n = len(difference)
    if n < 2:
        return None
    point = float(difference.sum() / tokens.sum())
    # every cluster tells the same story: resampling cannot move the ratio (a no-op, exactly)
    if np.all(difference * tokens.sum() == tokens * difference.sum()):
        return Interval(point, point, point, 0.0, n)
    theta = _resampled_ratios(difference, tokens, replicates, seed)
    below = float(np.mean(theta < point)) + 0.5 * float(np.mean(theta == point))
    z0 = normal().inv_cdf(min(max(below, 0.5 / replicates), 1 - 0.5 / replicates))
    a = jackknife_acceleration(difference, tokens)
    df = max(effective_clusters(tokens) - 1, 1.0)

    def level(p: float) -> float:
        z = z0 + expanded_quantile(p, df)
        return normal().cdf(z0 + z / max(1.0 - a * z, 1e-12))

    low, high = (quantile_of_sorted(theta, level(p)) for p in (alpha / 2, 1 - alpha / 2))
    return Interval(point, low, high, float(theta.std(ddof=1)), n)


def residuals(difference: Floats, tokens: Floats) -> Floats:
    """``D_c - theta N_c``: by how much each cluster departs from the estimate, nats."""
    departures: Floats = difference - difference.sum() / tokens.sum() * tokens
    return departures


def kurtosis(values: Floats) -> float:
    """Fourth moment about 0 over the squared second one: 3 for the normal law."""
    squares = (values / np.abs(values).max()) ** 2
    return float(np.mean(squares**2) / np.mean(squares) ** 2)


def widened_interval(
    difference: Floats, tokens: Floats, *, replicates: int, alpha: float, seed: int
) -> Interval | None:
    """:func:`bca_interval` as if one more cluster on each side were as far out as the farthest.

    With the residuals r both bounds move away from the estimate by the factor
    ``sqrt(1 + 2 max(r^2) / sum(r^2))``, by which the two clusters increase the standard error; the
    estimate stays. Arguments and result are those of ``bca_interval``, with the kurtosis.
    """
    plain = bca_interval(difference, tokens, replicates=replicates, alpha=alpha, seed=seed)
    if plain is None or plain.standard_error == 0.0:
        return plain
    departures = residuals(difference, tokens)
    squares = departures**2
    factor = math.sqrt(1.0 + 2.0 * float(squares.max() / squares.sum()))
    return replace(
        plain,
        low=plain.point - factor * (plain.point - plain.low),
        high=plain.point + factor * (plain.high - plain.point),
        kurtosis=kurtosis(departures),
    )


class IntervalMethod(Protocol):
    """What finds the interval of ``sum(difference) / sum(tokens)``; see :func:`bca_interval`."""

    def __call__(
        self, difference: Floats, tokens: Floats, *, replicates: int, alpha: float, seed: int
    ) -> Interval | None: ...


PLAIN, WIDENED = "bca_cluster_ratio", "bca_cluster_ratio_widened"  # names in reports
METHODS: Mapping[str, IntervalMethod] = {PLAIN: bca_interval, WIDENED: widened_interval}


def delta_method_error(difference: Floats, tokens: Floats) -> float:
    """Standard error of the ratio by linearization, with the ``C / (C - 1)`` correction.

    Cochran, *Sampling Techniques* (1977), section 6.3; a cross-check of the bootstrap.
    """
    n = len(difference)
    squares = residuals(difference, tokens) ** 2
    return float(np.sqrt(n / (n - 1) * np.sum(squares)) / tokens.sum())
