"""``analysis/edit_artifact_summary.json``."""

from typing import Annotated, Literal

from invarlock.documents.fields import Category, Closed, Count, about

TITLE = "What the subjects were"


class EvidenceLanes(Closed):
    """Evaluations per lane."""

    validation_subjects: Annotated[Count, about("edited checkpoints")]
    deployable_subjects: Annotated[Count, about("optimized checkpoints")]
    fault_injection: Annotated[Count, about("damaged checkpoints")]


class DeployableSubjects(Closed):
    """The deployable lane."""

    count: Annotated[Count, about("subjects")]
    backends: Annotated[list[str], about("backends")]
    all_reload_smokes_passed: Annotated[bool | None, about("null: no such subject")]
    all_inference_smokes_passed: Annotated[bool | None, about("null: no such subject")]


class ByScenario(Closed):
    """One scenario."""

    artifact_class: Annotated[str, about("class of the subject")]
    category: Annotated[Category, about("its category")]
    failure_class: Annotated[str, about("what is done")]
    generation_kind: Annotated[
        Literal["edit", "error", "deployable_edit", "evidence"], about("how the subject is made")
    ]
    edit_type: Annotated[str | None, about("edit or error type")]
    storage_format: Annotated[str | None, about("storage format named by the metadata")]
    metadata_present: Annotated[bool, about("whether every evaluation carries its metadata file")]
    deployable_validation_ok: Annotated[bool | None, about("null: no deployable subject")]
    load_smoke: Annotated[bool | None, about("null: no deployable subject")]
    inference_smoke: Annotated[bool | None, about("null: no deployable subject")]


class EditArtifactSummary(Closed):
    """What the subjects were."""

    schema: Annotated[
        Literal["invarlock/evidence-pack-edit-artifact-summary-v1"],
        about("format of this document"),
    ]
    counts: Annotated[dict[str, Count], about("artifact class -> evaluations")]
    evidence_lanes: EvidenceLanes
    deployable_subjects: DeployableSubjects
    by_scenario: Annotated[dict[str, ByScenario], about("scenario id -> subject")]


DOCUMENT = EditArtifactSummary
