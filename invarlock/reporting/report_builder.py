"""The comparison of two finished runs as an evaluation report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.reporting.compare_runs import compare_runs


def make_report(report: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Compare a subject's run with its baseline's, judged by the tier of the subject's run.

    Args:
        report: ``report.json`` of the subject's run.
        baseline: ``report.json`` of the baseline's run, on the same windows.

    Returns:
        what ``evaluation.report.json`` holds.

    Raises:
        InputError: the two measured other windows or tokens.
    """
    return compare_runs(report, baseline)
