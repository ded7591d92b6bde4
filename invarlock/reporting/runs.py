"""The evidence of two run reports, read for a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from invarlock.errors import InputError
from invarlock.guards import moe, rmt, rows, spectral, variance
from invarlock.guards.invariants_decision import Failure
from invarlock.metrics import ARMS
from invarlock.metrics.accuracy import Examples, labelled
from invarlock.metrics.distribution import TokenShift, not_evaluated, summarize
from invarlock.metrics.perplexity import Arm, Bootstrap
from invarlock.policy import Policy
from invarlock.reporting.judgement import Evidence, Work
from invarlock.reporting.primary_metric import MetricEvidence

Run = Mapping[str, Any]


@dataclass(frozen=True)
class RecordedShift:
    """The shift of the predictions as a report sums it up, without its tokens."""

    block: Mapping[str, Any]
    columns: Mapping[str, Any]  # per window of the final arm


@dataclass(frozen=True)
class Comparison:
    """Everything a report is built from."""

    baseline: Run
    subject: Run  # may hold no windows
    bootstrap: Bootstrap
    profile: str
    assurance: str = "off"
    reason_not_run: str = ""
    invariants_evaluated: bool = True
    shift: TokenShift | RecordedShift | None = None
    preset_sha256: str | None = None
    accepted: Sequence[str] = ()  # names of findings that the user accepts

    @property
    def ran(self) -> bool:
        """Whether the subject was measured."""
        return bool(self.subject["evaluation_windows"])


def gather(comparison: Comparison, policy: Policy) -> Evidence:
    """The evidence of two runs.

    Raises:
        InputError: they measured other windows or tokens.
    """
    baseline, subject = comparison.baseline, comparison.subject
    _require_paired(comparison)
    return Evidence(
        metric=metric_evidence(comparison),
        distribution=distribution(comparison, policy),
        invariant_failures=_invariant_failures(subject),
        invariants_evaluated=comparison.invariants_evaluated,
        edit_label=str(subject["edit"]["name"]),
        baseline_parts=baseline["checkpoint"],
        subject_parts=subject["checkpoint"],
        accepted=comparison.accepted,
        baseline_modules=_modules(baseline),
        subject_modules=_modules(subject),
        row_tables=_row_tables(subject),
        baseline_activations=_activations(baseline),
        subject_activations=_activations(subject),
        baseline_outputs=_outputs(baseline),
        subject_outputs=_outputs(subject),
        trial=_trial(subject),
        mixture=bool(baseline.get("routers")),
        baseline_routers=moe.from_table(baseline["routers"]) if baseline.get("routers") else [],
        subject_routers=moe.from_table(subject["routers"]) if subject.get("routers") else [],
        top_k=int((baseline.get("routers") or {}).get("top_k", 0)),
        work=_work(subject) if comparison.ran else None,
    )


def pairing(comparison: Comparison) -> tuple[float, float]:
    """Share of windows that both runs list at the same place, and share that is in both arms.

    Of the subject's windows; both are 0 where it was not run.
    """
    base = comparison.baseline["evaluation_windows"]
    mine = comparison.subject["evaluation_windows"]
    if not mine:
        return 0.0, 0.0
    ids = {arm: mine[arm]["window_ids"] for arm in ARMS}
    total = sum(map(len, ids.values()))
    equal = sum(
        a == b for arm in ARMS for a, b in zip(ids[arm], base[arm]["window_ids"], strict=False)
    )
    return equal / total, len(set(ids["preview"]) & set(ids["final"])) / total


def _require_paired(comparison: Comparison) -> None:
    base = comparison.baseline["evaluation_windows"]
    mine = comparison.subject["evaluation_windows"]
    for arm in ARMS if mine else ():
        for column, what in (("window_ids", "windows"), ("token_counts", "tokens")):
            if list(mine[arm][column]) != list(base[arm][column]):
                raise InputError(
                    f"baseline and subject did not measure the same {what}",
                    where=f"/evaluation_windows/{arm}/{column}",
                    hint="measure both on one windows.json",
                )


def metric_evidence(comparison: Comparison) -> MetricEvidence:
    """What both runs recorded for the primary metric."""
    base = comparison.baseline["evaluation_windows"]
    mine = comparison.subject["evaluation_windows"]
    kind = comparison.baseline["meta"]["metric"]
    arms = {arm: arm_from(base[arm], mine[arm]) if mine else None for arm in ARMS}
    examples = None
    if kind == "accuracy" and mine:
        pairs = [examples_from(base[arm], mine[arm]) for arm in ARMS]
        examples = pairs[0], pairs[1]
    return MetricEvidence(
        kind=kind,
        preview=arms["preview"],
        final=arms["final"],
        examples=examples,
        bootstrap=comparison.bootstrap,
        reason_not_run=comparison.reason_not_run,
    )


def arm_from(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> Arm:
    """Join two runs' records of one arm; both list the same windows in the same order."""
    return Arm(
        window_ids=subject["window_ids"],
        clusters=subject["clusters"],
        token_counts=_floats(subject["token_counts"]),
        subject_nll=_floats(subject["nll_sum"]),
        baseline_nll=_floats(baseline["nll_sum"]),
    )


def examples_from(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> Examples:
    """Join two runs' answers on one arm.

    Raises:
        InputError: an example without true or false.
    """
    ids = subject["window_ids"]
    return Examples(
        ids=ids,
        clusters=subject["clusters"],
        subject=labelled(ids, subject["correct"]),
        baseline=labelled(ids, baseline["correct"]),
    )


def distribution(comparison: Comparison, policy: Policy) -> dict[str, Any]:
    """The summarized shift of the predictions."""
    if comparison.shift is None:
        reason = comparison.reason_not_run or "not recorded by this kind of run"
        return not_evaluated(reason, policy.distribution)
    if isinstance(comparison.shift, RecordedShift):
        block = comparison.shift.block
        if block["evaluated"] is not True:
            return not_evaluated(str(block["reason"]), policy.distribution)
        return dict(block)
    return summarize(comparison.shift, policy.distribution)


def _floats(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def guard_of(report: Run, name: str) -> Mapping[str, Any]:
    """What a run recorded of one guard; empty if it did not run."""
    return next((guard for guard in report["guards"] if guard["name"] == name), {})


def _invariant_failures(report: Run) -> list[Failure]:
    """All findings of both looks of the invariants guard, in order."""
    guards = [g for g in report["guards"] if g["name"] == "invariants"]
    return [failure for guard in guards for failure in guard["failures"]]


def _modules(report: Run) -> list[spectral.Module]:
    recorded = guard_of(report, "spectral")
    return spectral.from_table(recorded["modules"]) if recorded else []


def _row_tables(report: Run) -> list[rows.RowTable]:
    recorded = guard_of(report, "spectral")
    return rows.from_json(recorded["row_tables"]) if recorded else []


def _activations(report: Run) -> list[rmt.Activation]:
    recorded = guard_of(report, "rmt")
    return rmt.from_table(recorded["modules"]) if recorded else []


def _outputs(report: Run) -> list[rmt.Activation]:
    """Those that the variance guard looks at."""
    tap = guard_of(report, "variance").get("tap", "")
    return [a for a in _activations(report) if variance.is_target(a, tap)]


def _trial(report: Run) -> variance.Trial | None:
    recorded = guard_of(report, "variance").get("trial")
    return variance.trial_from(recorded) if recorded else None


def _work(report: Run) -> Work:
    windows = report["evaluation_windows"]
    calibration = guard_of(report, "rmt")["calibration"]["window_ids"]
    tokens, guarded = calibrated(windows["preview"], calibration)
    return Work(
        pass_tokens=sum(sum(windows[arm]["token_counts"]) for arm in ARMS),
        bare_tokens=tokens,
        bare_nll=_floats(report["work"]["bare_nll"]).tolist(),
        guarded_nll=guarded,
        trial_tokens=report["work"]["trial_tokens"],
        probe_bytes=report["work"]["probe_bytes"],
    )


def calibrated(
    preview: Mapping[str, Sequence[Any]], window_ids: Sequence[str]
) -> tuple[int, list[float]]:
    """Predicted tokens and losses (nats) of the calibration windows in the pass."""
    place = {window: i for i, window in enumerate(preview["window_ids"])}
    rows = [place[window] for window in window_ids]
    losses = _floats([preview["nll_sum"][i] for i in rows]).tolist()
    return int(sum(preview["token_counts"][i] for i in rows)), losses
