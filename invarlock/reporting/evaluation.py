"""``evaluation.report.json``: the comparison of a subject with its baseline (format v1).

Field names are those of the published v1 format; additive blocks carry what that format lacks:
cluster ids, both runs' per-window sums, the three-way decision, and the spectral evidence of
both runs as one table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from invarlock import __version__
from invarlock.files import digest_json
from invarlock.guards import CHAIN, spectral
from invarlock.guards.invariants_decision import Failure
from invarlock.guards.weight_stats import CONTRACT, WeightStats
from invarlock.metrics.perplexity import Arm, Bootstrap
from invarlock.policy import Policy
from invarlock.reporting.judgement import GATES, NOT_EVALUATED, Evidence, Judgement, judge

Document = dict[str, Any]
CLAIM_SET = "invarlock-weight-edit-regression-v1"


@dataclass(frozen=True)
class Comparison:
    """Everything a report is built from."""

    baseline: Mapping[str, Any]  # run report
    subject: Mapping[str, Any]  # run report; may hold no windows
    bootstrap: Bootstrap
    profile: str
    reason_not_run: str = ""
    invariants_evaluated: bool = True
    top1_agreement: Sequence[int] | None = None  # per final window


def invariant_failures(report: Mapping[str, Any]) -> list[Failure]:
    """All findings of both looks of the invariants guard, in order."""
    guards = [g for g in report["guards"] if g["name"] == "invariants"]
    return [failure for guard in guards for failure in guard["failures"]]


def modules_of(report: Mapping[str, Any]) -> list[spectral.Module]:
    """The recorded weight statistics of a run, empty if it has none."""
    for guard in report["guards"]:
        if guard["name"] == "spectral":
            return spectral.from_table(guard["modules"])
    return []


def _floats(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def arm_from(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> Arm:
    """Join two runs' records of one arm; both list the same windows in the same order."""
    return Arm(
        window_ids=subject["window_ids"],
        clusters=subject["clusters"],
        token_counts=_floats(subject["token_counts"]),
        subject_nll=_floats(subject["nll_sum"]),
        baseline_nll=_floats(baseline["nll_sum"]),
    )


def gather(comparison: Comparison) -> Evidence:
    """The evidence of two runs."""
    base = comparison.baseline["evaluation_windows"]
    mine = comparison.subject["evaluation_windows"]
    ran = bool(mine)
    return Evidence(
        preview=arm_from(base["preview"], mine["preview"]) if ran else None,
        final=arm_from(base["final"], mine["final"]) if ran else None,
        baseline_modules=modules_of(comparison.baseline),
        subject_modules=modules_of(comparison.subject),
        invariant_failures=invariant_failures(comparison.subject),
        invariants_evaluated=comparison.invariants_evaluated,
        bootstrap=comparison.bootstrap,
        reason_not_run=comparison.reason_not_run,
    )


def evaluation_report(comparison: Comparison, policy: Policy) -> Document:
    """Build the report of a comparison."""
    evidence = gather(comparison)
    decided = judge(evidence, policy)
    baseline, subject = comparison.baseline, comparison.subject
    meta = subject["meta"]
    return {
        "schema_version": "v1",
        "run_id": digest_json(
            {
                "baseline": baseline["meta"]["run_id"],
                "subject": meta["run_id"],
                "policy": policy.digest,
                "bootstrap": vars(comparison.bootstrap),
            }
        )[:16],
        "meta": {**meta, "subject_run_id": meta["run_id"], "model_profile": {"cert_lints": []}},
        "artifacts": {"report": "report.json", "events": "events.jsonl"},
        "plugins": {"adapters": ["hf_causal"], "edits": [subject["edit"]["name"]], "guards": []},
        "auto": {"tier": policy.tier, "policy_digest": policy.digest},
        "edit": dict(subject["edit"]),
        "dataset": _dataset(comparison, policy),
        "primary_metric": decided.primary_metric,
        "baseline_ref": _baseline_ref(baseline, decided, evidence),
        "validation": decided.validation,
        "invariants": decided.invariants,
        "spectral": _spectral(decided, evidence),
        "rmt": {"evaluated": False, "reason": "not measured by this version"},
        "variance": {"evaluated": False, "reason": "not measured by this version"},
        "guards": _chain(decided),
        "evaluation_windows": _windows(comparison),
        "resolved_policy": resolved_policy(policy),
        "policy_digest": {
            "policy_version": "policy-v1",
            "tier_policy_name": policy.tier,
            "thresholds_hash": policy.digest,
            "hysteresis": {"ppl": policy.hysteresis},
        },
        "policy_provenance": {
            "tier": policy.tier,
            "overrides": [],
            "policy_digest": policy.digest,
        },
        "provenance": _provenance(baseline, subject),
        "context": {
            "profile": comparison.profile,
            "gates": list(GATES),
            "not_evaluated": list(NOT_EVALUATED),
            "assurance": {"mode": "off"},
            "guard_chain_observed": [g["name"] for g in subject["guards"]],
            "bootstrap": vars(comparison.bootstrap),
        },
        "assurance": {
            "mode": "off",
            "profile": comparison.profile,
            "tier": policy.tier,
            "claim_set": CLAIM_SET,
            "canonical_guard_chain": list(CHAIN),
            "guard_chain_observed": [g["name"] for g in subject["guards"]],
            "canonical_guard_chain_enforced": False,
            "fallback_fields_used": False,
        },
        "report_build": {"synthesized_fields": [], "repaired_fields": [], "fallback_fields": []},
    }


def _dataset(comparison: Comparison, policy: Policy) -> Document:
    data, windows = comparison.baseline["data"], comparison.subject["evaluation_windows"]
    used = {arm: len(windows[arm]["window_ids"]) if windows else 0 for arm in ("preview", "final")}
    floors = {"preview": policy.min_preview, "final": policy.min_final}
    replicates = comparison.bootstrap.replicates
    clusters = set(windows["final"]["clusters"]) if windows else set()
    stats: Document = {
        "paired_windows": used["final"],
        "window_match_fraction": 1.0 if windows else 0.0,
        "window_overlap_fraction": 0.0,
        "window_pairing_reason": None if windows else comparison.reason_not_run,
        "clusters": len(clusters),
        "coverage": {
            "tier": policy.tier,
            **{
                arm: {"used": used[arm], "required": floors[arm], "ok": used[arm] >= floors[arm]}
                for arm in used
            },
            "replicates": {
                "used": replicates,
                "required": policy.min_replicates,
                "ok": replicates >= policy.min_replicates,
            },
        },
        "bootstrap": {
            "method": "bca_cluster_ratio",
            "replicates": replicates,
            "alpha": comparison.bootstrap.alpha,
            "seed": comparison.bootstrap.seed,
        },
    }
    return {
        "provider": str(data["source"].get("name", data["source"]["kind"])),
        "split": str(data["source"].get("split") or "all"),
        "seq_len": data["seq_len"],
        "stride": data["stride"],
        "source": data["source"],
        "windows": {**used, "seed": data["seed"], "stats": stats},
        "hash": {"dataset": data["windows_sha256"], "source": "explicit_token_ids"},
        "tokenizer": {"hash": comparison.baseline["meta"]["tokenizer_hash"]},
    }


def _baseline_ref(baseline: Mapping[str, Any], decided: Judgement, evidence: Evidence) -> Document:
    reference: Document = {
        "run_id": baseline["meta"]["run_id"],
        "model_id": baseline["meta"]["model_id"],
        "adapter": baseline["meta"]["adapter"],
        "tokenizer_hash": baseline["meta"]["tokenizer_hash"],
        "checkpoint_sha256": baseline["meta"]["checkpoint_sha256"],
        "primary_metric": {"kind": decided.primary_metric["kind"]},
    }
    if evidence.preview and evidence.final and "final" in decided.primary_metric:
        reference["primary_metric"] |= {
            "preview": evidence.preview.perplexity(evidence.preview.baseline_nll),
            "final": evidence.final.perplexity(evidence.final.baseline_nll),
        }
    return reference


def _spectral(decided: Judgement, evidence: Evidence) -> Document:
    block = dict(decided.spectral)
    if not evidence.subject_modules:
        return block
    table = spectral.to_table(evidence.subject_modules)
    base = spectral.to_table(evidence.baseline_modules)
    for field in WeightStats.fields():
        table["baseline_" + field] = base[field]
    return block | {
        "measurement_contract": CONTRACT,
        "measurement_contract_hash": spectral.contract_hash(),
        "baseline_measurement_contract_hash": spectral.contract_hash(),
        "measurement_contract_match": True,
        "modules": table,
    }


def _chain(decided: Judgement) -> list[Document]:
    """Guard results in canonical order, without what the sections already hold."""
    kept = ("evaluated", "passed", "decision", "status", "reason")
    blocks = {"invariants": decided.invariants, "spectral": decided.spectral}
    return [
        {"name": name, **{k: blocks[name][k] for k in kept if k in blocks[name]}}
        for name in CHAIN
        if name in blocks
    ]


def _windows(comparison: Comparison) -> Document:
    mine = comparison.subject["evaluation_windows"]
    base = comparison.baseline["evaluation_windows"]
    columns = ("window_ids", "clusters", "token_counts", "nll_sum", "logloss")
    result: Document = {}
    for arm in ("preview", "final"):
        rows = mine.get(arm, {})
        result[arm] = {column: rows.get(column, []) for column in columns}
        result[arm]["baseline_nll_sum"] = base[arm]["nll_sum"] if rows else []
    if comparison.top1_agreement is not None:
        result["final"]["top1_agreement"] = list(comparison.top1_agreement)
    return result


def resolved_policy(policy: Policy) -> Document:
    """The thresholds of a tier as a report states them."""
    row = policy.resolved
    caps = {family: {"kappa": kappa} for family, kappa in policy.spectral.family_caps.items()}
    return {
        "metrics": {"pm_ratio": row["pm_ratio"], "drift": row["drift"]},
        "coverage": row["coverage"],
        "spectral": {**row["spectral"], "family_caps": caps, "measurement_contract": CONTRACT},
    }


def _provenance(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> Document:
    windows = baseline["evaluation_windows"]
    ids = [i for arm in ("preview", "final") for i in windows[arm]["window_ids"]]
    return {
        "provider_digest": {
            "ids_sha256": digest_json(sorted(ids)),
            "tokenizer_sha256": baseline["meta"]["tokenizer_hash"],
        },
        "windows_sha256": baseline["data"]["windows_sha256"],
        "dataset_split": str(baseline["data"]["source"].get("split") or "all"),
        "baseline": {
            "run_id": baseline["meta"]["run_id"],
            "checkpoint_sha256": baseline["meta"]["checkpoint_sha256"],
        },
        "subject": {
            "run_id": subject["meta"]["run_id"],
            "checkpoint_sha256": subject["meta"]["checkpoint_sha256"],
        },
        "invarlock_version": __version__,
    }
