"""``reports/guard_value_all_guard_probe_sweep.json``."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Alarm, Closed, Count, Positive, Share, about
from invarlock.reporting.documents.guards import each

TITLE = "What each guard says about the guards' probes"


class PrimaryMetric(Closed):
    """What the metric alone says."""

    kind: Annotated[str | None, about("metric")]
    ratio_vs_baseline: Annotated[float | None, about("ratio; points for accuracy")]
    display_ci: Annotated[list[float] | None, about("interval")]
    limit: Annotated[float | None, about("limit")]
    decision: Annotated[str | None, about("decision")]
    alone_passes: Annotated[bool, about("whether the metric alone would have let it pass")]


class Reading(Closed):
    """One guard."""

    spoke: Annotated[bool, about("it fired")]
    new: Annotated[bool, about("it fired, and did not fire for the no-op")]
    statistic: Annotated[str | None, about("what value is; null: not evaluated")]
    value: Annotated[float | None, about("its value")]
    threshold: Annotated[float | None, about("what it is held against")]
    margin: Annotated[float | None, about("value less threshold")]


class RmtProbe(Closed):
    """The rmt guard's decision; null: not evaluated."""

    stable: Annotated[bool | UnsetType | None, about("stable")] = UNSET
    decision: Annotated[str | UnsetType | None, about("decision")] = UNSET
    max_edge_ratio: Annotated[float | UnsetType | None, about("largest ratio of a module")] = UNSET


class VeProbe(Closed):
    """The variance guard's decision; null: not evaluated."""

    signal: Annotated[bool | UnsetType | None, about("whether it would enable scales")] = UNSET
    status: Annotated[str | UnsetType | None, about("status")] = UNSET
    proposed_scales: Annotated[dict[str, Any] | UnsetType | None, about("module -> scale")] = UNSET


if TYPE_CHECKING:
    Guards: TypeAlias = Closed
else:
    Guards = each("Guards", Reading, "What each guard says.")


class Row(Closed):
    """One evaluation of a probe."""

    model: Annotated[str, about("model id")]
    scenario: Annotated[str, about("scenario id")]
    run: Annotated[Positive, about("number of the run")]
    status: Annotated[str, about("status of the outcome")]
    error_type: Annotated[str, about("kind of damage")]
    parameters: Annotated[dict[str, Any], about("its strength")]
    strictness: Annotated[str, about("what the scenario asks for")]
    primary_guard: Annotated[str, about("the guard it is aimed at")]
    primary_metric: PrimaryMetric
    guards: Guards
    unique: Annotated[str | None, about("the only guard with something new; null: none or several")]
    compared_with_noop: Annotated[
        bool, about("whether the model has a no-op report; without one, new says the same as spoke")
    ]
    rmt_probe: Annotated[RmtProbe | None, about("the rmt guard's decision; null: not evaluated")]
    ve_probe: Annotated[VeProbe | None, about("the variance guard's decision; null: not evaluated")]


class Found(Share):
    """Probes aimed at it, negative controls left out, that it found, in every run."""

    found: Annotated[Count, about("pairs of model and scenario")]


class Worth(Closed):
    """One guard."""

    found: Found
    found_alone: Annotated[Count, about("of these, what no other guard found")]
    metric_alone_passes: Annotated[
        Count, about("of the probes aimed at it, what the metric alone would have let pass")
    ]
    negative_controls: Annotated[
        Alarm,
        about(
            "clean edits and changes too small for any guard (intent negative_control) that"
            " it fired on, in any run"
        ),
    ]


if TYPE_CHECKING:
    Summary: TypeAlias = Closed
else:
    Summary = each("Summary", Worth, "What each guard is worth.")


class GuardValueSweep(Closed):
    """What each guard says about the guards' probes."""

    schema: Annotated[Literal["invarlock/guard-value-sweep-v1"], about("format of this document")]
    core_guard_order: Annotated[list[str], about("the guards")]
    rows: Annotated[list[Row], about("every evaluation of a probe")]
    summary: Summary


DOCUMENT = GuardValueSweep
