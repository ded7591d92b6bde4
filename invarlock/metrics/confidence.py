"""The confidence label of an accepted comparison: how well its interval pins the result down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType

from invarlock.documents.fields import Open, about
from invarlock.metrics.kinds import METRICS
from invarlock.policy import ConfidencePolicy

MIN_REPLICATES = 200  # with fewer the limits themselves are noise


class Confidence(Open):
    """Confidence label."""

    label: Annotated[Literal["High", "Medium", "Low"], about("label")]
    basis: Annotated[str, about("what it is based on")]
    width: Annotated[float | UnsetType, about("width of the interval")] = UNSET
    threshold: Annotated[float | UnsetType, about("width allowed")] = UNSET
    unstable: Annotated[bool | UnsetType, about("unstable")] = UNSET


class Precision(Struct, frozen=True):
    """What the label depends on."""

    kind: str  # of the primary metric
    display_ci: Sequence[float] | None  # as the metric shows it
    acceptable: bool  # the primary metric
    replicates: int
    floor_met: bool  # of tokens or examples


def confidence(precision: Precision, policy: ConfidencePolicy) -> dict[str, Any]:
    """The ``confidence`` block; the label decides nothing.

    High: acceptable, stable, and the interval at most ``threshold`` wide. Medium: at most twice
    as wide, or High but unstable. Low: all else; being unstable never lifts a label.
    """
    basis, threshold = METRICS[precision.kind].width_limit(policy)
    unstable = precision.replicates < MIN_REPLICATES or not precision.floor_met
    width = precision.display_ci[1] - precision.display_ci[0] if precision.display_ci else None
    label = "Low"
    if precision.acceptable and width is not None and width <= 2 * threshold:
        label = "High" if width <= threshold and not unstable else "Medium"
    return {
        "label": label,
        "basis": basis,
        "width": width,
        "threshold": threshold,
        "unstable": unstable,
    }
