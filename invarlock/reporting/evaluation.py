"""``evaluation.report.json``: the comparison of a subject with its baseline (format v1).

Field names are those of the published v1 format; additive blocks carry what that format lacks:
cluster ids, both runs' per-window sums, the three-way decision, and the spectral evidence of
both runs as one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from invarlock import __version__
from invarlock.files import digest_json
from invarlock.guards import CHAIN, GUARDS
from invarlock.metrics import ARMS
from invarlock.metrics.kind import Metric
from invarlock.metrics.kinds import METRICS
from invarlock.policy import Policy
from invarlock.reporting.assurance import assurance_block
from invarlock.reporting.judgement import Evidence, Judgement, judge
from invarlock.reporting.runs import Comparison, RecordedShift, gather, pairing, shift_columns
from invarlock.reporting.telemetry import telemetry_block

if TYPE_CHECKING:
    import numpy as np
else:
    from invarlock import numpy_on_use as np

Document = dict[str, Any]
GUARD_FIELDS = ("evaluated", "passed", "decision", "status", "reason")
# Names of members that reports of earlier versions do not have. A member that is added to the
# report is named here as well: it is compared with what the evidence gives wherever it is there.
ADDED: tuple[str, ...] = ()


def evaluation_report(comparison: Comparison, policy: Policy) -> Document:
    """Build the report of a comparison."""
    evidence = gather(comparison, policy)
    decided = judge(evidence, policy)
    baseline, subject = comparison.baseline, comparison.subject
    meta = subject["meta"]
    report: Document = {
        "schema_version": "v1",
        "run_id": run_id(
            baseline["meta"]["run_id"],
            meta["run_id"],
            policy.digest,
            vars(comparison.bootstrap),
            comparison.accepted,
        ),
        "meta": {
            **meta,
            "subject_run_id": meta["run_id"],
            "model_profile": _model_profile(evidence.metric.kind, decided.gates),
        },
        "artifacts": {"report": "report.json", "events": "events.jsonl"},
        "plugins": {
            "adapters": [meta["adapter"]],
            "edits": [subject["edit"]["name"]],
            "guards": list(CHAIN),
        },
        "auto": {"tier": policy.tier, "policy_digest": policy.digest},
        "edit": dict(subject["edit"]),
        "dataset": _dataset(comparison, policy),
        "vocabulary": dict(baseline["data"]["vocabulary"]),
        **decided.blocks,
        **{
            guard.name: decided.blocks[guard.name] | guard.evidence(comparison)
            for guard in GUARDS
            if guard.name in decided.blocks
        },
        "distribution": evidence.distribution,
        "baseline_ref": _baseline_ref(baseline, decided, evidence),
        "validation": decided.validation,
        "guards": _chain(subject, decided),
        "evaluation_windows": _windows(comparison),
        "evaluation_realism": _realism(evidence.metric.kind),
        "resolved_policy": resolved_policy(policy),
        "policy_digest": policy_digest(policy),
        "policy_provenance": {
            "tier": policy.tier,
            "overrides": policy.override_records(),
            "policy_digest": policy.digest,
            "preset_sha256": comparison.preset_sha256,
            "validation_allowlist_source": "contracts",
        },
        "provenance": _provenance(baseline, subject),
        "context": {
            "profile": comparison.profile,
            "gates": list(decided.gates),
            "assurance": {"mode": comparison.assurance},
            "guard_chain_observed": [g["name"] for g in subject["guards"]],
            "execution_log": [
                # a guard that is read back from a report brings the digest of what it was
                {
                    "guard": g["name"],
                    "phase": g["phase"],
                    "digest": g.get("digest") or digest_json(g),
                }
                for g in subject["guards"]
            ],
            "bootstrap": vars(comparison.bootstrap),
            **({"accept": list(comparison.accepted)} if comparison.accepted else {}),
        },
        "report_build": {"synthesized_fields": [], "repaired_fields": [], "fallback_fields": []},
    }
    counts = evidence.metric.kind.counts(subject["evaluation_windows"]) if comparison.ran else {}
    if counts:
        report["metrics"] = counts
    report["assurance"] = assurance_block(comparison, policy, decided, report)
    report["telemetry"] = telemetry_block(report)
    return report


def _model_profile(metric: Metric, gates: Sequence[str]) -> Document:
    """What the report has to satisfy for this kind of model.

    The gates are among it: published verifiers look at them in profile ``release`` alone, and at
    a report's own lints in every profile.
    """
    kind = {"type": "equals", "path": "primary_metric.kind", "value": metric.name}
    lints: list[Document] = [kind, *metric.lints()]
    lints += [{"type": "equals", "path": f"validation.{gate}", "value": True} for gate in gates]
    return {"default_metric": metric.name, "cert_lints": lints}


def _realism(metric: Metric) -> Document:
    return {
        "mode": metric.mode,
        "metric_is_generation_realistic": False,
        "proxy_metric_warning": "no text is generated: every token is predicted from the true ones",
    }


def run_id(
    baseline: str,
    subject: str,
    policy: str,
    bootstrap: Mapping[str, Any],
    accepted: Sequence[str] = (),
) -> str:
    """Identity of a comparison: run ids of both runs, digest of the policy, bootstrap, and what
    was accepted by name."""
    identity: Document = {
        "baseline": baseline,
        "subject": subject,
        "policy": policy,
        "bootstrap": dict(bootstrap),
    }
    if accepted:
        identity["accept"] = list(accepted)
    return digest_json(identity)[:16]


def policy_digest(policy: Policy) -> Document:
    """The ``policy_digest`` block."""
    return {
        "policy_version": "policy-v1",
        "tier_policy_name": policy.tier,
        "thresholds_hash": policy.digest,
        "hysteresis": {
            name: slack
            for kind in METRICS.values()
            for name, slack in kind.hysteresis(policy).items()
        },
        "changed": False,
    }


def coverage(used: Mapping[str, int], replicates: int, policy: Policy) -> Document:
    """Windows of both arms and bootstrap replicates against what the policy asks for."""
    rows = {
        "preview": (used["preview"], policy.coverage.preview),
        "final": (used["final"], policy.coverage.final),
        "replicates": (replicates, policy.coverage.replicates),
    }
    return {"tier": policy.tier} | {
        name: {"used": have, "required": floor, "ok": have >= floor}
        for name, (have, floor) in rows.items()
    }


def _dataset(comparison: Comparison, policy: Policy) -> Document:
    data, windows = comparison.baseline["data"], comparison.subject["evaluation_windows"]
    used = {arm: len(windows[arm]["window_ids"]) if windows else 0 for arm in ARMS}
    clusters = set(windows["final"]["clusters"]) if windows else set()
    match, overlap = pairing(comparison)
    stats: Document = {
        "paired_windows": used["final"],
        "window_match_fraction": match,
        "window_overlap_fraction": overlap,
        "window_pairing_reason": None if windows else comparison.reason_not_run,
        "clusters": len(clusters),
        "coverage": coverage(used, comparison.bootstrap.replicates, policy),
        "bootstrap": {"method": "bca_cluster_ratio", **vars(comparison.bootstrap)},
    }
    return {
        "provider": str(data["source"].get("name", data["source"]["kind"])),
        "split": str(data["source"].get("split") or "all"),
        "seq_len": data["seq_len"],
        "stride": data["stride"],
        "source": data["source"],
        **({"slices": data["slices"]} if "slices" in data else {}),
        "windows": {**used, "seed": data["seed"], "stats": stats},
        "hash": {"dataset": data["windows_sha256"], "source": "explicit_token_ids"},
        "tokenizer": {"hash": comparison.baseline["meta"]["tokenizer_hash"]},
    }


def _baseline_ref(baseline: Mapping[str, Any], decided: Judgement, evidence: Evidence) -> Document:
    metric: Document = {"kind": decided.blocks["primary_metric"]["kind"]}
    if "final" in decided.blocks["primary_metric"]:
        metric |= evidence.metric.kind.baseline_points(evidence.metric)
    return {
        "run_id": baseline["meta"]["run_id"],
        "model_id": baseline["meta"]["model_id"],
        "adapter": baseline["meta"]["adapter"],
        "tokenizer_hash": baseline["meta"]["tokenizer_hash"],
        "checkpoint_sha256": baseline["meta"]["checkpoint_sha256"],
        "primary_metric": metric,
    }


def _chain(subject: Mapping[str, Any], decided: Judgement) -> list[Document]:
    """The guards that ran, in their order, without what the sections already hold."""
    return [
        {
            "name": guard["name"],
            "phase": guard["phase"],
            **{
                key: decided.blocks[guard["name"]][key]
                for key in GUARD_FIELDS
                if key in decided.blocks[guard["name"]]
            },
        }
        for guard in subject["guards"]
    ]


def _windows(comparison: Comparison) -> Document:
    mine = comparison.subject["evaluation_windows"]
    base = comparison.baseline["evaluation_windows"]
    own = METRICS[comparison.baseline["meta"]["metric"]].columns
    columns = ["window_ids", "clusters", "token_counts", "nll_sum", "logloss", *own]
    columns += ["slices"] if "slices" in comparison.baseline["data"] else []
    result: Document = {}
    for arm in ARMS:
        rows = mine.get(arm, {})
        result[arm] = {column: rows.get(column, []) for column in columns}
        for column in ("nll_sum", *own):
            result[arm][f"baseline_{column}"] = base[arm][column] if rows else []
    if isinstance(comparison.shift, RecordedShift):
        result["final"] |= comparison.shift.columns
    elif comparison.shift is not None:
        final, ends = result["final"], np.cumsum(comparison.shift.token_counts)
        flips = np.add.reduceat(comparison.shift.flips.astype(int), [0, *ends[:-1]])
        agreed = [n - int(f) for n, f in zip(final["token_counts"], flips, strict=True)]
        final |= {"top1_agreement": agreed, **shift_columns(comparison.shift)}
    return result


def resolved_policy(policy: Policy) -> Document:
    """The thresholds in force as a report states them."""
    row = policy.resolved
    of_kinds = {kind.limits for kind in METRICS.values()}
    metrics = {key: row[key] for key in (*of_kinds, "pm_tail", "drift")}
    return {
        "metrics": metrics,
        **{key: row[key] for key in ("coverage", "distribution", "confidence")},
        **{g.policy_key: g.stated_limits(policy) for g in GUARDS if g.policy_key},
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
            "checkpoint": baseline["checkpoint"],
        },
        "subject": {
            "run_id": subject["meta"]["run_id"],
            "checkpoint_sha256": subject["meta"]["checkpoint_sha256"],
            "checkpoint": subject["checkpoint"],
        },
        "invarlock_version": __version__,
    }
