"""Variance guard: did a projection's output grow or shrink, and would undoing it help?

For the projections that leave a feed-forward block: variance of the output over tokens, mean
over features, subject against baseline. ``scale = sqrt(var_b / var_s)`` would restore it; where
it leaves the deadband it is proposed and tried on held-out windows through a hook, the weights
are not touched. The trial is a paired comparison of log-losses with and without the scale: the
predictive gate passes where the one-sided upper bound (BCa over documents) of the mean
difference lies below ``-min_effect``. Then the guard has spoken: something is wrong that a
number would mend. It never blocks: the damage itself is for the other gates to judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from invarlock.guards.rmt import Activation
from invarlock.guards.spectral import rounded
from invarlock.metrics.bootstrap import bca_interval, cluster_sums
from invarlock.policy import VariancePolicy

HELD_OUT_SHARE = 0.2  # of all windows; from the preview arm, none of them a calibration window
REPLICATES, SEED = 2000, 211

CONTRACT = {
    "kind": "output_variance",
    "estimator": {"type": "mean_over_features", "over": "tokens", "dtype": "float32"},
    "held_out_windows": {"share": HELD_OUT_SHARE, "arm": "preview"},
    "bootstrap": {"method": "bca_cluster_ratio", "replicates": REPLICATES, "seed": SEED},
}


@dataclass(frozen=True)
class Trial:
    """Held-out windows with and without the proposed scales; sequences (windows,)."""

    window_ids: Sequence[str]
    clusters: Sequence[str]
    token_counts: Sequence[int]
    plain_nll: Sequence[float]  # nats, as measured in the pass
    scaled_nll: Sequence[float]  # nats, through the hook


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial as it is recorded; losses that are not finite become null."""
    columns = {name: list(column) for name, column in vars(trial).items()}
    for name in ("plain_nll", "scaled_nll"):
        columns[name] = [v if math.isfinite(v) else None for v in columns[name]]
    return columns


def trial_from(recorded: Mapping[str, Sequence[Any]]) -> Trial:
    """The inverse of :func:`trial_json`."""
    columns = {name: list(recorded[name]) for name in Trial.__dataclass_fields__}
    for name in ("plain_nll", "scaled_nll"):
        columns[name] = [math.nan if v is None else float(v) for v in columns[name]]
    return Trial(**columns)


def is_target(activation: Activation, tap: str) -> bool:
    """Whether a module leaves a feed-forward block: named ``tap``, or a block's fused experts.

    Attention may have an output projection of the same name (BERT's ``output.dense``).
    """
    named = activation.name.endswith(("." + tap, ".experts"))
    return named and activation.family != "attn"


def propose(
    baseline: Sequence[Activation], subject: Sequence[Activation], policy: VariancePolicy
) -> dict[str, float]:
    """The scales that would restore the baseline's output variance, by module.

    Args:
        baseline: the targets of the baseline run.
        subject: the targets of the subject run.
        policy: deadband and how many modules at most.
    """
    before = {a.name: a.variance for a in baseline}
    scales = {
        s.name: math.sqrt(before[s.name] / s.variance)
        for s in subject
        if 0 < before.get(s.name, 0) < math.inf and 0 < s.variance < math.inf
    }
    outside = [name for name, scale in scales.items() if abs(scale - 1) > policy.deadband]
    outside.sort(key=lambda name: (-abs(math.log(scales[name])), name))
    kept = outside[: policy.max_adjusted_modules or None]
    return {name: float(f"{scales[name]:.9g}") for name in sorted(kept)}


def judge(
    baseline: Sequence[Activation],
    subject: Sequence[Activation],
    trial: Trial | None,
    policy: VariancePolicy,
) -> dict[str, Any]:
    """Compare the targets of two runs and decide the predictive gate.

    Returns:
        the decided part of the report's ``variance`` block.
    """
    scales = propose(baseline, subject, policy)
    gate = _predictive_gate(scales, trial, policy)
    signal = bool(scales) and gate["passed"]
    return {
        "evaluated": True,
        "passed": True,
        "decision": "monitor" if scales else "allow",
        "status": "signal" if signal else "proposed" if scales else "ok",
        "enabled": False,
        "signal": signal,
        "deadband": policy.deadband,
        "proposed_scales": scales,
        "predictive_gate": gate,
        **({} if trial is None else {"ab_test": _ab_test(trial)}),
    }


def _predictive_gate(
    scales: Mapping[str, float], trial: Trial | None, policy: VariancePolicy
) -> dict[str, Any]:
    gate: dict[str, Any] = {"evaluated": False, "passed": False, "sided": "one"}
    gate |= {"alpha": policy.alpha, "min_effect_lognll": policy.min_effect_lognll}
    if not scales:
        return {**gate, "reason": "no_scales"}
    if trial is None or len(set(trial.clusters)) < 2:
        return {**gate, "reason": "insufficient_coverage"}
    difference = np.asarray(trial.scaled_nll, float) - np.asarray(trial.plain_nll, float)
    if not np.isfinite(difference).all():
        return {**gate, "reason": "ci_unavailable"}
    sums = cluster_sums(trial.clusters, difference, np.asarray(trial.token_counts, float))
    # the two-sided interval of twice the level has the one-sided bound as its upper end
    interval = bca_interval(*sums, replicates=REPLICATES, alpha=2 * policy.alpha, seed=SEED)
    assert interval is not None
    mean, low, high = interval.point, interval.low, interval.high
    passed = high < 0 and high <= -policy.min_effect_lognll
    if passed:
        reason = "ci_gain_met"
    elif mean >= 0:
        reason = "mean_not_negative"
    else:
        reason = "ci_contains_zero" if high >= 0 else "gain_below_threshold"
    found = {"mean_delta": mean, "delta_ci": [low, high], "gain_ci": [-high, -low]}
    return {**gate, "evaluated": True, "passed": passed, "reason": reason, **found}


def _ab_test(trial: Trial) -> dict[str, Any]:
    tokens = sum(trial.token_counts)
    return {
        "seed": SEED,
        "windows_used": len(trial.window_ids),
        "provenance": {"window_ids": list(trial.window_ids)},
        "point_estimates": {
            "logloss_plain": rounded(math.fsum(trial.plain_nll) / tokens),
            "logloss_scaled": rounded(math.fsum(trial.scaled_nll) / tokens),
        },
    }
