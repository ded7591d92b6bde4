"""What null edits change in the measurements of a baseline, by run and family."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import (
    BlockKind,
    Calibration,
    Closed,
    Count,
    FamilyName,
    Geometry,
    Sha256,
    Text,
    about,
)

TITLE = "calibration_stats.json"


class Run(Closed):
    """Subject against baseline on the windows of one seed; natural logarithms of ratios."""

    edit: Annotated[str, about("The null edit.")]
    seed: Annotated[Count, about("Seed of the windows.")]
    windows_sha256: Annotated[Sha256, about("Digest of the windows file.")]
    drift: Annotated[
        float,
        about("Of (final/preview) perplexity over the baseline's; 0 where accuracy is measured."),
    ]
    spectral: Annotated[
        dict[FamilyName, Annotated[list[float], Meta(min_length=1)]],
        about("Of sigma_max, by family, one value a module in order of names."),
    ]
    rmt: Annotated[
        dict[FamilyName, Annotated[list[float], Meta(min_length=1)]],
        about("Of the activation edge risk, by family, one value a module in order of names."),
    ]
    representation: Annotated[
        dict[BlockKind, Annotated[list[float], Meta(min_length=1)]] | UnsetType,
        about("ln(1 + Gram distance), by kind of block, one value a block in order of names."),
    ] = UNSET


class CalibrationStats(Calibration):
    """What null edits change in the measurements of a baseline, by run and family."""

    schema: Annotated[
        Literal["invarlock/calibration-stats-v1"], about("Name and version of this format.")
    ]
    model_id: Annotated[Text, about("The model.")]
    dataset: Annotated[Geometry, about("The calibration windows.")]
    runs: Annotated[list[Run], Meta(min_length=1), about("One entry an edit and seed.")]


DOCUMENT = CalibrationStats
