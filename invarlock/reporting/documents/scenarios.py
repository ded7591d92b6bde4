"""``scenarios/scenarios.json``; state/scenarios.json holds what was selected."""

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, Union

from msgspec import UNSET, Meta, UnsetType, field

from invarlock.documents.fields import (
    EACH_ONCE,
    Category,
    Closed,
    Count,
    Strictness,
    about,
    check_each_once,
    matches,
)
from invarlock.documents.kinds import EditSpecText
from invarlock.guards import GUARDS
from invarlock.reporting.documents.guards import GateFlag, PrimaryGuard

TITLE = "Scenario catalogue and effective manifest"


class About(Closed):
    """About the document."""

    purpose: Annotated[str, about("what the scenarios are for")]
    notes: Annotated[list[str] | UnsetType, about("remarks for editors")] = UNSET
    applied_suite: Annotated[str | UnsetType, about("effective manifest: the suite")] = UNSET
    scenario_ids_filter: Annotated[
        list[str] | UnsetType | None,
        about("effective manifest: the ids it was narrowed to; null: the whole suite"),
    ] = UNSET


class Edit(Closed, tag_field="kind", tag="edit"):
    """Made by invarlock edit."""

    edit_spec: Annotated[
        EditSpecText,
        about("the spec string, '<edit type>:tuned', or 'custom' (the user's own folder)"),
    ]


class Error(Closed, tag_field="kind", tag="error"):
    """Made by invarlock inject."""

    error_type: Annotated[str, matches("^[a-z0-9_]+$"), about("the damage")]
    env: Annotated[
        dict[str, int | float | str | bool] | UnsetType,
        about("parameters by name; what is not named keeps its published value"),
    ] = UNSET


class DeployableEdit(Closed, tag_field="kind", tag="deployable_edit"):
    """Packed by a deployment backend (invarlock advanced pack-weights)."""

    edit_spec: Annotated[
        str,
        matches("^[a-z0-9_]+(:[A-Za-z0-9_]+)+$"),
        about("BACKEND:FORM, such as bitsandbytes:nf4 or llama_cpp:Q4_K_M"),
    ]


class ValidationFlag(Closed, tag_field="kind", tag="validation_flag"):
    """True when the flag is present, was evaluated and is equal."""

    flag: Annotated[GateFlag, about("a key of the report's validation block")]
    expected: Annotated[bool, about("the value that counts as a hit")]


class PrimaryMetric(Closed, tag_field="kind", tag="primary_metric"):
    """True when the field of the primary metric is equal."""

    field: Annotated[str, about("a key of the report's primary_metric block")]
    expected: Annotated[bool | str | int | float, about("the value that counts as a hit")]


class GuardSignal(Closed, tag_field="kind", tag="guard_signal_baseline_relative"):
    """True when the guard fired and did not fire for the no-op."""

    guard: Annotated[PrimaryGuard, about("the guard")]
    min_new_modules: Annotated[
        Count | UnsetType, about("at least this many capped modules that the no-op did not cap")
    ] = UNSET
    min_delta_count: Annotated[
        Count | UnsetType, about("at least this many more caps than the no-op")
    ] = UNSET


if TYPE_CHECKING:
    Detector: TypeAlias = ValidationFlag | PrimaryMetric | GuardSignal
else:
    Detector = Union[
        (
            ValidationFlag,
            PrimaryMetric,
            GuardSignal,
            *(form for guard in GUARDS for form in guard.detector_forms),
        )
    ]


class Requirements(Closed, kw_only=True):
    """What has to hold besides the strictness."""

    catastrophic_required: Annotated[bool, about("the primary metric itself has to fail")]
    primary_guard_required: Annotated[bool, about("the primary guard itself has to fire")]
    exact_ratio: Annotated[
        float | UnsetType, about("ratio_vs_baseline has to be exactly this number")
    ] = UNSET
    detectors_any_of: Annotated[
        list[Detector], about("at least one has to be true (if any is listed)")
    ]
    detectors_all_of: Annotated[list[Detector], about("each has to be true")]
    notes: Annotated[str, about("a sentence for people")]


class Scenario(Closed, kw_only=True):
    """One control."""

    id: Annotated[
        str,
        Meta(max_length=80),
        matches(r"^[a-z0-9][a-z0-9_]*$"),
        about("name of the scenario and of its folder"),
    ]
    suites: Annotated[
        list[Annotated[str, matches(r"^[a-z0-9_-]+$")]],
        Meta(min_length=1),
        EACH_ONCE,
        about("suites that hold it"),
    ]
    category: Annotated[
        Category,
        about(
            "clean: harmless edit; stress: harmful edit; error_injection: deliberate "
            "damage; custom: the user's subject"
        ),
    ]
    failure_class: Annotated[str, about("dotted name of what is done, e.g. stress.quant_rtn")]
    strictness: Annotated[Strictness, about("what the evaluation has to show")]
    judged_as: Annotated[
        Literal["must_detect"] | UnsetType,
        about("what the verdict asks; the strictness is then the label for published verifiers"),
    ] = UNSET
    runs: Annotated[
        Annotated[int, Meta(ge=1, le=99)] | UnsetType,
        about("evaluations of it that there have to be; absent: as many as of any other scenario"),
    ] = UNSET
    intent: Annotated[
        Literal[
            "clean_control",
            "catastrophic_failure",
            "subtle_detectable",
            "fault_detection",
            "negative_control",
            "production_artifact_assurance",
        ],
        about("why the scenario is there"),
    ]
    primary_guard: Annotated[PrimaryGuard, about("the guard or metric it is aimed at")]
    generation: Annotated[Edit | Error | DeployableEdit, about("how the subject is made")]
    requirements: Requirements
    artifact_class: Annotated[
        Literal[
            "validation_subject_checkpoint",
            "deployable_optimized_subject",
            "fault_injection_fixture",
            "evidence_only_pack",
        ],
        about("class of the subject (docs/pack-format.md)"),
    ]
    deployable_as_hf_checkpoint: Annotated[bool, about("whether transformers can load the subject")]
    optimized_deployment_backend: Annotated[
        bool, about("whether the subject is in an optimized backend's own format")
    ]
    contains_model_weights_in_pack: Annotated[
        bool, about("whether the pack carries the subject's weights")
    ]
    run_directory_contains_edit_artifacts: Annotated[
        bool, about("whether the run folder holds the subject while it is needed")
    ]
    runnable: Annotated[bool, about("whether this version can make the subject")]

    def __post_init__(self) -> None:
        check_each_once(self.suites, "suites")


class Scenarios(Closed):
    """Scenario catalogue and effective manifest."""

    schema: Annotated[Literal["evidence_pack_scenarios_v1"], about("format of this document")]
    schema_version: Annotated[Literal[1], about("version of the format")]
    meta: About = field(name="_meta")
    scenarios: Annotated[
        list[Scenario],
        Meta(min_length=1),
        about("the scenarios, in the order in which they are shown"),
    ]


DOCUMENT = Scenarios
