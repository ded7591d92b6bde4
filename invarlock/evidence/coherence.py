"""Whether the parts of a report that repeat or summarize its evidence agree with it.

The replay recomputes the decisions; these are the places that a reader would otherwise believe:
per-window losses, the digest of the window ids, coverage, guard results, the limits in force.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.errors import InvarlockError
from invarlock.evidence.findings import dig
from invarlock.files import digest_json

ARMS = ("preview", "final")
LOSS_TOLERANCE = 1e-9  # relative, of logloss against nll_sum / token_counts
GUARD_FIELDS = ("evaluated", "passed", "decision", "status")
Report = Mapping[str, Any]
# Pairs of places that hold the same thing.
SAME = (
    ("baseline_ref/tokenizer_hash", "provenance/provider_digest/tokenizer_sha256"),
    ("baseline_ref/tokenizer_hash", "dataset/tokenizer/hash"),
    ("meta/checkpoint_sha256", "provenance/subject/checkpoint_sha256"),
    ("baseline_ref/checkpoint_sha256", "provenance/baseline/checkpoint_sha256"),
    ("baseline_ref/run_id", "provenance/baseline/run_id"),
    ("baseline_ref/primary_metric/kind", "primary_metric/kind"),
    ("auto/tier", "assurance/tier"),
    ("auto/tier", "policy_provenance/tier"),
    ("auto/tier", "policy_digest/tier_policy_name"),
    ("auto/tier", "dataset/windows/stats/coverage/tier"),
    ("context/profile", "assurance/profile"),
    ("context/assurance/mode", "assurance/mode"),
    ("context/guard_chain_observed", "assurance/guard_chain_observed"),
    *((f"context/bootstrap/{k}", f"dataset/windows/stats/bootstrap/{k}")
      for k in ("replicates", "alpha", "seed")),
    ("context/bootstrap/replicates", "dataset/windows/stats/coverage/replicates/used"),
)  # fmt: skip


def check(report: Report) -> list[str]:
    """Every disagreement, as ``/pointer ...`` lines.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: evidence of an impossible shape.
    """
    return [*_same(report), *_windows(report), *_guards(report), *_policy(report)]


def _same(report: Report) -> Iterator[str]:
    for one, other in SAME:
        values = [dig(report, *place.split("/")) for place in (one, other)]
        if None not in values and values[0] != values[1]:
            yield f"/{other} differs from /{one}"


def _windows(report: Report) -> Iterator[str]:
    windows, stats = report["evaluation_windows"], report["dataset"]["windows"]["stats"]
    ids: list[Any] = []
    for arm in ARMS:
        rows, used = windows[arm], len(windows[arm]["window_ids"])
        ids += rows["window_ids"]
        for column in ("logloss", "nll_sum", "baseline_nll_sum", "token_counts", "clusters"):
            if len(rows[column]) != used:
                yield f"/evaluation_windows/{arm}/{column} has not one entry a window"
                return
        for index in range(used):
            total, count, loss = (rows[c][index] for c in ("nll_sum", "token_counts", "logloss"))
            if total is None and loss is None:
                continue  # not finite, and the metric is then invalid
            if not math.isclose(total / count, loss, rel_tol=LOSS_TOLERANCE):
                yield f"/evaluation_windows/{arm}/logloss/{index} is not nll_sum / token_counts"
                break
        coverage = stats["coverage"][arm]
        if coverage["used"] != used or coverage["ok"] is not (used >= coverage["required"]):
            yield f"/dataset/windows/stats/coverage/{arm} does not fit {used} windows"
    if not ids:
        return
    if dig(report, "provenance", "provider_digest", "ids_sha256") != digest_json(sorted(ids)):
        yield "/provenance/provider_digest/ids_sha256 is not the digest of the window ids"
    if len(set(ids)) != len(ids):
        yield "/evaluation_windows: a window is in there twice"
    if stats["clusters"] != len(set(windows["final"]["clusters"])):
        yield "/dataset/windows/stats/clusters is not the number of clusters"


def _guards(report: Report) -> Iterator[str]:
    for index, guard in enumerate(report["guards"]):
        section = report.get(str(guard["name"]), {})
        for name in GUARD_FIELDS:
            if guard.get(name) != section.get(name):
                yield f"/guards/{index}/{name} differs from /{guard['name']}/{name}"


def _policy(report: Report) -> Iterator[str]:
    """The limits that the report says were in force are those of its tier."""
    from invarlock.policy import load_policy
    from invarlock.reporting.evaluation import resolved_policy as resolved_policy

    try:
        policy = load_policy(str(report["auto"]["tier"]))
    except InvarlockError:
        return  # the replay says so
    if digest_json(report["resolved_policy"]) != digest_json(resolved_policy(policy)):
        yield f"/resolved_policy is not that of tier {policy.tier}"
    for place in ("auto/policy_digest", "policy_digest/thresholds_hash",
                  "policy_provenance/policy_digest"):  # fmt: skip
        if dig(report, *place.split("/")) != policy.digest:
            yield f"/{place} is not the digest of tier {policy.tier}"


def baseline_parts(report: Report) -> dict[str, str]:
    """Digests of what a report records of its baseline run, by name; all reports about one
    model in one pack must hold the same. A rejected subject's report has no windows."""
    parts = {
        "run": dig(report, "baseline_ref", "run_id"),
        "checkpoint": dig(report, "baseline_ref", "checkpoint_sha256"),
        "windows file": dig(report, "provenance", "windows_sha256"),
    }
    windows = report.get("evaluation_windows")
    for arm in ARMS:
        columns = [
            dig(windows, arm, column)
            for column in ("window_ids", "clusters", "token_counts", "baseline_nll_sum")
        ]
        if all(isinstance(column, list) and column for column in columns):
            parts[f"{arm} windows and losses"] = columns
    return {name: digest_json(value) for name, value in parts.items() if value is not None}
