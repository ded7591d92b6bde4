"""Thresholds derived for one baseline checkpoint and tier; the YAML file has the same content."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType, field

from invarlock.documents.fields import (
    AboveZero,
    BlockKind,
    Calibration,
    Closed,
    Count,
    FamilyName,
    Geometry,
    NotNegative,
    Positive,
    Sha256,
    Text,
    about,
)

TITLE = "calibrated_preset_<model>.json"


class CalibrationMeta(Calibration):
    """Where the preset comes from."""

    model_name: Annotated[Text, about("The model.")]
    tier: Annotated[str, about("The tier whose thresholds it changes.")]
    num_runs: Annotated[Positive, about("Runs compared with the baseline.")]
    calibration_stats_sha256: Annotated[
        Sha256, about("Digest of the canonical JSON of calibration_stats.json.")
    ]
    drift_mean: Annotated[AboveZero, about("Mean drift of the null edit that drifts most.")]
    drift_std: Annotated[NotNegative, about("Its standard deviation, of the logarithm.")]
    drift_band_compatible: Annotated[
        bool, about("Whether the bound of the drift is within the tier's widest band.")
    ]
    suggested_drift_band: Annotated[
        list[AboveZero], Meta(min_length=2, max_length=2), about("Lower and upper end.")
    ]
    false_alarm: Annotated[AboveZero, about("Share of harmless edits that may exceed a threshold.")]
    confidence: Annotated[AboveZero, about("Of the tolerance bound.")]


class Model(Closed):
    """The model."""

    id: Annotated[str, about("Its id.")]


class DriftBand(Closed):
    """Band of the drift relative to the baseline."""

    min: Annotated[AboveZero, about("Lower end.")]
    max: Annotated[AboveZero, about("Upper end.")]


class PrimaryMetric(Closed):
    """Thresholds of the metric."""

    drift_band: DriftBand


class FamilyCap(Closed):
    """Cap of a family."""

    kappa: Annotated[AboveZero, about("The |z| beyond which a module counts.")]


class Spectral(Closed):
    """Spectral guard."""

    family_caps: Annotated[dict[FamilyName, FamilyCap], about("By family.")]
    tau_by_family: Annotated[
        dict[FamilyName, AboveZero], about("Unit of z by family, in |ln(sigma_s / sigma_b)|.")
    ]
    deadband: Annotated[AboveZero, about("The tier's.")]
    max_caps: Annotated[Count, about("The tier's.")]


class Rmt(Closed):
    """RMT guard."""

    epsilon_by_family: Annotated[
        dict[FamilyName, AboveZero], about("Allowed relative growth of the edge risk.")
    ]


class Representation(Closed):
    """Representation thresholds."""

    limit_by_kind: Annotated[
        dict[BlockKind, AboveZero], about("Largest Gram distance, by kind of block.")
    ]


class Variance(Closed):
    """Variance guard."""

    deadband: Annotated[AboveZero, about("The tier's.")]
    min_effect_lognll: Annotated[NotNegative, about("The tier's.")]


class Guards(Closed):
    """Thresholds of the guards."""

    order: Annotated[list[str], about("The canonical order.")]
    spectral: Spectral
    rmt: Rmt
    variance: Variance
    representation: Representation | UnsetType = UNSET


class Edit(Closed):
    """Moments of one null edit."""

    n: Annotated[
        Positive,
        about("Values that vary independently at best: modules, or seeds where there are more."),
    ]
    mean: Annotated[float, about("Mean of the logarithms.")]
    sd: Annotated[NotNegative, about("Their standard deviation.")]
    max: Annotated[float, about("The largest; of the absolute values for spectral and drift.")]


class NullStatisticsSpectral(Closed):
    """One family."""

    modules: Annotated[Positive, about("Modules that are tested at once.")]
    edits: Annotated[dict[str, Edit], Meta(min_length=1), about("Moments by null edit.")]


class NullStatistics(Closed):
    """What the derivation starts from."""

    spectral: Annotated[
        dict[FamilyName, NullStatisticsSpectral], about("ln of the ratio of sigma_max, by family.")
    ]
    rmt: Annotated[
        dict[FamilyName, NullStatisticsSpectral], about("ln of the ratio of edge risks, by family.")
    ]
    drift: NullStatisticsSpectral
    representation: Annotated[
        dict[BlockKind, NullStatisticsSpectral] | UnsetType,
        about("ln(1 + Gram distance), by kind of block."),
    ] = UNSET


class Override(Closed):
    """One override."""

    path: Annotated[str, about("Path in the policy.")]
    value: Annotated[
        AboveZero, about("In the unit of that path: tau, epsilon, or an end of the drift band.")
    ]


class Derivation(Closed):
    """One threshold, as relative change."""

    statistic: Annotated[
        Literal["drift", "spectral", "rmt", "representation"], about("What is bounded.")
    ]
    family: Annotated[str | None, about("Family of modules; null for drift.")]
    null_bound: Annotated[
        float | None,
        about("Tolerance bound of the null edits; null with too few values or none that moved."),
    ]
    from_edit: Annotated[str | None, about("The null edit with the largest bound.")]
    floor: Annotated[AboveZero, about("The smallest value that the tier admits.")]
    ceiling: Annotated[AboveZero, about("The largest value that the tier admits.")]
    tier_value: Annotated[AboveZero, about("The tier's own value.")]
    value: Annotated[AboveZero, about("The value of this preset.")]
    clipped: Annotated[
        Literal[None, "floor", "ceiling"],
        about("Which limit of the tier took the place of the bound."),
    ]
    direction: Annotated[
        Literal["tightened", "loosened", "unchanged"], about("Against the tier's own value.")
    ]
    overrides: Annotated[list[Override], about("What it sets in the policy.")]


class CalibratedPreset(Closed):
    """The preset of one model."""

    schema: Annotated[
        Literal["invarlock/calibrated-preset-v1"], about("Name and version of this format.")
    ]
    calibration_meta: CalibrationMeta = field(name="_calibration_meta")
    model: Model
    dataset: Annotated[Geometry, about("The calibration windows.")]
    primary_metric: PrimaryMetric
    guards: Guards
    null_statistics: NullStatistics
    derivation: Annotated[
        list[Derivation],
        Meta(min_length=1),
        about("Every threshold with the tier's own value and the bound it comes from."),
    ]
    clipped: Annotated[
        list[str],
        about(
            "Thresholds whose bound is above what the tier admits: harmless edits may exceed them."
        ),
    ]


DOCUMENT = CalibratedPreset
