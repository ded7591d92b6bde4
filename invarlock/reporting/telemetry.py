"""The ``telemetry`` and ``system_overhead`` blocks, and the one-line summary.

Time and memory differ every time. They stand in the runtime manifest; where the user asks for
telemetry, the run reports hold them too, and an evaluation report copies them.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import ADDED, Count, Open, about, extended
from invarlock.metrics.cost import COSTS
from invarlock.metrics.kinds import METRICS, members_of

HERE, MANIFEST = "here", "runtime.manifest.json"


@extended(members_of("telemetry"))
class Telemetry(Open):
    """Counts of what was measured, and what that took."""

    device: Annotated[str | UnsetType | None, about("device")] = UNSET
    dtype: Annotated[str | UnsetType | None, about("arithmetic")] = UNSET
    loss_type: Annotated[str | UnsetType, about("causal, mlm, seq2seq or classification")] = UNSET
    preview_total_tokens: Annotated[
        Count | UnsetType, about("predicted tokens of the warm-up windows")
    ] = UNSET
    final_total_tokens: Annotated[
        Count | UnsetType, about("predicted tokens of the scored windows")
    ] = UNSET
    times_in: Annotated[
        str | UnsetType,
        about("where latency, throughput and memory stand: here, or in the runtime manifest"),
        ADDED,
    ] = UNSET
    latency_ms_per_tok: Annotated[
        float | UnsetType | None,
        about("milliseconds of the forward pass per predicted token; only where it was asked for"),
    ] = UNSET
    throughput_tok_per_s: Annotated[
        float | UnsetType | None, about("predicted tokens a second; only where it was asked for")
    ] = UNSET
    memory_mb_peak: Annotated[
        float | UnsetType | None,
        about("peak memory with guards, MiB; only where it was asked for"),
    ] = UNSET
    summary_line: Annotated[str | UnsetType, about("all of it in one line")] = UNSET


def telemetry_wanted(environment: Mapping[str, str]) -> bool:
    """Whether ``INVARLOCK_TELEMETRY`` asks for the summary line on standard output."""
    asked = environment.get("INVARLOCK_TELEMETRY", "").strip().casefold()
    return asked not in ("", "0", "false", "off", "no")


def telemetry_block(report: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of what was measured, all of them the same on every rerun, and the subject's costs
    where its run states them."""
    windows, metric = report["evaluation_windows"], report["primary_metric"]
    tokens = {arm: sum(windows[arm]["token_counts"]) for arm in ("preview", "final")}
    total, kind = tokens["preview"] + tokens["final"], METRICS[metric["kind"]]
    return {
        "device": report["meta"]["device"],
        "dtype": report["meta"]["dtype"],
        "loss_type": kind.loss_type,
        "preview_total_tokens": tokens["preview"],
        "final_total_tokens": tokens["final"],
        **kind.telemetry(tokens),
        "times_in": HERE if costs else MANIFEST,
        **costs,
        "summary_line": _line(report, total),
    }


def system_overhead(
    baseline: Mapping[str, Any], subject: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Each cost of both runs, and the subject's over the baseline's; only what both state."""
    return {
        name: {
            "baseline": baseline[name],
            "subject": subject[name],
            "ratio": subject[name] / baseline[name],
        }
        for name in COSTS
        if name in baseline and name in subject
    }


def without_costs(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report without what differs every time, to compare repeats by."""
    kept = {name: value for name, value in report.items() if name != "system_overhead"}
    telemetry = report.get("telemetry")
    if isinstance(telemetry, Mapping):
        kept["telemetry"] = {k: v for k, v in telemetry.items() if k not in COSTS}
    return kept


def _line(report: Mapping[str, Any], tokens: int) -> str:
    metric, windows = report["primary_metric"], report["dataset"]["windows"]
    low, high = metric.get("display_ci", (None, None))
    fields = {
        "run_id": report["run_id"],
        "metric": metric["kind"],
        "nprev": windows["preview"],
        "nfinal": windows["final"],
        "tokens": tokens,
        "split": report["dataset"]["split"],
        "ci": "na" if low is None else f"{low:.4f}-{high:.4f}",
        "width": "na" if low is None else f"{high - low:.4f}",
        "ratio": _number(metric.get("ratio_vs_baseline")),
        "gate": "pass" if report["validation"]["primary_metric_acceptable"] else "fail",
    }
    return "INVARLOCK_TELEMETRY " + " ".join(f"{k}={v}" for k, v in fields.items())


def _number(value: float | None) -> str:
    return "na" if value is None else f"{value:.4f}"
