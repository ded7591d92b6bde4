"""``evaluation.report.json``: the comparison of a subject with its baseline (format v1).

Field names are those of the published v1 format; additive blocks carry what that format lacks:
cluster ids, both runs' per-window sums, the three-way decision, and the spectral evidence of
both runs as one table.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import asdict

from invarlock import __version__
from invarlock.documents.fields import (
    ADDED,
    Closed,
    Count,
    Digest,
    Open,
    Positive,
    Sha256,
    about,
    extended,
)
from invarlock.files import digest_json
from invarlock.guards import CHAIN, GUARDS
from invarlock.guards.guard import SEPARATE, SERVED
from invarlock.metrics import ARMS
from invarlock.metrics.confidence import Confidence
from invarlock.metrics.cost import costs_of
from invarlock.metrics.distribution import Distribution
from invarlock.metrics.excerpts import WINDOWS, Excerpt
from invarlock.metrics.kind import Metric
from invarlock.metrics.kinds import METRICS, members_of
from invarlock.metrics.looks import EarlyDecision
from invarlock.metrics.tail import PrimaryMetricTail
from invarlock.policy import Policy
from invarlock.reporting.assurance import Assurance, assurance_block
from invarlock.reporting.judgement import Evidence, GuardWarnings, Judgement, Validation, judge
from invarlock.reporting.primary_metric import PrimaryMetric
from invarlock.reporting.runs import Comparison, gather, ids_of, pairing, shift_columns
from invarlock.reporting.telemetry import Telemetry, system_overhead, telemetry_block

Document = dict[str, Any]
GUARD_FIELDS = ("evaluated", "passed", "decision", "status", "reason")


class Artifacts(Open):
    """Files of the run, beside the report."""

    report: Annotated[str | UnsetType, about("the run report")] = UNSET
    events: Annotated[str | UnsetType, about("what ran, in order")] = UNSET
    report_path: Annotated[
        str | UnsetType | None, about("the run report, by its published name"), ADDED
    ] = UNSET
    events_path: Annotated[
        str | UnsetType | None, about("what ran, by its published name"), ADDED
    ] = UNSET


class PolicyDigest(Open):
    """The policy in short."""

    policy_version: Annotated[Any | UnsetType, about("version of the policy's form")] = UNSET
    tier_policy_name: Annotated[Any | UnsetType, about("tier")] = UNSET
    thresholds_hash: Annotated[Any | UnsetType, about("digest of all that decides")] = UNSET
    hysteresis: Annotated[Any | UnsetType, about("slack of the limits, by metric")] = UNSET
    min_effective: Annotated[
        Any | UnsetType,
        about("gain from which on the variance guard calls a scale effective, nats a token"),
        ADDED,
    ] = UNSET
    changed: Annotated[Any | UnsetType, about("a threshold in force is not the tier's own")] = UNSET


class Structure(Open):
    """What of the checkpoint is another than the baseline's."""

    parameters: Annotated[
        dict[str, Any] | UnsetType | None, about("parameters of baseline and subject")
    ] = UNSET
    parts_changed: Annotated[
        list[Any] | UnsetType,
        about(
            "parts of the checkpoint's digest that differ: config, copies, files, tokenizer, "
            "weights"
        ),
    ] = UNSET


class Plugins(Open):
    """Adapters, edits and guards that took part."""

    adapters: Annotated[list[Any] | UnsetType, about("adapters")] = UNSET
    edits: Annotated[list[Any] | UnsetType, about("edits")] = UNSET
    guards: Annotated[list[Any] | UnsetType, about("guards")] = UNSET


class Preview(Open):
    """Coverage of the warm-up or the scored windows, or of the replicates."""

    used: Annotated[Count | UnsetType, about("windows used")] = UNSET
    required: Annotated[Count | UnsetType, about("floor of the tier")] = UNSET
    ok: Annotated[bool | UnsetType, about("floor reached")] = UNSET


class Coverage(Open):
    """Floors."""

    preview: Preview | UnsetType = UNSET
    final: Preview | UnsetType = UNSET
    replicates: Preview | UnsetType = UNSET


class Stats(Open):
    """Pairing and coverage."""

    paired_windows: Annotated[Count | UnsetType, about("windows present in both runs")] = UNSET
    window_match_fraction: Annotated[float | UnsetType, about("share of windows that match")] = (
        UNSET
    )
    window_overlap_fraction: Annotated[
        float | UnsetType, about("share of windows among both the warm-up and the scored ones")
    ] = UNSET
    window_pairing_reason: Annotated[
        str | UnsetType | None, about("why pairing failed, null when it did not")
    ] = UNSET
    coverage: Coverage | UnsetType = UNSET
    clusters: Annotated[Any | UnsetType, about("documents")] = UNSET
    bootstrap: Annotated[dict[str, Any] | UnsetType, about("the bootstrap's settings")] = UNSET


class Windows(Open, kw_only=True):
    """Counts and pairing."""

    preview: Annotated[Count, about("warm-up windows")]
    final: Annotated[Count, about("scored windows")]
    seed: Annotated[int | UnsetType | None, about("seed of the selection")] = UNSET
    stats: Stats


class Hash(Open):
    """Digests of the windows."""

    preview: Annotated[str | UnsetType, about("digest of the warm-up windows")] = UNSET
    final: Annotated[str | UnsetType, about("digest of the scored windows")] = UNSET
    dataset: Annotated[str | UnsetType | None, about("digest of the data set")] = UNSET
    preview_tokens: Annotated[int | str | UnsetType | None, about("tokens")] = UNSET
    final_tokens: Annotated[int | str | UnsetType | None, about("tokens")] = UNSET
    total_tokens: Annotated[int | UnsetType, about("tokens")] = UNSET
    source: Annotated[
        Literal["explicit_preview_final_hashes", "explicit_token_ids", "config_fallback"]
        | UnsetType,
        about("what the digests are taken over"),
    ] = UNSET


class SliceCounts(Open):
    """Windows of a slice."""

    preview: Annotated[Positive, about("warm-up windows")]
    final: Annotated[Positive, about("scored windows")]


class DatasetSlice(Open):
    """One slice."""

    name: Annotated[str, about("its name")]
    seq_len: Annotated[Positive, about("tokens a window")]
    counts: SliceCounts
    source: Annotated[dict[str, Any], about("its text, as pinned")]


class Dataset(Open, kw_only=True):
    """The windows."""

    provider: Annotated[str, about("text source")]
    seq_len: Annotated[Positive, about("tokens a window")]
    split: Annotated[str | UnsetType, about("split")] = UNSET
    stride: Annotated[int | UnsetType | None, about("tokens between windows")] = UNSET
    bos_token_id: Annotated[
        Count | UnsetType, about("begin-of-text token at the head of each window; absent: none")
    ] = UNSET
    windows: Windows
    hash: Hash | UnsetType = UNSET
    tokenizer: Annotated[dict[str, Any] | UnsetType, about("the tokenizer")] = UNSET
    slices: Annotated[
        list[DatasetSlice] | UnsetType,
        about("kinds of text and lengths that are judged one by one, in the order of the windows"),
    ] = UNSET


class Vocabulary(Open):
    """How much of the model's vocabulary the warm-up and scored windows use."""

    used: Annotated[Count | UnsetType, about("different token ids")] = UNSET
    size: Annotated[
        Count | UnsetType | None,
        about("token ids there are (vocab_size); null: not stated by the model"),
    ] = UNSET


@extended(members_of("windows"))
class WindowEvidence(Open):
    """The warm-up or the scored windows: parallel lists, one entry a window."""

    window_ids: Annotated[
        list[Any] | UnsetType, about("content digests of the windows (strings)")
    ] = UNSET
    clusters: Annotated[list[Any] | UnsetType, about("the document of each window (strings)")] = (
        UNSET
    )
    token_counts: Annotated[list[Any] | UnsetType, about("predicted tokens (integers)")] = UNSET
    logloss: Annotated[
        list[Any] | UnsetType, about("mean negative log-likelihood, nats a token (numbers)")
    ] = UNSET
    nll_sum: Annotated[
        list[Any] | UnsetType, about("the subject's summed negative log-likelihood, nats (numbers)")
    ] = UNSET
    baseline_nll_sum: Annotated[
        list[Any] | UnsetType, about("the baseline's, on the same windows, nats (numbers)")
    ] = UNSET
    slices: Annotated[
        list[Any] | UnsetType, about("the slice of each window (strings); absent: no slices")
    ] = UNSET


class ScoredWindows(WindowEvidence):
    """The scored windows, with the shift of the predicted distribution."""

    top1_agreement: Annotated[
        list[Any] | UnsetType,
        about("predicted tokens whose most likely token is the baseline's (integers)"),
    ] = UNSET
    kl_sum: Annotated[
        list[Any] | UnsetType, about("summed divergence from the baseline, nats (numbers)")
    ] = UNSET
    probability_change_sum: Annotated[
        list[Any] | UnsetType, about("summed change of the correct token's probability (numbers)")
    ] = UNSET


class EvaluationWindows(Open):
    """Per-window evidence of both runs."""

    preview: WindowEvidence | UnsetType = UNSET
    final: ScoredWindows | UnsetType = UNSET


if TYPE_CHECKING:
    Mode: TypeAlias = str
else:
    Mode = Literal[
        ("generation", "logprob", "teacher_forced", "classification", "benchmark_harness",
         *(kind.mode for kind in METRICS.values()))
    ]  # fmt: skip


class EvaluationRealism(Closed):
    """How realistic the metric is."""

    mode: Annotated[Mode | UnsetType, about("how outputs were obtained")] = UNSET
    prompt_template_hash: Annotated[Digest | UnsetType, about("digest of the prompt template")] = (
        UNSET
    )
    decoding_config: Annotated[dict[str, Any] | UnsetType, about("decoding")] = UNSET
    max_tokens: Annotated[int | UnsetType, about("tokens")] = UNSET
    truncation_policy: Annotated[str | UnsetType, about("truncation")] = UNSET
    dataset_or_task_id: Annotated[str | UnsetType, about("task")] = UNSET
    proxy_metric_warning: Annotated[str | UnsetType, about("warning")] = UNSET
    metric_is_generation_realistic: Annotated[bool | UnsetType, about("realistic")] = UNSET


class NamedPolicyPack(Closed):
    """A policy pack."""

    name: Annotated[str, about("what it is called")]
    sha256: Annotated[Sha256, about("digest of what is signed")]
    signer: Annotated[Digest, about("fingerprint of the key that signed it")]


class PolicyProvenance(Open):
    """Where the limits come from."""

    tier: Annotated[str | UnsetType, about("tier")] = UNSET
    overrides: Annotated[
        list[Any] | UnsetType,
        about("limits that are not the tier's own: path, value, the tier's value, source"),
    ] = UNSET
    policy_digest: Annotated[str | UnsetType, about("digest of all that decides")] = UNSET
    preset_sha256: Annotated[
        str | UnsetType | None, about("digest of the preset; null: none was used")
    ] = UNSET
    policy_pack: Annotated[
        NamedPolicyPack | UnsetType, about("the policy pack in force; absent: none")
    ] = UNSET


class Context(Open):
    """Profile, gates, assurance, runtime, guard chain."""

    profile: Annotated[str | UnsetType, about("what report verification demands")] = UNSET
    gates: Annotated[list[Any] | UnsetType, about("the flags that decide")] = UNSET
    guard_chain_observed: Annotated[
        list[Any] | UnsetType, about("guards in the order they ran")
    ] = UNSET
    execution_log: Annotated[
        list[Any] | UnsetType, about("guard, phase and digest of its result, in the order they ran")
    ] = UNSET
    bootstrap: Annotated[
        dict[str, Any] | UnsetType,
        about("replicates, alpha, seed and method (absent: bca_cluster_ratio)"),
    ] = UNSET
    accept: Annotated[
        list[str] | UnsetType, about("names of findings that the user accepts; absent: none")
    ] = UNSET
    early_decision: Annotated[
        EarlyDecision | UnsetType,
        about("the looks at a control; absent: nobody looked before all windows ran"),
    ] = UNSET
    runs: Annotated[
        Literal["separate", "server"] | UnsetType,
        about(
            "separate: each run measured its own model, so what needs both models is not evaluated;"
            " server: the subject is a running server, and only its losses were measured;"
            " absent: the subject's run had the baseline's at hand"
        ),
    ] = UNSET


@extended(members_of("metrics"))
class Metrics(Open):
    """Counts behind an accuracy."""


@extended({guard.name: guard.block | UnsetType for guard in GUARDS})
class EvaluationReport(Open, kw_only=True):
    """Comparison of one subject with its baseline."""

    schema_version: Annotated[Literal["v1"], about("version of the report format")]
    run_id: Annotated[str, Meta(min_length=4), about("id of the comparison")]
    edit_name: Annotated[str | UnsetType, about("name of the edit")] = UNSET
    artifacts: Artifacts
    meta: Annotated[dict[str, Any], about("model, seeds, device, versions, determinism")]
    plugins: Plugins
    auto: Annotated[dict[str, Any] | UnsetType, about("tier and probes")] = UNSET
    edit: Annotated[dict[str, Any] | UnsetType, about("the edit and its scenario")] = UNSET
    dataset: Dataset
    vocabulary: Vocabulary | UnsetType = UNSET
    primary_metric: PrimaryMetric
    baseline_ref: Annotated[dict[str, Any] | UnsetType, about("the baseline run")] = UNSET
    validation: Validation | UnsetType = UNSET
    guards: Annotated[list[Any] | UnsetType, about("guard results in canonical order")] = UNSET
    evaluation_windows: EvaluationWindows | UnsetType = UNSET
    evaluation_realism: EvaluationRealism | UnsetType = UNSET
    system_overhead: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "latency, throughput and memory of both runs and the subject's over the baseline's;"
            " only where both were asked for telemetry"
        ),
    ] = UNSET
    guard_warnings: GuardWarnings | UnsetType = UNSET
    primary_metric_tail: PrimaryMetricTail | UnsetType = UNSET
    confidence: Confidence | UnsetType = UNSET
    policy_digest: Annotated[
        str | PolicyDigest | UnsetType, about("digest of the policy, or an object of digests")
    ] = UNSET
    resolved_policy: Annotated[dict[str, Any] | UnsetType, about("limits in force")] = UNSET
    policy_provenance: PolicyProvenance | UnsetType = UNSET
    provenance: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "digests of inputs, baseline and subject; of each checkpoint the parts that its"
            " digest is taken of, with the SHA-256 of every file that ships"
        ),
    ] = UNSET
    structure: Annotated[
        Structure | UnsetType, about("what of the checkpoint is another"), ADDED
    ] = UNSET
    context: Context | UnsetType = UNSET
    assurance: Assurance | UnsetType = UNSET
    report_build: Annotated[
        dict[str, Any] | UnsetType,
        about("fields that were synthesized, repaired or taken from a fallback"),
    ] = UNSET
    distribution: Distribution | UnsetType = UNSET
    excerpts: Annotated[
        Annotated[list[Excerpt], Meta(min_length=1, max_length=WINDOWS)] | UnsetType,
        about(
            "the windows whose loss per token grew most, token by token; absent: not asked for, or"
            " none grew"
        ),
    ] = UNSET
    telemetry: Telemetry | UnsetType = UNSET
    metrics: Metrics | UnsetType = UNSET


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
            comparison.bootstrap.recorded,
            comparison.accepted,
        ),
        "meta": {
            **meta,
            "subject_run_id": meta["run_id"],
            "model_profile": _model_profile(evidence.metric.kind, decided.gates),
        },
        "artifacts": {
            "report": "report.json",
            "events": "events.jsonl",
            "report_path": "report.json",
            "events_path": "events.jsonl",
        },
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
        "resolved_policy": resolved_policy(policy, comparison.contracts),
        "policy_digest": policy_digest(policy),
        "policy_provenance": {
            "tier": policy.tier,
            "overrides": policy.override_records(),
            "policy_digest": policy.digest,
            "preset_sha256": comparison.preset_sha256,
            **({"policy_pack": dict(comparison.policy_pack)} if comparison.policy_pack else {}),
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
            "bootstrap": comparison.bootstrap.recorded,
            **({"accept": list(comparison.accepted)} if comparison.accepted else {}),
            **({"early_decision": dict(comparison.early)} if comparison.early else {}),
            **({"runs": SEPARATE} if comparison.separate else {}),
            **({"runs": SERVED} if comparison.served else {}),
        },
        "report_build": {"synthesized_fields": [], "repaired_fields": [], "fallback_fields": []},
    }
    counts = evidence.metric.kind.counts(subject["evaluation_windows"]) if comparison.ran else {}
    if counts:
        report["metrics"] = counts
    report["assurance"] = assurance_block(comparison, policy, decided, report)
    costs = [costs_of(run.get("metrics", {})) for run in (baseline, subject)]
    report["telemetry"] = telemetry_block(report, costs[1])
    if overhead := system_overhead(*costs):
        report["system_overhead"] = overhead
    if comparison.excerpts:
        report["excerpts"] = list(comparison.excerpts)
    if subject["checkpoint"] is not None:
        report["structure"] = _structure(baseline, subject)
    return report


def _structure(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> Document:
    """What of the checkpoint is another; a count that a run does not state is None."""
    before, after = baseline["checkpoint"], subject["checkpoint"]
    return {
        "parameters": {
            "baseline": baseline["meta"].get("parameters"),
            "subject": subject["meta"].get("parameters"),
        },
        "parts_changed": [
            part.removesuffix("_sha256")
            for part in sorted({*before, *after})
            if before.get(part) != after.get(part)
        ],
    }


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
        "min_effective": policy.variance.min_effect_lognll,
        "changed": any(o["value"] != o["tier_value"] for o in policy.override_records()),
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
        "bootstrap": asdict(comparison.bootstrap),
    }
    return {
        "provider": str(data["source"].get("name", data["source"]["kind"])),
        "split": str(data["source"].get("split") or "all"),
        "seq_len": data["seq_len"],
        "stride": data["stride"],
        **{key: data[key] for key in ("bos_token_id",) if key in data},
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
    result["final"] |= shift_columns(comparison.shift)
    return result


def resolved_policy(policy: Policy, contracts: Mapping[str, Mapping[str, Any]]) -> Document:
    """The thresholds in force as a report states them, and how the guards measured."""
    row = policy.resolved
    of_kinds = {kind.limits for kind in METRICS.values()}
    metrics = {key: row[key] for key in (*of_kinds, "pm_tail", "drift")}
    return {
        "metrics": metrics,
        **{key: row[key] for key in ("coverage", "distribution", "confidence")},
        **{
            g.policy_key: g.stated_limits(policy, contracts.get(g.name))
            for g in GUARDS
            if g.policy_key in row
        },
    }


def _provenance(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> Document:
    return {
        "provider_digest": {
            "ids_sha256": ids_of(baseline),
            "tokenizer_sha256": baseline["meta"]["tokenizer_hash"],
            **{k: baseline["data"][k] for k in ("processor_sha256",) if k in baseline["data"]},
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
