"""Whether the parts of a report that repeat or summarize its evidence agree with it.

The replay recomputes the decisions; these are the places that a reader would otherwise believe:
per-window losses, the digest of the window ids, coverage, counts. Nothing here needs NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from invarlock.evidence.findings import dig
from invarlock.files import digest_json
from invarlock.metrics import ARMS

HEAD = ("name", "family", "layer")  # of a table of modules
LOSS_TOLERANCE = 1e-9  # relative, of logloss against nll_sum / token_counts
Report = Mapping[str, Any]
# Pairs of places that hold the same thing.
SAME = (
    ("baseline_ref/tokenizer_hash", "provenance/provider_digest/tokenizer_sha256"),
    ("baseline_ref/tokenizer_hash", "dataset/tokenizer/hash"),
    ("meta/checkpoint_sha256", "provenance/subject/checkpoint_sha256"),
    ("meta/run_id", "meta/subject_run_id"),
    ("meta/run_id", "provenance/subject/run_id"),
    ("meta/model_id", "baseline_ref/model_id"),
    ("meta/adapter", "baseline_ref/adapter"),
    ("provenance/windows_sha256", "dataset/hash/dataset"),
    ("baseline_ref/checkpoint_sha256", "provenance/baseline/checkpoint_sha256"),
    ("baseline_ref/run_id", "provenance/baseline/run_id"),
    ("baseline_ref/tokenizer_hash", "provenance/baseline/checkpoint/tokenizer_sha256"),
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
    return [
        *_same(report),
        *_checkpoints(report),
        *_windows(report),
        *_vocabulary(report),
        *_classification(report),
    ]


def _same(report: Report) -> Iterator[str]:
    for one, other in SAME:
        values = [dig(report, *place.split("/")) for place in (one, other)]
        if values[0] != values[1]:
            yield f"/{other} differs from /{one}"


def _checkpoints(report: Report) -> Iterator[str]:
    """A checkpoint's digest is that of the parts that the report lists."""
    for side in ("baseline", "subject"):
        stated = report["provenance"][side]
        digest, parts = stated["checkpoint_sha256"], stated["checkpoint"]
        if digest != (None if parts is None else digest_json(parts)):
            yield f"/provenance/{side}/checkpoint_sha256 is not that of the parts beside it"
    tokenizer = (report["provenance"]["subject"]["checkpoint"] or {}).get("tokenizer_sha256")
    if tokenizer is not None and tokenizer != report["meta"]["tokenizer_hash"]:
        yield "/meta/tokenizer_hash is not that of /provenance/subject/checkpoint"


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
        columns = (rows[column] for column in ("nll_sum", "token_counts", "logloss"))
        for index, (total, count, loss) in enumerate(zip(*columns, strict=True)):
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


def _vocabulary(report: Report) -> Iterator[str]:
    """No more different tokens than the vocabulary has, or the windows hold."""
    used, size = (dig(report, "vocabulary", key) for key in ("used", "size"))
    if not (_is_count(used) and used > 0 and (size is None or (_is_count(size) and used <= size))):
        yield "/vocabulary does not say how many of how many token ids the windows use"
        return
    windows = sum(len(report["evaluation_windows"][arm]["window_ids"]) for arm in ARMS)
    text = report["primary_metric"]["kind"] != "accuracy"  # of records several answers are read
    if text and windows and used > windows * report["dataset"]["seq_len"]:
        yield "/vocabulary/used is more than the windows have tokens"


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _classification(report: Report) -> Iterator[str]:
    """The counts of an accuracy are those of the recorded answers."""
    if report["primary_metric"]["kind"] != "accuracy" or "metrics" not in report:
        return
    stated = report["metrics"]["classification"]
    for arm in ARMS:
        correct = report["evaluation_windows"][arm]["correct"]
        if stated[arm] != {"correct_total": sum(correct), "total": len(correct)}:
            yield f"/metrics/classification/{arm} does not count the answers"
    final = stated["final"]
    if (stated["n_correct"], stated["n_total"]) != (final["correct_total"], final["total"]):
        yield "/metrics/classification/n_correct or n_total is not that of the final arm"


def shared_parts(report: Report) -> dict[str, str]:
    """Digests of what all reports about one model in one pack must hold alike, by name: their
    baseline run, and how they were judged. A rejected subject's report has no windows."""
    bootstrap = dig(report, "context", "bootstrap")
    parts = {
        "baseline run": dig(report, "baseline_ref", "run_id"),
        "baseline checkpoint": dig(report, "baseline_ref", "checkpoint_sha256"),
        "windows file": dig(report, "provenance", "windows_sha256"),
        "vocabulary": dig(report, "vocabulary"),
        "policy": dig(report, "auto", "policy_digest"),
        "bootstrap": bootstrap and {k: dig(bootstrap, k) for k in ("replicates", "alpha", "seed")},
    }
    windows = report.get("evaluation_windows")
    for arm in ARMS:
        columns = [
            dig(windows, arm, column)
            for column in ("window_ids", "clusters", "token_counts", "baseline_nll_sum")
        ]
        if all(isinstance(column, list) and column for column in columns):
            parts[f"{arm} windows and baseline losses"] = columns
    for guard in ("spectral", "rmt", "variance"):
        table = dig(report, guard, "modules")
        if isinstance(table, Mapping) and "baseline_name" not in table:
            columns = [key for key in table if key in HEAD or key.startswith("baseline_")]
            parts[f"baseline {guard} statistics"] = [table[key] for key in sorted(columns)]
    return {name: digest_json(value) for name, value in parts.items() if value is not None}
