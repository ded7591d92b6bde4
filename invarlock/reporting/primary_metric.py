"""The ``primary_metric`` block of a report and its flags, from both runs' recorded numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.metrics.accuracy import AccuracyResult, Examples, compare_accuracy
from invarlock.metrics.confidence import Precision, confidence
from invarlock.metrics.perplexity import Arm, Bootstrap, PerplexityResult, compare, finite
from invarlock.policy import Policy

Block = dict[str, Any]
MIN_CLUSTERS = 2  # documents, for an interval
ACCEPTABLE, DRIFT, HYSTERESIS = (
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "hysteresis_applied",
)


@dataclass(frozen=True)
class MetricEvidence:
    """What both runs recorded for the primary metric."""

    kind: str  # ppl_causal, ppl_mlm, ppl_seq2seq or accuracy
    preview: Arm | None  # None: the subject was not run
    final: Arm | None
    examples: tuple[Examples, Examples] | None  # preview, final; accuracy alone
    bootstrap: Bootstrap
    reason_not_run: str = ""


def judge_metric(evidence: MetricEvidence, policy: Policy) -> tuple[Block, dict[str, bool]]:
    """The block, and the flags of the metric, of drift and (when true) of hysteresis."""
    unmeasured = {ACCEPTABLE: False, DRIFT: False}
    head = _head(evidence.kind)
    preview, final = evidence.preview, evidence.final
    if preview is None or final is None:
        return _degraded(head, evidence.reason_not_run), unmeasured
    if evidence.kind == "accuracy":
        if evidence.examples is None:
            return _degraded(head, "no_labelled_examples"), unmeasured
        found = compare_accuracy(*evidence.examples, policy, evidence.bootstrap)
        block = head | _accuracy(found, policy) | _settings(evidence.bootstrap)
        floors = [("examples", found.n_final, policy.accuracy.min_examples)]
        return block | _needed(block, floors, evidence, policy), _flags(found)
    if not (finite(preview) and finite(final)):
        return _degraded(head, "non_finite_pm"), unmeasured
    result = compare(preview, final, policy, evidence.bootstrap)
    values = (result.preview, result.final, result.drift, _exp(result.delta))
    if not all(map(math.isfinite, values)):
        return _degraded(head, "non_finite_pm"), unmeasured
    block = head | _perplexity(result, policy) | _settings(evidence.bootstrap)
    floors = [
        ("tokens", preview.tokens + final.tokens, policy.min_tokens),
        ("preview_windows", len(preview.window_ids), policy.min_preview),
        ("final_windows", len(final.window_ids), policy.min_final),
    ]
    return block | _needed(block, floors, evidence, policy), _flags(result)


def _needed(
    block: Block,
    floors: Sequence[tuple[str, int, int]],
    evidence: MetricEvidence,
    policy: Policy,
) -> Block:
    """``evidence_needed``: what is below a floor of the tier, and what would settle the interval.

    Nothing where there is enough of everything.
    """
    used, final = evidence.bootstrap, evidence.final
    assert final is not None  # judged
    lacking: list[tuple[str, float, float]] = [
        row
        for row in (*floors, ("replicates", used.replicates, policy.min_replicates))
        if row[1] < row[2]
    ]
    if used.alpha > policy.max_alpha:
        lacking.append(("alpha", used.alpha, policy.max_alpha))
    if "ci" not in block:  # of one document nothing is known of how documents differ
        lacking.append(("documents", len(set(final.clusters)), MIN_CLUSTERS))
    if "windows_needed" in block:
        name = "examples_to_decide" if evidence.kind == "accuracy" else "final_windows_to_decide"
        lacking.append((name, len(final.window_ids), block["windows_needed"]))
    rows = [{"what": what, "have": have, "need": need} for what, have, need in lacking]
    return {"evidence_needed": rows} if rows else {}


def confidence_block(metric: Block, acceptable: bool, policy: Policy) -> Block:
    """The ``confidence`` block of a judged metric; without a ``width`` where there is none."""
    precision = Precision(
        kind=metric["kind"],
        display_ci=metric.get("display_ci"),
        acceptable=acceptable,
        replicates=metric.get("reps", 0),
        floor_met=bool(metric.get("tokens_ok", metric.get("examples_ok"))),
    )
    block = confidence(precision, policy.confidence)
    return {key: value for key, value in block.items() if value is not None}


def baseline_points(evidence: MetricEvidence) -> dict[str, float]:
    """The baseline's own value of the metric on both arms; the subject was run."""
    if evidence.examples is not None:
        both = zip(("preview", "final"), evidence.examples, strict=True)
        return {arm: float(examples.baseline.mean()) for arm, examples in both}
    arms = {"preview": evidence.preview, "final": evidence.final}
    return {name: arm.perplexity(arm.baseline_nll) for name, arm in arms.items() if arm}


def _head(kind: str) -> Block:
    accuracy = kind == "accuracy"
    return {
        "kind": kind,
        "unit": "accuracy" if accuracy else "ppl",
        "direction": "higher" if accuracy else "lower",
        "aggregation_scope": "example" if accuracy else "token",
        "paired": True,
        "gating_basis": "lower" if accuracy else "upper",
        "analysis_basis": "correct_fraction" if accuracy else "mean_logloss",
    }


def _degraded(head: Block, reason: str) -> Block:
    return {**head, "invalid": True, "degraded": True, "degraded_reason": reason}


def _flags(result: PerplexityResult | AccuracyResult) -> dict[str, bool]:
    flags = {ACCEPTABLE: result.acceptable, DRIFT: result.drift_ok}
    return {**flags, HYSTERESIS: True} if result.hysteresis_applied else flags


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _settings(bootstrap: Bootstrap) -> Block:
    settings: Block = {"reps": bootstrap.replicates, "ci_level": 1 - bootstrap.alpha}
    return settings | {"invalid": False, "degraded": False, "estimated": False}


def _drift(ratio: float, raw: float, limits: tuple[float, float]) -> Block:
    """The ``drift`` block: relative to the baseline, its limits, and the subject's own."""
    low, high = limits
    relative = {"ratio": ratio, "min": low, "max": high, "basis": "baseline_relative"}
    return relative | {"raw": raw}


def _perplexity(result: PerplexityResult, policy: Policy) -> Block:
    raw = result.final / result.preview
    own = raw / result.drift if result.drift else raw  # the baseline's
    block: Block = {
        "preview": result.preview,
        "final": result.final,
        "analysis_point_preview": math.log(result.preview),
        "analysis_point_final": math.log(result.final),
        "ratio_vs_baseline": _exp(result.delta),
        "delta_nats": result.delta,
        "decision": result.decision,
        "limit": policy.ratio_limit + policy.hysteresis,
        "drift": _drift(result.drift, raw, (policy.drift_min, policy.drift_max)),
        # the same limits on what published verifiers look at, the subject's own drift
        "drift_band": {"min": policy.drift_min * own, "max": policy.drift_max * own},
        "coverage_ok": result.coverage_ok,
        "tokens_ok": result.tokens_ok,
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


def _accuracy(result: AccuracyResult, policy: Policy) -> Block:
    raw, drift = result.final - result.preview, result.drift_pp / 100
    most = policy.accuracy.drift_max_pp / 100
    block: Block = {
        "preview": result.preview,
        "final": result.final,
        "ratio_vs_baseline": result.delta_pp,
        "delta_pp": result.delta_pp,
        "decision": result.decision,
        "limit": result.limit_pp,
        "counts_source": "measured",
        "n_final": result.n_final,
        "gained": result.gained,
        "lost": result.lost,
        "mcnemar_p": result.mcnemar_p,
        "drift": _drift(1 + drift, 1 + raw, (1 - most, 1 + most)),
        "drift_band": {"min": 1 + raw - drift - most, "max": 1 + raw - drift + most},
        "coverage_ok": result.coverage_ok,
        "examples_ok": result.examples_ok,
    }
    if result.interval is not None:
        low, high = result.interval.low, result.interval.high
        block["ci"] = block["display_ci"] = [low, high]
        block["standard_error"] = result.interval.standard_error
        block["clusters"] = result.interval.n_clusters
    if result.examples_needed is not None:
        block["windows_needed"] = result.examples_needed
    return block
