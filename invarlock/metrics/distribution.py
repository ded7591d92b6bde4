"""How far the subject's predictions moved, token by token, beyond what perplexity sees.

Three quantities per predicted token of the final arm: the divergence KL(baseline || subject)
over the baseline's most likely tokens (a lower bound, :func:`truncated_kl`), the change of the
probability of the correct token (subject minus baseline), and whether the most likely token
flipped. The block holds their means, order-statistic quantiles and histograms with fixed edges;
the report keeps the sums per window, from which :func:`check` derives the means again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Count, Open, about
from invarlock.errors import MeasurementError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from invarlock.policy import DistributionPolicy
else:
    from invarlock import numpy_on_use as np

TOP_K = 64  # the baseline's most likely tokens kept per position
# Below this mass float16 log-probabilities cannot tell what is left for the other tokens:
# rounding moves the sum of the top ones by up to the entropy (nats) x 2**-12.
REST_FLOOR = 2.0**-12

# Written as decimals, so that every platform has the same edges.
# Nats. The first bin is the underflow (from 0); the last also takes everything above.
KL_EDGES = (0.0, *(float(f"{m}e{e}") for e in range(-6, 2) for m in (1, 2, 5)), 100.0)
# Probability, in steps of 0.05; the last bin includes 1.
CHANGE_EDGES = tuple(step / 20 for step in range(-20, 21))
KL_LEVELS = {"p99": 0.99}
CHANGE_LEVELS = {"q01": 0.01, "q05": 0.05, "q50": 0.5, "q95": 0.95, "q99": 0.99}

Block = dict[str, Any]


class Distribution(Open):
    """Shift of the predicted distribution on the scored windows."""

    evaluated: Annotated[bool | UnsetType, about("measured, and finite")] = UNSET
    reason: Annotated[str | UnsetType, about("why not")] = UNSET
    tokens: Annotated[Count | UnsetType, about("predicted tokens")] = UNSET
    top_k: Annotated[
        Count | UnsetType,
        about("the baseline's most likely tokens that are compared; the others are one bucket"),
    ] = UNSET
    kl: Annotated[
        dict[str, Any] | UnsetType,
        about("KL(baseline || subject), nats a token, a lower bound: mean, p99, max"),
    ] = UNSET
    flips: Annotated[
        dict[str, Any] | UnsetType,
        about("tokens whose most likely prediction changed: count and fraction"),
    ] = UNSET
    probability_change: Annotated[
        dict[str, Any] | UnsetType,
        about("change of the correct token's probability: mean and quantiles"),
    ] = UNSET
    histograms: Annotated[dict[str, Any] | UnsetType, about("edges and counts of both")] = UNSET
    gated: Annotated[bool | UnsetType, about("the tier sets a limit")] = UNSET
    passed: Annotated[bool | UnsetType, about("within it")] = UNSET


@dataclass(frozen=True)
class TokenShift:
    """What was measured on every predicted token of an arm, windows one after the other."""

    kl: NDArray[np.floating]  # (tokens,) nats
    probability_change: NDArray[np.floating]  # (tokens,) of the correct token, subject - baseline
    flips: NDArray[np.bool_]  # (tokens,) the most likely token is another
    token_counts: Sequence[int]  # (windows,)
    top_k: int

    def finite(self) -> bool:
        """Whether every value is a number."""
        return bool(np.isfinite(self.kl).all() and np.isfinite(self.probability_change).all())


def truncated_kl(
    base_logprob: NDArray[np.floating],
    subject_logprob: NDArray[np.floating],
    floor: float = REST_FLOOR,
) -> NDArray[np.float64]:
    """Lower bound of KL(baseline || subject) from the baseline's K most likely tokens.

    The other tokens make one bucket, ``rest = max(1 - sum p, floor)``. By the log-sum inequality
    (Cover and Thomas, *Elements of Information Theory*, 2nd ed., 2.7.1) lumping tokens together
    never raises a divergence. Each bucket contributes ``p_b ln(p_b / p_s) - p_b + p_s``, which
    sums to KL, is never negative and is 0 where both agree; the floor only lowers it.

    Args:
        base_logprob: (tokens, K) nats, finite.
        subject_logprob: (tokens, K) nats, of the same tokens, rounded in the same way: then equal
            distributions give exactly 0.
        floor: of the rest.

    Returns:
        (tokens,) nats; infinity or NaN where the subject has such log-probabilities.
    """
    base, subject = base_logprob.astype(np.float64), subject_logprob.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # a broken subject is a value, no warning
        p, change = np.exp(base), subject - base
        top = (p * (np.expm1(change) - change)).sum(axis=1)
        rest_b = np.maximum(1.0 - p.sum(axis=1), floor)
        rest_s = np.maximum(1.0 - np.exp(subject).sum(axis=1), floor)
        rest = rest_b * np.log(rest_b / rest_s) - rest_b + rest_s
        return np.asarray(np.maximum(top + rest, 0.0))


def window_sums(shift: TokenShift) -> dict[str, list[float]]:
    """``kl_sum`` and ``probability_change_sum`` of every window, nats and probability.

    Raises:
        MeasurementError: the counts do not add up to the tokens.
    """
    columns = {"kl": shift.kl, "probability_change": shift.probability_change}
    total = int(sum(shift.token_counts))
    if {total} != {len(values) for values in (*columns.values(), shift.flips)}:
        raise MeasurementError("the distribution shift does not have one value per token")
    ends = np.cumsum([0, *shift.token_counts])
    return {
        f"{name}_sum": [
            float(values[a:b].astype(np.float64).sum()) for a, b in itertools.pairwise(ends)
        ]
        for name, values in columns.items()
    }


def shift_columns(shift: TokenShift) -> dict[str, list[Any]]:
    """What reports hold of every window: agreeing tokens, and the sums; null for what is not
    finite.

    Raises:
        MeasurementError: the counts do not add up to the tokens.
    """
    sums = window_sums(shift)
    ends = np.cumsum(shift.token_counts)
    flips = np.add.reduceat(shift.flips.astype(int), [0, *ends[:-1]])
    agreed = [int(n) - int(f) for n, f in zip(shift.token_counts, flips, strict=True)]
    return {
        "top1_agreement": agreed,
        **{key: [v if math.isfinite(v) else None for v in vs] for key, vs in sums.items()},
    }


def summarize(shift: TokenShift, policy: DistributionPolicy) -> Block:
    """The ``distribution`` block of a report.

    Values that are no numbers (a broken subject) leave it unevaluated, which a gate never passes.

    Raises:
        MeasurementError: the counts do not add up to the tokens, or there are none.
    """
    sums = window_sums(shift)
    tokens = int(sum(shift.token_counts))
    if tokens == 0:
        raise MeasurementError("no predicted token to measure the distribution shift on")
    if not shift.finite():
        return not_evaluated("values that are not finite", policy)
    kl, change = np.sort(shift.kl), np.sort(shift.probability_change)
    flips = int(shift.flips.sum())
    block: Block = {
        "evaluated": True,
        "tokens": tokens,
        "top_k": shift.top_k,
        "kl": {
            "mean": math.fsum(sums["kl_sum"]) / tokens,
            **_quantiles(kl, KL_LEVELS),
            "max": float(kl[-1]),
        },
        "flips": {"count": flips, "fraction": flips / tokens},
        "probability_change": {
            "mean": math.fsum(sums["probability_change_sum"]) / tokens,
            **_quantiles(change, CHANGE_LEVELS),
        },
        "histograms": {
            "kl": _histogram(kl, KL_EDGES),
            "probability_change": _histogram(change, CHANGE_EDGES),
        },
    }
    return gated(block, policy)


def gated(block: Mapping[str, Any], policy: DistributionPolicy) -> Block:
    """An evaluated block, decided by the limits of this policy."""
    return {**block, **_gate(block, policy)}


def not_evaluated(reason: str, policy: DistributionPolicy) -> Block:
    """The block where there is no evidence: passes only if the policy does not ask for any."""
    gated = _gated(policy)
    return {"evaluated": False, "reason": reason, "gated": gated, "passed": not gated}


def check(
    block: Mapping[str, Any], windows: Mapping[str, Sequence[float]], policy: DistributionPolicy
) -> list[str]:
    """What in an evaluated block contradicts the recorded windows, itself or the policy.

    Args:
        block: as :func:`summarize` gives it.
        windows: columns ``token_counts``, ``top1_agreement``, ``kl_sum`` and
            ``probability_change_sum`` (windows,).
        policy: that judged it.

    Returns:
        the fields that are wrong, as ``/kl/mean``; means within 1e-9, all else exactly.
    """
    tokens = int(sum(windows["token_counts"]))
    flips = tokens - int(sum(windows["top1_agreement"]))
    wrong = [] if block["tokens"] == tokens else ["/tokens"]
    if block["flips"] != {"count": flips, "fraction": flips / tokens}:
        wrong.append("/flips")
    for name, edges, levels in (
        ("kl", KL_EDGES, KL_LEVELS),
        ("probability_change", CHANGE_EDGES, CHANGE_LEVELS),
    ):
        mean = math.fsum(windows[f"{name}_sum"]) / tokens
        if not math.isclose(block[name]["mean"], mean, rel_tol=1e-9, abs_tol=1e-9):
            wrong.append(f"/{name}/mean")
        table = block["histograms"][name]
        counts = table["counts"]
        if (
            list(table["edges"]) != list(edges)
            or len(counts) != len(edges) - 1
            or min(counts) < 0
            or sum(counts) != tokens
        ):
            wrong.append(f"/histograms/{name}")
            continue
        ranks = {key: _rank(level, tokens) for key, level in levels.items()}
        if name == "kl":
            ranks["max"] = tokens
        bins = np.searchsorted(np.cumsum(counts), list(ranks.values()))
        wrong += [
            f"/{name}/{key}"
            for key, place in zip(ranks, bins, strict=True)
            if not edges[0] <= block[name][key] or _bins([block[name][key]], edges)[0] != place
        ]
    gate = _gate(block, policy)
    return wrong + [f"/{key}" for key, value in gate.items() if block[key] is not value]


def _gated(policy: DistributionPolicy) -> bool:
    return policy.kl_mean_max is not None or policy.flip_fraction_max is not None


def _gate(block: Mapping[str, Any], policy: DistributionPolicy) -> dict[str, bool]:
    limits = (
        (block["kl"]["mean"], policy.kl_mean_max),
        (block["flips"]["fraction"], policy.flip_fraction_max),
    )
    passed = all(limit is None or value <= limit for value, limit in limits)
    return {"gated": _gated(policy), "passed": passed}


def _rank(level: float, n: int) -> int:
    """The order statistic that is the quantile: the least value with a share >= level below it."""
    return max(1, math.ceil(level * n * (1 - 1e-12)))


def _quantiles(ordered: NDArray[np.floating], levels: Mapping[str, float]) -> dict[str, float]:
    n = len(ordered)
    return {key: float(ordered[_rank(level, n) - 1]) for key, level in levels.items()}


def _bins(values: Sequence[float] | NDArray[np.floating], edges: Sequence[float]) -> Any:
    """The bin of each value: edge <= value < next edge; what lies outside goes to the ends."""
    place = np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="right") - 1
    return np.clip(place, 0, len(edges) - 2)


def _histogram(values: NDArray[np.floating], edges: Sequence[float]) -> dict[str, list[Any]]:
    counts = np.bincount(_bins(values, edges), minlength=len(edges) - 1)
    return {"edges": list(edges), "counts": counts.tolist()}
