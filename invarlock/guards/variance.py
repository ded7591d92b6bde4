"""Variance guard: did a projection's output grow or shrink, and would undoing it help?

For the projections that leave a feed-forward block: variance of the output over tokens, mean
over features, subject against baseline. ``scale = sqrt(var_b / var_s)`` would restore it; where
it leaves the deadband it is proposed and tried on held-out windows through a hook, the weights
are not touched. The trial is a paired comparison of log-losses with and without the scale: the
predictive gate passes where the one-sided upper bound (BCa over documents) of the mean
difference lies below ``-min_effect``. Then the guard has fired: something is wrong that a
number would mend. It never blocks: the damage itself is for the other gates to judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import asdict

from invarlock.documents.fields import Closed, Measured, Open, about
from invarlock.formats.execution import TRANSFORMERS
from invarlock.guards.guard import (
    NEEDS_BOTH,
    SEPARATE,
    Block,
    CheckpointRun,
    Guard,
    Probe,
    ProbeFile,
    Run,
    Runs,
    Statistic,
    guarded_windows,
    statistic,
    warning,
)
from invarlock.guards.rmt import Activation, activations_of, by_columns, paired_table
from invarlock.guards.weight_stats import rounded
from invarlock.metrics.bootstrap import bca_interval, cluster_sums
from invarlock.pages.changes import largest_changes, module_changes, module_plot
from invarlock.pages.parts import (
    LISTED,
    PASS,
    WARNING,
    Advice,
    Check,
    Section,
    Table,
    not_evaluated,
    unmeasured,
)
from invarlock.pages.reading import Report, block, evaluated
from invarlock.pages.wording import fixed, number, share, yes
from invarlock.policy import Policy, VariancePolicy
from invarlock.roles import architecture_of

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    from invarlock import numpy_on_use as np

HELD_OUT_SHARE = 0.2  # of all windows; from the preview arm, none of them a calibration window
REPLICATES, SEED = 2000, 211

CONTRACT = {
    "kind": "output_variance",
    "estimator": {"type": "mean_over_features", "over": "tokens", "dtype": "float32"},
    "held_out_windows": {"share": HELD_OUT_SHARE, "arm": "preview"},
    "bootstrap": {"method": "bca_cluster_ratio", "replicates": REPLICATES, "seed": SEED},
}


class Trial(Struct, frozen=True):
    """Held-out windows with and without the proposed scales; sequences (windows,)."""

    window_ids: Sequence[str]
    clusters: Sequence[str]
    token_counts: Sequence[int]
    plain_nll: Sequence[float]  # nats, as measured in the pass
    scaled_nll: Sequence[float]  # nats, through the hook


def trial_json(trial: Trial) -> dict[str, Any]:
    """A trial as it is recorded; losses that are not finite become null."""
    columns = {name: list(column) for name, column in asdict(trial).items()}
    for name in ("plain_nll", "scaled_nll"):
        columns[name] = [v if math.isfinite(v) else None for v in columns[name]]
    return columns


def trial_from(recorded: Mapping[str, Sequence[Any]]) -> Trial:
    """The inverse of :func:`trial_json`."""
    columns = {name: list(recorded[name]) for name in Trial.__struct_fields__}
    for name in ("plain_nll", "scaled_nll"):
        columns[name] = [math.nan if v is None else float(v) for v in columns[name]]
    return Trial(**columns)


def targets(seen: Sequence[Activation], tap: str | None) -> list[Activation]:
    """What feed-forward blocks write, of a mixture of experts their sum.

    Args:
        seen: the places of a run.
        tap: of a report whose run watched every projection, the name of those that leave a block;
            fused experts leave one too. Attention may have an output projection of the same name
            (BERT's ``output.dense``).
    """
    if tap is None:
        return [a for a in seen if a.family in ("ffn", "expert")]
    ends = ("." + tap, ".experts")
    return [a for a in seen if a.name.endswith(ends) and a.family != "attn"]


def propose(
    baseline: Sequence[Activation], subject: Sequence[Activation], policy: VariancePolicy
) -> dict[str, float]:
    """The scales that would restore the baseline's output variance, by module.

    Args:
        baseline: the targets of the baseline run.
        subject: the targets of the subject run.
        policy: deadband and how many modules at most.
    """
    before = {a.name: a.variance for a in baseline}
    scales = {
        s.name: math.sqrt(before[s.name] / s.variance)
        for s in subject
        if 0 < before.get(s.name, 0) < math.inf and 0 < s.variance < math.inf
    }
    outside = [name for name, scale in scales.items() if abs(scale - 1) > policy.deadband]
    # by |ln scale|, so that an output of half the size is as far off as one of twice the size
    outside.sort(key=lambda name: (-abs(math.log(scales[name])), name))
    kept = outside[: policy.max_adjusted_modules or None]
    # The trial multiplies by the recorded digits, so that a reader of the report gets the same.
    return {name: float(f"{scales[name]:.9g}") for name in sorted(kept)}


def judge(
    baseline: Sequence[Activation],
    subject: Sequence[Activation],
    trial: Trial | None,
    policy: VariancePolicy,
) -> dict[str, Any]:
    """Compare the targets of two runs and decide the predictive gate.

    Returns:
        the decided part of the report's ``variance`` block.
    """
    scales = propose(baseline, subject, policy)
    gate = _predictive_gate(scales, trial, policy)
    signal = bool(scales) and gate["passed"]
    return {
        "evaluated": True,
        # Never a failure: that a scale would help shows a defect. How much harm it does, the metric
        # says, and a subject better than its baseline may have other variances.
        "passed": True,
        "decision": "monitor" if scales else "allow",
        "status": "signal" if signal else "proposed" if scales else "ok",
        "enabled": False,
        "signal": signal,
        "deadband": policy.deadband,
        "proposed_scales": scales,
        "predictive_gate": gate,
        **({} if trial is None else {"ab_test": _ab_test(trial)}),
    }


def _predictive_gate(
    scales: Mapping[str, float], trial: Trial | None, policy: VariancePolicy
) -> dict[str, Any]:
    gate: dict[str, Any] = {"evaluated": False, "passed": False, "sided": "one"}
    gate |= {"alpha": policy.alpha, "min_effect_lognll": policy.min_effect_lognll}
    if not scales:
        return {**gate, "reason": "no_scales"}
    if trial is None or len(set(trial.clusters)) < 2:  # documents are drawn; one has no spread
        return {**gate, "reason": "insufficient_coverage"}
    difference = np.asarray(trial.scaled_nll, float) - np.asarray(trial.plain_nll, float)
    if not np.isfinite(difference).all():
        return {**gate, "reason": "ci_unavailable"}
    sums = cluster_sums(trial.clusters, difference, np.asarray(trial.token_counts, float))
    # the two-sided interval of twice the level has the one-sided bound as its upper end
    interval = bca_interval(*sums, replicates=REPLICATES, alpha=2 * policy.alpha, seed=SEED)
    assert interval is not None
    mean, low, high = interval.point, interval.low, interval.high
    passed = high < 0 and high <= -policy.min_effect_lognll
    if passed:
        reason = "ci_gain_met"
    elif mean >= 0:
        reason = "mean_not_negative"
    else:
        reason = "ci_contains_zero" if high >= 0 else "gain_below_threshold"
    found = {"mean_delta": mean, "delta_ci": [low, high], "gain_ci": [-high, -low]}
    return {**gate, "evaluated": True, "passed": passed, "reason": reason, **found}


def _ab_test(trial: Trial) -> dict[str, Any]:
    tokens = sum(trial.token_counts)
    return {
        "seed": SEED,
        "windows_used": len(trial.window_ids),
        "provenance": {"window_ids": list(trial.window_ids)},
        "point_estimates": {
            "logloss_plain": rounded(math.fsum(trial.plain_nll) / tokens),
            "logloss_scaled": rounded(math.fsum(trial.scaled_nll) / tokens),
        },
    }


# --- a run -------------------------------------------------------------------------------------


def tap_of(config: Mapping[str, Any]) -> str:
    """Name of the projection that leaves a feed-forward block; empty if it is not known."""
    known = architecture_of(config)
    return known.ffn_output if known else ""


@contextmanager
def scaled_outputs(model: torch.nn.Module, scales: Mapping[str, float]) -> Iterator[None]:
    """Multiply the outputs of modules inside the block; their weights stay as they are."""
    modules = dict(model.named_modules())

    def hook(scale: float) -> Any:
        def scaled(_module: object, _inputs: object, output: Any) -> Any:
            if isinstance(output, tuple):  # a mixture of experts may give its router's logits too
                return (output[0] * scale, *output[1:])
            return output * scale

        return scaled

    hooks = [modules[name].register_forward_hook(hook(s)) for name, s in scales.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class TrialProbe(Probe):
    """Held-out windows once more, with the outputs of modules scaled."""

    def __init__(self) -> None:
        self.trial: Trial | None = None  # None: nothing to try

    def after(self, run: CheckpointRun) -> None:
        """Propose scales for a subject, and try them."""
        if run.baseline_activations is None or run.limits is None or run.again is None:
            return
        before, mine = targets(run.baseline_activations, None), targets(run.activations, None)
        scales = propose(before, mine, run.limits.variance)
        if not scales:
            return
        tried = run.again(scaled_outputs(run.model, scales), HELD_OUT_SHARE)
        if tried is not None:
            self.trial = Trial(**tried)
            run.trial_tokens += sum(self.trial.token_counts)

    def record(self, run: CheckpointRun) -> Block:
        """The name of the projections, and the trial."""
        trial = None if self.trial is None else trial_json(self.trial)
        return {"tap": tap_of(run.checkpoint.config), "trial": trial}


# --- a report ----------------------------------------------------------------------------------


def _probe_document(block: Mapping[str, Any]) -> Block:
    """The members of ``ve_probe.json``."""
    gate = block["predictive_gate"]
    return {
        "schema": "invarlock/ve-probe-v1",
        "probe": "ve_cross_model_v1",
        "signal": block["signal"],
        "signal_reasons": [gate["reason"]] if block["signal"] else [],
        "would_enable": block["signal"],
        "gate_reason": gate["reason"],
        "proposed_scales": block["proposed_scales"],
        "predictive_gate": gate,
        "ab_test": block.get("ab_test"),
        "modules": block["modules"],
    }


class PredictiveGate(Open):
    """Whether the proposed scales lower the loss on held-out windows."""

    evaluated: Annotated[bool | UnsetType, about("there was a trial with an interval")] = UNSET
    passed: Annotated[bool | UnsetType, about("they do")] = UNSET
    reason: Annotated[str | UnsetType, about("what decided")] = UNSET
    sided: Annotated[str | UnsetType, about("one: only the upper bound decides")] = UNSET
    alpha: Annotated[float | UnsetType, about("level of that bound")] = UNSET
    min_effect_lognll: Annotated[float | UnsetType, about("least gain, nats a token")] = UNSET
    mean_delta: Annotated[float | UnsetType, about("mean change of the loss, nats a token")] = UNSET
    delta_ci: Annotated[list[Any] | UnsetType, about("its bounds, each at level alpha")] = UNSET
    gain_ci: Annotated[list[Any] | UnsetType, about("the same with the sign of a gain")] = UNSET


class VarianceBlock(Measured):
    """Output variance."""

    enabled: Annotated[
        bool | UnsetType,
        about("whether scales were applied to the subject; never"),
    ] = UNSET
    signal: Annotated[
        bool | UnsetType,
        about("a scale is proposed and the predictive gate passed: the guard fires"),
    ] = UNSET
    deadband: Annotated[float | UnsetType, about("scale - 1 that counts as none")] = UNSET
    proposed_scales: Annotated[
        dict[str, Any] | UnsetType,
        about("per module: sqrt of baseline over subject output variance"),
    ] = UNSET
    predictive_gate: PredictiveGate | UnsetType = UNSET
    ab_test: Annotated[
        dict[str, Any] | UnsetType,
        about("seed, windows and mean losses of the trial"),
    ] = UNSET
    tap: Annotated[
        str | UnsetType, about("name of the projections that leave a feed-forward block")
    ] = UNSET
    target_module_names: Annotated[
        list[Any] | UnsetType,
        about("the modules that are looked at"),
    ] = UNSET
    trial: Annotated[
        dict[str, Any] | UnsetType | None,
        about(
            "held-out windows with and without the scales, nats, as parallel lists; null: "
            "nothing was tried"
        ),
    ] = UNSET
    modules: Annotated[
        dict[str, Any] | UnsetType,
        about("name, family, layer and output variance of both runs as parallel lists"),
    ] = UNSET


class ProbeForm(Closed, tag_field="kind", tag="ve_probe"):
    """True when the field of ve_probe.json is equal or large enough."""

    field: Annotated[str, about("a key of the sidecar")]
    expected: Annotated[
        bool | str | int | float | UnsetType,
        about("the value that counts as a hit"),
    ] = UNSET
    min: Annotated[float | UnsetType, about("the smallest value that counts as a hit")] = UNSET


class Variance(Guard):
    """Output variance of the projections that leave a feed-forward block; it never blocks."""

    name = "variance"
    title = "Variance"
    advice = Advice(
        "A scale would win back some of the loss",
        "Multiply the matrix that is named by the scale in the guard's section, and evaluate"
        " again.",
    )
    block = VarianceBlock
    detector_forms = (ProbeForm,)
    core = True
    policy_key = "variance"
    contract = CONTRACT
    phase = "held_out_windows"
    tries = True
    believed = ("/variance/modules",)
    probe_file = ProbeFile(
        file="ve_probe.json",
        contract="ve-probe",
        detector="ve_probe",
        members=("signal", "status", "proposed_scales"),
        write=_probe_document,
    )

    def probe(self) -> Probe:
        """A fresh probe for one run."""
        return TrialProbe()

    def _targets(self, runs: Runs) -> tuple[list[Activation], list[Activation]]:
        """Those of the baseline and of the subject."""

        def of(run: Run) -> list[Activation]:
            tap = self.recorded(run).get("tap", "") if by_columns(runs) else None
            return targets(activations_of(run), tap)

        return of(runs.baseline), of(runs.subject)

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The targets of both runs, and the subject's trial."""
        recorded = self.recorded(runs.subject)["trial"]
        trial = trial_from(recorded) if recorded else None
        before, mine = self._targets(runs)
        found = judge(before, mine, trial, policy.variance)
        if runs.separate and found["proposed_scales"]:
            found["predictive_gate"]["reason"] = NEEDS_BOTH  # no run has tried them
        return found

    def statistics(self, runs: Runs) -> Block:
        """Variances of both runs, and the trial."""
        recorded, (before, mine) = self.recorded(runs.subject), self._targets(runs)
        return {
            "tap": recorded["tap"],
            "target_module_names": [target.name for target in mine],
            "trial": recorded["trial"],
            "modules": paired_table(before, mine, "variance"),
        }

    def warnings(self, block: Mapping[str, Any]) -> Iterator[Block]:
        """A warning for every proposed scale."""
        for module, scale in block.get("proposed_scales", {}).items():
            text = f"{module}: scale {scale:.4f} would restore its output variance" + (
                " and lowers the loss" if block["signal"] else ""
            )
            yield warning(self.name, "new_predictive_signal", text) | {"module": module}

    def subject_records(self, report: Report) -> Iterator[Block]:
        """The subject's record; documents and tokens of the trial come from the warm-up windows."""
        recorded = report[self.name]
        trial, preview = recorded["trial"], report["evaluation_windows"]["preview"]
        if trial is not None:
            place = {window: row for row, window in enumerate(preview["window_ids"])}
            rows = [place[window] for window in trial["window_ids"]]
            same = (("clusters", "clusters"), ("token_counts", "token_counts"),
                    ("plain_nll", "nll_sum"))  # fmt: skip
            own = {key: trial[key] for key in ("window_ids", "scaled_nll")}
            trial = own | {mine: [preview[theirs][i] for i in rows] for mine, theirs in same}
        yield {"tap": recorded["tap"], "trial": trial}

    def baseline_record(self, report: Report) -> Block | None:
        """The name of the projections; the RMT guard's record holds the activations."""
        return {"tap": report[self.name]["tap"]}

    def impossible(self, report: Report) -> Iterator[str]:
        """Lines where scales are proposed and the trial is not on held-out warm-up windows."""
        preview = guarded_windows(report)
        used, recorded = report["rmt"]["calibration"]["window_ids"], report[self.name]
        trial = recorded["trial"]
        if trial is None:
            separate = block(report, "context").get("runs") == SEPARATE
            # the modules of another program cannot be scaled
            backend = block(block(report, "meta"), "execution").get("backend", TRANSFORMERS)
            tried = not separate and backend == TRANSFORMERS
            if recorded.get("proposed_scales") and len(used) < len(preview) and tried:
                yield f"/{self.name}/trial is missing, although scales are proposed"
            return
        tried = trial["window_ids"]
        if len(set(tried)) != len(tried) or not set(tried) <= set(preview) - set(used):
            yield f"/{self.name}/trial does not name held-out warm-up windows"

    def fired(self, report: Report) -> dict[str, bool]:
        """Whether a proposed scale lowered the loss."""
        signal = block(report, self.name).get("signal") is True
        return {self.name: signal and evaluated(report, self.name)}

    def statistic(self, block: Mapping[str, Any]) -> Statistic | None:
        """The lower bound of the gain in log loss."""
        gate = block.get("predictive_gate")
        gate = gate if isinstance(gate, Mapping) else {}
        interval = gate.get("gain_ci") or [None]
        return statistic("gain_ci_low", interval[0], gate.get("min_effect_lognll"))

    def check(self, report: Report) -> Check:
        """Output variance; this guard reports and never blocks."""
        section = block(report, self.name)
        if not evaluated(report, self.name):
            return unmeasured(report, self.name, self.title)
        scales, gate = block(section, "proposed_scales"), block(section, "predictive_gate")
        fired = section.get("signal") is True or section.get("passed") is False
        note = "no output variance left the deadband"
        if scales:
            gain = number(gate.get("mean_delta"))
            reason = str(gate.get("reason", "not made")).replace("_", " ")
            note = f"held-out test: {reason}"
            note += f", loss changes by {fixed(gain)} nats" if gain is not None else ""
        return Check(
            name=self.title,
            status=WARNING if fired else PASS,
            measured=f"scales proposed: {len(scales)}",
            threshold=f"scales within {share(section.get('deadband'))} of 1",
            note=note + "; never blocks",
        )

    def section(self, report: Report) -> Section:
        """The outputs of the target projections and the scales that would restore them."""
        title, section = "Variance guard", block(report, self.name)
        if not evaluated(report, self.name):
            return not_evaluated(report, self.name, title)
        changes = module_changes(report, self.name, "variance")
        deadband = number(section.get("deadband"))
        bounds = _limits(section, {c.family for c in changes})
        scales, gate = block(section, "proposed_scales"), block(section, "predictive_gate")
        moved = [c for c in changes if c.log_ratio != 0.0]
        proposed = Table(
            caption=f"Proposed scales ({min(2 * LISTED, len(scales))} of {len(scales)})",
            header=("Module", "Scale"),
            rows=tuple((str(m), fixed(s)) for m, s in sorted(scales.items())[: 2 * LISTED]),
        )
        gain = gate.get("gain_ci")
        interval = " to ".join(map(fixed, gain)) if isinstance(gain, list) else "-"
        return Section(
            id=self.name,
            title=title,
            notes=(
                "This guard reports what a scale would mend; it changes no weight and blocks "
                "nothing.",
            ),
            facts=(
                ("Deadband of a scale", share(deadband)),
                ("Scales proposed", str(len(scales))),
                ("Held-out test", str(gate.get("reason", "not made")).replace("_", " ")),
                ("Gain, nats per token", interval),
                ("Speaks", yes(section.get("signal"))),
            ),
            plots=module_plot("output-variance", "Output variance per layer", changes, bounds),
            tables=(
                *((proposed,) if scales else ()),
                *largest_changes(moved, ("Module", "Family", "Output variance")),
            ),
        )


def _limits(section: Mapping[str, Any], families: Iterable[str]) -> dict[str, tuple[float, float]]:
    """ln(variance ratio) that needs no scale: sqrt(base / subject) within deadband of 1."""
    deadband = number(section.get("deadband"))
    if deadband is None or not 0 < deadband < 1:
        return {}
    limits = -2 * math.log1p(deadband), -2 * math.log1p(-deadband)
    return dict.fromkeys(families, limits)
