"""What measuring with guards changed and cost: recorded with limits of its own, and no gate.

The metric of the calibration windows with hooks over that without, which is 1 where hooks only
read; and the tokens run twice. Both are the same on every rerun; seconds and memory are in
``runtime.manifest.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from msgspec import UNSET, Struct, UnsetType

from invarlock.documents.fields import Count, Decided, about
from invarlock.guards.guard import Block, CheckpointRun, Guard, Probe, Runs
from invarlock.guards.rmt import calibration_ids
from invarlock.metrics import ARMS
from invarlock.pages.parts import (
    PASS,
    WARNING,
    Check,
    Section,
    not_evaluated,
    unmeasured,
)
from invarlock.pages.reading import Report, block, evaluated, objects
from invarlock.pages.wording import fixed, number, share, yes
from invarlock.policy import OverheadPolicy, Policy


class GuardWork(Struct, frozen=True):
    """What the guards added to the pass, in numbers that are the same on every rerun."""

    pass_tokens: int
    trial_tokens: int  # run a second time, to try proposed scales
    bare_tokens: int  # of the calibration windows, run a second time without hooks
    bare_nll: Sequence[float]  # nats, of the calibration windows without hooks
    guarded_nll: Sequence[float]  # of the same windows in the pass
    probe_bytes: int  # most that the activation hooks held at a time


def judge(work: GuardWork, limits: OverheadPolicy) -> Block:
    """The report's ``guard_overhead`` block."""
    change = math.fsum(work.guarded_nll) - math.fsum(work.bare_nll)
    recorded = {
        "probe_bytes": work.probe_bytes,
        "bare_nll": [nll if math.isfinite(nll) else None for nll in work.bare_nll],
    }
    if not math.isfinite(change):
        return {"evaluated": False, "reason": "losses that are not finite", **recorded}
    # exp overflows a double from 709.8 on; e^700 is beyond every limit, like any larger ratio
    ratio = math.exp(max(-700.0, min(700.0, change / work.bare_tokens)))
    share = (work.trial_tokens + work.bare_tokens) / work.pass_tokens
    changed = max(ratio, 1 / ratio) - 1  # hooks only read: a lower loss is as wrong as a higher one
    checks = {"metric_unchanged": changed <= limits.threshold, "work": share <= limits.work_max}
    passed = all(checks.values())
    return {
        "evaluated": True,
        "passed": passed,
        "decision": "allow" if passed else "monitor",
        "mode": "one_pass",
        "source": "policy",
        "overhead_ratio": ratio,
        "overhead_percent": 100 * (ratio - 1),
        "overhead_threshold": limits.threshold,
        "threshold_percent": 100 * limits.threshold,
        "work_ratio": share,
        "work_max": limits.work_max,
        "pass_tokens": work.pass_tokens,
        "trial_tokens": work.trial_tokens,
        "bare_tokens": work.bare_tokens,
        **recorded,
        "checks": checks,
        "diagnostics": [],
    }


def _work(subject: Mapping[str, Any]) -> GuardWork:
    windows, recorded = subject["evaluation_windows"], subject["work"]
    preview = windows["preview"]
    place = {window: i for i, window in enumerate(preview["window_ids"])}
    rows = [place[window] for window in calibration_ids(subject)]
    return GuardWork(
        pass_tokens=sum(sum(windows[arm]["token_counts"]) for arm in ARMS),
        bare_tokens=int(sum(preview["token_counts"][i] for i in rows)),
        bare_nll=_floats(recorded["bare_nll"]),
        guarded_nll=_floats([preview["nll_sum"][i] for i in rows]),
        trial_tokens=recorded["trial_tokens"],
        probe_bytes=recorded["probe_bytes"],
    )


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else float(v) for v in values]


class OverheadProbe(Probe):
    """Sums up what the other probes cost; it comes after them."""

    def record(self, run: CheckpointRun) -> Block:
        """Tokens run twice, bytes held, and the losses without hooks."""
        return {
            "trial_tokens": run.trial_tokens,
            "probe_bytes": run.probe_bytes,
            "bare_nll": [v if math.isfinite(v) else None for v in map(float, run.bare_nll)],
        }


class OverheadBlock(Decided):
    """What the guards changed and cost; seconds and memory are in the runtime manifest."""

    mode: Annotated[
        str | UnsetType,
        about("one_pass: metric and guards come from the same forward pass"),
    ] = UNSET
    source: Annotated[str | UnsetType, about("where the limits come from")] = UNSET
    overhead_ratio: Annotated[
        float | UnsetType,
        about("metric with guards over metric without"),
    ] = UNSET
    overhead_percent: Annotated[float | UnsetType, about("the same as a change, percent")] = UNSET
    overhead_threshold: Annotated[
        float | UnsetType,
        about("largest relative change of the metric"),
    ] = UNSET
    threshold_percent: Annotated[float | UnsetType, about("the same, percent")] = UNSET
    work_ratio: Annotated[
        float | UnsetType,
        about("tokens run beyond the pass over those of the pass"),
    ] = UNSET
    work_max: Annotated[float | UnsetType, about("largest such ratio")] = UNSET
    pass_tokens: Annotated[Count | UnsetType, about("predicted tokens of the pass")] = UNSET
    trial_tokens: Annotated[Count | UnsetType, about("predicted tokens run beyond it")] = UNSET
    probe_bytes: Annotated[
        Count | UnsetType,
        about("most bytes that the hooks held at a time"),
    ] = UNSET
    checks: Annotated[dict[str, Any] | UnsetType, about("each check and whether it holds")] = UNSET
    diagnostics: Annotated[list[Any] | UnsetType, about("remarks")] = UNSET


class Overhead(Guard):
    """A cost of measuring says nothing of the subject: it is recorded, and never blocks."""

    name = "guard_overhead"
    title = "Guard overhead"
    block = OverheadBlock
    flag_texts: ClassVar[Mapping[str, str]] = {
        "guard_overhead_acceptable": "the guards' overhead is within its limit"
    }
    flag = "guard_overhead_acceptable"
    gates = False
    policy_key = "overhead"
    beside = "work"
    believed = ("/guard_overhead/probe_bytes",)
    believed_as = "bytes of the probes, and losses without their hooks"

    def probe(self) -> Probe:
        """A fresh probe for one run."""
        return OverheadProbe()

    def measured(self, runs: Runs) -> bool:
        """Whether the subject was run here: every such run has a cost."""
        return runs.ran and not runs.served

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The cost of the subject's run; the baseline's says nothing about the subject."""
        return judge(_work(runs.subject), policy.overhead)

    def subject_records(self, report: Report) -> Iterator[Block]:
        """The tokens run again and the bytes held; those of the trial are read from the trial."""
        recorded, trial = report[self.name], report["variance"]["trial"]
        yield {
            "bare_nll": recorded["bare_nll"],
            "probe_bytes": recorded["probe_bytes"],
            "trial_tokens": sum(trial["token_counts"]) if trial else 0,
        }

    def impossible(self, report: Report) -> Iterator[str]:
        """A line where the losses are not one for each calibration window."""
        if len(report[self.name]["bare_nll"]) != len(report["rmt"]["calibration"]["window_ids"]):
            yield f"/{self.name}/bare_nll has not one loss a calibration window"

    def fired(self, report: Report) -> dict[str, bool]:
        """Never true: a cost is no finding. The name stays, since published verdicts have it."""
        return {"overhead": False}

    def check(self, report: Report) -> Check:
        """The row: how much the hooks changed the metric, and the extra work."""
        section = block(report, self.name)
        if not evaluated(report, self.name):
            return unmeasured(report, self.name, self.title)
        ratio = number(section.get("overhead_ratio"))
        limit = number(section.get("overhead_threshold"))
        work, most = number(section.get("work_ratio")), number(section.get("work_max"))
        return Check(
            name=self.title,
            status=PASS if section.get("passed") is True else WARNING,
            measured=f"metric ratio {fixed(ratio)}, extra work {share(work)}",
            threshold=f"ratio at most {fixed(None if limit is None else 1 + limit)}, "
            f"work at most {share(most)}",
            note=_cost(work, most) + "a cost of measuring; never blocks",
        )

    def section(self, report: Report) -> Section:
        """What measuring with guards changed and cost."""
        section = block(report, self.name)
        if not evaluated(report, self.name):
            return not_evaluated(report, self.name, self.title)
        checks = block(section, "checks")
        return Section(
            id="guard-overhead",
            title=self.title,
            notes=tuple(str(d.get("message", "")) for d in objects(section.get("diagnostics"))),
            facts=(
                ("Mode", str(section.get("mode", "-"))),
                ("Metric with guards over without", fixed(section.get("overhead_ratio"), 6)),
                ("Allowed change", share(section.get("overhead_threshold"))),
                ("Extra work", f"{share(section.get('work_ratio'))} of the forward pass, at most "
                 f"{share(section.get('work_max'))}"),
                ("Memory of the probes", f"{number(section.get('probe_bytes')) or 0:,.0f} bytes"),
                *((str(name).replace("_", " "), yes(ok)) for name, ok in sorted(checks.items())),
            ),
        )  # fmt: skip


def _cost(work: float | None, most: float | None) -> str:
    """How far the guards' extra work, as a share of the pass, is from its limit."""
    if work is None or most is None:
        return ""
    side = "below" if work <= most else "above"
    return f"{abs(most - work) * 100:.3g} points {side} the limit; "
