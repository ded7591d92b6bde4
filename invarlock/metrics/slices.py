"""The primary metric slice by slice: a subject passes only if it passes on every one.

*Pass* is an intersection-union test (Berger, *Technometrics* 24, 1982): "some slice is above the
limit" is rejected only where each slice keeps to it by the upper bound of its own interval, at the
usual level. A subject with one slice above the limit passes no oftener than that slice does by
chance, so nothing is corrected.

*Fail* is the opposite, a union: each further look could accuse a subject that keeps to the limit
everywhere. All windows together take half of the error, k slices a 2k-th of it each (Bonferroni).
All windows together may be a reason, because their ratio is a mean of the slices': where it is
above the limit, some slice is.

Everything else is *inconclusive*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from invarlock.documents.fields import Count, Open, about
from invarlock.metrics import MIN_DOCUMENTS
from invarlock.metrics.kind import Block, Floor, Judged, MetricEvidence, SliceEvidence
from invarlock.metrics.perplexity import Arm
from invarlock.policy import Policy

# Members of a primary metric that a slice has as well.
SHOWN = (
    *("preview", "final", "ratio_vs_baseline", "delta_nats", "decision"),
    *("ci", "display_ci", "standard_error", "clusters", "kurtosis", "windows_needed"),
)


class SliceMetric(Open):
    """The primary metric on the scored windows of one slice."""

    name: Annotated[str, about("the slice")]
    decision: Annotated[str, about("pass, fail or inconclusive")]
    windows: Annotated[Count, about("scored windows")]
    tokens: Annotated[Count, about("predicted tokens of them")]
    ratio_vs_baseline: Annotated[float | UnsetType, about("subject over baseline")] = UNSET
    display_ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | UnsetType,
        about("interval of the ratio, at the level of the whole; absent: too few documents"),
    ] = UNSET
    clusters: Annotated[Count | UnsetType, about("documents")] = UNSET
    windows_needed: Annotated[
        Count | UnsetType, about("scored windows that would settle an open interval")
    ] = UNSET
    kl_mean: Annotated[
        float | UnsetType, about("mean divergence from the baseline, nats per token")
    ] = UNSET
    kl_passed: Annotated[bool | UnsetType, about("it keeps to the limit of the tier")] = UNSET
    hysteresis_applied: Annotated[
        bool | UnsetType, about("it passes only thanks to the hysteresis")
    ] = UNSET


def judge_slices(
    whole: Judged, arms: tuple[Arm, Arm], evidence: MetricEvidence, policy: Policy
) -> Judged:
    """All windows together as they were judged, and each slice by the rule above.

    Args:
        whole: the judgement of all windows at the usual level.
        arms: preview and final of all windows.
        evidence: with slices.
    """
    share = evidence.bootstrap.alpha / 2
    parts = [
        _judge(part, share / len(evidence.slices), evidence, policy) for part in evidence.slices
    ]
    together = _confirmed(whole.block, arms, share, evidence, policy)
    decision = _of_all([block["decision"] for block in (together, *parts)])
    block = together | {"decision": decision, "slices": parts}
    if decision != "inconclusive":
        block.pop("windows_needed", None)
    return Judged(
        block=block,
        acceptable=whole.acceptable
        and decision == "pass"
        and all(part.get("kl_passed", True) for part in parts),
        drift_ok=whole.drift_ok,
        hysteresis_applied=decision == "pass"
        and any([whole.hysteresis_applied, *(part["hysteresis_applied"] for part in parts)]),
        floors=(*whole.floors, *_lacking(parts, evidence)),
    )


def _judge(part: SliceEvidence, alpha: float, evidence: MetricEvidence, policy: Policy) -> Block:
    """The block of one slice; it fails by an interval of the error ``alpha`` alone."""
    arms = part.preview, part.final
    found = evidence.kind.judge(*arms, evidence, policy)
    block: Block = {
        "name": part.name,
        "windows": len(part.final.window_ids),
        "tokens": part.final.tokens,
    }
    if found is None:  # beyond what a number can hold, while every loss is one
        return block | {"decision": "fail", "hysteresis_applied": False}
    block |= {key: found.block[key] for key in SHOWN if key in found.block}
    documents = len(set(part.final.clusters))
    if documents < MIN_DOCUMENTS:
        for key in ("ci", "display_ci", "standard_error", "kurtosis", "windows_needed"):
            block.pop(key, None)
        block |= {"decision": "inconclusive", "clusters": documents}
    else:
        block = _confirmed(block, arms, alpha, evidence, policy)
    block["hysteresis_applied"] = block["decision"] == "pass" and found.hysteresis_applied
    return block | _divergence(part, policy)


def _confirmed(
    block: Block, arms: tuple[Arm, Arm], alpha: float, evidence: MetricEvidence, policy: Policy
) -> Block:
    """The block, whose failure is open where the interval of the error ``alpha`` shows none."""
    if block["decision"] != "fail":
        return block
    stricter = replace(evidence, bootstrap=replace(evidence.bootstrap, alpha=alpha))
    found = evidence.kind.judge(*arms, stricter, policy)
    if found is None or found.block["decision"] == "fail":
        return block
    needed = {k: v for k, v in found.block.items() if k == "windows_needed"}
    return block | {"decision": "inconclusive"} | needed


def _divergence(part: SliceEvidence, policy: Policy) -> Block:
    """The mean KL of the slice, nats per token; nothing where it was not recorded."""
    sums, limit = part.kl_sum, policy.distribution.kl_mean_max
    if sums is None:
        return {}
    finite = [value for value in sums if value is not None]
    if len(finite) < len(sums):
        return {"kl_passed": limit is None}
    mean = math.fsum(finite) / part.final.tokens
    return {"kl_mean": mean, "kl_passed": limit is None or mean <= limit}


def _of_all(decisions: Sequence[str]) -> str:
    if "fail" in decisions:
        return "fail"
    return "pass" if set(decisions) == {"pass"} else "inconclusive"


def _lacking(parts: Sequence[Block], evidence: MetricEvidence) -> list[Floor]:
    """What would settle the slices that are open."""
    found = []
    for part in parts:
        if "ci" not in part and part["decision"] == "inconclusive":
            found.append(Floor("documents", part["clusters"], MIN_DOCUMENTS, part["name"]))
        elif "windows_needed" in part:
            need = part["windows_needed"]
            found.append(Floor(evidence.kind.to_decide, part["windows"], need, part["name"]))
    return found
