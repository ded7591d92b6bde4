"""Verdicts on parts of a suite: what was selected is judged, and nothing is missed or added."""

from __future__ import annotations

from typing import Any

import pytest
from report_factory import catalogue, good_suite, make_evaluation, make_report, manifest

from invarlock.errors import InputError
from invarlock.scenarios import check_subject_metadata, effective_manifest
from invarlock.verdict.records import Evaluation
from invarlock.verdict.verdict import compile_verdict

RELATIVE = "spectral_moderate_scale"  # its detectors compare with the no-op


def judge(evaluations: list[Evaluation], ids: list[str]) -> dict[str, Any]:
    """The verdict on these scenarios of suite smoke."""
    return compile_verdict(manifest("smoke", ids), evaluations, [e.key for e in evaluations])


@pytest.mark.parametrize("category", ["clean", "stress", "error_injection"])
def test_one_category(category: str) -> None:
    """A clean-only or stress-only run passes on its own and holds nothing else."""
    ids = [s.id for s in catalogue().select("smoke", categories=[category])]
    verdict = judge(good_suite("smoke", ids), ids)
    assert verdict["verdict"] == "PASS", verdict["failed_requirements"]
    assert [record["name"] for record in verdict["records"]] == ids
    document = effective_manifest(catalogue(), "smoke", categories=[category])
    assert [entry["id"] for entry in document["scenarios"]] == ids
    assert document["_meta"]["scenario_ids_filter"] == ids


@pytest.mark.parametrize("name", [RELATIVE, "ve_mlp_scale_skew", "rmt_norm_noise"])
def test_relative_detectors_without_a_noop(name: str) -> None:
    """A single scenario is compared with the baseline itself, as it is with a no-op."""
    alone = judge(good_suite("smoke", [name]), [name])
    both = judge(good_suite("smoke", ["noop_clean", name]), ["noop_clean", name])
    assert alone["verdict"] == both["verdict"] == "PASS"
    assert alone["records"][0] == both["records"][1]


def test_relative_detectors_still_need_a_signal() -> None:
    """Unchanged bytes under the name of damage are no detection, with or without a no-op."""
    (scenario,) = catalogue().select("smoke", [RELATIVE])
    quiet = make_evaluation(scenario, make_report(RELATIVE))
    verdict = judge([quiet], [RELATIVE])
    assert verdict["verdict"] == "FAIL"
    assert not verdict["records"][0]["detectors_hit"]


def test_a_noop_that_crashed_is_no_noop() -> None:
    """A no-op that was asked for and not measured does not count as silent."""
    evaluations = good_suite("smoke", ["noop_clean", RELATIVE])
    noop = catalogue().select("smoke", ["noop_clean"])[0]
    evaluations[0] = make_evaluation(noop, None, status="crashed")
    record = judge(evaluations, ["noop_clean", RELATIVE])["records"][1]
    assert any(line.endswith("no no-op report") for line in record["detectors_missed"])


# --- metadata that belongs to another scenario ------------------------------------------------

EDIT = {
    "artifact_class": "validation_subject_checkpoint", "edit_type": "magnitude_prune",
    "optimized_deployment_backend": False,
}  # fmt: skip
DAMAGE = {
    "artifact_class": "fault_injection_fixture", "error_type": "nan_injection", "injected": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "good", "key", "value"),
    [
        ("prune_10pct_clean", EDIT, "artifact_class", "fault_injection_fixture"),
        ("prune_10pct_clean", EDIT, "edit_type", "quant_rtn"),
        ("prune_10pct_clean", EDIT, "optimized_deployment_backend", True),
        ("nan_injection", DAMAGE, "artifact_class", "validation_subject_checkpoint"),
        ("nan_injection", DAMAGE, "error_type", "inf_injection"),
        ("nan_injection", DAMAGE, "injected", False),
    ],
)
def test_metadata_agrees(name: str, good: dict[str, object], key: str, value: object) -> None:
    """What the metadata says of the subject is what the scenario asks for."""
    entry = catalogue().select("smoke", [name])[0].entry
    check_subject_metadata(entry, good, "metadata.json")
    with pytest.raises(InputError, match=f"metadata.json: /{key} is not that of scenario {name}"):
        check_subject_metadata(entry, good | {key: value}, "metadata.json")
