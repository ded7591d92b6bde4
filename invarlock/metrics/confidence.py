"""How well an interval pins the result down: a label, and what the same evidence would pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType

from invarlock.documents.fields import Open, about
from invarlock.metrics.bootstrap import normal
from invarlock.metrics.kind import Block
from invarlock.metrics.kinds import METRICS
from invarlock.policy import ConfidencePolicy

MIN_REPLICATES = 200  # with fewer the limits themselves are noise
POWER = {"pass_50": 0.5, "pass_95": 0.95}  # probabilities of passing


class Confidence(Open):
    """Confidence label."""

    label: Annotated[Literal["High", "Medium", "Low"], about("label")]
    basis: Annotated[str, about("what it is based on")]
    width: Annotated[float | UnsetType, about("width of the interval")] = UNSET
    threshold: Annotated[float | UnsetType, about("width allowed")] = UNSET
    unstable: Annotated[bool | UnsetType, about("unstable")] = UNSET
    pass_50: Annotated[
        float | UnsetType,
        about(
            "true ratio that passes the primary metric with probability 0.5 on as many windows; "
            "reports of a widened interval only"
        ),
    ] = UNSET
    pass_95: Annotated[float | UnsetType, about("the same with probability 0.95")] = UNSET


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


def power(metric: Block) -> dict[str, float]:
    """The true values that pass with 50 and 95 %, on as many windows that vary as much.

    In the unit of the point. Empty without an interval, and where nothing differs, because then
    nothing is known about how differences vary.

    Args:
        metric: a ``primary_metric`` block of a kind whose interval is widened.
    """
    if not metric.get("standard_error"):
        return {}
    kind = METRICS[metric["kind"]]
    return {name: kind.passing(metric, normal().inv_cdf(p)) for name, p in POWER.items()}
