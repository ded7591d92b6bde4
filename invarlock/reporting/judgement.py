"""From recorded evidence to decisions, as a pure function.

The same function writes a report and re-checks it: ``evaluate`` calls it with what was measured,
the verifier with what the report recorded and the verifier's own tier table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invarlock.guards import invariants_decision, moe, rmt, rows, spectral, variance
from invarlock.guards.invariants_decision import Failure
from invarlock.metrics.tail import judge_tail, tail_acceptable
from invarlock.policy import Policy
from invarlock.reporting.gates import EXPLORING_GATES, GATES, MIXTURE_GATE
from invarlock.reporting.primary_metric import (
    ACCEPTABLE,
    Block,
    MetricEvidence,
    confidence_block,
    judge_metric,
)
from invarlock.severity import NOTHING_EDITED


@dataclass(frozen=True)
class Work:
    """What the guards added to the pass, in numbers that are the same on every rerun."""

    pass_tokens: int
    trial_tokens: int  # run a second time, to try proposed scales
    bare_tokens: int  # of the calibration windows, run a second time without hooks
    bare_nll: Sequence[float]  # nats, of the calibration windows without hooks
    guarded_nll: Sequence[float]  # of the same windows in the pass
    probe_bytes: int  # most that the activation hooks held at a time


@dataclass(frozen=True)
class Evidence:
    """What was recorded of both runs; everything a decision is made from."""

    metric: MetricEvidence
    distribution: Mapping[str, Any]  # the summarized block
    invariant_failures: Sequence[Failure]
    invariants_evaluated: bool
    edit_label: str  # what is said to have been done to the subject
    baseline_parts: Mapping[str, Any] | None  # of the checkpoints' digests
    subject_parts: Mapping[str, Any] | None
    accepted: Sequence[str]  # names of findings that the user accepts
    baseline_modules: Sequence[spectral.Module]
    subject_modules: Sequence[spectral.Module]  # empty: not measured
    row_tables: Sequence[rows.RowTable]
    baseline_activations: Sequence[rmt.Activation]
    subject_activations: Sequence[rmt.Activation]
    baseline_outputs: Sequence[rmt.Activation]  # those that the variance guard looks at
    subject_outputs: Sequence[rmt.Activation]
    trial: variance.Trial | None
    mixture: bool  # of experts
    baseline_routers: Sequence[moe.RouterStats]
    subject_routers: Sequence[moe.RouterStats]
    top_k: int  # experts a token is sent to
    work: Work | None


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
    blocks = {
        "primary_metric": metric,
        "primary_metric_tail": tail,
        "confidence": confidence_block(metric, flags[ACCEPTABLE], policy),
        "invariants": _invariants(evidence),
        **_guards(evidence, policy),
    }
    flags["primary_metric_tail_acceptable"] = tail_acceptable(tail)
    for flag, name in (
        ("invariants_pass", "invariants"),
        ("spectral_stable", "spectral"),
        ("rmt_stable", "rmt"),
        ("guard_overhead_acceptable", "guard_overhead"),
    ):
        flags[flag] = blocks[name].get("passed") is True
    gates = GATES if policy.enforce_guards else EXPLORING_GATES
    if evidence.mixture:
        flags |= moe.flags(blocks["moe"])
        gates = (*gates, MIXTURE_GATE) if policy.enforce_guards else gates
    blocks["guard_warnings"] = _warnings(blocks)
    return Judgement(blocks, dict(sorted(flags.items())), gates)


def passes(judgement: Judgement) -> bool:
    """Whether a report passes: every gate exactly true, and a metric that was really measured."""
    metric = judgement.blocks["primary_metric"]
    broken = metric.get("invalid") is True or metric.get("degraded") is True
    return not broken and all(judgement.validation.get(gate) is True for gate in judgement.gates)


def _invariants(evidence: Evidence) -> Block:
    if evidence.invariants_evaluated:
        return invariants_decision.judge(_failures(evidence), evidence.accepted)
    return {"evaluated": False, "reason": evidence.metric.reason_not_run}


def _failures(evidence: Evidence) -> list[Failure]:
    """The findings, that nothing was edited decided anew from both checkpoints' digests."""
    return [
        *(f for f in evidence.invariant_failures if f["type"] != NOTHING_EDITED),
        *invariants_decision.nothing_edited(
            evidence.edit_label, evidence.baseline_parts, evidence.subject_parts
        ),
    ]


def _guards(evidence: Evidence, policy: Policy) -> dict[str, Block]:
    """Spectral, rmt, variance, overhead and (for mixtures) moe."""
    absent: Block = {"evaluated": False, "reason": evidence.metric.reason_not_run}
    blocks = {name: dict(absent) for name in ("spectral", "rmt", "variance", "guard_overhead")}
    if evidence.mixture:
        blocks["moe"] = dict(absent)
    if not evidence.subject_modules:
        return blocks
    blocks["spectral"] = spectral.judge(
        evidence.baseline_modules,
        evidence.subject_modules,
        policy.spectral,
        evidence.row_tables,
    )
    blocks["rmt"] = rmt.judge(
        evidence.baseline_activations, evidence.subject_activations, policy.rmt
    )
    blocks["variance"] = variance.judge(
        evidence.baseline_outputs,
        evidence.subject_outputs,
        evidence.trial,
        policy.variance,
    )
    if evidence.work is not None:
        blocks["guard_overhead"] = _overhead(evidence.work, policy)
    if evidence.mixture:
        blocks["moe"] = moe.judge(
            evidence.baseline_routers, evidence.subject_routers, policy.moe, evidence.top_k
        )
    return blocks


def _overhead(work: Work, policy: Policy) -> Block:
    """What the guards changed and cost: recorded with limits of its own, and no gate.

    The metric of the calibration windows with hooks over that without, which is 1 where hooks only
    read; and the tokens run twice. Both are the same on every rerun; seconds and memory are in
    ``runtime.manifest.json``.
    """
    limits = policy.overhead
    change = math.fsum(work.guarded_nll) - math.fsum(work.bare_nll)
    recorded = {
        "probe_bytes": work.probe_bytes,
        "bare_nll": [nll if math.isfinite(nll) else None for nll in work.bare_nll],
    }
    if not math.isfinite(change):
        return {"evaluated": False, "reason": "losses that are not finite", **recorded}
    ratio = math.exp(max(-700.0, min(700.0, change / work.bare_tokens)))
    share = (work.trial_tokens + work.bare_tokens) / work.pass_tokens
    changed = max(ratio, 1 / ratio) - 1
    checks = {"metric_unchanged": changed <= limits.threshold, "work": share <= limits.work_max}
    passed = all(checks.values())
    return {
        "evaluated": True,
        "passed": passed,
        "decision": "allow" if passed else "monitor",
        "mode": "one_pass",
        "source": "policy",
        "overhead_ratio": ratio,
        "overhead_percent": 100 * (ratio - 1),
        "overhead_threshold": limits.threshold,
        "threshold_percent": 100 * limits.threshold,
        "work_ratio": share,
        "work_max": limits.work_max,
        "pass_tokens": work.pass_tokens,
        "trial_tokens": work.trial_tokens,
        "bare_tokens": work.bare_tokens,
        **recorded,
        "checks": checks,
        "diagnostics": [],
    }


def _warnings(blocks: Mapping[str, Block]) -> Block:
    """What guards noticed; ``verify --warning-policy fail`` refuses any.

    ``policy_gate``: ``fail`` where the guard does not pass because of it, as its own gate says.
    """
    accepted = blocks["invariants"].get("accepted", [])
    found = []
    for failure in blocks["invariants"].get("failures", []):
        if failure["severity"] == "warning":
            found.append(_warning("invariants", failure["type"], failure["message"]))
        elif failure.get("accept") in accepted:
            text = f"{failure['message']}; accepted by name: {failure['accept']}"
            found.append(_warning("invariants", failure["type"], text))
    for item in blocks["spectral"].get("violations", []):
        kind = "new_capped_module" if item["type"] == "family_z_cap" else item["type"]
        named = item["type"] in rows.ROW_FINDINGS
        if item["severity"] != "fatal" or named:
            text = rows.sentence(item) if named else f"{item['module']}: {kind}"
            found.append(_warning("spectral", kind, text) | _place(item, blocks["spectral"], text))
    for item in blocks["rmt"].get("epsilon_violations", []):
        text = f"{item['module']}: edge risk {item['edge_cur']} over {item['allowed']}"
        warning = _warning("rmt", "new_epsilon_violation", text)
        found.append(warning | _place(item, blocks["rmt"], text))
    for module, scale in blocks["variance"].get("proposed_scales", {}).items():
        signal = blocks["variance"]["signal"]
        text = f"{module}: scale {scale:.4f} would restore its output variance" + (
            " and lowers the loss" if signal else ""
        )
        found.append(_warning("variance", "new_predictive_signal", text) | {"module": module})
    if blocks["primary_metric_tail"]["warned"]:
        found.append(_warning("primary_metric_tail", "tail", "the tail is above its maximum"))
    return {"present": bool(found), "warning_count": len(found), "warnings": found}


def _warning(guard: str, kind: str, message: str) -> Block:
    warning = {"guard": guard, "kind": kind, "severity": "warning", "message": message}
    return warning | {"policy_gate": "pass"}


def _place(item: Block, guard: Block, text: str) -> Block:
    """Where a violation is, and whether its guard fails."""
    place = {"module": item["module"], "family": item["family"]}
    if guard["passed"]:
        return place
    return place | {"policy_gate": "fail", "message": f"{text}; the guard does not pass"}
