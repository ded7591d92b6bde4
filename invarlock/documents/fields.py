"""What the fields of several documents are made of.

A document is a struct: ``contracts/<name>.schema.json`` is generated from it, and decoding into it
is what checks a document that is read.
"""

from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct
from msgspec.structs import fields

T = TypeVar("T", bound=Struct)


class Closed(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """An object of these members and no others."""


class Open(Struct, omit_defaults=True):
    """An object that may hold further members, as published ones do."""


def about(text: str) -> Meta:
    """What a field means."""
    return Meta(description=text)


def extended(members: Mapping[str, Any]) -> Callable[[type[T]], type[T]]:
    """Give a struct further members, such as those that a registry brings; a document may lack
    them."""

    def make(kind: type[T]) -> type[T]:
        made: Any = defstruct(
            kind.__name__,
            [(name, member, UNSET) for name, member in members.items()],
            bases=(kind,),
            module=kind.__module__,
            namespace={"__doc__": kind.__doc__},
            kw_only=True,
        )
        return cast(type[T], made)

    return make


def is_added(document: Any, pointer: str) -> bool:
    """Whether a member of a document is ``ADDED``.

    Args:
        document: the type of it.
        pointer: the member's JSON pointer.
    """
    member = document
    for step in pointer.split("/")[1:]:
        found = (_member(one, step) for one in _options(member))
        member = next((one for one in found if one is not None), None)
    return ADDED in getattr(member, "__metadata__", ())


def _options(kind: Any) -> Sequence[Any]:
    """The types that a value may have, without what is said about them."""
    kind = getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _member(kind: Any, step: str) -> Any:
    """The type of a member or item; None where it has no such."""
    if inner := get_args(kind):  # of a list or a dictionary
        return inner[-1]
    if not (isinstance(kind, type) and issubclass(kind, Struct)):
        return None
    return next((one.type for one in fields(kind) if one.encode_name == step), None)


def matches(pattern: str) -> Meta:
    """Text of this form from its first to its last character.

    A contract says ``$`` for the end. Python's ``$`` also matches before a line feed at the end,
    so that the expression which decoding uses says ``\\Z``.
    """
    return Meta(pattern=pattern.removesuffix("$") + r"\Z")


# Said of a member that documents of earlier versions do not have. Such a document may go without it
# where it is compared with what its evidence gives.
ADDED = Meta(extra={"added": True})
EACH_ONCE = Meta(extra_json_schema={"uniqueItems": True})


def check_each_once(values: Sequence[object], name: str) -> None:
    """What ``EACH_ONCE`` says, which decoding does not check by itself.

    Raises:
        ValueError: a value stands in the list twice; decoding makes it an error of the document.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"{name} holds a value twice")


Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0)]
AboveZero = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, le=4294967295)]
Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, matches("^[0-9a-f]{64}$")]
Digest = Annotated[str, matches("^sha256:[0-9a-f]{64}$")]
Commit = Annotated[str, matches("^[0-9a-f]{40}$")]
FamilyName = Annotated[str, matches("^[a-z][a-z_]*$")]
BlockKind = Annotated[str, matches("^(attention|ffn)$")]  # those that tiers have limits of

Category = Literal["clean", "stress", "error_injection", "custom"]
Strictness = Literal["must_pass", "must_fail", "must_detect", "informational"]
Outcome = Literal["pass", "fail", "inconclusive"]
Status = Literal["reported", "rejected_by_invariants", "crashed", "out_of_memory", "timeout"]


class Named(Closed):
    """A source by its name; never a path of the machine that pinned it."""

    kind: Annotated[Literal["package", "local", "hub"], about("Kind of source.")]
    name: Annotated[
        Text,
        about(
            "Name of the package, of the local folder or file (last part of its path), or "
            "OWNER/NAME on the hub."
        ),
    ]


class Source(Named):
    """Where it comes from; never a path of the machine that pinned it."""

    version: Annotated[Text | UnsetType, about("Version of the package.")] = UNSET


class Pinned(Closed, kw_only=True):
    """Something whose source is pinned."""

    source: Source
    revision: Annotated[
        Commit | None,
        about(
            "Commit of the hub repository, 40 hexadecimal digits; null for packages and "
            "local files."
        ),
    ]
    license: Annotated[
        str | None, about("Licence as its source states it; null where it states none.")
    ]


class File(Closed):
    """Size and digest of the file of that name."""

    bytes: Annotated[Count, about("Size in bytes.")]
    sha256: Annotated[Sha256, about("SHA-256 of the file's bytes, lower-case hex.")]


class Geometry(Closed):
    """The calibration windows."""

    provider: Annotated[Text, about("Kind and name of the text.")]
    split: Annotated[str | None, about("Split of a hub data set.")]
    seq_len: Annotated[int, Meta(ge=2), about("Tokens of a window.")]
    stride: Annotated[int, Meta(ge=2), about("Tokens from one window to the next.")]
    preview_n: Annotated[Positive, about("Warm-up windows, each seed.")]
    final_n: Annotated[Positive, about("Scored windows, each seed.")]


class Calibration(Closed):
    """What null edits were made and measured of a baseline."""

    checkpoint_sha256: Annotated[Sha256, about("Digest of the baseline checkpoint.")]
    dtype: Annotated[str, about("Arithmetic of the runs.")]
    device: Annotated[str, about("Device of the runs.")]
    null_edits: Annotated[
        list[Text],
        Meta(min_length=1),
        EACH_ONCE,
        about("Null edits: noop is the baseline in other batches, the others are edit specs."),
    ]
    seeds: Annotated[
        list[Count], Meta(min_length=1), EACH_ONCE, about("Seeds of the calibration windows.")
    ]

    def __post_init__(self) -> None:
        check_each_once(self.null_edits, "null_edits")
        check_each_once(self.seeds, "seeds")


class Excluded(Closed):
    """Windows that were not to be chosen, such as those of other purposes; absent: none."""

    windows: Annotated[Positive, about("Number of different windows.")]
    ids_sha256: Annotated[
        Sha256, about("SHA-256 of the canonical JSON list of their sorted window_id values.")
    ]


class Needed(Open):
    """Evidence of one kind."""

    what: Annotated[
        str,
        about(
            "tokens, preview_windows, final_windows, final_windows_to_decide, examples, "
            "examples_to_decide, documents, replicates or alpha"
        ),
    ]
    have: Annotated[float, about("how much there is")]
    need: Annotated[float, about("how much there has to be (alpha: at most)")]
    slice: Annotated[str | UnsetType, about("of which slice; absent: of all windows")] = UNSET


class EvidenceNeeded(Closed):
    """Evidence of one kind."""

    what: Annotated[str, about("what of")]
    have: Annotated[float, about("how much there is")]
    need: Annotated[float, about("how much there has to be (alpha: at most)")]
    slice: Annotated[str | UnsetType, about("of which slice; absent: of all windows")] = UNSET


class Share(Closed):
    """How many of all, with an exact interval."""

    total: Annotated[Count, about("of how many")]
    lower: Annotated[float | None, about("lower bound; null when total is 0")]
    upper: Annotated[float | None, about("upper bound; null when total is 0")]
    level: Annotated[float, about("confidence level")]


class Alarm(Share):
    """How many of all were flagged, with an exact interval."""

    flagged: Annotated[Count, about("how many")]


class Counted(Closed):
    """One signal."""

    flagged: Annotated[Count, about("evaluations in which it fired")]
    unique: Annotated[Count, about("evaluations in which no other one fired")]


class Binding(Closed):
    """What the probe belongs to."""

    report_sha256: Annotated[str, about("SHA-256 of the report's canonical JSON")]
    baseline_checkpoint_sha256: Annotated[str, about("digest of the baseline checkpoint")]
    subject_checkpoint_sha256: Annotated[str, about("digest of the subject checkpoint")]
    windows_sha256: Annotated[str, about("digest of windows.json")]


class Decided(Open):
    """What the block of every guard in a report says."""

    evaluated: Annotated[bool | UnsetType, about("the guard was evaluated")] = UNSET
    passed: Annotated[bool | UnsetType, about("its decision is not block")] = UNSET
    decision: Annotated[str | UnsetType, about("allow, monitor or block")] = UNSET


class Judged(Decided):
    """The same, with words for it."""

    reason: Annotated[str | UnsetType, about("why it was not evaluated")] = UNSET
    status: Annotated[str | UnsetType, about("short state")] = UNSET


class Measured(Judged):
    """The same, with how it was measured."""

    measurement_contract: Annotated[dict[str, Any] | UnsetType, about("how it was measured")] = (
        UNSET
    )
    measurement_contract_hash: Annotated[
        str | UnsetType, about("first 16 hex of SHA-256 over the contract's sorted JSON")
    ] = UNSET
    baseline_measurement_contract_hash: Annotated[
        str | UnsetType | None, about("that of the baseline run")
    ] = UNSET
    measurement_contract_match: Annotated[
        bool | UnsetType, about("both runs measured in the same way")
    ] = UNSET
