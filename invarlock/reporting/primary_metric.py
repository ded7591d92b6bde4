"""The ``primary_metric`` block of a report and its flags, from both runs' recorded numbers."""

from __future__ import annotations

from collections.abc import Sequence

from invarlock.metrics.confidence import Precision, confidence
from invarlock.metrics.kind import Block, Floor, MetricEvidence
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.perplexity import Bootstrap
from invarlock.metrics.slices import judge_slices
from invarlock.policy import Policy

MIN_CLUSTERS = 2  # documents, for an interval
ACCEPTABLE, DRIFT, HYSTERESIS = (
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "hysteresis_applied",
)


def judge_metric(evidence: MetricEvidence, policy: Policy) -> tuple[Block, dict[str, bool]]:
    """The block, and the flags of the metric, of drift and (when true) of hysteresis."""
    unmeasured = {ACCEPTABLE: False, DRIFT: False}
    head = evidence.kind.head()
    preview, final = evidence.preview, evidence.final
    if preview is None or final is None:
        return _degraded(head, evidence.reason_not_run), unmeasured
    found = evidence.kind.judge(preview, final, evidence, policy)
    if found is None:
        return _degraded(head, "non_finite_pm"), unmeasured
    if evidence.slices:
        found = judge_slices(found, (preview, final), evidence, policy)
    block = head | found.block | _settings(evidence.bootstrap)
    block |= _needed(block, found.floors, evidence, policy)
    flags = {ACCEPTABLE: found.acceptable, DRIFT: found.drift_ok}
    return block, {**flags, HYSTERESIS: True} if found.hysteresis_applied else flags


def _needed(
    block: Block,
    floors: Sequence[Floor],
    evidence: MetricEvidence,
    policy: Policy,
) -> Block:
    """``evidence_needed``: what is below a floor of the tier, and what would settle the interval.

    Nothing where there is enough of everything.
    """
    used, final = evidence.bootstrap, evidence.final
    assert final is not None  # judged
    replicates = Floor("replicates", used.replicates, policy.coverage.replicates)
    lacking = [floor for floor in (*floors, replicates) if floor.have < floor.need]
    if used.alpha > policy.coverage.alpha:
        lacking.append(Floor("alpha", used.alpha, policy.coverage.alpha))
    if "ci" not in block:  # of one document nothing is known of how documents differ
        lacking.append(Floor("documents", len(set(final.clusters)), MIN_CLUSTERS))
    if "windows_needed" in block:
        windows, needed = len(final.window_ids), block["windows_needed"]
        lacking.append(Floor(evidence.kind.to_decide, windows, needed))
    rows = [floor.row for floor in lacking]
    return {"evidence_needed": rows} if rows else {}


def confidence_block(metric: Block, acceptable: bool, policy: Policy) -> Block:
    """The ``confidence`` block of a judged metric; without a ``width`` where there is none."""
    precision = Precision(
        kind=metric["kind"],
        display_ci=metric.get("display_ci"),
        acceptable=acceptable,
        replicates=metric.get("reps", 0),
        floor_met=bool(metric.get(f"{METRICS[metric['kind']].floor}_ok")),
    )
    block = confidence(precision, policy.confidence)
    return {key: value for key, value in block.items() if value is not None}


def _degraded(head: Block, reason: str) -> Block:
    return {**head, "invalid": True, "degraded": True, "degraded_reason": reason}


def _settings(bootstrap: Bootstrap) -> Block:
    settings: Block = {"reps": bootstrap.replicates, "ci_level": 1 - bootstrap.alpha}
    return settings | {"invalid": False, "degraded": False, "estimated": False}
