"""The evidence of two run reports, read for a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from invarlock.errors import InputError
from invarlock.files import digest_json
from invarlock.guards import CONTRACTS
from invarlock.guards.guard import NEEDS_BOTH, NO_WEIGHTS, SERVED
from invarlock.metrics import ARMS
from invarlock.metrics.distribution import (
    TokenShift,
    gated,
    not_evaluated,
    summarize,
)
from invarlock.metrics.distribution import shift_columns as distribution_columns
from invarlock.metrics.kind import MetricEvidence, SliceEvidence
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.perplexity import Arm, Bootstrap
from invarlock.policy import Policy
from invarlock.reporting.judgement import Evidence

if TYPE_CHECKING:
    import numpy as np
else:
    from invarlock import numpy_on_use as np

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
    separate: bool = False  # each run measured its own model, and nothing of the other's
    invariants_evaluated: bool = True
    shift: TokenShift | RecordedShift | None = None
    excerpts: Sequence[Mapping[str, Any]] = ()  # of what lost most, as reports hold them
    preset_sha256: str | None = None
    policy_pack: Mapping[str, str] | None = None  # name, digest and signer
    accepted: Sequence[str] = ()  # names of findings that the user accepts
    early: Mapping[str, Any] | None = None  # the looks at a control (invarlock.metrics.looks)
    # how the guards measured, by their names; a report that is read back may state an older way
    contracts: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: CONTRACTS)

    @property
    def served(self) -> bool:
        """Whether the subject is a running server, which its run report says."""
        ran = self.subject["meta"].get("execution")
        return isinstance(ran, Mapping) and ran.get("format") == SERVED

    @property
    def ran(self) -> bool:
        """Whether the subject was measured."""
        return bool(self.subject["evaluation_windows"])


def of_windows(baseline: Run, subject: Run) -> Run:
    """A baseline's run as if it had measured the subject's windows alone."""
    arms: dict[str, Any] = {}
    for arm, mine in subject["evaluation_windows"].items():
        rows = baseline["evaluation_windows"][arm]
        place = {window: i for i, window in enumerate(rows["window_ids"])}
        at = [place[window] for window in mine["window_ids"] if window in place]
        arms[arm] = {name: [column[i] for i in at] for name, column in rows.items()}
    return {**baseline, "evaluation_windows": arms, "ids_sha256": ids_of(baseline)}


def ids_of(run: Run) -> str:
    """The digest of the ids of all windows that there were to be measured."""
    if "ids_sha256" in run:
        return str(run["ids_sha256"])
    windows = run["evaluation_windows"]
    return digest_json(sorted(i for arm in ARMS for i in windows[arm]["window_ids"]))


def gather(comparison: Comparison, policy: Policy) -> Evidence:
    """The evidence of two runs.

    Raises:
        InputError: they measured other windows or tokens.
    """
    _require_paired(comparison)
    return Evidence(
        metric=metric_evidence(comparison),
        distribution=distribution(comparison, policy),
        runs=comparison,
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
    arms = {arm: arm_from(base[arm], mine[arm]) if mine else None for arm in ARMS}
    return MetricEvidence(
        kind=METRICS[comparison.baseline["meta"]["metric"]],
        preview=arms["preview"],
        final=arms["final"],
        columns={arm: (base[arm], mine[arm]) for arm in ARMS if mine},
        bootstrap=comparison.bootstrap,
        reason_not_run=comparison.reason_not_run,
        slices=_slices(comparison) if mine else (),
    )


def _slices(comparison: Comparison) -> list[SliceEvidence]:
    """What both runs recorded on each slice; none where the windows have no slices.

    Raises:
        InputError: a slice without windows in one of the arms.
    """
    base = comparison.baseline["evaluation_windows"]
    mine = comparison.subject["evaluation_windows"]
    sums = shift_columns(comparison.shift).get("kl_sum")
    found = []
    for name in [str(part["name"]) for part in comparison.baseline["data"].get("slices", ())]:
        rows = {
            arm: [i for i, one in enumerate(mine[arm]["slices"]) if one == name] for arm in ARMS
        }
        if not all(rows.values()):
            raise InputError("a slice without windows", where="/evaluation_windows", found=name)
        preview, final = (
            arm_from(*(_taken(run[arm], rows[arm]) for run in (base, mine))) for arm in ARMS
        )
        kl = None if sums is None else [sums[i] for i in rows["final"]]
        found.append(SliceEvidence(name, preview, final, kl))
    return found


def _taken(columns: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """These rows of the columns that an arm is read from."""
    names = ("window_ids", "clusters", "token_counts", "nll_sum")
    return {name: [columns[name][i] for i in rows] for name in names}


def shift_columns(shift: TokenShift | RecordedShift | None) -> dict[str, Any]:
    """What a shift says of each window of the final arm; what is not finite is None."""
    if isinstance(shift, TokenShift):
        return distribution_columns(shift)
    return {} if shift is None else dict(shift.columns)


def arm_from(baseline: Mapping[str, Any], subject: Mapping[str, Any]) -> Arm:
    """Join two runs' records of one arm; both list the same windows in the same order."""
    return Arm(
        window_ids=subject["window_ids"],
        clusters=subject["clusters"],
        token_counts=_floats(subject["token_counts"]),
        subject_nll=_floats(subject["nll_sum"]),
        baseline_nll=_floats(baseline["nll_sum"]),
    )


def distribution(comparison: Comparison, policy: Policy) -> dict[str, Any]:
    """The summarized shift of the predictions."""
    if comparison.shift is None:
        lacking = NEEDS_BOTH if comparison.separate else "not recorded by this kind of run"
        lacking = NO_WEIGHTS if comparison.served else lacking
        reason = comparison.reason_not_run or lacking
        return not_evaluated(reason, policy.distribution)
    if isinstance(comparison.shift, RecordedShift):
        block = comparison.shift.block
        if block["evaluated"] is not True:
            return not_evaluated(str(block["reason"]), policy.distribution)
        return gated(block, policy.distribution)
    return summarize(comparison.shift, policy.distribution)


def _floats(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)
