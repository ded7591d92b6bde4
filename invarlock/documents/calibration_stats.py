"""What null edits change in the measurements of a baseline, by run and family."""

from typing import Annotated, Literal

from msgspec import Meta

from invarlock.documents.fields import (
    EACH_ONCE,
    Closed,
    Count,
    FamilyName,
    Geometry,
    Sha256,
    Text,
    about,
    check_each_once,
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


class CalibrationStats(Closed):
    """What null edits change in the measurements of a baseline, by run and family."""

    schema: Annotated[
        Literal["invarlock/calibration-stats-v1"], about("Name and version of this format.")
    ]
    model_id: Annotated[Text, about("The model.")]
    checkpoint_sha256: Annotated[Sha256, about("Digest of the baseline checkpoint.")]
    dtype: Annotated[str, about("Arithmetic of the runs.")]
    device: Annotated[str, about("Device of the runs.")]
    dataset: Annotated[Geometry, about("The calibration windows.")]
    null_edits: Annotated[
        list[Text],
        Meta(min_length=1),
        EACH_ONCE,
        about("Null edits: noop is the baseline in other batches, the others are edit specs."),
    ]
    seeds: Annotated[
        list[Count], Meta(min_length=1), EACH_ONCE, about("Seeds of the calibration windows.")
    ]
    runs: Annotated[list[Run], Meta(min_length=1), about("One entry an edit and seed.")]

    def __post_init__(self) -> None:
        check_each_once(self.null_edits, "null_edits")
        check_each_once(self.seeds, "seeds")


DOCUMENT = CalibrationStats
