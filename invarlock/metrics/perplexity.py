"""Perplexity of two runs on the same windows, and the three-way decision.

Perplexity is per token, base e: ``exp(sum nll / sum tokens)`` over the windows of an arm, each
token predicted from its own window only (context = window length, stride = window length).
``delta = sum(nll_s - nll_b) / sum tokens`` over the final arm, so that
``exp(delta) = ppl_s / ppl_b``. The decision is a non-inferiority test: *pass* iff the upper
bound of the interval of ``delta`` is at most ``log(limit + hysteresis)``, *fail* iff the lower
bound is above it, *inconclusive* otherwise (not acceptable, but with the number of windows that
would settle it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import asdict

from invarlock.errors import ContractError
from invarlock.metrics.bootstrap import METHODS, PLAIN, WIDENED, Interval, cluster_sums

if TYPE_CHECKING:
    import numpy as np

    from invarlock.metrics.bootstrap import Floats
    from invarlock.policy import Policy
else:
    from invarlock import numpy_on_use as np

BOOTSTRAP_SEED_OFFSET = 503  # keeps the resampling stream apart from the data seed


class Arm(Struct, frozen=True):
    """What both runs recorded on one arm (``preview`` or ``final``); all sequences (windows,)."""

    window_ids: Sequence[str]
    clusters: Sequence[str]
    token_counts: Floats  # predicted tokens
    subject_nll: Floats  # nats, summed over the window
    baseline_nll: Floats  # nats, summed over the window

    @property
    def tokens(self) -> int:
        """Predicted tokens of the arm."""
        return int(self.token_counts.sum())

    def perplexity(self, nll: Floats) -> float:
        """``exp(sum nll / sum tokens)``; infinity when that overflows."""
        mean = float(nll.sum() / self.token_counts.sum())
        return math.exp(mean) if mean < 700 else math.inf


class Bootstrap(Struct, frozen=True):
    """Settings of the interval."""

    replicates: int
    alpha: float
    seed: int
    method: str = WIDENED  # a name of METHODS

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> Bootstrap:
        """The settings that a report records; one without a method was judged by the plain one.

        Raises:
            ContractError: no such method.
            TypeError: other members than those of the settings.
        """
        settings = cls(**{"method": PLAIN, **recorded})
        if settings.method not in METHODS:
            raise ContractError(
                "/context/bootstrap/method: no method of this version",
                expected=", ".join(METHODS),
                found=str(settings.method),
            )
        return settings

    @property
    def recorded(self) -> dict[str, Any]:
        """What a report records, so that ``read`` finds the settings again."""
        settings = asdict(self)
        if self.method == PLAIN:
            del settings["method"]  # reports of it were written before there was another
        return settings

    def interval(self, difference: Floats, tokens: Floats) -> Interval | None:
        """Interval of ``sum(difference) / sum(tokens)`` over clusters, both (clusters,)."""
        return METHODS[self.method](
            difference,
            tokens,
            replicates=self.replicates,
            alpha=self.alpha,
            seed=self.seed + BOOTSTRAP_SEED_OFFSET,
        )


class PerplexityResult(Struct, frozen=True):
    """The primary metric of a comparison and what was decided from it."""

    preview: float  # perplexity of the subject
    final: float
    baseline_preview: float
    baseline_final: float
    delta: float  # nats per token, final arm
    interval: Interval | None  # of delta
    decision: str  # pass | fail | inconclusive
    windows_needed: int | None
    hysteresis_applied: bool
    drift: float  # (final/preview)_s / (final/preview)_b
    drift_ok: bool
    coverage_ok: bool
    tokens_ok: bool

    @property
    def acceptable(self) -> bool:
        """Whether every part of the gate holds."""
        return self.decision == "pass" and self.coverage_ok and self.tokens_ok


def finite(arm: Arm) -> bool:
    """Whether every recorded loss of both runs is a number."""
    return bool(np.isfinite(arm.subject_nll).all() and np.isfinite(arm.baseline_nll).all())


def compare(preview: Arm, final: Arm, policy: Policy, bootstrap: Bootstrap) -> PerplexityResult:
    """Compare subject and baseline; both arms must be non-empty and finite."""
    difference = final.subject_nll - final.baseline_nll
    delta = float(difference.sum() / final.token_counts.sum())
    interval = bootstrap.interval(*cluster_sums(final.clusters, difference, final.token_counts))
    limit = math.log(policy.pm_ratio.ratio_limit_base + policy.pm_ratio.hysteresis_ratio)
    decision = decide(delta, interval, limit)
    ppl = [arm.perplexity(nll) for arm in (preview, final) for nll in _losses(arm)]
    drift = _drift(preview, final)
    return PerplexityResult(
        preview=ppl[0],
        baseline_preview=ppl[1],
        final=ppl[2],
        baseline_final=ppl[3],
        delta=delta,
        interval=interval,
        decision=decision,
        windows_needed=windows_needed(delta, interval, limit, len(final.window_ids))
        if decision == "inconclusive"
        else None,
        hysteresis_applied=decision == "pass"
        and interval is not None
        and interval.high > math.log(policy.pm_ratio.ratio_limit_base),
        drift=drift,
        drift_ok=policy.drift.min <= drift <= policy.drift.max,
        coverage_ok=len(preview.window_ids) >= policy.coverage.preview
        and len(final.window_ids) >= policy.coverage.final
        and bootstrap.replicates >= policy.coverage.replicates
        and bootstrap.alpha <= policy.coverage.alpha,
        tokens_ok=preview.tokens + final.tokens >= policy.pm_ratio.min_tokens,
    )


def decide(delta: float, interval: Interval | None, limit: float) -> str:
    """pass, fail or inconclusive for a log-ratio against a log-limit."""
    if interval is None:
        return "inconclusive"
    if interval.high <= limit and delta <= limit:
        return "pass"
    return "fail" if interval.low > limit else "inconclusive"


def windows_needed(
    delta: float, interval: Interval | None, limit: float, windows: int
) -> int | None:
    """How many final windows would settle an inconclusive comparison.

    Half-widths shrink with the square root of the number of clusters, and clusters grow with
    the windows; None when the estimate sits on the limit itself or has no interval.
    """
    gap = abs(limit - delta)
    if interval is None or gap == 0.0:
        return None
    half = interval.high - delta if delta <= limit else delta - interval.low
    return math.ceil(windows * max(half / gap, 1.0) ** 2) + 1


def _losses(arm: Arm) -> tuple[Floats, Floats]:
    return arm.subject_nll, arm.baseline_nll


def _drift(preview: Arm, final: Arm) -> float:
    """(final/preview) of the subject over (final/preview) of the baseline."""

    def change(arm: Arm) -> float:
        return float((arm.subject_nll - arm.baseline_nll).sum() / arm.token_counts.sum())

    exponent = change(final) - change(preview)
    return math.exp(exponent) if exponent < 700 else math.inf
