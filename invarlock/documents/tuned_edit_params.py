"""``scenarios/tuned_edit_params.json``, and what a search for such parameters wrote."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType, defstruct, field

from invarlock.documents.fields import Closed, Excluded, Positive, Sha256, Text, about
from invarlock.documents.kinds import TUNABLE, Scope, parameter_type

TITLE = "Tuned parameters of clean edits"


class About(Closed):
    """About the document."""

    schema: Annotated[Literal["tuned_edit_params_v1"], about("format of this document")]
    generated_at: Annotated[
        str | UnsetType | None,
        about(
            "when the search was run; null where that is not recorded, as by invarlock "
            "advanced tune"
        ),
    ] = UNSET
    notes: Annotated[list[str] | UnsetType, about("remarks")] = UNSET


class Selection(Closed):
    """Windows that candidates were chosen on."""

    seed: Annotated[int, about("seed of their choice")]
    windows_sha256: Annotated[Sha256, about("digest of the file windows.json")]
    ids_sha256: Annotated[
        Sha256, about("SHA-256 of the canonical JSON list of their sorted window_id values")
    ]
    preview: Annotated[Positive, about("warm-up windows")]
    final: Annotated[Positive, about("scored windows")]


class Candidate(Closed):
    """One candidate on one set of windows."""

    spec: Annotated[Text, about("spec string of the edit")]
    windows: Annotated[
        Literal["selection", "confirmation", None],
        about("what it was measured on; null where it was not made"),
    ]
    result: Annotated[
        Literal["passed", "failed", "not_applicable"],
        about("not_applicable: the edit does not fit the model"),
    ]
    subject_sha256: Annotated[
        Sha256 | None, about("digest of the edited checkpoint; null where it was not made")
    ]
    ratio: Annotated[
        float | None,
        about("the metric against the baseline: a ratio of perplexities, or points of accuracy"),
    ]
    interval: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | None,
        about("lower and upper bound of it"),
    ]
    decision: Annotated[
        Literal["pass", "fail", "inconclusive", None],
        about("of the metric; null where it was not measured"),
    ]
    reasons: Annotated[
        list[Text], about("why it did not pass: the words of the verdict, or why it was not made")
    ]
    guards: Annotated[list[Text], about("guards that fired")]


class Search(Closed):
    """How invarlock advanced tune found the parameters."""

    model_id: Annotated[Text, about("name of the baseline in the run")]
    baseline_sha256: Annotated[Sha256, about("digest of the baseline checkpoint")]
    preset_sha256: Annotated[
        Sha256 | None, about("digest of the preset's content; null: the tier's own values")
    ]
    tier: Annotated[Text, about("tier of the policy")]
    policy_digest: Annotated[Text, about("digest of the thresholds in force")]
    metric: Annotated[Text, about("what was compared")]
    dtype: Annotated[Text, about("in which the model was run")]
    device: Annotated[Text, about("on which the model was run")]
    seed: Annotated[int, about("of the edits' draws and of the bootstrap")]
    replicates: Annotated[Positive, about("of the bootstrap")]
    alpha: Annotated[float, about("two-sided error of the intervals")]
    invarlock_version: Annotated[Text, about("of the search")]
    selection: Selection
    confirmation: Selection
    training_windows_sha256: Annotated[
        Sha256 | None,
        about("digest of the windows that training edits learned from; null: none were given"),
    ]
    excluded: Annotated[
        Excluded,
        about(
            "windows that neither set holds: those that scenarios are judged on, and those "
            "of training"
        ),
    ]
    candidates: Annotated[
        list[Candidate],
        Meta(min_length=1),
        about("every measurement, in order, from the most compressing candidate on"),
    ]


class Entry(Closed):
    """The tuned parameters of an edit."""

    status: Annotated[Literal["selected", "skipped"], about("only selected entries are used")]
    reason: Annotated[str | UnsetType, about("how the values were found")] = UNSET
    edit_dir_name: Annotated[str | UnsetType, about("published folder name of the edit")] = UNSET
    scope: Annotated[
        Scope | UnsetType, about("ffn, attn, all or embed, with @layer=K or @layers=K")
    ] = UNSET
    search: Annotated[
        Search | UnsetType, about("how the values were found; absent where no search was run")
    ] = UNSET


def _entry(edit_type: str, kind: Mapping[str, Any]) -> Any:
    """The entry of one edit, which holds its own parameters."""
    fields = [
        (name, Annotated[parameter_type(one) | UnsetType, about(one["description"])], UNSET)
        for name, one in kind["parameters"].items()
    ]
    return defstruct(edit_type, fields, bases=(Entry,), namespace={"__doc__": kind["about"]})


if TYPE_CHECKING:
    Edits: TypeAlias = Closed
else:
    Edits = defstruct(
        "Edits",
        [(name, _entry(name, kind) | UnsetType, UNSET) for name, kind in TUNABLE.items()],
        bases=(Closed,),
        namespace={"__doc__": "Edit type -> tuned parameters."},
    )


class TunedEditParams(Closed):
    """Tuned parameters of clean edits."""

    meta: About = field(name="_meta")
    models: Annotated[dict[str, Edits], about("model id -> edit type -> parameters")]
    defaults: Annotated[Edits | UnsetType, about("used for a model without an entry")] = UNSET


DOCUMENT = TunedEditParams
