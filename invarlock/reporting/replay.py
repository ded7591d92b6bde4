"""Recompute a report's decisions from the evidence it records, by the packaged tier table.

A report that contradicts its own evidence, or that was judged by other thresholds than the
tier it names, is not believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np

from invarlock.errors import ContractError, InvarlockError
from invarlock.guards import CONTRACTS, moe, rows, variance
from invarlock.metrics import ARMS, distribution
from invarlock.metrics.perplexity import Arm, Bootstrap
from invarlock.policy import Override, Policy, resolve_policy
from invarlock.reporting import tables
from invarlock.reporting.judgement import Evidence, Work, judge
from invarlock.reporting.primary_metric import MetricEvidence, baseline_points
from invarlock.reporting.runs import arm_from, calibrated, examples_from

TOLERANCE = 1e-9  # relative and absolute; the sums are exact, BLAS may order them differently
Report = Mapping[str, Any]
_MEASURED = (
    "measurement_contract",
    "measurement_contract_hash",
    "baseline_measurement_contract_hash",
    "measurement_contract_match",
    "modules",
)
# What stands in a guard's block beside its decision (invarlock.evidence.derived checks it).
BESIDE: Mapping[str, tuple[str, ...]] = {
    "spectral": (*_MEASURED, "row_tables"),
    "rmt": (*_MEASURED, "calibration"),
    "variance": (*_MEASURED, "tap", "target_module_names", "trial"),
}


def replay(report: Report, tolerance: float = TOLERANCE) -> list[str]:
    """Every contradiction between a report and its evidence, as ``/pointer: ...`` lines.

    Args:
        report: an evaluation report that satisfies its contract.
        tolerance: relative and absolute, for recomputed numbers.
    """
    try:
        return _replay(report, tolerance)
    except InvarlockError as error:
        return [str(error)]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # a report may follow its contract and still hold evidence of an impossible shape
        return [f"the recorded evidence cannot be read: {type(error).__name__} {error}"]


def policy_of(report: Report) -> Policy:
    """The policy that the report says it was judged by, within what our tier table allows.

    Raises:
        ConfigError: no such tier, or an override that it does not allow.
    """
    recorded = report["policy_provenance"]["overrides"]
    overrides = [Override(str(o["path"]), o["value"], str(o["source"])) for o in recorded]
    return resolve_policy(str(report["auto"]["tier"]), overrides)


def _replay(report: Report, tolerance: float) -> list[str]:
    evidence, policy = read_evidence(report), policy_of(report)
    if not _consistent(evidence):
        return ["/evaluation_windows: columns of different lengths, or impossible counts"]
    found = [f"/distribution{field}: contradicts the windows" for field in _shift(report, policy)]
    with np.errstate(all="ignore"):  # hostile numbers are findings, not warnings
        decided = judge(evidence, policy)
    for name, block in (decided.blocks | {"validation": decided.validation}).items():
        beside = BESIDE.get(name, ()) if block.get("evaluated") is True else ()
        stated = {key: value for key, value in report[name].items() if key not in beside}
        found += _differences(f"/{name}", block, stated, tolerance)
    if list(report["context"]["gates"]) != list(decided.gates):
        found.append("/context/gates: not the gates of this tier and version")
    if policy.override_records() != list(report["policy_provenance"]["overrides"]):
        found.append("/policy_provenance/overrides: do not state the tier's own values")
    if "final" in report["primary_metric"]:
        points = baseline_points(evidence.metric) | {"kind": evidence.metric.kind}
        reference = report["baseline_ref"]["primary_metric"]
        found += _differences("/baseline_ref/primary_metric", points, reference, tolerance)
    return found


def read_evidence(report: Report) -> Evidence:
    """The evidence of both runs as an evaluation report records it.

    Raises:
        ContractError: a guard's statistics were measured in another way.
    """
    ran = bool(report["evaluation_windows"]["final"]["window_ids"])
    guards = {name: report[name] for name in CONTRACTS if report[name].get("evaluated") is True}
    for name, section in guards.items():
        if section["measurement_contract"] != CONTRACTS[name]:
            raise ContractError(f"/{name}/measurement_contract: not the one of this version")
    measured = len(guards) == len(CONTRACTS)
    if measured != ran or (guards and not measured):
        raise ContractError("/guards: a subject that was run has been through every guard")
    weights = tables.read_spectral(guards["spectral"]["modules"]) if measured else ([], [])
    edges = tables.read_activations(guards["rmt"]["modules"], "edge") if measured else ([], [])
    outputs = (
        tables.read_activations(guards["variance"]["modules"], "variance") if measured else ([], [])
    )
    trial = guards["variance"]["trial"] if measured else None
    mixture = report.get("moe")
    routers = mixture["routers"] if mixture and mixture["evaluated"] else None
    invariants = report["invariants"]
    return Evidence(
        metric=_metric(report, ran),
        distribution=report["distribution"],
        invariant_failures=invariants.get("failures", []),
        invariants_evaluated=invariants.get("evaluated") is True,
        edit_label=str(report["edit"]["name"]),
        baseline_parts=report["provenance"]["baseline"]["checkpoint"],
        subject_parts=report["provenance"]["subject"]["checkpoint"],
        accepted=report["context"].get("accept", []),
        baseline_modules=weights[0],
        subject_modules=weights[1],
        row_tables=rows.from_json(guards["spectral"]["row_tables"]) if measured else [],
        baseline_activations=edges[0],
        subject_activations=edges[1],
        baseline_outputs=outputs[0],
        subject_outputs=outputs[1],
        trial=variance.trial_from(trial) if trial else None,
        mixture=mixture is not None,
        baseline_routers=moe.from_table(routers, "baseline_") if routers else [],
        subject_routers=moe.from_table(routers) if routers else [],
        top_k=int(mixture["top_k"]) if mixture and routers else 0,
        work=_work(report) if ran else None,
    )


def _metric(report: Report, ran: bool) -> MetricEvidence:
    windows, settings = report["evaluation_windows"], report["context"]["bootstrap"]
    kind = str(report["primary_metric"]["kind"])
    examples = None
    if ran and kind == "accuracy":
        answers = [_baseline(windows[arm], "correct") for arm in ARMS]
        preview, final = (
            examples_from(base, windows[arm]) for base, arm in zip(answers, ARMS, strict=True)
        )
        examples = preview, final
    return MetricEvidence(
        kind=kind,
        preview=_arm(windows["preview"]) if ran else None,
        final=_arm(windows["final"]) if ran else None,
        examples=examples,
        bootstrap=Bootstrap(
            int(settings["replicates"]), float(settings["alpha"]), int(settings["seed"])
        ),
        reason_not_run="" if ran else str(report["primary_metric"].get("degraded_reason", "")),
    )


def _arm(rows: Mapping[str, Any]) -> Arm:
    return arm_from(_baseline(rows, "nll_sum"), rows)


def _baseline(rows: Mapping[str, Any], column: str) -> dict[str, Any]:
    return {column: rows[f"baseline_{column}"]}


def _work(report: Report) -> Work:
    """From the recorded windows and trial; bytes and bare losses are the run's own word."""
    windows, trial = report["evaluation_windows"], report["variance"]["trial"]
    overhead = report["guard_overhead"]
    calibration = report["rmt"]["calibration"]["window_ids"]
    tokens, guarded = calibrated(windows["preview"], calibration)
    return Work(
        bare_tokens=tokens,
        bare_nll=[math.nan if v is None else float(v) for v in overhead["bare_nll"]],
        guarded_nll=guarded,
        pass_tokens=sum(sum(windows[arm]["token_counts"]) for arm in ARMS),
        trial_tokens=sum(trial["token_counts"]) if trial else 0,
        probe_bytes=int(overhead["probe_bytes"]),
    )


def _shift(report: Report, policy: Policy) -> list[str]:
    block, final = report["distribution"], report["evaluation_windows"]["final"]
    if block["evaluated"] is not True:
        reason = str(block["reason"])
        expected = distribution.not_evaluated(reason, policy.distribution)
        sums = [*final.get("kl_sum", []), *final.get("probability_change_sum", [])]
        # a subject that was run has them, and finite ones leave no reason for no block
        hidden = bool(final["window_ids"]) and None not in sums
        return [""] if hidden or block != expected else []
    return distribution.check(block, final, policy.distribution)


def _consistent(evidence: Evidence) -> bool:
    """Equal column lengths, unique windows, and positive whole token counts."""
    for arm in (evidence.metric.preview, evidence.metric.final):
        if arm is None:
            continue
        n = len(arm.window_ids)
        columns = (arm.clusters, arm.token_counts, arm.subject_nll, arm.baseline_nll)
        if n == 0 or any(len(column) != n for column in columns):
            return False
        if len(set(arm.window_ids)) != n:
            return False
        counts = arm.token_counts
        if not (np.isfinite(counts).all() and (counts > 0).all() and (counts % 1 == 0).all()):
            return False
    return True


def _differences(pointer: str, computed: object, stored: object, tolerance: float) -> Iterator[str]:
    """Where ``stored`` departs from ``computed``."""
    if isinstance(computed, Mapping) and isinstance(stored, Mapping):
        for key in sorted(stored.keys() - computed.keys()):
            yield f"{pointer}/{key[:60]}: does not follow from any evidence"
        for key, value in computed.items():
            if key not in stored:
                yield f"{pointer}/{key}: is absent, the evidence gives {_short(value)}"
            else:
                yield from _differences(f"{pointer}/{key}", value, stored[key], tolerance)
    elif isinstance(computed, list) and isinstance(stored, list) and len(computed) == len(stored):
        for i, (value, other) in enumerate(zip(computed, stored, strict=True)):
            yield from _differences(f"{pointer}/{i}", value, other, tolerance)
    elif not _same(computed, stored, tolerance):
        yield f"{pointer}: is {_short(stored)}, the evidence gives {_short(computed)}"


def _same(computed: object, stored: object, tolerance: float) -> bool:
    if _is_number(computed) and _is_number(stored):
        return math.isclose(computed, stored, rel_tol=tolerance, abs_tol=tolerance)
    return type(computed) is type(stored) and computed == stored


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
