"""``deployable_artifact_validation.json`` beside the report of a deployable subject."""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, Sha256, about

TITLE = "deployable_artifact_validation.json"


class DeployableArtifactValidation(Closed, kw_only=True):
    """Whether the subject loads, answers, and is as small as it claims."""

    schema: Annotated[Literal["invarlock/deployable-artifact-validation-v1"], about("Format.")]
    ok: Annotated[bool, about("Whether there is no issue.")]
    artifact_class: Annotated[Literal["deployable_optimized_subject"], about("Its class.")]
    backend: Annotated[str | None, about("What runs it; null where nothing did.")]
    backend_version: Annotated[str | None, about("Version of the backend's package.")]
    format: Annotated[str, about("Format of its files.")]
    baseline_checkpoint_sha256: Annotated[Sha256, about("The baseline.")]
    subject_checkpoint_sha256: Annotated[Sha256 | None, about("The subject.")]
    load_smoke: Annotated[bool, about("As in load_smoke.json.")]
    inference_smoke: Annotated[bool, about("As in inference_smoke.json.")]
    packed_quantized_storage: Annotated[
        bool, about("Whether it stores as few bits of a weight as it claims.")
    ]
    runtime_memory_reduction_observed: Annotated[bool, about("As in memory_report.json.")]
    issues: Annotated[list[str], about("What is wrong, a line each.")]


DOCUMENT = DeployableArtifactValidation
