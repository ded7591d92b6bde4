"""What every kind of perplexity has in common: a ratio of perplexities, from losses per token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Open, about
from invarlock.metrics.kind import (
    Block,
    Columns,
    Facts,
    Floor,
    Judged,
    Metric,
    MetricEvidence,
    Shortage,
    drift_block,
    interval_block,
)
from invarlock.metrics.perplexity import Arm, PerplexityResult, compare, finite
from invarlock.pages.reading import Report, block
from invarlock.pages.wording import fixed

if TYPE_CHECKING:
    from invarlock.policy import ConfidencePolicy, Policy


class PerplexityMembers(Open):
    """The members of a primary metric that are a perplexity's."""

    analysis_point_final: Annotated[
        float | UnsetType, about("mean log loss of the scored windows, nats a token")
    ] = UNSET
    analysis_point_preview: Annotated[
        float | UnsetType, about("mean log loss of the warm-up windows, nats a token")
    ] = UNSET


class Perplexity(Metric):
    """Base of the kinds that differ in what a window's tokens are predicted from."""

    unit: ClassVar[str] = "ppl"
    direction: ClassVar[str] = "lower"
    scope: ClassVar[str] = "token"
    bound: ClassVar[str] = "upper"
    basis: ClassVar[str] = "mean_logloss"
    floor: ClassVar[str] = "tokens"
    to_decide: ClassVar[str] = "final_windows_to_decide"
    limits: ClassVar[str] = "pm_ratio"
    family: ClassVar[str] = "ppl"
    members: ClassVar[Mapping[str, type[Open]]] = {"primary_metric": PerplexityMembers}
    noun: ClassVar[str] = "ratio"
    suffix: ClassVar[str] = ""
    short: ClassVar[tuple[str, str, str]] = ("ratio", ".4f", "")
    points: ClassVar[str] = "ratio"
    shows: ClassVar[str] = "Perplexity on this text"
    leaves_open: ClassVar[str] = "task accuracy"

    # --- a run ----------------------------------------------------------------------------------

    def value(self, columns: Columns) -> float | None:
        if None in columns["nll_sum"]:
            return None
        found = _exp(math.fsum(columns["nll_sum"]) / sum(columns["token_counts"]))
        return found if math.isfinite(found) else None

    # --- two runs -------------------------------------------------------------------------------

    def judge(
        self, preview: Arm, final: Arm, evidence: MetricEvidence, policy: Policy
    ) -> Judged | None:
        if not (finite(preview) and finite(final)):
            return None
        result = compare(preview, final, policy, evidence.bootstrap)
        values = (result.preview, result.final, result.drift, _exp(result.delta))
        if not all(map(math.isfinite, values)):
            return None
        return Judged(
            block=_block(result, policy),
            acceptable=result.acceptable,
            drift_ok=result.drift_ok,
            hysteresis_applied=result.hysteresis_applied,
            floors=(
                Floor(self.floor, preview.tokens + final.tokens, policy.pm_ratio.min_tokens),
                Floor("preview_windows", len(preview.window_ids), policy.coverage.preview),
                Floor("final_windows", len(final.window_ids), policy.coverage.final),
            ),
        )

    def baseline_points(self, evidence: MetricEvidence) -> dict[str, float]:
        arms = {"preview": evidence.preview, "final": evidence.final}
        return {name: arm.perplexity(arm.baseline_nll) for name, arm in arms.items() if arm}

    def hysteresis(self, policy: Policy) -> dict[str, float]:
        return {"ppl": policy.pm_ratio.hysteresis_ratio}

    def width_limit(self, policy: ConfidencePolicy) -> tuple[str, float]:
        return "ppl_ratio", policy.ppl_ratio_width_max

    def shortage(self, arms: tuple[int, int], length: int, policy: Policy) -> Shortage | None:
        preview, final = arms
        each = self.predicted(length)
        tokens = each * (preview + final)
        floors = policy.coverage.preview, policy.coverage.final
        if preview >= floors[0] and final >= floors[1] and tokens >= policy.pm_ratio.min_tokens:
            return None
        arm = math.ceil(policy.pm_ratio.min_tokens / max(each, 1) / 2)  # both arms alike
        enough = max(floors[0], preview, arm), max(floors[1], final, arm)
        return Shortage(
            expected=f"{floors[0]} preview and {floors[1]} final windows,"
            f" {policy.pm_ratio.min_tokens} predicted tokens",
            found=f"{preview} and {final} of {length}: {math.floor(tokens)}",
            windows=f"{{seq_len: {length}, preview: {enough[0]}, final: {enough[1]}}}",
        )

    # --- a report -------------------------------------------------------------------------------

    def passing(self, metric: Block, z: float) -> float:
        above = metric["ci"][1] - metric["delta_nats"]
        return _exp(math.log(metric["limit"]) - above - z * metric["standard_error"])

    # --- words ----------------------------------------------------------------------------------

    def threshold(self, limit: float) -> str:
        return f"upper bound at most {fixed(limit)}"

    def passed(self, low: float, high: float, limit: float) -> str:
        return f"the upper bound is {fixed(limit - high)} below the limit"

    def failed(self, low: float, high: float, limit: float) -> str:
        return f"the whole interval is above the limit, by {fixed(low - limit)} or more"

    def facts(self, report: Report) -> Facts:
        metric = block(report, "primary_metric")
        reference = block(block(report, "baseline_ref"), "primary_metric")
        return [
            ("Kind", f"{metric.get('kind', '-')}, perplexity per token, base e"),
            ("Subject, scored windows", fixed(metric.get("final"))),
            ("Baseline, scored windows", fixed(reference.get("final"))),
            ("Ratio", fixed(metric.get("ratio_vs_baseline"), 6)),
            *_looked(report),
        ]


def _looked(report: Report) -> Facts:
    """Of a control how much of it was measured."""
    early = block(block(report, "context"), "early_decision")
    if not early:
        return []
    used = block(block(report, "dataset"), "windows").get("final")
    planned = block(early, "planned").get("final")
    return [("Scored windows", f"{used} of {planned}; a control is measured until it is refused")]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _block(result: PerplexityResult, policy: Policy) -> Block:
    raw = result.final / result.preview
    own = raw / result.drift if result.drift else raw  # the baseline's
    return {
        "preview": result.preview,
        "final": result.final,
        "analysis_point_preview": math.log(result.preview),
        "analysis_point_final": math.log(result.final),
        "ratio_vs_baseline": _exp(result.delta),
        "delta_nats": result.delta,
        "decision": result.decision,
        "limit": policy.pm_ratio.ratio_limit_base + policy.pm_ratio.hysteresis_ratio,
        "drift": drift_block(result.drift, raw, (policy.drift.min, policy.drift.max)),
        # the same limits on what published verifiers look at, the subject's own drift
        "drift_band": {"min": policy.drift.min * own, "max": policy.drift.max * own},
        "coverage_ok": result.coverage_ok,
        "tokens_ok": result.tokens_ok,
        **interval_block(result.interval, result.windows_needed, _exp),
    }
