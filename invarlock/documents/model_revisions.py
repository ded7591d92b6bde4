"""What a suite runs on, by revision and by the SHA-256 of every file
(state/model_revisions.json).
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import (
    EACH_ONCE,
    Closed,
    File,
    Pinned,
    Text,
    about,
    check_each_once,
    matches,
)
from invarlock.errors import InputError

TITLE = "Pinned models and texts"


class Pin(Pinned, kw_only=True):
    """What a model or a text was pinned to."""

    files: Annotated[
        dict[str, File],
        Meta(min_length=1),
        about("Every file of it by name: of a packaged model the file it is converted from."),
    ]

    @property
    def total_bytes(self) -> int:
        """Bytes of all pinned files."""
        return sum(file.bytes for file in self.files.values())

    def file(self, name: str, where: str) -> File:
        """The pinned digest of a file.

        Raises:
            InputError: it is not in the pin.
        """
        if name not in self.files:
            raise InputError(f"file {name} is not in the pin", where=where, hint="pin again")
        return self.files[name]


class PinnedModel(Pin, kw_only=True):
    """One pinned model."""

    gated: Annotated[
        bool | None,
        about(
            "Whether the hub asks for terms to be accepted; such models are refused. Null "
            "where nobody could be asked."
        ),
    ]
    private: Annotated[
        bool | None,
        about(
            "Whether the repository is private; such models are refused. Null where nobody "
            "could be asked."
        ),
    ]
    remote_code: Annotated[
        bool, about("Whether the model brings Python code of its own; only with allow_remote_code.")
    ]


class PinnedText(Pin, kw_only=True):
    """One pinned text."""

    config: Annotated[str | None, about("Configuration of a hub data set; null for its only one.")]
    split: Annotated[str | None, about("Split of a hub data set.")]


class ModelRevisions(Closed, kw_only=True):
    """What a suite runs on, by revision and by the SHA-256 of every file
    (state/model_revisions.json).
    """

    schema: Annotated[
        Literal["invarlock/model-revisions-v1"], about("Name and version of this format.")
    ]
    generated_at: Annotated[
        Annotated[str, matches(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
        | UnsetType,
        about("UTC time of pinning; written only where SOURCE_DATE_EPOCH fixes it."),
    ] = UNSET
    suite: Annotated[Text, about("Name of the suite.")]
    model_list: Annotated[
        list[Text], Meta(min_length=1), EACH_ONCE, about("Model ids in the order of the suite.")
    ]
    models: Annotated[dict[str, PinnedModel], Meta(min_length=1), about("The pinned models by id.")]
    datasets: Annotated[
        dict[str, PinnedText],
        Meta(min_length=1),
        about("The pinned texts by id: kind:name, with ?config=&split= where they were given."),
    ]

    def __post_init__(self) -> None:
        check_each_once(self.model_list, "model_list")


DOCUMENT = ModelRevisions
