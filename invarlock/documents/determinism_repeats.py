"""``analysis/determinism_repeats.json``."""

from typing import Annotated, Literal

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Closed, Count, Sha256, about

TITLE = "One evaluation repeated"


class PrimaryMetricRatio(Closed):
    """Ratio_vs_baseline over the repeats."""

    min: Annotated[float | None, about("smallest; null: never measured")]
    max: Annotated[float | None, about("largest")]
    delta: Annotated[float | None, about("largest less smallest")]


class Field(Closed):
    """One field."""

    values: Annotated[Count, about("values at this pointer in the first report")]
    identical: Annotated[bool, about("whether all reports hold the same")]
    max_abs_delta: Annotated[
        float | None,
        about("largest difference at one position; null: no numbers, or not equally many"),
    ]


class DeterminismRepeats(Closed):
    """One evaluation repeated."""

    schema: Annotated[Literal["invarlock/determinism-repeats-v1"], about("format of this document")]
    requested: Annotated[Count, about("repeats that were asked for")]
    completed: Annotated[Count, about("repeats that measured something")]
    mode: Annotated[Literal["strict", "throughput"], about("determinism level")]
    suite: Annotated[str, about("name of the suite")]
    model_id: Annotated[str, about("the model")]
    edit_name: Annotated[str, about("id of the scenario that was repeated")]
    cert_hashes_match: Annotated[
        bool | None, about("whether all reports have the same bytes; null: fewer than two")
    ]
    cert_hashes: Annotated[
        list[Sha256], about("digest of each report, in the order of the repeats")
    ]
    primary_metric_ratio: PrimaryMetricRatio
    measurements_identical: Annotated[
        bool | None, about("whether every measured field is the same; null: fewer than two")
    ]
    differing: Annotated[list[str], about("fields that differ")]
    fields: Annotated[
        dict[str, Field], about("JSON pointer (* for every item of a list) -> comparison")
    ]
    errors: Annotated[list[str], about("repeats that measured nothing")]
    generated_at: Annotated[
        str | UnsetType, about("time, only when SOURCE_DATE_EPOCH fixes it")
    ] = UNSET


DOCUMENT = DeterminismRepeats
