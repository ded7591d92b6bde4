"""Comparison of one subject with its baseline. Open where the v1 format is open: further members
are allowed except in validation and evaluation_realism.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import (
    Closed,
    Count,
    Digest,
    Needed,
    NotNegative,
    Open,
    Outcome,
    Positive,
    about,
)

TITLE = "evaluation.report.json (v1)"


class Plugins(Open):
    """Adapters, edits and guards that took part."""

    adapters: Annotated[list[Any] | UnsetType, about("adapters")] = UNSET
    edits: Annotated[list[Any] | UnsetType, about("edits")] = UNSET
    guards: Annotated[list[Any] | UnsetType, about("guards")] = UNSET


class Preview(Open):
    """Coverage of one arm."""

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
    window_match_fraction: Annotated[
        float | UnsetType,
        about("share of windows that match"),
    ] = UNSET
    window_overlap_fraction: Annotated[
        float | UnsetType,
        about("share of windows in both arms"),
    ] = UNSET
    window_pairing_reason: Annotated[
        str | UnsetType | None,
        about("why pairing failed, null when it did not"),
    ] = UNSET
    coverage: Coverage | UnsetType = UNSET
    clusters: Annotated[Any | UnsetType, about("documents")] = UNSET
    bootstrap: Annotated[dict[str, Any] | UnsetType, about("the bootstrap's settings")] = UNSET


class Windows(Open, kw_only=True):
    """Counts and pairing."""

    preview: Annotated[Count, about("windows of the preview arm")]
    final: Annotated[Count, about("windows of the final arm")]
    seed: Annotated[int | UnsetType | None, about("seed of the selection")] = UNSET
    stats: Stats


class Hash(Open):
    """Digests of the arms."""

    preview: Annotated[str | UnsetType, about("digest of the preview arm")] = UNSET
    final: Annotated[str | UnsetType, about("digest of the final arm")] = UNSET
    dataset: Annotated[str | UnsetType | None, about("digest of the data set")] = UNSET
    preview_tokens: Annotated[int | str | UnsetType | None, about("tokens")] = UNSET
    final_tokens: Annotated[int | str | UnsetType | None, about("tokens")] = UNSET
    total_tokens: Annotated[int | UnsetType, about("tokens")] = UNSET
    source: Annotated[
        Literal["explicit_preview_final_hashes", "explicit_token_ids", "config_fallback"]
        | UnsetType,
        about("what the digests are taken over"),
    ] = UNSET


class Dataset(Open, kw_only=True):
    """The windows."""

    provider: Annotated[str, about("text source")]
    seq_len: Annotated[Positive, about("tokens a window")]
    split: Annotated[str | UnsetType, about("split")] = UNSET
    stride: Annotated[int | UnsetType | None, about("tokens between windows")] = UNSET
    windows: Windows
    hash: Hash | UnsetType = UNSET
    tokenizer: Annotated[dict[str, Any] | UnsetType, about("the tokenizer")] = UNSET


class Vocabulary(Open):
    """How much of the model's vocabulary the windows of both arms use."""

    used: Annotated[Count | UnsetType, about("different token ids")] = UNSET
    size: Annotated[
        Count | UnsetType | None,
        about("token ids there are (vocab_size); null: not stated by the model"),
    ] = UNSET


class PrimaryMetric(Open):
    """The primary metric against the baseline."""

    kind: Annotated[
        Literal["accuracy", "bleu", "f1", "ppl_causal", "ppl_mlm", "ppl_seq2seq", "rouge"],
        about("kind of metric"),
    ]
    unit: Annotated[str | UnsetType, about("unit")] = UNSET
    direction: Annotated[str | UnsetType, about("whether lower or higher is better")] = UNSET
    aggregation_scope: Annotated[str | UnsetType, about("token, window or record")] = UNSET
    gating_basis: Annotated[str | UnsetType, about("which bound decides")] = UNSET
    paired: Annotated[bool | UnsetType, about("differences are paired by window")] = UNSET
    estimated: Annotated[bool | UnsetType, about("estimated rather than measured")] = UNSET
    preview: Annotated[float | UnsetType, about("value on the preview arm")] = UNSET
    final: Annotated[float | UnsetType, about("value on the final arm")] = UNSET
    ratio_vs_baseline: Annotated[
        float | UnsetType,
        about("subject over baseline, or the difference in percentage points"),
    ] = UNSET
    reps: Annotated[float | UnsetType, about("bootstrap replicates")] = UNSET
    ci_level: Annotated[float | UnsetType, about("nominal level of the interval")] = UNSET
    counts_source: Annotated[
        Literal["measured", "pseudo_config"] | UnsetType,
        about("where counts come from"),
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
        bool | UnsetType,
        about("measured under reduced conditions or not at all"),
    ] = UNSET
    degraded_reason: Annotated[str | UnsetType | None, about("why")] = UNSET
    analysis_point_final: Annotated[
        float | UnsetType,
        about("mean log loss of the final arm, nats a token"),
    ] = UNSET
    analysis_point_preview: Annotated[
        float | UnsetType,
        about("mean log loss of the preview arm, nats a token"),
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
        float | UnsetType,
        about("limit on the ratio, or on the difference in percentage points"),
    ] = UNSET
    mcnemar_p: Annotated[
        float | UnsetType | None,
        about("McNemar's test of the answers that changed; accuracy only"),
    ] = UNSET
    n_final: Annotated[Count | UnsetType, about("examples of the final arm; accuracy only")] = UNSET
    evidence_needed: Annotated[
        list[Needed] | UnsetType,
        about(
            "what is below a floor of the tier, and about how many windows would settle an "
            "open interval; absent where there is enough"
        ),
    ] = UNSET


class Validation(Closed):
    """The decided flags; of one that was not evaluated, false, its block says evaluated: false."""

    guard_warning_policy_acceptable: Annotated[
        bool | UnsetType,
        about("the warning policy accepts the guard warnings"),
    ] = UNSET
    guard_warnings_present: Annotated[bool | UnsetType, about("there are guard warnings")] = UNSET
    guard_overhead_acceptable: Annotated[
        bool | UnsetType,
        about("the guards' overhead is within its limit"),
    ] = UNSET
    hysteresis_applied: Annotated[
        bool | UnsetType,
        about("the primary metric passes only thanks to the hysteresis"),
    ] = UNSET
    invariants_pass: Annotated[bool | UnsetType, about("no invariant is broken")] = UNSET
    moe_identity_ok: Annotated[bool | UnsetType, about("the experts' identities are kept")] = UNSET
    moe_observed: Annotated[bool | UnsetType, about("a mixture of experts was seen")] = UNSET
    preview_final_drift_acceptable: Annotated[
        bool | UnsetType,
        about("drift between the arms, relative to the baseline, is in its band"),
    ] = UNSET
    primary_metric_acceptable: Annotated[
        bool | UnsetType,
        about("the primary metric is within its limit"),
    ] = UNSET
    primary_metric_tail_acceptable: Annotated[
        bool | UnsetType,
        about("the tail of the per-window differences is within its limit"),
    ] = UNSET
    rmt_stable: Annotated[
        bool | UnsetType,
        about("activation edge ratios are within their limits"),
    ] = UNSET
    spectral_stable: Annotated[
        bool | UnsetType,
        about("spectral caps are within their limit"),
    ] = UNSET


class Invariants(Open):
    """Structure of the checkpoint."""

    evaluated: Annotated[bool | UnsetType, about("the guard was evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("its decision is not block")] = UNSET
    decision: Annotated[str | UnsetType, about("allow, monitor or block")] = UNSET
    reason: Annotated[str | UnsetType, about("why it was not evaluated")] = UNSET
    status: Annotated[str | UnsetType, about("short state")] = UNSET
    failures: Annotated[
        list[Any] | UnsetType,
        about(
            "findings: type, severity, message and, where a user may accept it, the name to do so"
        ),
    ] = UNSET
    accepted: Annotated[
        list[str] | UnsetType,
        about("names by which the user accepted fatal findings; absent: none"),
    ] = UNSET
    summary: Annotated[dict[str, Any] | UnsetType, about("counts")] = UNSET


class Listed(Closed):
    """TODO."""

    row: Annotated[Count, about("number of the row: the token's id")]
    token: Annotated[str | None, about("the token's text, printable ASCII")]
    change: Annotated[NotNegative, about("relative change")]
    nearest: Annotated[Count, about("the other row of the baseline that it is closest to")]
    nearest_token: Annotated[str | None, about("that row's token")]
    nearest_change: Annotated[NotNegative, about("distance from that row, in the unit of change")]


class RowTable(Closed):
    """TODO."""

    name: Annotated[str, about("tensor of the baseline")]
    family: Annotated[str, about("family of the guards")]
    kind: Annotated[Literal["token", "other"], about("what a row stands for")]
    rows: Annotated[Count, about("rows compared")]
    baseline_only: Annotated[Count, about("rows that the subject lacks")]
    subject_only: Annotated[Count, about("rows that the baseline lacks; judged by nothing")]
    transform: Annotated[
        Literal["shift", "rotation"],
        about("what all rows have in common and was taken away"),
    ]
    typical: Annotated[
        NotNegative,
        about("median change of a row, relative to its distance from the mean row"),
    ]
    above: Annotated[
        list[Count],
        Meta(max_length=40),
        about("rows that changed by more than 0.05, 0.10, ...; zeros at the end left out"),
    ]
    listed: Annotated[
        list[Listed],
        Meta(max_length=32),
        about("rows of the largest change, and rows closer to another row than to their own"),
    ]


class Spectral(Open):
    """Spectrum of the weights."""

    evaluated: Annotated[bool | UnsetType, about("the guard was evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("its decision is not block")] = UNSET
    decision: Annotated[str | UnsetType, about("allow, monitor or block")] = UNSET
    reason: Annotated[str | UnsetType, about("why it was not evaluated")] = UNSET
    status: Annotated[str | UnsetType, about("short state")] = UNSET
    caps_applied: Annotated[Count | UnsetType, about("modules over their cap")] = UNSET
    max_caps: Annotated[Count | UnsetType, about("allowed number of caps")] = UNSET
    modules: Annotated[
        Any | UnsetType,
        about("per-module statistics of both runs as a compact table"),
    ] = UNSET
    measurement_contract: Annotated[
        dict[str, Any] | UnsetType,
        about("how it was measured"),
    ] = UNSET
    measurement_contract_hash: Annotated[
        str | UnsetType,
        about("first 16 hex of SHA-256 over the contract's sorted JSON"),
    ] = UNSET
    baseline_measurement_contract_hash: Annotated[
        str | UnsetType | None,
        about("that of the baseline run"),
    ] = UNSET
    measurement_contract_match: Annotated[
        bool | UnsetType,
        about("both runs measured in the same way"),
    ] = UNSET
    row_tables: Annotated[
        list[RowTable] | UnsetType,
        about(
            "how far the rows of embedding, head and position tables moved: counts by "
            "change, and the rows of the largest"
        ),
    ] = UNSET
    row_changes: Annotated[
        list[Any] | UnsetType,
        about("per table of row_tables: limit, and the rows that changed beyond it or moved"),
    ] = UNSET
    fatal_violations: Annotated[
        Count | UnsetType,
        about("matrices that collapsed, and tables with rows that changed far beyond the others"),
    ] = UNSET
    violations: Annotated[
        list[Any] | UnsetType,
        about("capped and degenerate modules, and tables with rows far beyond the others"),
    ] = UNSET
    family_caps: Annotated[
        dict[str, Any] | UnsetType,
        about("per family: kappa, and tau in |ln(sigma_s / sigma_b)|"),
    ] = UNSET
    family_z_summary: Annotated[
        dict[str, Any] | UnsetType,
        about("largest and mean |z| per family"),
    ] = UNSET
    multiple_testing: Annotated[
        dict[str, Any] | UnsetType,
        about("method, level and number of tests"),
    ] = UNSET
    deadband: Annotated[
        float | UnsetType,
        about("relative change of sigma_max that counts as none"),
    ] = UNSET
    summary: Annotated[
        dict[str, Any] | UnsetType,
        about("number of modules and largest changes"),
    ] = UNSET


class Calibration(Open):
    """The windows that activations were taken from."""

    windows: Annotated[Count | UnsetType, about("how many")] = UNSET
    tokens: Annotated[Count | UnsetType, about("rows of the activation matrices")] = UNSET
    window_ids: Annotated[list[Any] | UnsetType, about("their ids, of the preview arm")] = UNSET


class Rmt(Open):
    """Activations against the random-matrix edge."""

    evaluated: Annotated[bool | UnsetType, about("the guard was evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("its decision is not block")] = UNSET
    decision: Annotated[str | UnsetType, about("allow, monitor or block")] = UNSET
    reason: Annotated[str | UnsetType, about("why it was not evaluated")] = UNSET
    status: Annotated[str | UnsetType, about("short state")] = UNSET
    mode: Annotated[str | UnsetType, about("mode")] = UNSET
    measurement_contract_hash: Annotated[
        str | UnsetType,
        about("first 16 hex of SHA-256 over the contract's sorted JSON"),
    ] = UNSET
    measurement_contract: Annotated[
        dict[str, Any] | UnsetType,
        about("how it was measured"),
    ] = UNSET
    baseline_measurement_contract_hash: Annotated[
        str | UnsetType | None,
        about("that of the baseline run"),
    ] = UNSET
    measurement_contract_match: Annotated[
        bool | UnsetType,
        about("both runs measured in the same way"),
    ] = UNSET
    stable: Annotated[bool | UnsetType, about("no module violates and none is missing")] = UNSET
    modules_compared: Annotated[Count | UnsetType, about("modules that both runs have")] = UNSET
    modules_missing: Annotated[Count | UnsetType, about("modules that only one run has")] = UNSET
    epsilon_default: Annotated[
        float | UnsetType,
        about("allowed relative growth of the edge risk"),
    ] = UNSET
    epsilon_by_family: Annotated[dict[str, Any] | UnsetType, about("the same, by family")] = UNSET
    epsilon_violations: Annotated[
        list[Any] | UnsetType,
        about("modules whose edge risk grew by more: module, family, both values, allowed"),
    ] = UNSET
    edge_risk_by_family_base: Annotated[
        dict[str, Any] | UnsetType,
        about("the baseline's edge risk of the module that decides for a family"),
    ] = UNSET
    edge_risk_by_family: Annotated[dict[str, Any] | UnsetType, about("the subject's")] = UNSET
    families: Annotated[
        dict[str, Any] | UnsetType,
        about("per family: the module that decides, its edge risks, ratio and allowance"),
    ] = UNSET
    max_edge_ratio: Annotated[
        float | UnsetType | None,
        about("largest subject/baseline edge risk; null where one is not finite"),
    ] = UNSET
    max_edge_delta: Annotated[
        float | UnsetType | None,
        about("largest difference of edge risks"),
    ] = UNSET
    mean_edge_delta: Annotated[
        float | UnsetType | None,
        about("mean difference of edge risks"),
    ] = UNSET
    calibration: Calibration | UnsetType = UNSET
    modules: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "name, family, layer and edge risk sigma_max / (sqrt(m) + sqrt(n)) of both runs"
            " as parallel lists"
        ),
    ] = UNSET


class PredictiveGate(Open):
    """Whether the proposed scales lower the loss on held-out windows."""

    evaluated: Annotated[bool | UnsetType, about("there was a trial with an interval")] = UNSET
    passed: Annotated[bool | UnsetType, about("they do")] = UNSET
    reason: Annotated[str | UnsetType, about("what decided")] = UNSET
    sided: Annotated[str | UnsetType, about("one: only the upper bound decides")] = UNSET
    alpha: Annotated[float | UnsetType, about("level of that bound")] = UNSET
    min_effect_lognll: Annotated[float | UnsetType, about("least gain, nats a token")] = UNSET
    mean_delta: Annotated[float | UnsetType, about("mean change of the loss, nats a token")] = UNSET
    delta_ci: Annotated[list[Any] | UnsetType, about("its bounds, each at level alpha")] = UNSET
    gain_ci: Annotated[list[Any] | UnsetType, about("the same with the sign of a gain")] = UNSET


class Variance(Open):
    """Output variance."""

    evaluated: Annotated[bool | UnsetType, about("the guard was evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("its decision is not block")] = UNSET
    decision: Annotated[str | UnsetType, about("allow, monitor or block")] = UNSET
    reason: Annotated[str | UnsetType, about("why it was not evaluated")] = UNSET
    status: Annotated[str | UnsetType, about("short state")] = UNSET
    measurement_contract: Annotated[
        dict[str, Any] | UnsetType,
        about("how it was measured"),
    ] = UNSET
    measurement_contract_hash: Annotated[
        str | UnsetType,
        about("first 16 hex of SHA-256 over the contract's sorted JSON"),
    ] = UNSET
    baseline_measurement_contract_hash: Annotated[
        str | UnsetType | None,
        about("that of the baseline run"),
    ] = UNSET
    measurement_contract_match: Annotated[
        bool | UnsetType,
        about("both runs measured in the same way"),
    ] = UNSET
    enabled: Annotated[
        bool | UnsetType,
        about("whether scales were applied to the subject; never"),
    ] = UNSET
    signal: Annotated[
        bool | UnsetType,
        about("a scale is proposed and the predictive gate passed: the guard has spoken"),
    ] = UNSET
    deadband: Annotated[float | UnsetType, about("scale - 1 that counts as none")] = UNSET
    proposed_scales: Annotated[
        dict[str, Any] | UnsetType,
        about("per module: sqrt of baseline over subject output variance"),
    ] = UNSET
    predictive_gate: PredictiveGate | UnsetType = UNSET
    ab_test: Annotated[
        dict[str, Any] | UnsetType,
        about("seed, windows and mean losses of the trial"),
    ] = UNSET
    tap: Annotated[str | UnsetType, about("name of the projections that are looked at")] = UNSET
    target_module_names: Annotated[
        list[Any] | UnsetType,
        about("the modules that are looked at"),
    ] = UNSET
    trial: Annotated[
        dict[str, Any] | UnsetType | None,
        about(
            "held-out windows with and without the scales, nats, as parallel lists; null: "
            "nothing was tried"
        ),
    ] = UNSET
    modules: Annotated[
        dict[str, Any] | UnsetType,
        about("name, family, layer and output variance of both runs as parallel lists"),
    ] = UNSET


class EvaluationWindowsPreview(Open):
    """One arm: parallel lists, one entry a window."""

    window_ids: Annotated[
        list[Any] | UnsetType,
        about("content digests of the windows (strings)"),
    ] = UNSET
    clusters: Annotated[
        list[Any] | UnsetType,
        about("the document of each window (strings)"),
    ] = UNSET
    token_counts: Annotated[list[Any] | UnsetType, about("predicted tokens (integers)")] = UNSET
    logloss: Annotated[
        list[Any] | UnsetType,
        about("mean negative log-likelihood, nats a token (numbers)"),
    ] = UNSET
    nll_sum: Annotated[
        list[Any] | UnsetType,
        about("the subject's summed negative log-likelihood, nats (numbers)"),
    ] = UNSET
    baseline_nll_sum: Annotated[
        list[Any] | UnsetType,
        about("the baseline's, on the same windows, nats (numbers)"),
    ] = UNSET
    correct: Annotated[
        list[Any] | UnsetType,
        about("whether each example was answered right (booleans); accuracy only"),
    ] = UNSET
    baseline_correct: Annotated[list[Any] | UnsetType, about("the baseline's answers")] = UNSET


class Final(Open):
    """One arm: parallel lists, one entry a window."""

    window_ids: Annotated[
        list[Any] | UnsetType,
        about("content digests of the windows (strings)"),
    ] = UNSET
    clusters: Annotated[
        list[Any] | UnsetType,
        about("the document of each window (strings)"),
    ] = UNSET
    token_counts: Annotated[list[Any] | UnsetType, about("predicted tokens (integers)")] = UNSET
    logloss: Annotated[
        list[Any] | UnsetType,
        about("mean negative log-likelihood, nats a token (numbers)"),
    ] = UNSET
    nll_sum: Annotated[
        list[Any] | UnsetType,
        about("the subject's summed negative log-likelihood, nats (numbers)"),
    ] = UNSET
    baseline_nll_sum: Annotated[
        list[Any] | UnsetType,
        about("the baseline's, on the same windows, nats (numbers)"),
    ] = UNSET
    correct: Annotated[
        list[Any] | UnsetType,
        about("whether each example was answered right (booleans); accuracy only"),
    ] = UNSET
    baseline_correct: Annotated[list[Any] | UnsetType, about("the baseline's answers")] = UNSET
    top1_agreement: Annotated[
        list[Any] | UnsetType,
        about("predicted tokens whose most likely token is the baseline's (integers)"),
    ] = UNSET
    kl_sum: Annotated[
        list[Any] | UnsetType,
        about("summed divergence from the baseline, nats (numbers)"),
    ] = UNSET
    probability_change_sum: Annotated[
        list[Any] | UnsetType,
        about("summed change of the correct token's probability (numbers)"),
    ] = UNSET


class EvaluationWindows(Open):
    """Per-window evidence of both runs."""

    preview: EvaluationWindowsPreview | UnsetType = UNSET
    final: Final | UnsetType = UNSET


class EvaluationRealism(Closed):
    """How realistic the metric is."""

    mode: Annotated[
        Literal["generation", "logprob", "teacher_forced", "classification", "benchmark_harness"]
        | UnsetType,
        about("how outputs were obtained"),
    ] = UNSET
    prompt_template_hash: Annotated[
        Digest | UnsetType,
        about("digest of the prompt template"),
    ] = UNSET
    decoding_config: Annotated[dict[str, Any] | UnsetType, about("decoding")] = UNSET
    max_tokens: Annotated[int | UnsetType, about("tokens")] = UNSET
    truncation_policy: Annotated[str | UnsetType, about("truncation")] = UNSET
    dataset_or_task_id: Annotated[str | UnsetType, about("task")] = UNSET
    proxy_metric_warning: Annotated[str | UnsetType, about("warning")] = UNSET
    metric_is_generation_realistic: Annotated[bool | UnsetType, about("realistic")] = UNSET


class Warning(Open):
    """TODO."""

    policy_gate: Annotated[
        str | UnsetType,
        about("fail where the guard does not pass because of it, else pass"),
    ] = UNSET


class GuardWarnings(Open):
    """Warnings of the guards."""

    warning_count: Annotated[Count | UnsetType, about("number of warnings")] = UNSET
    present: Annotated[bool | UnsetType, about("there are any")] = UNSET
    warnings: Annotated[
        list[Warning] | UnsetType,
        about("guard, kind, message, and the module where there is one"),
    ] = UNSET


class GuardOverhead(Open):
    """What the guards changed and cost; seconds and memory are in the runtime manifest."""

    evaluated: Annotated[bool | UnsetType, about("evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("all checks hold")] = UNSET
    decision: Annotated[str | UnsetType, about("allow or block")] = UNSET
    mode: Annotated[
        str | UnsetType,
        about("one_pass: metric and guards come from the same forward pass"),
    ] = UNSET
    source: Annotated[str | UnsetType, about("where the limits come from")] = UNSET
    overhead_ratio: Annotated[
        float | UnsetType,
        about("metric with guards over metric without"),
    ] = UNSET
    overhead_percent: Annotated[float | UnsetType, about("the same as a change, percent")] = UNSET
    overhead_threshold: Annotated[
        float | UnsetType,
        about("largest relative change of the metric"),
    ] = UNSET
    threshold_percent: Annotated[float | UnsetType, about("the same, percent")] = UNSET
    work_ratio: Annotated[
        float | UnsetType,
        about("tokens run beyond the pass over those of the pass"),
    ] = UNSET
    work_max: Annotated[float | UnsetType, about("largest such ratio")] = UNSET
    pass_tokens: Annotated[Count | UnsetType, about("predicted tokens of the pass")] = UNSET
    trial_tokens: Annotated[Count | UnsetType, about("predicted tokens run beyond it")] = UNSET
    probe_bytes: Annotated[
        Count | UnsetType,
        about("most bytes that the hooks held at a time"),
    ] = UNSET
    checks: Annotated[dict[str, Any] | UnsetType, about("each check and whether it holds")] = UNSET
    diagnostics: Annotated[list[Any] | UnsetType, about("remarks")] = UNSET


class PrimaryMetricTail(Open):
    """Tail of the per-window differences."""

    evaluated: Annotated[bool | UnsetType, about("evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("passed")] = UNSET
    warned: Annotated[bool | UnsetType, about("warned")] = UNSET
    mode: Annotated[str | UnsetType, about("mode")] = UNSET
    reason: Annotated[str | UnsetType, about("reason")] = UNSET
    policy: Annotated[dict[str, Any] | UnsetType, about("limits")] = UNSET
    stats: Annotated[dict[str, Any] | UnsetType, about("quantiles")] = UNSET
    violations: Annotated[
        list[Any] | UnsetType,
        about("what is shown to be above its maximum"),
    ] = UNSET
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
        str | UnsetType | None,
        about("digest of the preset; null: none was used"),
    ] = UNSET


class Context(Open):
    """Profile, gates, assurance, runtime, guard chain."""

    profile: Annotated[str | UnsetType, about("what report verification demands")] = UNSET
    gates: Annotated[list[Any] | UnsetType, about("the flags that decide")] = UNSET
    guard_chain_observed: Annotated[
        list[Any] | UnsetType,
        about("guards in the order they ran"),
    ] = UNSET
    execution_log: Annotated[
        list[Any] | UnsetType,
        about("guard, phase and digest of its result, in the order they ran"),
    ] = UNSET
    bootstrap: Annotated[dict[str, Any] | UnsetType, about("replicates, alpha and seed")] = UNSET
    accept: Annotated[
        list[str] | UnsetType,
        about("names of findings that the user accepts; absent: none"),
    ] = UNSET


class Assurance(Open):
    """Assurance claims."""

    mode: Annotated[str | UnsetType, about("off or strict")] = UNSET
    report_local_verdict: Annotated[
        str | UnsetType,
        about("what the report alone gives: pass or fail"),
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
        str | UnsetType,
        about("pass, fail, or pending_verifier for a strict claim"),
    ] = UNSET
    canonical_guard_chain_enforced: Annotated[
        bool | UnsetType,
        about("every guard ran, in order"),
    ] = UNSET
    blocking_reasons: Annotated[list[Any] | UnsetType, about("why a strict claim fails")] = UNSET


class Moe(Open):
    """Routers of a mixture of experts; absent for other models."""

    evaluated: Annotated[bool | UnsetType, about("the routers were seen")] = UNSET
    passed: Annotated[
        bool | UnsetType,
        about("no router lost its spread and no expert died"),
    ] = UNSET
    decision: Annotated[str | UnsetType, about("allow, monitor or block")] = UNSET
    top_k: Annotated[Count | UnsetType, about("experts a token is sent to")] = UNSET
    router_entropy: Annotated[
        float | UnsetType | None,
        about("mean entropy of the subject's routers, nats"),
    ] = UNSET
    delta_router_entropy: Annotated[
        float | UnsetType | None,
        about("subject - baseline, nats"),
    ] = UNSET
    utilization_mean: Annotated[float | UnsetType | None, about("mean share of an expert")] = UNSET
    utilization_count: Annotated[Count | UnsetType, about("experts over all routers")] = UNSET
    max_entropy_drop: Annotated[float | UnsetType | None, about("largest relative fall")] = UNSET
    entropy_drop_max: Annotated[float | UnsetType, about("largest allowed")] = UNSET
    new_dead_experts: Annotated[
        Count | UnsetType,
        about("used by the baseline and by no token of the subject"),
    ] = UNSET
    new_dead_experts_max: Annotated[Count | UnsetType, about("allowed")] = UNSET
    routers_missing: Annotated[Count | UnsetType, about("routers that only one run has")] = UNSET
    violations: Annotated[list[Any] | UnsetType, about("routers and experts over a limit")] = UNSET
    routers: Annotated[
        dict[str, Any] | UnsetType,
        about("entropy and shares of both runs as parallel lists"),
    ] = UNSET


class Distribution(Open):
    """Shift of the predicted distribution on the final arm."""

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
        Count | UnsetType,
        about("predicted tokens of the preview arm"),
    ] = UNSET
    final_total_tokens: Annotated[
        Count | UnsetType,
        about("predicted tokens of the final arm"),
    ] = UNSET
    masked_tokens_total: Annotated[
        Count | UnsetType,
        about("masked tokens of both arms; masked models only"),
    ] = UNSET
    summary_line: Annotated[str | UnsetType, about("all of it in one line")] = UNSET


class Metrics(Open):
    """Counts behind an accuracy."""

    classification: Annotated[
        dict[str, Any] | UnsetType,
        about("right answers and examples, by arm"),
    ] = UNSET


class EvaluationReport(Open, kw_only=True):
    """Comparison of one subject with its baseline."""

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
    invariants: Invariants | UnsetType = UNSET
    spectral: Spectral | UnsetType = UNSET
    rmt: Rmt | UnsetType = UNSET
    variance: Variance | UnsetType = UNSET
    guards: Annotated[list[Any] | UnsetType, about("guard results in canonical order")] = UNSET
    evaluation_windows: EvaluationWindows | UnsetType = UNSET
    evaluation_realism: EvaluationRealism | UnsetType = UNSET
    system_overhead: Annotated[dict[str, Any] | UnsetType, about("latency and throughput")] = UNSET
    guard_warnings: GuardWarnings | UnsetType = UNSET
    guard_overhead: GuardOverhead | UnsetType = UNSET
    primary_metric_tail: PrimaryMetricTail | UnsetType = UNSET
    confidence: Confidence | UnsetType = UNSET
    policy_digest: Annotated[
        str | dict[str, Any] | UnsetType,
        about("digest of the policy, or an object of digests"),
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
    moe: Moe | UnsetType = UNSET
    distribution: Distribution | UnsetType = UNSET
    telemetry: Telemetry | UnsetType = UNSET
    metrics: Metrics | UnsetType = UNSET


DOCUMENT = EvaluationReport
