"""The placed baseline folder of one model (baseline.json)."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import (
    Closed,
    Count,
    File,
    Pinned,
    Positive,
    Sha256,
    Text,
    about,
    matches,
)

TITLE = "Baseline checkpoint"


class Link(Closed):
    """One link, by the file's name."""

    root: Annotated[
        Literal["hub_cache", "source_folder", "elsewhere"],
        about(
            "What the path is relative to: the hub's cache, the folder of a local model, or"
            " neither (then the path is a file name)."
        ),
    ]
    path: Annotated[Text, about("Path below the root.")]


class Tensor(Closed):
    """One tensor."""

    dtype: Annotated[Text, about("safetensors code of the element type, such as BF16.")]
    shape: Annotated[list[Count], about("Shape, row-major.")]
    sha256: Annotated[Sha256, about("SHA-256 of the tensor's raw bytes.")]


class Baseline(Pinned, kw_only=True):
    """The placed baseline folder of one model (baseline.json)."""

    schema: Annotated[Literal["invarlock/baseline-v1"], about("Name and version of this format.")]
    model_id: Annotated[Text, about("Model id as in the suite.")]
    slug: Annotated[
        str,
        Meta(min_length=1),
        matches(r"^[a-z0-9_-][a-z0-9._-]*$"),
        about("Folder name made from the id."),
    ]
    files: Annotated[
        dict[str, File],
        Meta(min_length=1),
        about("Every file of the baseline folder by name, as placed."),
    ]
    links: Annotated[
        Annotated[dict[str, Link], Meta(min_length=1)] | UnsetType,
        about(
            "Where each link of the folder leads (baseline_storage snapshot_symlink); "
            "absent where every file is a copy. The digest of what it leads to is in files."
        ),
    ] = UNSET
    total_bytes: Annotated[Positive, about("Bytes of all files.")]
    weight_bytes: Annotated[Count, about("Bytes of all tensors.")]
    n_parameters: Annotated[
        Count, about("Stored elements; a tied matrix that is stored once counts once.")
    ]
    checkpoint_sha256: Annotated[
        Sha256,
        about("Content digest of configuration, tensors and tokenizer, independent of sharding."),
    ]
    tensors: Annotated[dict[str, Tensor], Meta(min_length=1), about("Every tensor by name.")]
    note: Annotated[
        str | None,
        about("What a reader must know about these weights; null where there is nothing."),
    ]


DOCUMENT = Baseline
