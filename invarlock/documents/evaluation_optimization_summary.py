"""``analysis/evaluation_optimization_summary.json``; in packs below results/."""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, Count, NotNegative, about

TITLE = "Where the time went"


class Controls(Closed):
    """Settings by their published names."""

    PACK_GROUP_EVALUATIONS: Annotated[Literal["0"], about("evaluations are never grouped")]
    PACK_DEFER_REPORT_RENDERING: Annotated[Literal["0", "1"], about("defer_rendering")]


class TimingTotalsSeconds(Closed):
    """Wall time of jobs, s."""

    plan: Annotated[NotNegative, about("calibration")]
    baseline: Annotated[NotNegative, about("runs of the baselines")]
    subject: Annotated[NotNegative, about("measuring the subjects")]
    evaluation_report: Annotated[
        NotNegative, about("the rest of the evaluation jobs: start, comparing, writing")
    ]
    total: Annotated[NotNegative, about("sum of these")]


class RunTimingTotalsSeconds(Closed):
    """Wall time of making and measuring subjects, s."""

    load_model: Annotated[NotNegative, about("loading")]
    load_dataset: Annotated[None, about("no step of its own")]
    prepare: Annotated[None, about("no step of its own")]
    prepare_guards: Annotated[None, about("no step of its own")]
    edit: Annotated[NotNegative, about("editing and damaging checkpoints")]
    guards: Annotated[NotNegative, about("guards")]
    eval: Annotated[NotNegative, about("the pass over the windows")]
    finalize: Annotated[NotNegative, about("evaluation_report above")]
    execute: Annotated[NotNegative, about("guards and eval")]
    total: Annotated[NotNegative, about("jobs of editing and evaluating")]


class EvaluationOptimizationSummary(Closed):
    """Where the time went."""

    schema: Annotated[
        Literal["invarlock/evidence-pack-evaluation-optimization-summary-v1"],
        about("format of this document"),
    ]
    run_dir: Annotated[str, about("name of the output folder")]
    controls: Controls
    evaluation_reports_timed: Annotated[Count, about("evaluations whose benchmark file is there")]
    baseline_report_reuse_count: Annotated[
        Count, about("evaluations that used a run of the baseline made before")
    ]
    deferred_rendering_count: Annotated[Count, about("reports whose pages were made together")]
    grouped_evaluation_tasks: Annotated[Count, about("always 0")]
    grouped_evaluation_entries: Annotated[Count, about("always 0")]
    avoided_cli_process_invocations: Annotated[
        Count, about("processes that rendering together saved")
    ]
    timing_totals_seconds: TimingTotalsSeconds
    run_timing_totals_seconds: RunTimingTotalsSeconds


DOCUMENT = EvaluationOptimizationSummary
