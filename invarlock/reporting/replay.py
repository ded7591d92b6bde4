"""Recompute a report's decisions from the evidence it records, by the packaged tier table.

A report that contradicts its own evidence, or that was judged by other thresholds than the
tier it names, is not believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from invarlock.errors import ContractError, InvarlockError
from invarlock.guards import spectral
from invarlock.guards.weight_stats import CONTRACT, WeightStats
from invarlock.metrics.perplexity import Bootstrap
from invarlock.policy import load_policy
from invarlock.reporting.evaluation import arm_from
from invarlock.reporting.judgement import GATES, Evidence, judge

TOLERANCE = 1e-9  # relative and absolute; the sums are exact, BLAS may order them differently


def replay(report: Mapping[str, Any], tolerance: float = TOLERANCE) -> list[str]:
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


def _replay(report: Mapping[str, Any], tolerance: float) -> list[str]:
    evidence = read_evidence(report)
    policy = load_policy(str(report["auto"]["tier"]))
    if not _consistent(evidence):
        return ["/evaluation_windows: columns of different lengths, or impossible counts"]
    with np.errstate(all="ignore"):  # hostile numbers are findings, not warnings
        decided = judge(evidence, policy)
    sections = {
        "primary_metric": decided.primary_metric,
        "invariants": decided.invariants,
        "spectral": decided.spectral,
        "validation": decided.validation,
    }
    found = [
        line
        for name, block in sections.items()
        for line in _differences(f"/{name}", block, report[name], tolerance)
    ]
    if dict(report["validation"]).keys() != decided.validation.keys():
        extra = sorted(set(report["validation"]) - set(decided.validation))
        found.append(f"/validation: flags without evidence: {', '.join(extra) or 'none'}")
    if list(report["context"]["gates"]) != list(GATES):
        found.append("/context/gates: not the gates of this version")
    found += _baseline_reference(evidence, report, tolerance)
    return found


def read_evidence(report: Mapping[str, Any]) -> Evidence:
    """The evidence of both runs as an evaluation report records it.

    Raises:
        ContractError: the spectral table was measured by another estimator.
    """
    windows = report["evaluation_windows"]
    ran = bool(windows["final"]["window_ids"])
    section = report["spectral"]
    measured = section.get("evaluated") is True
    if measured and section["measurement_contract"] != CONTRACT:
        raise ContractError("/spectral/measurement_contract: not the estimator of this version")
    settings = report["context"]["bootstrap"]
    invariants = report["invariants"]
    metric = report["primary_metric"]
    return Evidence(
        preview=_arm(windows["preview"]) if ran else None,
        final=_arm(windows["final"]) if ran else None,
        baseline_modules=_modules(section["modules"], "baseline_") if measured else [],
        subject_modules=_modules(section["modules"], "") if measured else [],
        invariant_failures=invariants.get("failures", []),
        invariants_evaluated=invariants.get("evaluated") is True,
        bootstrap=Bootstrap(
            int(settings["replicates"]), float(settings["alpha"]), int(settings["seed"])
        ),
        reason_not_run="" if ran else str(metric.get("degraded_reason", "")),
    )


def _arm(rows: Mapping[str, Any]) -> Any:
    return arm_from({"nll_sum": rows["baseline_nll_sum"]}, rows)


def _modules(table: Mapping[str, Sequence[Any]], prefix: str) -> list[spectral.Module]:
    columns = {field: table[prefix + field] for field in WeightStats.fields()}
    names = {key: table[key] for key in ("name", "family", "layer")}
    return spectral.from_table({**names, **columns})


def _consistent(evidence: Evidence) -> bool:
    """Equal column lengths, unique windows, and positive whole token counts."""
    for arm in (evidence.preview, evidence.final):
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


def _baseline_reference(
    evidence: Evidence, report: Mapping[str, Any], tolerance: float
) -> list[str]:
    if "final" not in report["primary_metric"]:
        return []
    found = []
    for name, arm in (("preview", evidence.preview), ("final", evidence.final)):
        if arm is None:
            continue
        recomputed = arm.perplexity(arm.baseline_nll)
        stored = report["baseline_ref"]["primary_metric"].get(name)
        if not (_is_number(stored) and math.isclose(stored, recomputed, rel_tol=tolerance)):
            pointer = f"/baseline_ref/primary_metric/{name}"
            found.append(f"{pointer}: is {stored}, its windows give {recomputed:.12g}")
    return found


def _differences(pointer: str, computed: object, stored: object, tolerance: float) -> Iterator[str]:
    """Where ``stored`` departs from ``computed``; keys only ``stored`` has are its own matter."""
    if isinstance(computed, Mapping) and isinstance(stored, Mapping):
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
