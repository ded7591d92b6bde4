"""The RMT guard's evidence of one report, for scenarios that ask for it."""

from typing import Annotated, Any, Literal

from invarlock.documents.fields import Binding, Closed, about

TITLE = "rmt_probe.json"


class RmtProbe(Closed):
    """The RMT guard's evidence of one report, for scenarios that ask for it."""

    schema: Annotated[Literal["invarlock/rmt-probe-v1"], about("format of this file")]
    probe: Annotated[
        Literal["rmt_cross_model_v1"], about("kind of probe: the subject against the baseline")
    ]
    passed: Annotated[bool, about("the guard passed")]
    action: Annotated[Literal["allow", "monitor", "block"], about("decision of the guard")]
    stable: Annotated[bool, about("no module's edge risk grew by more than its epsilon")]
    stable_guard: Annotated[bool, about("the same, by its published second name")]
    epsilon_default: Annotated[float, about("allowed growth where the family has none of its own")]
    epsilon_by_family: Annotated[dict[str, Any], about("allowed growth by family")]
    epsilon_violations: Annotated[list[Any], about("modules that grew by more")]
    families: Annotated[dict[str, Any], about("per family the module with the largest ratio")]
    metrics: Annotated[dict[str, Any], about("largest and mean changes over all modules")]
    modules: Annotated[dict[str, Any], about("both runs' statistics by module, as in the report")]
    binding: Annotated[Binding, about("what the probe belongs to")]


DOCUMENT = RmtProbe
