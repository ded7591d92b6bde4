"""From recorded evidence to decisions, as a pure function.

The same function writes a report and re-checks it: ``evaluate`` calls it with what was measured,
the verifier with what the report recorded and the verifier's own tier table.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType

from invarlock.documents.fields import Count, Open, about, extended
from invarlock.guards import GUARDS
from invarlock.guards.guard import Guard, Runs, Warning, warning
from invarlock.metrics.kind import Block, MetricEvidence
from invarlock.metrics.tail import judge_tails, tail_acceptable
from invarlock.policy import Policy
from invarlock.reporting.gates import gates_of
from invarlock.reporting.primary_metric import (
    ACCEPTABLE,
    MetricFlags,
    confidence_block,
    judge_metric,
)


@extended(
    {
        flag: Annotated[bool | UnsetType, about(text)]
        for guard in GUARDS
        for flag, text in guard.flag_texts.items()
    }
)
class Validation(MetricFlags):
    """The decided flags; of one that was not evaluated, false, its block says evaluated: false."""

    primary_metric_tail_acceptable: Annotated[
        bool | UnsetType, about("the tail of the per-window differences is within its limit")
    ] = UNSET
    # of other programs
    guard_warning_policy_acceptable: Annotated[
        bool | UnsetType, about("the warning policy accepts the guard warnings")
    ] = UNSET
    guard_warnings_present: Annotated[bool | UnsetType, about("there are guard warnings")] = UNSET


class GuardWarnings(Open):
    """Warnings of the guards."""

    warning_count: Annotated[Count | UnsetType, about("number of warnings")] = UNSET
    present: Annotated[bool | UnsetType, about("there are any")] = UNSET
    warnings: Annotated[
        list[Warning] | UnsetType, about("guard, kind, message, and the module where there is one")
    ] = UNSET


class Evidence(Struct, frozen=True):
    """What was recorded of both runs; everything a decision is made from."""

    metric: MetricEvidence
    distribution: Mapping[str, Any]  # the summarized block
    runs: Runs


class Judgement(Struct, frozen=True):
    """The decided blocks of an evaluation report, by the name they have in it."""

    blocks: dict[str, Block]
    validation: dict[str, bool]
    gates: tuple[str, ...]


def judge(evidence: Evidence, policy: Policy) -> Judgement:
    """Decide every gate; evidence that is absent never passes."""
    metric, flags = judge_metric(evidence.metric, policy)
    if evidence.distribution.get("passed") is not True:
        flags[ACCEPTABLE] = False
    parts = {s.name: s.final for s in evidence.metric.slices}
    tail = judge_tails(evidence.metric.final, parts, policy.tail)
    judged = {
        guard: guard.judged(evidence.runs, policy)
        for guard in GUARDS
        if guard.applies(evidence.runs)
    }
    blocks = {
        "primary_metric": metric,
        "primary_metric_tail": tail,
        "confidence": confidence_block(
            metric, flags[ACCEPTABLE], policy, evidence.metric.bootstrap.method
        ),
        **{guard.name: block for guard, block in judged.items()},
    }
    flags["primary_metric_tail_acceptable"] = tail_acceptable(tail)
    for guard, block in judged.items():
        # a published flag of which two guards say something is true only if both say so
        for flag, value in guard.flags(block).items():
            flags[flag] = flags.get(flag, True) and value
    blocks["guard_warnings"] = _warnings(judged, tail)
    gates = gates_of(blocks, policy.enforce_guards)
    return Judgement(blocks, dict(sorted(flags.items())), gates)


def passes(judgement: Judgement) -> bool:
    """Whether a report passes: every gate exactly true, and a metric that was really measured."""
    metric = judgement.blocks["primary_metric"]
    broken = metric.get("invalid") is True or metric.get("degraded") is True
    return not broken and all(judgement.validation.get(gate) is True for gate in judgement.gates)


def _warnings(judged: Mapping[Guard, Block], tail: Block) -> Block:
    """What guards and the tail noticed; ``verify --warning-policy fail`` refuses any."""
    found = [one for guard, block in judged.items() for one in guard.warnings(block)]
    if tail["warned"]:
        found.append(warning("primary_metric_tail", "tail", "the tail is above its maximum"))
    return {"present": bool(found), "warning_count": len(found), "warnings": found}
