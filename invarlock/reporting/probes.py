"""The evidence of a guard in a file of its own, for scenarios that ask.

A probe follows from the evaluation report that it is bound to, by its digest and those of what
was compared; nothing is measured for it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from invarlock.files import digest_json
from invarlock.guards import GUARDS
from invarlock.pages.reading import Report

FILES = {guard.probe_file.file: (guard, guard.probe_file) for guard in GUARDS if guard.probe_file}
CONTRACTS = {name: probe.contract for name, (_, probe) in FILES.items()}


def probe_of(name: str, report: Report) -> dict[str, Any]:
    """The probe called ``name`` of a report in which its guard was evaluated."""
    guard, probe = FILES[name]
    return probe.write(report[guard.name]) | {"binding": _binding(report)}


def wanted(requirements: Mapping[str, Sequence[Mapping[str, Any]]], report: Report) -> list[str]:
    """File names of the probes that a scenario's detectors read and the report can give."""
    asked = {
        detector.get("kind")
        for key in ("detectors_any_of", "detectors_all_of")
        for detector in requirements.get(key, ())
    }
    return [
        name
        for name, (guard, probe) in FILES.items()
        if probe.detector in asked and report[guard.name].get("evaluated") is True
    ]


def _binding(report: Report) -> dict[str, Any]:
    return {
        "report_sha256": digest_json(report),  # of its canonical JSON
        "baseline_checkpoint_sha256": report["baseline_ref"]["checkpoint_sha256"],
        "subject_checkpoint_sha256": report["meta"]["checkpoint_sha256"],
        "windows_sha256": report["provenance"]["windows_sha256"],
    }
