"""From recorded evidence to decisions, as a pure function.

The same function writes a report and re-checks it: ``evaluate`` calls it with what was measured,
the verifier with what the report recorded and the verifier's own tier table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.guards import invariants_decision, spectral
from invarlock.guards.invariants_decision import Failure
from invarlock.metrics.perplexity import (
    Arm,
    Bootstrap,
    PerplexityResult,
    compare,
    finite,
)
from invarlock.policy import Policy

# The validation flags that decide. Guards that are not evaluated have no flag, and what has no
# flag never counts as passed; the report lists them under ``context.not_evaluated``.
GATES = (
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "invariants_pass",
    "spectral_stable",
)
NOT_EVALUATED = ("rmt", "variance", "primary_metric_tail", "guard_overhead")

Block = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What was recorded of both runs; everything a decision is made from."""

    preview: Arm | None  # None: the subject was not run
    final: Arm | None
    baseline_modules: Sequence[spectral.Module]
    subject_modules: Sequence[spectral.Module]  # empty: not measured
    invariant_failures: Sequence[Failure]
    invariants_evaluated: bool
    bootstrap: Bootstrap
    reason_not_run: str = ""  # rejected_by_invariants, crashed, out_of_memory, timeout


@dataclass(frozen=True)
class Judgement:
    """The decided blocks of an evaluation report."""

    primary_metric: Block
    invariants: Block
    spectral: Block
    validation: dict[str, bool]


def judge(evidence: Evidence, policy: Policy) -> Judgement:
    """Decide every gate; evidence that is absent never passes."""
    metric, flags = _primary_metric(evidence, policy)
    invariants = (
        invariants_decision.judge(evidence.invariant_failures)
        if evidence.invariants_evaluated
        else _not_evaluated(evidence.reason_not_run)
    )
    flags["invariants_pass"] = invariants.get("passed") is True
    if evidence.subject_modules:
        spectrum = spectral.judge(
            evidence.baseline_modules, evidence.subject_modules, policy.spectral
        )
    else:
        spectrum = _not_evaluated(evidence.reason_not_run)
    flags["spectral_stable"] = spectrum.get("passed") is True
    return Judgement(metric, invariants, spectrum, dict(sorted(flags.items())))


def passes(validation: dict[str, bool], primary_metric: Block) -> bool:
    """Whether a report passes: every gate exactly true, and a metric that was really measured."""
    broken = primary_metric.get("invalid") is True or primary_metric.get("degraded") is True
    return not broken and all(validation.get(gate) is True for gate in GATES)


def _not_evaluated(reason: str) -> Block:
    return {"evaluated": False, "reason": reason}


_KIND: Block = {
    "kind": "ppl_causal",
    "unit": "ppl",
    "direction": "lower",
    "aggregation_scope": "token",
    "paired": True,
    "gating_basis": "upper",
    "analysis_basis": "mean_logloss",
}


def _primary_metric(evidence: Evidence, policy: Policy) -> tuple[Block, dict[str, bool]]:
    unmeasured = {"primary_metric_acceptable": False, "preview_final_drift_acceptable": False}
    preview, final = evidence.preview, evidence.final
    if preview is None or final is None:
        return _degraded(evidence.reason_not_run), unmeasured
    if not (finite(preview) and finite(final)):
        return _degraded("non_finite_pm"), unmeasured
    result = compare(preview, final, policy, evidence.bootstrap)
    values = (result.preview, result.final, result.drift, _exp(result.delta))
    if not all(map(math.isfinite, values)):
        return _degraded("non_finite_pm"), unmeasured
    flags = {
        "primary_metric_acceptable": result.acceptable,
        "preview_final_drift_acceptable": result.drift_ok,
    }
    if result.hysteresis_applied:
        flags["hysteresis_applied"] = True
    return _block(result, evidence.bootstrap, policy), flags


def _degraded(reason: str) -> Block:
    return {**_KIND, "invalid": True, "degraded": True, "degraded_reason": reason}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _block(result: PerplexityResult, bootstrap: Bootstrap, policy: Policy) -> Block:
    block: Block = {
        **_KIND,
        "preview": result.preview,
        "final": result.final,
        "analysis_point_preview": math.log(result.preview),
        "analysis_point_final": math.log(result.final),
        "ratio_vs_baseline": _exp(result.delta),
        "delta_nats": result.delta,
        "decision": result.decision,
        "limit": policy.ratio_limit + policy.hysteresis,
        "reps": bootstrap.replicates,
        "ci_level": 1 - bootstrap.alpha,
        "drift": {
            "ratio": result.drift,
            "raw": result.final / result.preview,
            "basis": "baseline_relative",
        },
        "drift_band": {"min": policy.drift_min, "max": policy.drift_max},
        "coverage_ok": result.coverage_ok,
        "tokens_ok": result.tokens_ok,
        "invalid": False,
        "degraded": False,
    }
    if result.interval is not None:
        low, high = result.interval.low, result.interval.high
        block["ci"] = [low, high]
        block["display_ci"] = [_exp(low), _exp(high)]
        block["standard_error"] = result.interval.standard_error
        block["clusters"] = result.interval.n_clusters
    if result.windows_needed is not None:
        block["windows_needed"] = result.windows_needed
    return block
