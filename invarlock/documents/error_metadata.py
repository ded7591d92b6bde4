"""How a deliberately damaged checkpoint was made from its baseline."""

from typing import Annotated, Literal

from msgspec import Meta

from invarlock.documents.fields import Closed, Sha256, about
from invarlock.documents.kinds import DamageType

TITLE = "error_metadata.json"


class ErrorMetadata(Closed):
    """How a deliberately damaged checkpoint was made from its baseline."""

    schema: Annotated[
        Literal["invarlock/error-metadata-v1"], about("Name and version of this format.")
    ]
    artifact_class: Annotated[
        Literal["fault_injection_fixture"],
        about("What the checkpoint is for: a control that a guard must catch."),
    ]
    error_type: Annotated[DamageType, about("The damage.")]
    injected: Annotated[
        Literal[True], about("Always true: an injector that changes nothing fails instead.")
    ]
    targets: Annotated[
        list[str],
        Meta(min_length=1),
        about(
            "Tensors that were damaged, added, dropped or cut short, and the files that "
            "were changed otherwise than by writing tensors; sorted by name."
        ),
    ]
    parameters: Annotated[
        dict[str, int | float | str | bool],
        about("Every parameter of the injector with the value it used."),
    ]
    seed: Annotated[
        int, about("Seed of the injector's draws; recorded for injectors without draws too.")
    ]
    changed_tensors: Annotated[
        dict[str, Sha256], about("SHA-256 of the bytes of every changed or added tensor, by name.")
    ]
    changed_files: Annotated[
        dict[str, Sha256],
        about(
            "SHA-256 of every file changed otherwise than by writing tensors, by name: "
            "tokenizer.json, or a shard that was cut short."
        ),
    ]
    dropped_tensors: Annotated[
        list[str], about("Tensors of the baseline that the damaged checkpoint lacks.")
    ]
    changed_config_keys: Annotated[
        list[str], about("Top-level keys of config.json that differ from the baseline's.")
    ]
    baseline_checkpoint_sha256: Annotated[
        Sha256, about("Content digest of the baseline: configuration, tensors and tokenizer.")
    ]
    subject_checkpoint_sha256: Annotated[
        Sha256,
        about(
            "The same digest of the damaged checkpoint; of its files (names and SHA-256) "
            "where a shard was cut short."
        ),
    ]


DOCUMENT = ErrorMetadata
