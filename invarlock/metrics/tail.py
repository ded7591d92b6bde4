"""The tail of the per-window differences: a few windows that got much worse while the mean did not.

The value of a window is ``x_i = (nll_s - nll_b) / n_i`` (nats per token), its weight ``n_i``. The
quantile at level q is the least x at which the windows up to it hold a share q of the tokens; no
value between two windows is invented, and windows with equal x count together, so neither ties
nor their order matter.

Bounds are order statistics (David and Nagaraja, *Order Statistics*, 3rd ed., 7.1): of m
independent windows, the number at or below the true quantile is binomial(m, q) whatever their
distribution, so the l-th smallest is a lower bound with the probability that at least l are.
m is the number of windows over the design effect of the clusters and weights (Korn and Graubard,
*Survey Methodology* 24, 1998), never more than the windows; with one window a document and equal
tokens the bound is the textbook one, exactly. Ties make it wider, never narrower.

**What decides is the lower bound**, not the point: a violation is a quantile *shown* to be above
the maximum. That the average holds is what the subject has to prove (the primary metric does
that by its upper bound); the tail accuses, and with 180 windows the quantile at 0.95 rests on
nine of them, so that a point just across the limit is a coin toss. Such a point is said in
``reason``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict

from invarlock.documents.fields import Open, about
from invarlock.metrics.bootstrap import delta_method_error, places_of, sums_at
from invarlock.metrics.perplexity import Arm, finite
from invarlock.policy import TailPolicy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from invarlock.metrics.bootstrap import Floats
else:
    from invarlock import numpy_on_use as np

LEVEL = 0.95  # one-sided, of each bound
NAMED = {"q50": 0.5, "q90": 0.9, "q95": 0.95, "q99": 0.99}
SOURCE = "paired_baseline.final"

Block = dict[str, Any]


class PrimaryMetricTail(Open):
    """Tail of the per-window differences."""

    evaluated: Annotated[bool | UnsetType, about("evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("passed")] = UNSET
    warned: Annotated[bool | UnsetType, about("warned")] = UNSET
    mode: Annotated[str | UnsetType, about("mode")] = UNSET
    reason: Annotated[str | UnsetType, about("reason")] = UNSET
    policy: Annotated[dict[str, Any] | UnsetType, about("limits")] = UNSET
    stats: Annotated[dict[str, Any] | UnsetType, about("quantiles")] = UNSET
    violations: Annotated[list[Any] | UnsetType, about("what is shown to be above its maximum")] = (
        UNSET
    )
    source: Annotated[str | UnsetType, about("the windows it is taken from")] = UNSET


class Tail(Struct, frozen=True):
    """Per-window differences in ascending order, with what a bound needs."""

    values: Floats  # (windows,) nats per token, ascending
    tokens: Floats  # (windows,)
    clusters: NDArray[np.int64]  # (windows,) places of the names in sorted order

    @classmethod
    def of(cls, arm: Arm) -> Tail:
        """The differences of an arm; losses must be finite and token counts positive."""
        values = (arm.subject_nll - arm.baseline_nll) / arm.token_counts
        order = np.argsort(values, kind="stable")
        return cls(values[order], arm.token_counts[order], places_of(tuple(arm.clusters))[order])

    def quantile(self, share: float) -> float:
        """The least value up to which windows hold a share of the tokens."""
        reached = np.cumsum(self.tokens)
        place = int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)))
        return float(self.values[min(place, len(self.values) - 1)])

    def mass_above(self, value: float) -> float:
        """Share of the tokens that lie in windows above a value."""
        return float(self.tokens[self.values > value].sum() / self.tokens.sum())

    def effective_windows(self, q: float) -> int:
        """Windows that would say as much if they were independent and of equal length."""
        n = len(self.values)
        below = (self.values <= self.quantile(q)).astype(np.float64)
        sums = sums_at(self.clusters, self.tokens * below, self.tokens)
        p = float(sums[0].sum() / sums[1].sum())
        if p == 1.0 or len(sums[1]) < 2:  # nothing above: no variation to learn the effect from
            return max(1, int(sums[1].sum() ** 2 / (sums[1] ** 2).sum()))
        effect = delta_method_error(*sums) ** 2 / (p * (1 - p) / (n - 1))
        return max(1, int(n / max(effect, 1.0) + 1e-9))

    def bounds(
        self, q: float, level: float = LEVEL, effective: int | None = None
    ) -> tuple[float | None, float | None]:
        """One-sided bounds of the true quantile; None where the windows are too few for one.

        ``effective``: :meth:`effective_windows` of ``q``, where that is known.
        """
        m = self.effective_windows(q) if effective is None else effective
        at_most = np.cumsum(_binomial(m, q))  # P(count <= k), k = 0..m
        low = int(np.searchsorted(at_most, 1 - level, side="right"))  # P(count < low) <= 1 - level
        high = int(np.searchsorted(at_most, level)) + 1  # P(count < high) >= level
        return (
            self.quantile((low - 1) / m + 1e-9) if low > 0 else None,  # just above: the low-th
            self.quantile(high / m) if high <= m else None,
        )

    def shown_above(self, q: float, limit: float, level: float = LEVEL) -> bool:
        """Whether the lower bound of the quantile exceeds a limit."""
        low = self.bounds(q, level)[0]
        return low is not None and low > limit


def judge_tail(arm: Arm | None, policy: TailPolicy, level: float = LEVEL) -> Block:
    """The ``primary_metric_tail`` block.

    Args:
        arm: the final arm of both runs; None where the subject was not run.
        policy: mode ``warn`` records violations, ``fail`` lets them block.
        level: one-sided, of each bound.
    """
    if arm is None or not finite(arm):
        return _block(policy, reason="no finite losses of both runs")
    tail = Tail.of(arm)
    stats = _stats(tail, policy, level)
    n = len(tail.values)
    if n < max(policy.min_windows, 1):
        return _block(policy, stats=stats, reason=f"{n} windows, {policy.min_windows} needed")
    violations: list[Block] = []
    if stats["quantile_low"] is not None and stats["quantile_low"] > policy.quantile_max:
        violations.append(
            {
                "type": "quantile_max_exceeded",
                "quantile": policy.quantile,
                "observed": stats["quantile_point"],
                "lower_bound": stats["quantile_low"],
                "threshold": policy.quantile_max,
            }
        )
    # more than mass_max of the tokens above epsilon = the (1 - mass_max) quantile above epsilon
    if policy.mass_max < 1.0 and tail.shown_above(1.0 - policy.mass_max, policy.epsilon, level):
        violations.append(
            {
                "type": "tail_mass_exceeded",
                "epsilon": policy.epsilon,
                "observed": stats["tail_mass_weighted"],
                "threshold": policy.mass_max,
            }
        )
    unproven = not violations and stats["quantile_point"] > policy.quantile_max
    return _block(
        policy,
        evaluated=True,
        violations=violations,
        stats=stats,
        reason="the quantile is above its maximum, its lower bound is not" if unproven else "",
    )


def judge_tails(arm: Arm | None, arms: Mapping[str, Arm], policy: TailPolicy) -> Block:
    """The block of all windows, with the tail of each slice that has enough windows for one.

    What is found in any of them is a violation, so the error is divided as that of the metric is:
    all windows together take half, k slices a 2k-th each (Bonferroni). Without such a slice all
    windows keep the whole error.

    Args:
        arm: as of :func:`judge_tail`.
        arms: the final arm by name of the slice.
    """
    enough = {n: arm for n, arm in arms.items() if len(arm.window_ids) >= policy.min_windows}
    share = (1 - LEVEL) / 2
    whole = judge_tail(arm, policy, 1 - share if enough else LEVEL)
    if not enough:
        return whole
    if whole["evaluated"] is not True:
        return judge_tail(arm, policy)
    level = 1 - share / len(enough)
    found = {name: judge_tail(arm, policy, level) for name, arm in enough.items()}
    violations = [{"slice": n, **v} for n, block in found.items() for v in block["violations"]]
    violations = [*whole["violations"], *violations]
    shown = ("n", "n_effective", "quantile_point", "quantile_low", "max")
    return whole | {
        "violations": violations,
        "passed": not violations,
        "warned": bool(violations) and whole["mode"] == "warn",
        "slices": {
            name: {"level": level, **{key: block["stats"][key] for key in shown}}
            for name, block in found.items()
        },
    }


def tail_acceptable(block: Mapping[str, Any]) -> bool:
    """The flag: measured, and without a violation or only warned of one.

    Absent evidence is not acceptable.
    """
    return block["evaluated"] is True and (block["passed"] is True or block["mode"] == "warn")


def _block(
    policy: TailPolicy,
    *,
    evaluated: bool = False,
    violations: list[Block] | None = None,
    stats: Block | None = None,
    reason: str = "",
) -> Block:
    settings = asdict(policy)
    mode = settings.pop("mode")
    return {
        "mode": mode,
        "evaluated": evaluated,
        "passed": not violations,
        "warned": bool(violations) and mode == "warn",
        "violations": violations or [],
        "policy": settings,
        "stats": stats or {},
        "source": SOURCE,
        "reason": reason,
    }


def _stats(tail: Tail, policy: TailPolicy, level: float) -> Block:
    effective = tail.effective_windows(policy.quantile)
    low, high = tail.bounds(policy.quantile, level, effective)
    return {
        "n": len(tail.values),
        "n_effective": effective,
        "epsilon": policy.epsilon,
        "max": float(tail.values[-1]),
        **{name: tail.quantile(share) for name, share in NAMED.items()},
        "quantile_point": tail.quantile(policy.quantile),
        "quantile_low": low,
        "quantile_high": high,
        "tail_mass": float(np.mean(tail.values > policy.epsilon)),
        "tail_mass_weighted": tail.mass_above(policy.epsilon),
        "tail_mass_weighted_by": "tokens",
    }


@functools.lru_cache(maxsize=8)  # all reports of a suite have as many windows
def _binomial(n: int, p: float) -> Floats:
    """P(count = k), k = 0..n."""
    chance: Floats = np.zeros(n + 1)
    if p in (0.0, 1.0):
        chance[round(n * p)] = 1.0
        return chance
    for k in range(n + 1):
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        chance[k] = math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))
    return chance
