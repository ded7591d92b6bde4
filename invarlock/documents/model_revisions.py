"""What a suite runs on, by revision and by the SHA-256 of every file
(state/model_revisions.json).
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import (
    EACH_ONCE,
    Closed,
    Commit,
    File,
    Source,
    Text,
    about,
    check_each_once,
    matches,
)

TITLE = "Pinned models and texts"


class Model(Closed):
    """One pinned model."""

    source: Annotated[
        Source,
        about("Where it comes from; never a path of the machine that pinned it."),
    ]
    revision: Annotated[
        Commit | None,
        about(
            "Commit of the hub repository, 40 hexadecimal digits; null for packages and "
            "local files."
        ),
    ]
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
        bool,
        about("Whether the model brings Python code of its own; only with allow_remote_code."),
    ]
    license: Annotated[
        str | None,
        about("Licence as its source states it; null where it states none."),
    ]
    files: Annotated[
        dict[str, File],
        Meta(min_length=1),
        about(
            "Every file of the model by name: of a packaged model the file it is converted from."
        ),
    ]


class Dataset(Closed):
    """One pinned text."""

    source: Annotated[
        Source,
        about("Where it comes from; never a path of the machine that pinned it."),
    ]
    revision: Annotated[
        Commit | None,
        about(
            "Commit of the hub repository, 40 hexadecimal digits; null for packages and "
            "local files."
        ),
    ]
    config: Annotated[str | None, about("Configuration of a hub data set; null for its only one.")]
    split: Annotated[str | None, about("Split of a hub data set.")]
    license: Annotated[
        str | None,
        about("Licence as its source states it; null where it states none."),
    ]
    files: Annotated[dict[str, File], Meta(min_length=1), about("Every file of the text by name.")]


class ModelRevisions(Closed, kw_only=True):
    """What a suite runs on, by revision and by the SHA-256 of every file
    (state/model_revisions.json).
    """

    schema: Annotated[
        Literal["invarlock/model-revisions-v1"],
        about("Name and version of this format."),
    ]
    generated_at: Annotated[
        Annotated[str, matches(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
        | UnsetType,
        about("UTC time of pinning; written only where SOURCE_DATE_EPOCH fixes it."),
    ] = UNSET
    suite: Annotated[Text, about("Name of the suite.")]
    model_list: Annotated[
        list[Text],
        Meta(min_length=1),
        EACH_ONCE,
        about("Model ids in the order of the suite."),
    ]
    models: Annotated[dict[str, Model], Meta(min_length=1), about("The pinned models by id.")]
    datasets: Annotated[
        dict[str, Dataset],
        Meta(min_length=1),
        about("The pinned texts by id: kind:name, with ?config=&split= where they were given."),
    ]

    def __post_init__(self) -> None:
        check_each_once(self.model_list, "model_list")


DOCUMENT = ModelRevisions
