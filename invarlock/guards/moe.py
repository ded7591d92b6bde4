"""Mixture-of-experts guard: do the routers still decide, and is every expert still reached?

Per router, over the tokens of the calibration windows: the mean entropy of its distribution,
``H = -sum p ln p`` in nats (ln of the number of experts for an undecided router, 0 for a
collapsed one), and each expert's share of the top-k choices. The published report carries such
numbers and never tests them; here a router blocks where its entropy fell by more than
``entropy_drop_max`` of the baseline's, and the mixture where more than ``new_dead_experts_max``
experts that the baseline used are chosen by no token any more.

An expert counts as used from ``MIN_CHOICES`` choices on: where the baseline expects 10, none
occur by chance with a probability of exp(-10) (Poisson).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.guards.spectral import rounded
from invarlock.policy import MoePolicy

MIN_CHOICES = 10  # of an expert by the baseline's tokens, before its death can be seen


@dataclass(frozen=True)
class RouterStats:
    """What one router did with the tokens it saw."""

    name: str
    layer: int | None
    entropy: float  # nats, mean over tokens; not finite where a logit was not
    tokens: int
    utilization: tuple[float, ...]  # share of the top-k choices, per expert; sums to 1

    @property
    def dead(self) -> tuple[int, ...]:
        """The experts that no token chose."""
        return tuple(i for i, share in enumerate(self.utilization) if share == 0)


def to_table(routers: Sequence[RouterStats], prefix: str = "") -> dict[str, list[Any]]:
    """Routers as columns, sorted by name; ``prefix`` of the columns of numbers."""
    ordered = sorted(routers, key=lambda r: r.name)
    return {
        "name": [r.name for r in ordered],
        "layer": [r.layer for r in ordered],
        prefix + "tokens": [r.tokens for r in ordered],
        prefix + "entropy": [rounded(r.entropy) for r in ordered],
        prefix + "dead": [list(r.dead) for r in ordered],
        prefix + "utilization": [[rounded(u) for u in r.utilization] for r in ordered],
    }


def from_table(table: Mapping[str, Sequence[Any]], prefix: str = "") -> list[RouterStats]:
    """The inverse of :func:`to_table`."""
    columns = [table[prefix + key] for key in ("entropy", "tokens", "utilization")]
    return [
        RouterStats(
            str(name), layer, math.nan if entropy is None else float(entropy), int(tokens),
            tuple(map(float, shares)),
        )
        for name, layer, entropy, tokens, shares in zip(
            table["name"], table["layer"], *columns, strict=True
        )
    ]  # fmt: skip


def judge(
    baseline: Sequence[RouterStats], subject: Sequence[RouterStats], policy: MoePolicy, top_k: int
) -> dict[str, Any]:
    """Compare the routers of two runs; one that only one of them has, or other tokens, block.

    Args:
        baseline, subject: of the same calibration windows, as recorded (:func:`from_table`).
        policy: the tier's limits.
        top_k: experts per token.

    Returns:
        the report's ``moe`` block.
    """
    before = {r.name: r for r in baseline}
    pairs = [(before[s.name], s) for s in sorted(subject, key=lambda r: r.name) if s.name in before]
    complete = len(pairs) == len(before) == len(subject) > 0
    complete &= all(
        (b.tokens, len(b.utilization)) == (s.tokens, len(s.utilization)) for b, s in pairs
    )
    drops = [_drop(b.entropy, s.entropy) for b, s in pairs]
    dead = [
        {"type": "dead_expert", "router": s.name, "expert": expert}
        for b, s in pairs
        for expert in s.dead
        if expert < len(b.utilization)
        and round(b.utilization[expert] * b.tokens * top_k) >= MIN_CHOICES
    ]
    fallen = [
        {"type": "entropy_drop", "router": s.name, "drop": rounded(drop)}
        for (_, s), drop in zip(pairs, drops, strict=True)
        if not drop <= policy.entropy_drop_max
    ]
    too_many = len(dead) > policy.new_dead_experts_max
    passed = complete and not fallen and not too_many
    return {
        "evaluated": True,
        "passed": passed,
        "decision": "allow" if passed and not dead else "monitor" if passed else "block",
        "top_k": top_k,
        "router_entropy": _mean([s.entropy for _, s in pairs]),
        "delta_router_entropy": _mean([s.entropy - b.entropy for b, s in pairs]),
        "utilization_mean": _mean([u for _, s in pairs for u in s.utilization]),
        "utilization_count": sum(len(s.utilization) for _, s in pairs),
        "max_entropy_drop": rounded(max(drops, default=0.0)),
        "entropy_drop_max": policy.entropy_drop_max,
        "new_dead_experts": len(dead),
        "new_dead_experts_max": policy.new_dead_experts_max,
        "routers_missing": len(before) + len(subject) - 2 * len(pairs),
        "violations": [*fallen, *dead],
        "routers": to_table([s for _, s in pairs])
        | to_table([b for b, _ in pairs], prefix="baseline_"),
    }


def flags(block: Mapping[str, Any]) -> dict[str, bool]:
    """The validation flags of a ``moe`` block; none for a model that is no mixture."""
    if not block:
        return {}
    evaluated = block.get("evaluated") is True
    seen = bool(block.get("routers", {}).get("name")) and block.get("routers_missing") == 0
    return {
        "moe_observed": evaluated and seen,
        "moe_identity_ok": evaluated and block.get("passed") is True,
    }


def _drop(baseline: float, subject: float) -> float:
    """Relative fall of the entropy, negative for a rise; infinity where it was lost."""
    if not (math.isfinite(baseline) and math.isfinite(subject)):
        return math.inf
    return 1 - subject / baseline if baseline > 0 else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return rounded(math.fsum(values) / len(values)) if values else None
