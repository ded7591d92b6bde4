"""What all reports about one model in one pack have to hold alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.evidence.findings import dig
from invarlock.files import digest_json
from invarlock.metrics import ARMS

HEAD = ("name", "family", "layer")  # of a table of modules
Report = Mapping[str, Any]


def shared_parts(report: Report) -> dict[str, str]:
    """Digests of what all reports about one model in one pack must hold alike, by name: their
    baseline run, and how they were judged. A rejected subject's report has no windows."""
    bootstrap = dig(report, "context", "bootstrap")
    parts = {
        "baseline run": dig(report, "baseline_ref", "run_id"),
        "baseline checkpoint": dig(report, "baseline_ref", "checkpoint_sha256"),
        "windows file": dig(report, "provenance", "windows_sha256"),
        "vocabulary": dig(report, "vocabulary"),
        "text": dig(report, "dataset", "source"),
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
