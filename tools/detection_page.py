"""docs/results.md from the reports: tables, and what they say in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detection_plan import CALIBRATION_SEEDS, RANK1, Case, Plan
from detection_readings import (
    READINGS,
    SHORT,
    Reading,
    Report,
    rmt_reading,
    sigma_reading,
    spoke,
    variance_reading,
)

from invarlock.pages.reading import block, evaluated
from invarlock.reporting.signals import guard_flags
from invarlock.verdict.intervals import clopper_pearson

TIME_MAX, MEMORY_MAX = 0.35, 1.3  # wanted of the guards, over the bare pass
INTRO = """# What the checks see

Made by `make results` on the embedded model, {model}, {dtype}.
Thresholds: tier balanced with the preset derived from this model (calibration seeds {calibration},
which no evaluation uses).
"""
CLEAN = """
## Clean edits: nothing may speak

{arm} + {arm} windows of {seq_len} tokens, half of what the smoke suite takes and below the tier's
floor: *pass* is the decision of the interval. *ln sigma ratio*: of the module whose largest
singular value moved most, in units of its limit. *Edge ratio*: largest singular value of
activations, subject over baseline; its limit is 1 + epsilon of the family. *Output scale*: what
would restore the variance of a feed-forward output; outside 1 +- the deadband it is tried on
held-out windows.
"""
DAMAGE = """
## Damage: the check aimed at has to speak

{arm} + {arm} windows of {seq_len} tokens, seed {seed}; {all} + {all} where the variance guard is
aimed at, whose trial needs them, and for the matrix of rank 1. Half and double scale the deviation
from doing nothing: factors f below 10 become 1 + (f - 1) / 2 and 1 + 2 (f - 1). *Margin*: the
statistic over its threshold, above 1 beyond it; |ln sigma ratio|; fatal limit over the ratio of
ranks and norms; growth of an edge over epsilon; |scale - 1| over the deadband (the variance guard
speaks when the trial confirms it too); lower bound of the perplexity ratio over its limit.
{arm} + {arm} windows are below the tier's floors: *fail* is a detection, *inconclusive* is none,
*pass* is not yet acceptable. Of the two scenarios `spectral_moderate_scale`
it is that of suite `smoke`, which hits the last four layers.
"""
COST = """
## Cost of the guards

Over the bare pass of the same run, from `runtime.manifest.json` of the clean evaluations: median
(range) of wall time and peak memory, other evaluations on the machine.
`benchmarks/speed.py --only guards` compares whole runs with a bare pass.
"""


@dataclass(frozen=True)
class Clean:
    """A clean edit evaluated on the windows of one seed."""

    name: str
    seed: int
    report: Report
    overhead: Mapping[str, Any]  # of runtime.manifest.json


@dataclass(frozen=True)
class Damaged:
    """A damage at one strength, evaluated; without a report it is not possible."""

    case: Case
    report: Report | None
    status: str = "reported"

    @property
    def aimed(self) -> str:
        """The check that it is made for."""
        return self.case.scenario.primary_guard

    @property
    def found(self) -> bool:
        """Whether that check spoke."""
        return self.report is not None and guard_flags(self.report)[self.aimed]


# --- cells -----------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, without an exponent where one can do without."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "infinite"
    text = f"{value:.3g}" if 1e-4 <= abs(value) < 1e3 or value == 0 else f"{value:.1e}"
    return text if "e" not in text else text.replace("e+0", "e").replace("e-0", "e-")


def metric_cell(report: Report) -> str:
    """Ratio, interval and decision."""
    metric = block(report, "primary_metric")
    if not evaluated(report, "primary_metric"):
        return "not run"
    if "ratio_vs_baseline" not in metric:
        return "not finite"
    low, high = metric.get("display_ci", (math.nan, math.nan))
    ratio = ratio_text(metric["ratio_vs_baseline"])
    return f"{ratio} [{ratio_text(low)}, {ratio_text(high)}] {metric['decision']}"


def ratio_text(value: float) -> str:
    """A perplexity ratio to four decimals; a large one to three digits."""
    return f"{value:.4f}" if value < 100 else number(value)


def reading_cell(reading: Reading | None, threshold: str = "") -> str:
    """``value / threshold``."""
    if reading is None:
        return "not measured"
    return f"{number(reading.value)} / {threshold or number(reading.threshold)}"


def statistic_cell(reading: Reading | None) -> str:
    """What was looked at and its value."""
    if reading is None:
        return "not measured"
    more = f"; {reading.more}" if reading.more else ""
    return f"{reading.what} {number(reading.value)}{more}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    every = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in every]


# --- the page --------------------------------------------------------------------------------


def clean_table(results: Sequence[Clean]) -> list[str]:
    """One row an evaluation of a clean edit."""
    head = ["edit", "seed", "ratio [95 % interval]", "ln sigma ratio / limit", "edge ratio / limit",
            "output scale, deadband; trial", "tail q95 / limit", "drift", "spoke"]  # fmt: skip
    rows = []
    for result in results:
        report = result.report
        rmt, variance = rmt_reading(report), variance_reading(report)
        tail = block(report, "primary_metric_tail")
        stats = tail.get("stats") or {}
        drift = block(report, "primary_metric").get("drift", {}).get("ratio", math.nan)
        rows.append(
            [
                result.name,
                str(result.seed),
                metric_cell(report),
                reading_cell(sigma_reading(report)),
                f"{1 + rmt.value:.3f} / {1 + rmt.threshold:.3f}" if rmt else "not measured",
                f"{variance.value:.3f}, {number(variance.threshold)}; {variance.more}"
                if variance
                else "not measured",
                f"{number(stats['q95'])} / {number(tail['policy']['quantile_max'])}"
                if evaluated(report, "primary_metric_tail") and "q95" in stats
                else "not measured",
                f"{drift:.4f}",
                ", ".join(spoke(report)) or "none",
            ]
        )
    return table(head, rows)


def damage_table(results: Sequence[Damaged]) -> list[str]:
    """One row a damage and strength."""
    head = ["damage", "strength", "aimed at", "ratio [95 % interval]", "spoke",
            "statistic of the check aimed at", "threshold", "margin", "found by it"]  # fmt: skip
    rows = []
    for result in results:
        case = result.case
        strength = ", ".join(filter(None, (case.strength, case.setting, case.note)))
        row = [case.scenario.id, strength, SHORT.get(result.aimed, result.aimed)]
        if result.report is None:
            rows.append([*row, *[""] * 6])
            continue
        if result.status not in ("reported", "rejected_by_invariants"):
            rows.append([*row, result.status, "none", "not measured", "", "", "no"])
            continue
        reading = READINGS[result.aimed](result.report)
        rows.append(
            [
                *row,
                metric_cell(result.report),
                ", ".join(spoke(result.report)) or "none",
                statistic_cell(reading),
                number(reading.threshold) if reading else "",
                number(reading.margin) if reading else "",
                "yes" if result.found else "no",
            ]
        )
    return table(head, rows)


def count(hits: Sequence[bool]) -> str:
    """``k of n`` with the exact interval of the proportion."""
    k, n = sum(hits), len(hits)
    interval = clopper_pearson(k, n)
    if interval is None:
        return "0 of 0"
    low, high = (100 * bound for bound in interval)
    return f"{k} of {n} (95 % interval {low:.0f} - {high:.0f} %)"


def summary(clean: Sequence[Clean], damaged: Sequence[Damaged]) -> list[str]:
    """What the tables say, in words."""
    ran = [r for r in damaged if r.report is not None]
    at = {s: [r for r in ran if r.case.strength == s] for s in ("published", "half", "double")}
    published = at["published"]
    must = [r for r in published if r.case.scenario.strictness == "must_detect"]
    return [
        f"* False alarms: a check spoke on {count([bool(spoke(r.report)) for r in clean])} of the"
        " clean evaluations.",
        *(f"  * {line}" for r in clean for line in noise(r)),
        "",
        "  Edits and windows of one model are no independent draws: take the interval as rough.",
        "* The check aimed at found",
        f"  * {count([r.found for r in published])} at published strength;",
        f"  * {count([r.found for r in must])} of those that the catalogue says must be detected;",
        f"  * {count([r.found for r in at['half']])} at half strength;",
        f"  * {count([r.found for r in at['double']])} at double strength.",
        f"* Any check spoke on {count([bool(spoke(r.report or {})) for r in published])} at"
        " published strength.",
        *(rank1(r) for r in published if r.case.scenario.id == RANK1),
        *unseen([r for r in published if not r.found]),
    ]


def noise(result: Clean) -> list[str]:
    """What is not as wanted about a clean evaluation."""
    metric = block(result.report, "primary_metric").get("decision")
    names = spoke(result.report)
    lines = [f"{result.name}, seed {result.seed}: {', '.join(names)} spoke"] if names else []
    if metric != "pass":
        lines.append(f"{result.name}, seed {result.seed}: the metric says {metric}")
    return lines


def unseen(results: Sequence[Damaged]) -> list[str]:
    """The damage that the check aimed at did not see, with its margin."""
    if not results:
        return ["* Nothing escaped the check aimed at, at published strength."]
    return [
        "* Not seen by the check aimed at, at published strength, on this model:",
        *(f"  * {missed(r)}" for r in results),
    ]


def rank1(result: Damaged) -> str:
    """Whether the collapse of one matrix is found although perplexity need not show it."""
    decision = block(result.report or {}, "primary_metric").get("decision", "nothing")
    names = [n for n in spoke(result.report or {}) if n != "metric"]
    found = ", ".join(names) or "no other check"
    return f"* One matrix of rank 1: the metric says {decision}; found by {found}."


def missed(result: Damaged) -> str:
    """One line on a damage that its check did not see."""
    assert result.report is not None
    name = f"`{result.case.scenario.id}`"
    if result.status not in ("reported", "rejected_by_invariants"):
        return f"{name}: {result.status}"
    reading = READINGS[result.aimed](result.report)
    others = ", ".join(spoke(result.report)) or "none"
    if reading is None:
        return f"{name} ({result.aimed}): not measured; spoke: {others}."
    return (
        f"{name} ({result.aimed}): {statistic_cell(reading)}, threshold"
        f" {number(reading.threshold)}, margin {number(reading.margin)}; spoke: {others}."
    )


def cost_lines(clean: Sequence[Clean]) -> list[str]:
    """Median and range of what the guards cost."""
    lines = []
    wanted = {"time_ratio": ("time", TIME_MAX), "memory_ratio": ("peak memory", MEMORY_MAX)}
    for key, (what, most) in wanted.items():
        values = [float(r.overhead[key]) for r in clean if r.overhead]
        if values:
            middle, low, high = statistics.median(values), min(values), max(values)
            lines.append(
                f"* {what}: {middle:.3f} ({low:.3f} - {high:.3f}), wanted at most {most:g}"
            )
    return lines


def page(plan: Plan, clean: Sequence[Clean], damaged: Sequence[Damaged], where: list[str]) -> str:
    """The whole page."""
    parts = [
        INTRO.format(
            model=plan.model_id,
            dtype=clean[0].report["meta"]["dtype"],
            calibration=", ".join(map(str, CALIBRATION_SEEDS)),
        ),
        *where,
        "",
        "## Summary",
        "",
        *summary(clean, damaged),
        CLEAN.format(arm=plan.arm, seq_len=plan.seq_len),
        *clean_table(clean),
        DAMAGE.format(arm=plan.damage_arm, all=plan.arm, seq_len=plan.seq_len, seed=plan.seeds[0]),
        *damage_table(damaged),
        COST,
        *cost_lines(clean),
    ]
    return "\n".join(parts) + "\n"
