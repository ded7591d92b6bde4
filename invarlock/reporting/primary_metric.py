"""The ``primary_metric`` block of a report and its flags, from both runs' recorded numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Closed, Needed, about, extended
from invarlock.metrics.bootstrap import PLAIN
from invarlock.metrics.confidence import Precision, confidence, power
from invarlock.metrics.kind import Block, Compared, Floor, MetricEvidence
from invarlock.metrics.kinds import METRICS, members_of
from invarlock.metrics.perplexity import Bootstrap
from invarlock.metrics.slices import SliceMetric, judge_slices
from invarlock.policy import Policy

MIN_CLUSTERS = 2  # documents, for an interval
ACCEPTABLE, DRIFT, HYSTERESIS = (
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "hysteresis_applied",
)


class MetricFlags(Closed):
    """The flags of the metric."""

    primary_metric_acceptable: Annotated[
        bool | UnsetType, about("the primary metric is within its limit")
    ] = UNSET
    preview_final_drift_acceptable: Annotated[
        bool | UnsetType,
        about("drift, warm-up to scored windows, against the baseline's is in band"),
    ] = UNSET
    hysteresis_applied: Annotated[
        bool | UnsetType, about("the primary metric passes only thanks to the hysteresis")
    ] = UNSET


if TYPE_CHECKING:
    MetricKind: TypeAlias = str
else:
    MetricKind = Literal[(*METRICS, "bleu", "f1", "rouge")]  # the last ones are other programs'


@extended(members_of("primary_metric"))
class PrimaryMetric(Compared, kw_only=True):
    """The primary metric against the baseline."""

    kind: Annotated[MetricKind, about("kind of metric")]
    estimated: Annotated[bool | UnsetType, about("estimated rather than measured")] = UNSET
    reps: Annotated[float | UnsetType, about("bootstrap replicates")] = UNSET
    ci_level: Annotated[float | UnsetType, about("nominal level of the interval")] = UNSET
    invalid: Annotated[bool | UnsetType, about("no usable value")] = UNSET
    degraded: Annotated[
        bool | UnsetType, about("measured under reduced conditions or not at all")
    ] = UNSET
    degraded_reason: Annotated[str | UnsetType | None, about("why")] = UNSET
    evidence_needed: Annotated[
        list[Needed] | UnsetType,
        about(
            "what is below a floor of the tier, and about how many windows would settle an "
            "open interval; absent where there is enough"
        ),
    ] = UNSET
    slices: Annotated[
        list[SliceMetric] | UnsetType,
        about("each slice by itself; decision is of all of them; absent: the text has no slices"),
    ] = UNSET


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


def confidence_block(metric: Block, acceptable: bool, policy: Policy, method: str) -> Block:
    """The ``confidence`` block of a judged metric; without a ``width`` where there is none.

    Args:
        method: of the interval; reports of the plain one state no power.
    """
    precision = Precision(
        kind=metric["kind"],
        display_ci=metric.get("display_ci"),
        acceptable=acceptable,
        replicates=metric.get("reps", 0),
        floor_met=bool(metric.get(f"{METRICS[metric['kind']].floor}_ok")),
    )
    block = confidence(precision, policy.confidence)
    if method != PLAIN:
        block |= power(metric)
    return {key: value for key, value in block.items() if value is not None}


def _degraded(head: Block, reason: str) -> Block:
    return {**head, "invalid": True, "degraded": True, "degraded_reason": reason}


def _settings(bootstrap: Bootstrap) -> Block:
    settings: Block = {"reps": bootstrap.replicates, "ci_level": 1 - bootstrap.alpha}
    return settings | {"invalid": False, "degraded": False, "estimated": False}
