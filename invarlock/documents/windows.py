"""The token windows, or labelled records, that baseline and subject are both measured on
(windows.json).
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from msgspec import UNSET, Meta, UnsetType, defstruct

from invarlock.documents.fields import (
    Closed,
    Commit,
    Count,
    Excluded,
    File,
    Named,
    Positive,
    Sha256,
    Text,
    TokenId,
    about,
    matches,
)
from invarlock.documents.kinds import KINDS

TITLE = "Evaluation windows"
WindowId = Annotated[str, matches("^[0-9a-f]{16}$")]


class Source(Named):
    """The text, as pinned."""

    version: Annotated[str | None, about("Version of the package.")]
    revision: Annotated[
        Commit | None,
        about(
            "Commit of the hub repository, 40 hexadecimal digits; null for packages and "
            "local files."
        ),
    ]
    config: Annotated[str | None, about("Configuration of a hub data set.")]
    split: Annotated[str | None, about("Split of a hub data set.")]
    field: Annotated[Text, about("Column or key that holds the text of a record.")]
    max_samples: Annotated[Positive | None, about("Documents read at most; null for all.")]
    files: Annotated[dict[str, File], Meta(min_length=1), about("Every file of the text by name.")]


class Counts(Closed):
    """How many windows, or records, there are."""

    preview: Annotated[Positive, about("Warm-up windows.")]
    final: Annotated[Positive, about("Scored windows.")]


class Window(Closed):
    """One window."""

    window_id: Annotated[
        WindowId,
        about("First 16 hex digits of SHA-256 over the token ids as little-endian uint32."),
    ]
    cluster: Annotated[
        str,
        matches("^([a-z][a-z0-9_-]{0,31}/)?doc-[0-9]+$"),
        about(
            "The document the window was cut from: doc- and its number in the text, after the "
            "name of the text and a slash where there are slices."
        ),
    ]
    tokens: Annotated[
        tuple[TokenId, ...], Meta(min_length=2), about("Token ids, exactly seq_len of them.")
    ]


class Record(Closed):
    """One labelled record."""

    window_id: Annotated[
        WindowId,
        about(
            "First 16 hex digits of SHA-256 over little-endian uint32s: the label, then prompt and "
            "answers, each after its length."
        ),
    ]
    cluster: Annotated[
        Text,
        about("What the record shares with others: its field cluster, else record- and its id."),
    ]
    record: Annotated[str, about("Its field id, else the number of its line.")]
    prompt: Annotated[tuple[TokenId, ...], Meta(min_length=1), about("Token ids of the prompt.")]
    answers: Annotated[
        tuple[Annotated[tuple[TokenId, ...], Meta(min_length=1)], ...],
        Meta(min_length=1),
        about(
            "Token ids that may follow the prompt: one answer to be matched exactly, or the "
            "choices."
        ),
    ]
    label: Annotated[Count, about("Index of the right answer.")]

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prompt) + max(map(len, self.answers))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every token of the record, prompt first."""
        return sum(self.answers, self.prompt)


class PicturedRecord(Record):
    """One labelled record with a picture."""

    image: Annotated[
        Sha256,
        about(
            "SHA-256 of the file of its picture, which stands under that name in NAME.pictures "
            "beside NAME.json; its 32 bytes end what window_id is over."
        ),
    ]
    text: Annotated[
        Text,
        about(
            "The prompt as the model is asked it, with the mark of the picture: by its chat "
            "template where it has one."
        ),
    ]


class Slice(Closed, kw_only=True):
    """A kind of text, or a length, that is judged by itself."""

    name: Annotated[str, matches("^[a-z][a-z0-9_-]{0,31}$"), about("Its name.")]
    seq_len: Annotated[int, Meta(ge=2), about("Tokens of each of its windows.")]
    source: Source
    n_documents: Annotated[Positive, about("Documents in its text (after max_samples).")]
    counts: Counts


class Windows(Closed, kw_only=True, tag_field="kind"):
    """What both kinds say."""

    schema: Annotated[Literal["invarlock/windows-v1"], about("Name and version of this format.")]
    seq_len: Annotated[int, Meta(ge=2), about("Tokens of every window; of records, at most.")]
    stride: Annotated[
        int,
        Meta(ge=2),
        about(
            "Tokens of text from one window to the next: seq_len, less one where each begins with "
            "bos_token_id; windows do not overlap."
        ),
    ]
    seed: Annotated[int, about("Seed of the choice of documents and windows.")]
    source: Source
    tokenizer_sha256: Annotated[
        Sha256, about("SHA-256 of the canonical JSON content of tokenizer.json.")
    ]
    counts: Counts
    n_documents: Annotated[
        Positive,
        about(
            "Documents in the text (after max_samples), whether or not a window was taken "
            "from them; of records, how many there are."
        ),
    ]
    excluded: Annotated[
        Excluded | UnsetType,
        about(
            "Windows that were not to be chosen, such as those of other purposes; absent "
            "where there are none."
        ),
    ] = UNSET
    slices: Annotated[
        Annotated[list[Slice], Meta(min_length=2)] | UnsetType,
        about(
            "Slices of a text, in the order in which their windows stand in both arms; source, "
            "n_documents, seq_len and stride are then those of the first. Absent: one text."
        ),
    ] = UNSET
    bos_token_id: Annotated[
        TokenId | UnsetType,
        about(
            "Begin-of-text token, the first of every window and of every record's prompt; absent "
            "where there is none."
        ),
    ] = UNSET

    @property
    def of_slices(self) -> list[Slice]:
        """The slices; none where the windows are of one text."""
        return [] if isinstance(self.slices, UnsetType) else self.slices

    @property
    def longest(self) -> int:
        """Tokens of the longest window; of records, at most."""
        return max(self.seq_len, *(part.seq_len for part in self.of_slices), 0)

    @property
    def bos(self) -> int | None:
        """The begin-of-text token at the head of each window; None for none."""
        return None if self.bos_token_id is UNSET else self.bos_token_id

    @property
    def kind(self) -> str:
        """``text``, or the ``windows`` of a metric that has its own."""
        return str(self.__struct_config__.tag)


class TextWindows(Windows, kw_only=True):
    """Windows of a text."""

    preview: Annotated[
        list[Window],
        Meta(min_length=1),
        about("Warm-up windows, in the order they were taken."),
    ]
    final: Annotated[
        list[Window],
        Meta(min_length=1),
        about("Scored windows, in the order they were taken."),
    ]


class RecordWindows(Windows, kw_only=True):
    """Labelled records."""

    preview: Annotated[
        list[Record],
        Meta(min_length=1),
        about("Warm-up records, in the order they were taken."),
    ]
    final: Annotated[
        list[Record],
        Meta(min_length=1),
        about("Scored records, in the order they were taken."),
    ]


class PicturedWindows(Windows, kw_only=True):
    """Labelled records with pictures."""

    processor: Annotated[
        dict[str, File],
        Meta(min_length=1),
        about(
            "The files of the baseline's processor by name; each stands under its SHA-256 in "
            "NAME.pictures."
        ),
    ]
    preview: Annotated[
        list[PicturedRecord],
        Meta(min_length=1),
        about("Warm-up records, in the order they were taken."),
    ]
    final: Annotated[
        list[PicturedRecord],
        Meta(min_length=1),
        about("Scored records, in the order they were taken."),
    ]


_BASES = {"text": TextWindows, "records": RecordWindows, "pictured": PicturedWindows}


def _kind(name: str, of: str) -> Any:
    """The document of one kind of windows."""
    base = _BASES[of]
    return defstruct(name, [], bases=(base,), tag=name, namespace={"__doc__": base.__doc__})


if TYPE_CHECKING:
    WindowSet: TypeAlias = TextWindows | RecordWindows | PicturedWindows
else:
    WindowSet = Union[tuple(_kind(*one) for one in KINDS["windows"].items())]  # noqa: UP007

DOCUMENT = WindowSet
