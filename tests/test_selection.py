"""Verdicts on parts of a suite: what was selected is judged, and nothing is missed or added."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pack_factory as packs
import pytest
from report_factory import catalogue, good_suite, make_evaluation, make_report, manifest

from invarlock.damage.specs import parse_damage
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import InputError
from invarlock.scenarios import CUSTOM_SPEC, Scenario, effective_manifest
from invarlock.subject_metadata import check_subject_metadata, stated_parameters
from invarlock.tuned import tuned_type
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
    "optimized_deployment_backend": False, "scope": "all", "parameters": {"sparsity": 0.1},
}  # fmt: skip
DAMAGE = {
    "artifact_class": "fault_injection_fixture", "error_type": "nan_injection", "injected": True,
}  # fmt: skip


SCALED = {
    "artifact_class": "fault_injection_fixture", "error_type": RELATIVE, "injected": True,
    "parameters": parse_damage(
        RELATIVE, catalogue().select("smoke", [RELATIVE])[0].parameters
    ).parameters(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "good", "key", "value"),
    [
        ("prune_10pct_clean", EDIT, "artifact_class", "fault_injection_fixture"),
        ("prune_10pct_clean", EDIT, "edit_type", "quant_rtn"),
        ("prune_10pct_clean", EDIT, "optimized_deployment_backend", True),
        ("prune_10pct_clean", EDIT, "scope", "ffn"),
        ("prune_10pct_clean", EDIT, "parameters/sparsity", 0.99),
        ("prune_10pct_clean", EDIT, "parameters/sparsity", True),
        ("prune_10pct_clean", EDIT, "parameters/sparsity", "a tenth"),
        ("nan_injection", DAMAGE, "artifact_class", "validation_subject_checkpoint"),
        ("nan_injection", DAMAGE, "error_type", "inf_injection"),
        ("nan_injection", DAMAGE, "injected", False),
        (RELATIVE, SCALED, "parameters/factor", 100.0),
        (RELATIVE, SCALED, "parameters/max_params", 1),
        (RELATIVE, SCALED, "parameters/params", "q_proj"),
        (RELATIVE, SCALED, "parameters/seed", None),
    ],
)
def test_metadata_agrees(name: str, good: dict[str, Any], key: str, value: object) -> None:
    """What the metadata says of the subject is what the scenario asks for."""
    entry = catalogue().select("smoke", [name])[0].entry
    check_subject_metadata(entry, good, "metadata.json")
    bad = copy.deepcopy(good)
    *parents, last = key.split("/")
    (bad[parents[0]] if parents else bad)[last] = value
    with pytest.raises(InputError, match=f"metadata.json: /{key} is not that of scenario {name}"):
        check_subject_metadata(entry, bad, "metadata.json")
    if parents:  # nothing said is not agreement either
        with pytest.raises(InputError, match=r"metadata\.json: /parameters/"):
            check_subject_metadata(entry, good | {"parameters": None}, "metadata.json")


@pytest.mark.parametrize(
    "scenario", catalogue().scenarios, ids=lambda s: "-".join((s.id, *s.suites))
)
def test_every_scenario_agrees_with_what_is_made_of_it(scenario: Scenario) -> None:
    """What the makers record of each entry agrees with it, and all that it states is compared."""
    stated = stated_parameters(scenario.entry)
    made: dict[str, Any] = {"artifact_class": scenario.artifact_class}
    if scenario.is_error:
        damage = parse_damage(str(scenario.error_type), scenario.parameters)
        made |= {"error_type": scenario.error_type, "injected": True}
        made["parameters"] = damage.parameters()
        assert stated == scenario.parameters
    else:
        made |= {"edit_type": scenario.edit_type, "optimized_deployment_backend": False}
        if scenario.edit_type == CUSTOM_SPEC or tuned_type(scenario):
            assert not stated  # the numbers stand elsewhere, or nobody knows them
        else:
            spec = parse_edit_spec(str(scenario.edit_spec))
            made |= {"parameters": spec.parameters(), "scope": str(getattr(spec, "scope", "none"))}
            scope = {"scope"} if spec.reach else set()
            assert stated.keys() == made["parameters"].keys() | scope
    check_subject_metadata(scenario.entry, made, "metadata.json")


def test_what_a_scenario_leaves_open_is_not_compared() -> None:
    """-1, 0 and the empty name stand for a place that the model or the injector's mode gives."""
    left = {"layer": -1, "projection": "", "max_params": 0, "qkv": False, "row": 3}
    assert stated_parameters({"generation": {"env": left}}) == {"qkv": False, "row": 3}
    assert stated_parameters({"generation": []}) == stated_parameters({}) == {}


def test_a_pack_of_weaker_damage_is_not_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage done with another number than its scenario states cannot be packed as that damage."""
    out = packs.write_suite(tmp_path / "out", ("noop_clean", "quant_8bit_clean", "scale_explosion"))
    assert packs.build(out, tmp_path / "good") == 0
    (metadata,) = out.rglob("scale_explosion/*/error_metadata.json")
    packs.edit_json(metadata, lambda d: d["parameters"].update(factor=1.5))
    assert packs.build(out, tmp_path / "bad") != 0
    line = "error_metadata.json: /parameters/factor is 1.5; its scenario says 100"
    assert line in capsys.readouterr().err
