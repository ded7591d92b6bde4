"""Re-check evaluation reports: what ``invarlock verify`` does, as functions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from invarlock.errors import ConfigError
from invarlock.evidence.report_verify import (
    RUNTIME_PROVENANCE,
    ReportOptions,
    ReportResult,
    envelope,
    exit_code,
    verify_report,
)
from invarlock.evidence.tree import REPORT_NAME
from invarlock.files import read_bytes, read_json_object
from invarlock.policy import ASSURANCE, check_profile, one_of
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST

__all__ = ["ReportResult", "envelope", "exit_code", "verify_reports"]

RUN_REPORT = "report.json"


def verify_reports(
    reports: Iterable[Path],
    *,
    profile: str = "dev",
    assurance: str = "report",
    runtime_provenance: str = "declared",
    tolerance: float = 1e-9,
    fail_on_warnings: bool = False,
    replay: bool = False,
    baseline: Path | None = None,
) -> list[ReportResult]:
    """Verify reports, each with the runtime manifest beside it.

    Args:
        reports: ``evaluation.report.json`` files, or their folders.
        profile: ``dev``: what a report says is true, PASS or FAIL; ``ci`` and ``release``: and
            acceptable.
        assurance: ``strict``: the full claim, of a container run; ``report``: where the report
            claims it; ``off``.
        runtime_provenance: ``container``: demand one; ``host``: no runtime manifest is needed;
            ``declared``: what the report says.
        tolerance: of recomputed numbers, relative and absolute.
        fail_on_warnings: warnings of guards are findings.
        replay: evidence that is missing for the replay is a finding.
        baseline: the baseline's run (``report.json``) or its folder, to be compared with each.

    Returns:
        one result a report, in their order; ``ok`` says whether nothing was found.

    Raises:
        ConfigError: a word or a number that is none of these.
        InputError: a file is missing, too large or, of ``baseline``, no JSON object.
    """
    check_profile(profile)
    one_of(assurance, ASSURANCE, "report assurance")
    one_of(runtime_provenance, RUNTIME_PROVENANCE, "runtime provenance")
    if not 0 <= tolerance < 1:
        raise ConfigError("not a tolerance", found=str(tolerance), expected="0 to 1")
    options = ReportOptions(
        profile=profile,
        assurance=assurance,
        provenance="container" if assurance == "strict" else runtime_provenance,
        tolerance=tolerance,
        fail_on_warnings=fail_on_warnings,
        require_replay=replay,
        truth_only=profile == "dev",
    )
    reference = read_json_object(_run_of(baseline)) if baseline else None
    loaded = [_load(path) for path in reports]
    return [
        verify_report(data, manifest, str(path), options, reference)
        for path, data, manifest in loaded
    ]


def _load(path: Path) -> tuple[Path, bytes, bytes | None]:
    report = path / REPORT_NAME if path.is_dir() else path
    beside = report.parent / RUNTIME_MANIFEST
    return report, read_bytes(report), read_bytes(beside) if beside.is_file() else None


def _run_of(path: Path) -> Path:
    """The run report of a folder, else its evaluation report."""
    if not path.is_dir():
        return path
    return next((p for p in (path / RUN_REPORT, path / REPORT_NAME) if p.is_file()), path)
