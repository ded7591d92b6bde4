"""From recorded evidence to decisions, as a pure function.

The same function writes a report and re-checks it: ``evaluate`` calls it with what was measured,
the verifier with what the report recorded and the verifier's own tier table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from invarlock.guards import GUARDS
from invarlock.guards.guard import Guard, Runs, warning
from invarlock.metrics.kind import Block, MetricEvidence
from invarlock.metrics.tail import judge_tail, tail_acceptable, with_slices
from invarlock.policy import Policy
from invarlock.reporting.gates import gates_of
from invarlock.reporting.primary_metric import ACCEPTABLE, confidence_block, judge_metric


@dataclass(frozen=True)
class Evidence:
    """What was recorded of both runs; everything a decision is made from."""

    metric: MetricEvidence
    distribution: Mapping[str, Any]  # the summarized block
    runs: Runs


@dataclass(frozen=True)
class Judgement:
    """The decided blocks of an evaluation report, by the name they have in it."""

    blocks: dict[str, Block]
    validation: dict[str, bool]
    gates: tuple[str, ...]


def judge(evidence: Evidence, policy: Policy) -> Judgement:
    """Decide every gate; evidence that is absent never passes."""
    metric, flags = judge_metric(evidence.metric, policy)
    if evidence.distribution.get("passed") is not True:
        flags[ACCEPTABLE] = False
    tail = judge_tail(evidence.metric.final, policy.tail)
    tail = with_slices(tail, {s.name: s.final for s in evidence.metric.slices}, policy.tail)
    judged = {
        guard: guard.judged(evidence.runs, policy)
        for guard in GUARDS
        if guard.applies(evidence.runs)
    }
    blocks = {
        "primary_metric": metric,
        "primary_metric_tail": tail,
        "confidence": confidence_block(metric, flags[ACCEPTABLE], policy),
        **{guard.name: block for guard, block in judged.items()},
    }
    flags["primary_metric_tail_acceptable"] = tail_acceptable(tail)
    for guard, block in judged.items():
        flags |= guard.flags(block)
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
