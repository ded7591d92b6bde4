"""The ``telemetry`` block and its one-line summary; time and memory are in the manifest."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Count, Open, about, extended
from invarlock.metrics.kinds import METRICS, members_of


@extended(members_of("telemetry"))
class Telemetry(Open):
    """Counts of what was measured."""

    device: Annotated[str | UnsetType | None, about("device")] = UNSET
    dtype: Annotated[str | UnsetType | None, about("arithmetic")] = UNSET
    loss_type: Annotated[str | UnsetType, about("causal, mlm, seq2seq or classification")] = UNSET
    preview_total_tokens: Annotated[
        Count | UnsetType, about("predicted tokens of the warm-up windows")
    ] = UNSET
    final_total_tokens: Annotated[
        Count | UnsetType, about("predicted tokens of the scored windows")
    ] = UNSET
    summary_line: Annotated[str | UnsetType, about("all of it in one line")] = UNSET


def telemetry_wanted(environment: Mapping[str, str]) -> bool:
    """Whether ``INVARLOCK_TELEMETRY`` asks for the summary line on standard output."""
    asked = environment.get("INVARLOCK_TELEMETRY", "").strip().casefold()
    return asked not in ("", "0", "false", "off", "no")


def telemetry_block(report: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of what was measured, all of them the same on every rerun."""
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
        "summary_line": _line(report, total),
    }


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
