"""The variance guard's evidence of one report, for scenarios that ask for it."""

from typing import Annotated, Any, Literal

from invarlock.documents.fields import Binding, Closed, about

TITLE = "ve_probe.json"


class VeProbe(Closed):
    """The variance guard's evidence of one report, for scenarios that ask for it."""

    schema: Annotated[Literal["invarlock/ve-probe-v1"], about("format of this file")]
    probe: Annotated[
        Literal["ve_cross_model_v1"], about("kind of probe: the subject against the baseline")
    ]
    signal: Annotated[bool, about("scales were proposed and the predictive gate passed")]
    signal_reasons: Annotated[list[Any], about("why there is a signal; empty without one")]
    would_enable: Annotated[bool, about("the same as signal, by its published second name")]
    gate_reason: Annotated[str, about("how the predictive gate ended")]
    proposed_scales: Annotated[
        dict[str, Any], about("scale that would restore a module's output variance, by module")
    ]
    predictive_gate: Annotated[dict[str, Any], about("the trial of the scales on held-out windows")]
    ab_test: Annotated[
        dict[str, Any] | None,
        about("windows and point estimates of the trial; null where none was needed"),
    ]
    modules: Annotated[dict[str, Any], about("both runs' statistics by module, as in the report")]
    binding: Annotated[Binding, about("what the probe belongs to")]


DOCUMENT = VeProbe
