"""``reports/final_verdict.json``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType, defstruct

from invarlock.documents.fields import (
    ADDED,
    Alarm,
    Category,
    Closed,
    Count,
    EvidenceNeeded,
    Outcome,
    Positive,
    Sha256,
    Share,
    Status,
    Strictness,
    about,
)
from invarlock.guards import GUARDS
from invarlock.reporting.documents.guards import PrimaryGuard, each
from invarlock.reporting.signals import guard_flags

TITLE = "Final verdict of a suite"


class Manifest(Closed):
    """The scenarios that were judged."""

    path: Annotated[str, about("where they stand")]
    schema: Annotated[str, about("format")]
    schema_version: Annotated[Count, about("version")]
    sha256: Annotated[Sha256, about("digest of the canonical JSON")]


class Criteria(Closed):
    """What was asked for."""

    clean_all_pass: Annotated[bool, about("every must_pass evaluation passes")]
    stress_required_fail: Annotated[bool, about("every must_fail evaluation fails")]
    error_injection_detected: Annotated[bool, about("every damage is detected")]
    informational_stress_min_signal_fraction: Annotated[
        float, about("smallest share of informational stress evaluations with a signal")
    ]
    primary_guard_signal_required: Annotated[
        bool, about("where the scenario says so, the primary guard fires")
    ]


class Counts(Closed):
    """How many."""

    models_total: Annotated[Count, about("models")]
    records_total: Annotated[Count, about("evaluations present")]
    expected_total: Annotated[Count, about("evaluations expected")]
    clean_total: Annotated[Count, about("clean evaluations")]
    clean_pass: Annotated[Count, about("of these passed")]
    custom_total: Annotated[Count, about("evaluations of the user's subject")]
    custom_pass: Annotated[Count, about("of these passed")]
    stress_total: Annotated[Count, about("must_fail stress evaluations")]
    stress_fail: Annotated[Count, about("of these failed as they must")]
    catastrophic_required_total: Annotated[
        Count, about("evaluations in which the primary metric has to fail, expected")
    ]
    catastrophic_required_present: Annotated[Count, about("of these present")]
    catastrophic_required_fail: Annotated[Count, about("of these failed by the primary metric")]
    error_injection_total: Annotated[Count, about("damage evaluations that must be detected")]
    error_injection_detected: Annotated[Count, about("of these detected")]
    informational_stress_total: Annotated[Count, about("informational stress evaluations")]
    informational_stress_fail: Annotated[Count, about("of these failed")]
    informational_stress_signaled: Annotated[
        Count,
        about(
            "of these whose detectors were satisfied, whatever else fired; at least half have to be"
        ),
    ]
    primary_guard_required_scenarios: Annotated[
        Count, about("scenarios whose primary guard has to fire")
    ]
    primary_guard_required_records: Annotated[Count, about("evaluations of these")]
    primary_guard_required_hits: Annotated[Count, about("of these in which it fired")]
    primary_guard_required_scenarios_hit: Annotated[
        Count, about("scenarios in which it fired in every evaluation")
    ]
    clean_reports: Annotated[Count, about("clean and custom evaluations that passed")]
    error_injection_reports: Annotated[Count, about("evaluations of damage")]
    expected_failure_reports: Annotated[
        Count, about("evaluations that had to fail or be detected, and were")
    ]
    failed_reports: Annotated[
        Count, about("evaluations that did not show what their scenario asks for")
    ]


class Rate(Share):
    """How many of all were detected, with an exact interval."""

    detected: Annotated[Count, about("how many")]


if TYPE_CHECKING:
    Detection: TypeAlias = Closed
    GuardFlags: TypeAlias = Mapping[str, bool]
else:
    Detection = each(
        "Detection",
        Rate,
        "Per guard: scenarios aimed at it that it caught, one count per model and scenario.",
    )
    _Fired = Annotated[bool, about("fired")]
    GuardFlags = defstruct(
        "GuardFlags",
        [
            *((guard, _Fired) for guard in guard_flags(None)),
            # verdicts on reports of a version that did not have it
            *((guard.name, _Fired | UnsetType, UNSET) for guard in GUARDS if guard.added),
        ],
        bases=(Closed,),
        namespace={"__doc__": "Who fired."},
    )


class Vocabulary(Closed):
    """Token ids."""

    used: Annotated[Count, about("different token ids in the windows")]
    size: Annotated[Count | None, about("token ids there are; null: not stated by the model")]


class Stated(Closed, kw_only=True):
    """What the report of an evaluation gives, whatever its scenario asks for."""

    invariants_status: Annotated[str | None, about("status of the invariants guard")]
    guard_flags: GuardFlags
    spectral_caps_applied: Annotated[int | None, about("capped modules; null: not evaluated")]
    metric: Annotated[
        str | None, about("ppl_causal, ppl_mlm, ppl_seq2seq or accuracy; null: not measured")
    ]
    ratio_vs_baseline: Annotated[
        float | None,
        about(
            "ratio of perplexities, or difference of accuracies in percentage points; null:"
            " not measured"
        ),
    ]
    display_ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | None,
        about("interval of ratio_vs_baseline"),
    ]
    decision: Annotated[str | None, about("pass, fail or inconclusive")]


class Record(Stated, kw_only=True):
    """One evaluation."""

    model: Annotated[str, about("the model id")]
    category: Annotated[Category, about("category of the scenario")]
    name: Annotated[str, about("the scenario")]
    strictness: Annotated[Strictness, about("what it had to show")]
    intent: Annotated[str, about("why it is there")]
    primary_guard: Annotated[PrimaryGuard, about("the guard it is aimed at")]
    failure_class: Annotated[str, about("what was done")]
    run_num: Annotated[Positive, about("number of the run")]
    family: Annotated[str | None, about("edit or error type")]
    status: Annotated[Status, about("outcome of the evaluation")]
    injected: Annotated[bool | None, about("whether damage was done; null for edits")]
    passed: Annotated[bool, about("every evaluated gate is true and nothing is degraded")]
    outcome: Annotated[
        Outcome | UnsetType,
        about(
            "of the evaluation: inconclusive where nothing that was measured is bad, but "
            "evidence is lacking"
        ),
    ] = UNSET
    reasons: Annotated[list[str], about("why it did not pass, the worst first")]
    accepted: Annotated[
        list[str] | UnsetType,
        about("names by which the user accepted findings that would have refused it; absent: none"),
    ] = UNSET
    finding: Annotated[str | UnsetType | None, about("the worst finding of the invariants")] = UNSET
    evidence_needed: Annotated[
        Sequence[EvidenceNeeded] | UnsetType, about("what an inconclusive evaluation lacks")
    ] = UNSET
    detectors_hit: Annotated[bool, about("whether the detectors are satisfied by a measurement")]
    detectors: Annotated[list[str], about("detectors of detectors_any_of that were true")]
    detectors_all_of: Annotated[list[str], about("detectors of detectors_all_of that were true")]
    detectors_missed: Annotated[
        list[str], about("detectors that were not true, with the reason where there is one")
    ]
    primary_guard_required: Annotated[bool, about("whether the primary guard had to fire")]
    primary_guard_hit: Annotated[bool, about("whether it did")]
    any_core_guard_flag: Annotated[bool, about("whether any core guard fired")]
    baseline_sha256: Annotated[
        str | UnsetType | None, about("digest of the baseline checkpoint, of the outcome"), ADDED
    ] = UNSET
    subject_sha256: Annotated[
        str | UnsetType | None, about("digest of the subject checkpoint, of the outcome"), ADDED
    ] = UNSET
    as_expected: Annotated[bool, about("whether the evaluation showed what its scenario asks for")]
    undecided: Annotated[
        bool | UnsetType,
        about("not as expected, and more evidence could still show what is asked for"),
    ] = UNSET
    why: Annotated[str, about("what was missing; empty when as expected")]
    path: Annotated[str, about("folder of the evaluation below the suite's output folder")]


class Missing(Closed):
    """What was not there."""

    by_model: Annotated[dict[str, list[str]], about("model -> scenario/run")]


class Requirement(Closed):
    """One requirement."""

    id: Annotated[str, about("name")]
    ok: Annotated[bool, about("whether it holds")]
    details: Annotated[list[str], about("what broke it")]


class FinalVerdict(Closed, kw_only=True):
    """Final verdict of a suite."""

    schema: Annotated[Literal["invarlock/final-verdict-v1"], about("format of this document")]
    verdict: Annotated[Literal["PASS", "FAIL"], about("PASS iff no requirement failed")]
    outcome: Annotated[
        Outcome | UnsetType,
        about(
            "pass iff verdict is PASS; inconclusive: every failed requirement only lacks "
            "evidence; absent in files of older versions"
        ),
    ] = UNSET
    suite: Annotated[str | None, about("the suite")]
    exploring: Annotated[
        Literal[True] | UnsetType,
        about(
            "reports are of a tier that explores: no floors hold, and guards decide nothing; "
            "absent otherwise"
        ),
        ADDED,
    ] = UNSET
    manifest: Manifest
    criteria: Criteria
    counts: Counts
    core_guard_order: Annotated[list[str], about("the guards that count")]
    detection: Detection
    false_alarms: Annotated[
        Alarm,
        about(
            "clean scenarios in which any guard fired or that did not pass, one count per "
            "model and scenario"
        ),
    ]
    not_evaluated: Annotated[
        list[str],
        about("gates that at least one report did not evaluate; nothing counts them as passed"),
    ]
    vocabulary: Annotated[
        dict[str, Vocabulary] | UnsetType,
        about("by model, how much of its vocabulary the windows use"),
    ] = UNSET
    category_summary: Annotated[dict[str, Any], about("see the contract category-summary")]
    guard_signal_summary: Annotated[dict[str, Any], about("see the contract guard-signal-summary")]
    guard_intervention_summary: Annotated[
        dict[str, Any], about("see the contract guard-intervention-summary")
    ]
    scenario_signal_summary: Annotated[list[Any], about("see the contract scenario-signal-summary")]
    records: Annotated[list[Record], about("one per evaluation: by model, manifest order, run")]
    missing: Missing
    requirements: Annotated[list[Requirement], about("every requirement, in order")]
    failed_requirements: Annotated[list[str], about("ids of the requirements that do not hold")]


DOCUMENT = FinalVerdict
