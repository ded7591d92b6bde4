"""How an edited checkpoint was made from its baseline, and the digests of both."""

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType, defstruct

from invarlock.documents.fields import (
    AboveZero,
    Closed,
    Count,
    NotNegative,
    Positive,
    Sha256,
    about,
)
from invarlock.documents.kinds import EditType, StorageFormat, every_parameter

TITLE = "edit_metadata.json"


class Custom(Closed):
    """The edit's own parameters, by name."""

    label: Annotated[
        str | UnsetType, about("What was done to a subject that the user brings (custom).")
    ] = UNSET
    form: Annotated[
        str | UnsetType, about("How a deployment backend packed the weights, as it calls it.")
    ] = UNSET
    damage: Annotated[
        str | UnsetType, about("What was broken after a deployment backend packed them.")
    ] = UNSET


if TYPE_CHECKING:
    Parameters: TypeAlias = Custom
else:
    Parameters = defstruct(
        "Parameters",
        [(name, kind | UnsetType, UNSET) for name, kind in every_parameter().items()],
        bases=(Custom,),
        namespace={"__doc__": Custom.__doc__},
    )


class Coverage(Closed):
    """How much of the checkpoint was edited."""

    edited_tensors: Annotated[Count, about("Number of target tensors.")]
    edited_params: Annotated[Count, about("Elements of the target tensors.")]
    total_params: Annotated[Positive, about("Elements of all stored tensors.")]
    coverage_ratio: Annotated[float, Meta(ge=0, le=1), about("edited_params / total_params.")]


class Details(Closed):
    """What the edit did to the target tensors together, to six significant digits."""

    relative_error: Annotated[
        NotNegative | UnsetType, about("Frobenius norm of the change over that of the original.")
    ] = UNSET
    target_sparsity: Annotated[float | UnsetType, about("Sparsity asked for.")] = UNSET
    actual_sparsity: Annotated[
        float | UnsetType, about("Entries set to zero over edited_params (floor per matrix).")
    ] = UNSET
    avg_energy_retained: Annotated[
        float | UnsetType, about("One minus the squared relative error (lowrank_svd).")
    ] = UNSET


class Loss(Closed):
    """Mean loss of the predicted tokens of the step's own windows, nats, to six digits."""

    before: Annotated[float, about("Before the step.")]
    after: Annotated[float, about("After the step.")]


class Windows(Closed):
    """What went through the model."""

    sha256: Annotated[Sha256, about("SHA-256 of the windows file.")]
    seed: Annotated[int, about("Seed of the choice of windows.")]
    windows: Annotated[Positive, about("Number of windows, warm-up and scored together.")]
    ids_sha256: Annotated[
        Sha256, about("SHA-256 of the canonical JSON list of their sorted window_id values.")
    ]


class FromText(Closed):
    """Which text went through the model, and by what arithmetic."""

    windows: Windows
    device: Annotated[str, about("Where the model ran; an optimizer ran on the host.")]
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        about(
            "Arithmetic of the model: what was asked for if the targets are stored so, else"
            " float32."
        ),
    ]
    threads: Annotated[Positive, about("CPU threads.")]
    deterministic_algorithms: Annotated[
        bool, about("Whether torch was held to deterministic algorithms.")
    ]


class Calibration(FromText):
    """On what the inputs of the targets were measured (importance_prune).

    Absent for other edits.
    """


class Training(FromText):
    """How the values were trained: real gradient steps on a text (lora_merge, fine_tune).

    Absent for other edits.
    """

    optimizer: Annotated[
        Literal["adamw"],
        about("AdamW (Loshchilov and Hutter 2019) on float32 copies of what is trained."),
    ]
    learning_rate: Annotated[AboveZero, about("Learning rate, the same in every step.")]
    betas: Annotated[
        list[float],
        Meta(min_length=2, max_length=2),
        about("Decay of the optimizer's two moments."),
    ]
    epsilon: Annotated[float, about("Added to the root of the second moment.")]
    weight_decay: Annotated[
        float, Meta(ge=0, le=0), about("None: weights move by their gradients only.")
    ]
    steps: Annotated[Positive, about("Optimizer steps.")]
    batch_windows: Annotated[
        Positive,
        about(
            "Windows of one step; their order is drawn from the edit's seed, and begins "
            "again when all were used."
        ),
    ]
    losses: Annotated[list[Loss], Meta(min_length=1), about("One entry a step.")]


class EditMetadata(Closed):
    """How an edited checkpoint was made from its baseline, and the digests of both."""

    schema: Annotated[
        Literal["invarlock/evidence-pack-edit-metadata-v1"],
        about("Name and version of this format."),
    ]
    artifact_class: Annotated[
        Literal[
            "validation_subject_checkpoint", "deployable_optimized_subject", "evidence_only_pack"
        ],
        about("What the checkpoint is for: to be measured, or to be served as it is."),
    ]
    edit_type: Annotated[EditType, about("The edit, or custom for a checkpoint made elsewhere.")]
    edit_semantics: Annotated[
        Literal["external_subject_validation_edit", "backend_deployable_edit"],
        about("Whether the edit is simulated in the weights or packed by a deployment backend."),
    ]
    deployable_as_hf_checkpoint: Annotated[
        bool, about("Whether the folder loads as an ordinary Hugging Face checkpoint.")
    ]
    optimized_deployment_backend: Annotated[
        bool, about("Whether an optimized backend holds the weights.")
    ]
    backend: Annotated[str | None, about("Format that it reads; null without one.")]
    storage_format: Annotated[StorageFormat, about("How the edited values are stored.")]
    actual_storage_format: Annotated[
        str, about("The storage format that was really written; of packed weights, its name.")
    ]
    packed_quantized_storage: Annotated[
        bool, about("Whether weights are stored as packed low-bit integers.")
    ]
    runtime_memory_reduction: Annotated[
        Literal[False],
        about("Never here: what was observed is in memory_report.json of a deployable subject."),
    ]
    runtime_memory_reduction_expected: Annotated[
        bool, about("Whether the files take less room than dense weights of two bytes.")
    ]
    run_directory_contains_edit_artifacts: Annotated[
        bool, about("Whether the run folder, unlike the pack, held the edited weights.")
    ]
    scope: Annotated[
        str,
        about(
            "Roles and layers that the edit means, as written in its spec; none where a spec has no"
            " scope."
        ),
    ]
    parameters: Parameters
    seed: Annotated[int, about("Seed of the edit's draws; recorded for edits without draws too.")]
    coverage: Coverage
    details: Details
    edited_tensors: Annotated[
        dict[str, Sha256],
        about("SHA-256 of the bytes of every target tensor after the edit, by name."),
    ]
    unchanged_tensors: Annotated[
        list[str],
        about("Targets whose bytes the edit left as they were, such as all-zero matrices."),
    ]
    baseline_checkpoint_sha256: Annotated[
        Sha256, about("Content digest of the baseline: configuration, tensors and tokenizer.")
    ]
    subject_checkpoint_sha256: Annotated[Sha256, about("The same digest of the edited checkpoint.")]
    training: Training | UnsetType = UNSET
    calibration: Calibration | UnsetType = UNSET


DOCUMENT = EditMetadata
