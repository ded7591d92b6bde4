"""RMT guard: did the largest singular value of a module's activations grow?

The activations of calibration windows (tokens x features) are centred and scaled column by
column, which leaves their correlations. Edge risk ``r = sigma_max / (sqrt(m) + sqrt(n))`` is 1 at
the edge that random matrix theory gives for independent entries of unit variance (Marchenko and
Pastur, Math. USSR Sb. 1, 1967; Geman, Ann. Probab. 8, 1980). Activations are not independent, so
the baseline's own value is the reference: a module violates where
``r_s > (1 + epsilon) r_b``, epsilon by family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from invarlock.guards.spectral import rounded
from invarlock.guards.weight_stats import TOLERANCE
from invarlock.policy import RmtPolicy

CALIBRATION_WINDOWS = 8  # evenly spaced over the preview arm
MAX_TOKENS = 1024  # rows of the matrix: evenly spaced tokens of these windows

CONTRACT = {
    "kind": "activation_edge_risk",
    "estimator": {
        "type": "golub_kahan_lanczos",
        "residual_tolerance": TOLERANCE,
        "centre_and_scale": "own_columns",
        "dtype": "float32",
    },
    "activation_sampling": {
        "windows": {"count": CALIBRATION_WINDOWS, "arm": "preview"},
        "indices_policy": "evenly_spaced",
        "max_tokens": MAX_TOKENS,
    },
}


class Activation(NamedTuple):
    """What a probe saw at the output of one module."""

    name: str
    family: str
    layer: int | None
    edge: float  # edge risk, of a dimensionless matrix; infinity if not finite
    variance: float  # mean over features of the variance over tokens; infinity if not finite


def edge(tokens: int, features: int) -> float:
    """``sqrt(m) + sqrt(n)``: where sigma_max of an m x n standard Gaussian matrix lies."""
    return math.sqrt(tokens) + math.sqrt(features)


def to_table(activations: Sequence[Activation]) -> dict[str, list[Any]]:
    """Activations as columns, sorted by name; what is not finite becomes null."""
    ordered = sorted(activations, key=lambda a: a.name)
    return {
        "name": [a.name for a in ordered],
        "family": [a.family for a in ordered],
        "layer": [a.layer for a in ordered],
        "edge": [rounded(a.edge) for a in ordered],
        "variance": [rounded(a.variance) for a in ordered],
    }


def from_table(table: Mapping[str, Sequence[Any]]) -> list[Activation]:
    """The inverse of :func:`to_table`."""

    head = (table[key] for key in ("name", "family", "layer"))
    numbers = (
        [math.inf if value is None else float(value) for value in table[key]]
        for key in ("edge", "variance")
    )
    return [
        Activation(str(name), str(family), layer, edge, variance)
        for name, family, layer, edge, variance in zip(*head, *numbers, strict=True)
    ]


def judge(
    baseline: Sequence[Activation], subject: Sequence[Activation], policy: RmtPolicy
) -> dict[str, Any]:
    """Compare two runs' activations; a module that only one of them has blocks.

    Returns:
        the decided part of the report's ``rmt`` block.
    """
    before = {a.name: a for a in baseline}
    pairs = [(before[s.name], s) for s in subject if s.name in before]
    complete = len(pairs) == len(before) == len(subject)
    violations = [v for b, s in pairs if (v := _violation(b, s, policy)) is not None]
    families = {
        family: _family([(b, s) for b, s in pairs if s.family == family], policy.epsilon(family))
        for family in sorted({s.family for _, s in pairs})
    }
    changes = [(_ratio(b.edge, s.edge), s.edge - b.edge) for b, s in pairs]
    deltas = [delta for _, delta in changes if math.isfinite(delta)]
    stable = complete and not violations
    return {
        "evaluated": True,
        "passed": stable,
        "stable": stable,
        "decision": "allow" if stable else "block",
        "status": "stable" if stable else "unstable",
        "mode": "activation_edge_risk",
        "modules_compared": len(pairs),
        "modules_missing": len(before) + len(subject) - 2 * len(pairs),
        "epsilon_default": policy.epsilon_default,
        "epsilon_by_family": {family: policy.epsilon(family) for family in families},
        "epsilon_violations": violations,
        "edge_risk_by_family_base": {f: block["edge_base"] for f, block in families.items()},
        "edge_risk_by_family": {f: block["edge_cur"] for f, block in families.items()},
        "families": families,
        "max_edge_ratio": rounded(max((ratio for ratio, _ in changes), default=1.0)),
        "max_edge_delta": rounded(max(deltas, default=0.0)),
        "mean_edge_delta": rounded(sum(deltas) / len(deltas) if deltas else 0.0),
    }


def _ratio(baseline: float, subject: float) -> float:
    """subject / baseline; 1 where both are 0 and infinity where a number was lost."""
    if not math.isfinite(subject):
        return math.inf
    if baseline > 0 and math.isfinite(baseline):
        return subject / baseline
    return 1.0 if subject == baseline else math.inf


def _violation(b: Activation, s: Activation, policy: RmtPolicy) -> dict[str, Any] | None:
    epsilon = policy.epsilon(s.family)
    if _ratio(b.edge, s.edge) <= 1 + epsilon:
        return None
    return {
        "family": s.family,
        "module": s.name,
        "edge_base": rounded(b.edge),
        "edge_cur": rounded(s.edge),
        "delta": rounded(s.edge - b.edge),
        "allowed": rounded((1 + epsilon) * b.edge),
        "epsilon": epsilon,
    }


def _family(pairs: Sequence[tuple[Activation, Activation]], epsilon: float) -> dict[str, Any]:
    """The module of a family with the largest ratio; it decides for the family."""
    b, s = max(pairs, key=lambda pair: _ratio(pair[0].edge, pair[1].edge))
    return {
        "module": s.name,
        "modules": len(pairs),
        "edge_base": rounded(b.edge),
        "edge_cur": rounded(s.edge),
        "epsilon": epsilon,
        "allowed": rounded((1 + epsilon) * b.edge),
        "ratio": rounded(_ratio(b.edge, s.edge)),
        "delta": rounded(s.edge - b.edge),
    }
