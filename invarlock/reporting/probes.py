"""``rmt_probe.json`` and ``ve_probe.json``: the evidence of two guards, for scenarios that ask.

Both follow from the evaluation report they are bound to, by its digest and those of what was
compared; nothing is measured for them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from invarlock.files import digest_json

RMT_NAME, VE_NAME = "rmt_probe.json", "ve_probe.json"
CONTRACTS = {RMT_NAME: "rmt-probe", VE_NAME: "ve-probe"}
Report = Mapping[str, Any]


def probe_of(name: str, report: Report) -> dict[str, Any]:
    """The probe called ``name`` of a report in which its guard was evaluated."""
    return {RMT_NAME: _rmt, VE_NAME: _ve}[name](report)


def wanted(requirements: Mapping[str, Sequence[Mapping[str, Any]]], report: Report) -> list[str]:
    """File names of the probes that a scenario's detectors read and the report can give."""
    asked = {
        detector.get("kind")
        for key in ("detectors_any_of", "detectors_all_of")
        for detector in requirements.get(key, ())
    }
    known = ((RMT_NAME, "rmt_probe", "rmt"), (VE_NAME, "ve_probe", "variance"))
    return [
        name
        for name, kind, guard in known
        if kind in asked and report[guard].get("evaluated") is True
    ]


def _binding(report: Report) -> dict[str, Any]:
    return {
        "report_sha256": digest_json(report),  # of its canonical JSON
        "baseline_checkpoint_sha256": report["baseline_ref"]["checkpoint_sha256"],
        "subject_checkpoint_sha256": report["meta"]["checkpoint_sha256"],
        "windows_sha256": report["provenance"]["windows_sha256"],
    }


def _rmt(report: Report) -> dict[str, Any]:
    block = report["rmt"]
    kept = ("epsilon_default", "epsilon_by_family", "epsilon_violations", "families")
    metrics = ("max_edge_ratio", "max_edge_delta", "mean_edge_delta", "modules_compared")
    return {
        "schema": "invarlock/rmt-probe-v1",
        "probe": "rmt_cross_model_v1",
        "passed": block["passed"],
        "action": block["decision"],
        "stable": block["stable"],
        "stable_guard": block["stable"],
        **{key: block[key] for key in kept},
        "metrics": {key: block[key] for key in metrics},
        "modules": block["modules"],
        "binding": _binding(report),
    }


def _ve(report: Report) -> dict[str, Any]:
    block = report["variance"]
    gate = block["predictive_gate"]
    return {
        "schema": "invarlock/ve-probe-v1",
        "probe": "ve_cross_model_v1",
        "signal": block["signal"],
        "signal_reasons": [gate["reason"]] if block["signal"] else [],
        "would_enable": block["signal"],
        "gate_reason": gate["reason"],
        "proposed_scales": block["proposed_scales"],
        "predictive_gate": gate,
        "ab_test": block.get("ab_test"),
        "modules": block["modules"],
        "binding": _binding(report),
    }
