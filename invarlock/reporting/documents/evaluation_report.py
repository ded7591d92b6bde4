"""Comparison of one subject with its baseline. Open where the v1 format is open: further members
are allowed except in validation and evaluation_realism.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType, defstruct

from invarlock.documents.fields import Closed, Count, Digest, Needed, Open, Outcome, Positive, about
from invarlock.guards import GUARDS
from invarlock.metrics.kinds import METRICS

TITLE = "evaluation.report.json (v1)"
if TYPE_CHECKING:
    MetricKind: TypeAlias = str
    Mode: TypeAlias = str
else:
    # Ours, and those that other programs have published.
    MetricKind = Literal[(*METRICS, "bleu", "f1", "rouge")]
    Mode = Literal[
        ("generation", "logprob", "teacher_forced", "classification", "benchmark_harness",
         *(kind.mode for kind in METRICS.values()))
    ]  # fmt: skip


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


class SliceMetric(Open):
    """The primary metric on the scored windows of one slice."""

    name: Annotated[str, about("the slice")]
    decision: Annotated[str, about("pass, fail or inconclusive")]
    windows: Annotated[Count, about("scored windows")]
    tokens: Annotated[Count, about("predicted tokens of them")]
    ratio_vs_baseline: Annotated[float | UnsetType, about("subject over baseline")] = UNSET
    display_ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | UnsetType,
        about("interval of the ratio, at the level of the whole; absent: too few documents"),
    ] = UNSET
    clusters: Annotated[Count | UnsetType, about("documents")] = UNSET
    windows_needed: Annotated[
        Count | UnsetType, about("scored windows that would settle an open interval")
    ] = UNSET
    kl_mean: Annotated[
        float | UnsetType, about("mean divergence from the baseline, nats per token")
    ] = UNSET
    kl_passed: Annotated[bool | UnsetType, about("it keeps to the limit of the tier")] = UNSET
    hysteresis_applied: Annotated[
        bool | UnsetType, about("it passes only thanks to the hysteresis")
    ] = UNSET


class PrimaryMetric(Open):
    """The primary metric against the baseline."""

    kind: Annotated[MetricKind, about("kind of metric")]
    unit: Annotated[str | UnsetType, about("unit")] = UNSET
    direction: Annotated[str | UnsetType, about("whether lower or higher is better")] = UNSET
    aggregation_scope: Annotated[str | UnsetType, about("token, window or record")] = UNSET
    gating_basis: Annotated[str | UnsetType, about("which bound decides")] = UNSET
    paired: Annotated[bool | UnsetType, about("differences are paired by window")] = UNSET
    estimated: Annotated[bool | UnsetType, about("estimated rather than measured")] = UNSET
    preview: Annotated[float | UnsetType, about("value on the warm-up windows")] = UNSET
    final: Annotated[float | UnsetType, about("value on the scored windows")] = UNSET
    ratio_vs_baseline: Annotated[
        float | UnsetType, about("subject over baseline, or the difference in percentage points")
    ] = UNSET
    reps: Annotated[float | UnsetType, about("bootstrap replicates")] = UNSET
    ci_level: Annotated[float | UnsetType, about("nominal level of the interval")] = UNSET
    counts_source: Annotated[
        Literal["measured", "pseudo_config"] | UnsetType, about("where counts come from")
    ] = UNSET
    ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | UnsetType,
        about("interval of the logarithm of the ratio"),
    ] = UNSET
    display_ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | UnsetType,
        about("interval of the ratio"),
    ] = UNSET
    decision: Annotated[str | UnsetType, about("pass, fail or inconclusive")] = UNSET
    invalid: Annotated[bool | UnsetType, about("no usable value")] = UNSET
    degraded: Annotated[
        bool | UnsetType, about("measured under reduced conditions or not at all")
    ] = UNSET
    degraded_reason: Annotated[str | UnsetType | None, about("why")] = UNSET
    analysis_point_final: Annotated[
        float | UnsetType, about("mean log loss of the scored windows, nats a token")
    ] = UNSET
    analysis_point_preview: Annotated[
        float | UnsetType, about("mean log loss of the warm-up windows, nats a token")
    ] = UNSET
    drift_band: Annotated[
        dict[str, Any] | list[Any] | UnsetType,
        about(
            "the band of drift.ratio as limits on drift.raw, the subject's own final over preview"
        ),
    ] = UNSET
    drift: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "ratio: final over preview of the subject relative to the baseline's, between "
            "min and max; raw: the subject's alone"
        ),
    ] = UNSET
    limit: Annotated[
        float | UnsetType, about("limit on the ratio, or on the difference in percentage points")
    ] = UNSET
    mcnemar_p: Annotated[
        float | UnsetType | None, about("McNemar's test of the answers that changed; accuracy only")
    ] = UNSET
    n_final: Annotated[Count | UnsetType, about("scored examples; accuracy only")] = UNSET
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


class OtherFlags(Closed):
    """Flags that are no guard's."""

    guard_warning_policy_acceptable: Annotated[
        bool | UnsetType, about("the warning policy accepts the guard warnings")
    ] = UNSET
    guard_warnings_present: Annotated[bool | UnsetType, about("there are guard warnings")] = UNSET
    hysteresis_applied: Annotated[
        bool | UnsetType, about("the primary metric passes only thanks to the hysteresis")
    ] = UNSET
    preview_final_drift_acceptable: Annotated[
        bool | UnsetType,
        about("drift, warm-up to scored windows, against the baseline's is in band"),
    ] = UNSET
    primary_metric_acceptable: Annotated[
        bool | UnsetType, about("the primary metric is within its limit")
    ] = UNSET
    primary_metric_tail_acceptable: Annotated[
        bool | UnsetType, about("the tail of the per-window differences is within its limit")
    ] = UNSET


if TYPE_CHECKING:
    Validation: TypeAlias = OtherFlags
else:
    Validation = defstruct(
        "Validation",
        [
            (flag, Annotated[bool | UnsetType, about(text)], UNSET)
            for guard in GUARDS
            for flag, text in guard.flag_texts.items()
        ],
        bases=(OtherFlags,),
        namespace={
            "__doc__": "The decided flags; of one that was not evaluated, false, its block says "
            "evaluated: false."
        },
    )


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
    correct: Annotated[
        list[Any] | UnsetType,
        about("whether each example was answered right (booleans); accuracy only"),
    ] = UNSET
    baseline_correct: Annotated[list[Any] | UnsetType, about("the baseline's answers")] = UNSET


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


class Warning(Open):
    """One warning."""

    policy_gate: Annotated[
        str | UnsetType, about("fail where the guard does not pass because of it, else pass")
    ] = UNSET


class GuardWarnings(Open):
    """Warnings of the guards."""

    warning_count: Annotated[Count | UnsetType, about("number of warnings")] = UNSET
    present: Annotated[bool | UnsetType, about("there are any")] = UNSET
    warnings: Annotated[
        list[Warning] | UnsetType, about("guard, kind, message, and the module where there is one")
    ] = UNSET


class PrimaryMetricTail(Open):
    """Tail of the per-window differences."""

    evaluated: Annotated[bool | UnsetType, about("evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("passed")] = UNSET
    warned: Annotated[bool | UnsetType, about("warned")] = UNSET
    mode: Annotated[str | UnsetType, about("mode")] = UNSET
    reason: Annotated[str | UnsetType, about("reason")] = UNSET
    policy: Annotated[dict[str, Any] | UnsetType, about("limits")] = UNSET
    stats: Annotated[dict[str, Any] | UnsetType, about("quantiles")] = UNSET
    violations: Annotated[list[Any] | UnsetType, about("what is shown to be above its maximum")] = (
        UNSET
    )
    source: Annotated[str | UnsetType, about("the windows it is taken from")] = UNSET


class Confidence(Open):
    """Confidence label."""

    label: Annotated[Literal["High", "Medium", "Low"], about("label")]
    basis: Annotated[str, about("what it is based on")]
    width: Annotated[float | UnsetType, about("width of the interval")] = UNSET
    threshold: Annotated[float | UnsetType, about("width allowed")] = UNSET
    unstable: Annotated[bool | UnsetType, about("unstable")] = UNSET


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
    bootstrap: Annotated[dict[str, Any] | UnsetType, about("replicates, alpha and seed")] = UNSET
    accept: Annotated[
        list[str] | UnsetType, about("names of findings that the user accepts; absent: none")
    ] = UNSET


class Assurance(Open):
    """Assurance claims."""

    mode: Annotated[str | UnsetType, about("off or strict")] = UNSET
    report_local_verdict: Annotated[
        str | UnsetType, about("what the report alone gives: pass or fail")
    ] = UNSET
    outcome: Annotated[
        Outcome | UnsetType,
        about(
            "pass: every gate holds; fail: something was measured and found bad; "
            "inconclusive: nothing was, but evidence is lacking"
        ),
    ] = UNSET
    evidence_needed: Annotated[
        list[Needed] | UnsetType,
        about("what an inconclusive report lacks; empty for any other outcome"),
    ] = UNSET
    verdict: Annotated[
        str | UnsetType, about("pass, fail, or pending_verifier for a strict claim")
    ] = UNSET
    canonical_guard_chain_enforced: Annotated[
        bool | UnsetType, about("every guard ran, in order")
    ] = UNSET
    blocking_reasons: Annotated[list[Any] | UnsetType, about("why a strict claim fails")] = UNSET


class Distribution(Open):
    """Shift of the predicted distribution on the scored windows."""

    evaluated: Annotated[bool | UnsetType, about("measured, and finite")] = UNSET
    reason: Annotated[str | UnsetType, about("why not")] = UNSET
    tokens: Annotated[Count | UnsetType, about("predicted tokens")] = UNSET
    top_k: Annotated[
        Count | UnsetType,
        about("the baseline's most likely tokens that are compared; the others are one bucket"),
    ] = UNSET
    kl: Annotated[
        dict[str, Any] | UnsetType,
        about("KL(baseline || subject), nats a token, a lower bound: mean, p99, max"),
    ] = UNSET
    flips: Annotated[
        dict[str, Any] | UnsetType,
        about("tokens whose most likely prediction changed: count and fraction"),
    ] = UNSET
    probability_change: Annotated[
        dict[str, Any] | UnsetType,
        about("change of the correct token's probability: mean and quantiles"),
    ] = UNSET
    histograms: Annotated[dict[str, Any] | UnsetType, about("edges and counts of both")] = UNSET
    gated: Annotated[bool | UnsetType, about("the tier sets a limit")] = UNSET
    passed: Annotated[bool | UnsetType, about("within it")] = UNSET


class Telemetry(Open):
    """Counts of what was measured."""

    device: Annotated[str | UnsetType | None, about("device")] = UNSET
    dtype: Annotated[str | UnsetType | None, about("arithmetic")] = UNSET
    loss_type: Annotated[str | UnsetType, about("causal, mlm, seq2seq or classification")] = UNSET
    preview_total_tokens: Annotated[
        Count | UnsetType, about("predicted tokens of the warm-up windows")
    ] = UNSET
    final_total_tokens: Annotated[
        Count | UnsetType, about("predicted tokens of the scored windows")
    ] = UNSET
    masked_tokens_total: Annotated[
        Count | UnsetType, about("masked tokens of all windows; masked models only")
    ] = UNSET
    summary_line: Annotated[str | UnsetType, about("all of it in one line")] = UNSET


class Metrics(Open):
    """Counts behind an accuracy."""

    classification: Annotated[
        dict[str, Any] | UnsetType, about("right answers and examples, warm-up and scored apart")
    ] = UNSET


class Report(Open, kw_only=True):
    """What a report says beside its guards."""

    schema_version: Annotated[Literal["v1"], about("version of the report format")]
    run_id: Annotated[str, Meta(min_length=4), about("id of the comparison")]
    edit_name: Annotated[str | UnsetType, about("name of the edit")] = UNSET
    artifacts: Annotated[dict[str, Any], about("files of the run")]
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
    system_overhead: Annotated[dict[str, Any] | UnsetType, about("latency and throughput")] = UNSET
    guard_warnings: GuardWarnings | UnsetType = UNSET
    primary_metric_tail: PrimaryMetricTail | UnsetType = UNSET
    confidence: Confidence | UnsetType = UNSET
    policy_digest: Annotated[
        str | dict[str, Any] | UnsetType, about("digest of the policy, or an object of digests")
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
    structure: Annotated[dict[str, Any] | UnsetType, about("structural changes")] = UNSET
    context: Context | UnsetType = UNSET
    assurance: Assurance | UnsetType = UNSET
    report_build: Annotated[
        dict[str, Any] | UnsetType,
        about("fields that were synthesized, repaired or taken from a fallback"),
    ] = UNSET
    distribution: Distribution | UnsetType = UNSET
    telemetry: Telemetry | UnsetType = UNSET
    metrics: Metrics | UnsetType = UNSET


DOCUMENT = defstruct(
    "EvaluationReport",
    [(guard.name, guard.block | UnsetType, UNSET) for guard in GUARDS],
    bases=(Report,),
    namespace={"__doc__": "Comparison of one subject with its baseline."},
    kw_only=True,
)
