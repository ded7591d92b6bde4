"""The catalogue: what is in it, exact selection, tuned parameters, the command."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from report_factory import CATALOGUE, ROOT, catalogue

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.damage.specs import parse_damage
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError
from invarlock.scenarios import (
    Scenario,
    effective_manifest,
    expected_evaluations,
    load_catalogue,
    parse_catalogue,
)
from invarlock.tuned import load_tuned, read_or_empty, resolve_spec

TUNED = ROOT / "scenarios" / "tuned_edit_params.json"
STANDARD = ("subset", "showcase", "workshop3", "full")
MISTRAL, QWEN14 = "mistralai/Mistral-7B-v0.1", "Qwen/Qwen2.5-14B"

# id: strictness, primary guard, spec for Mistral-7B (the published table)
PUBLISHED_EDITS = {
    "quant_4bit_clean": ("must_pass", "primary_metric", "quant_rtn:4:32:ffn"),
    "fp8_e5m2_clean": ("must_pass", "primary_metric", "fp8_quant:e5m2:ffn"),
    "prune_clean": ("must_pass", "primary_metric", "magnitude_prune:0.1:ffn"),
    "svd_rank32_clean": ("must_pass", "primary_metric", "lowrank_svd:32:ffn@layer=15"),
    "prune_50pct_stress": ("must_fail", "primary_metric", "magnitude_prune:0.5:all"),
    "svd_rank32_stress": ("must_fail", "primary_metric", "lowrank_svd:32:all"),
    "quant_4bit_stress": ("informational", "primary_metric", "quant_rtn:4:32:all"),
    "fp8_e5m2_stress": ("informational", "spectral", "fp8_quant:e5m2:all"),
    "lora_rank4_clean": ("must_pass", "primary_metric", "lora_merge:4:8:attn"),
    "fine_tune_step1_clean": ("must_pass", "primary_metric", "fine_tune:0.0001:1:ffn"),
    "lora_rank8_stress": ("informational", "primary_metric", "lora_merge:8:64:all"),
    "fine_tune_step3_stress": ("informational", "primary_metric", "fine_tune:0.0005:3:all"),
}
# what older versions had, with the spec of the edit or the factor of the damage
HISTORY: dict[str, tuple[str, object]] = {
    "noop_clean": ("must_pass", "noop"),
    "prune_12pct_clean": ("must_pass", "magnitude_prune:0.12:ffn"),
    "svd_rank32_l31_clean": ("must_pass", "lowrank_svd:32:ffn@layer=15"),
    "spectral_moderate_scale_attn_l31_o_s112": ("informational", 1.12),
}
# id: primary guard and the numbers of the injection
INJECTIONS: dict[str, tuple[str, dict[str, float]]] = {
    "nan_injection": ("invariants", {}),
    "inf_injection": ("invariants", {}),
    "shape_mismatch": ("invariants", {"extra_rows": 8}),
    "missing_tensors": ("invariants", {"layers": 1}),
    "extreme_quant": ("primary_metric", {}),
    "scale_explosion": ("spectral", {"factor": 100.0}),
    "rank_collapse": ("spectral", {"matrices": 8}),
    "norm_collapse": ("spectral", {"matrices": 32}),
    "weight_tying_break": ("invariants", {}),
}
RMT, SPECTRAL, VE = "rmt_norm_noise", "spectral_moderate_scale", "ve_mlp_scale_skew"
UP = "up_proj,w3"  # the same projection by the names of two architectures
ALIGNED: dict[str, object] = {
    "mode": "anisotropy", "family": "ffn", "layers": "last8", "preserve_row_norms": True,
    "jitter": 0.01, "rows": "random", "max_rows": 192, "row_frac": 0.2, "params": "",
}  # fmt: skip
SCALE: dict[str, object] = {
    "family": "attn", "qkv": False, "pair_inverse": False, "params": "o_proj",
}  # fmt: skip
# id: injector, guard, strictness, the published numbers
PROBES: dict[str, tuple[str, str, str, dict[str, object]]] = {
    RMT: (RMT, "rmt", "informational", ALIGNED | {"blend": 0.8, "max_params": 10, "seed": 42}),
    SPECTRAL: (SPECTRAL, "spectral", "informational", SCALE | {
        "factor": 1.5, "layers": "all", "max_params": 8, "seed": 42}),
    VE: (VE, "variance", "informational", {
        "factor": 0.9, "max_params": 1, "seed": 42, "layers": "last4"}),
    RMT + "_strong": (RMT, "rmt", "informational", ALIGNED | {
        "blend": 1.0, "row_frac": 0.35, "max_rows": 512, "max_params": 16, "seed": 7}),
    SPECTRAL + "_mlp": (SPECTRAL, "spectral", "informational", SCALE | {
        "factor": 1.4, "family": "mlp", "params": UP, "layers": "0-3", "max_params": 2, "seed": 7}),
    VE + "_up": (VE, "variance", "informational", {
        "factor": 1.12, "max_params": 1, "seed": 7, "layers": "last4"}),
    SPECTRAL + "_mlp_l31_up_s112": (SPECTRAL, "spectral", "must_detect", SCALE | {
        "factor": 1.12, "family": "mlp", "params": UP, "layers": "-1", "max_params": 1,
        "seed": 11}),
    SPECTRAL + "_attn_l31_o_s105": (SPECTRAL, "spectral", "informational", SCALE | {
        "factor": 1.05, "layers": "-1", "max_params": 1, "seed": 11}),
    SPECTRAL + "_attn_l31_o_s112": (SPECTRAL, "spectral", "informational", SCALE | {
        "factor": 1.12, "layers": "-1", "max_params": 1, "seed": 11}),
    RMT + "_l31_ffn_up_b030": (RMT, "rmt", "must_detect", ALIGNED | {
        "blend": 0.3, "params": UP, "layers": "-1", "max_params": 1, "seed": 42}),
    VE + "_l31_down_s090": (VE, "variance", "must_detect", {
        "factor": 0.9, "layers": "-1", "max_params": 1, "seed": 42}),
}  # fmt: skip
PROBE_SUITES = {
    "smoke": 3, "byoe": 0, "subset": 3, "showcase": 6, "workshop3": 6, "full": 6,
    "mistral_guard_value": 4, "smoke-all": 11, "history": 1,
}  # fmt: skip
# what the suites of the embedded model do otherwise
SMOKE_PROBES: dict[str, dict[str, object]] = {SPECTRAL: {"layers": "last4"}}
SMOKE_EDITS = {
    "noop_clean": "noop",
    "quant_8bit_clean": "quant_rtn:8:0:all",
    "fp8_e4m3_clean": "fp8_quant:e4m3:all",
    "prune_10pct_clean": "magnitude_prune:0.1:all",
    "quant_4bit_stress": "quant_rtn:4:64:all",
    "prune_50pct_stress": "magnitude_prune:0.5:all",
}


@pytest.mark.parametrize("suite", STANDARD)
def test_published_edits(suite: str) -> None:
    """Each published suite holds the published edits with the published parameters."""
    tuned = load_tuned(TUNED)
    found = {s.id: s for s in catalogue().select(suite)}
    for name, (strictness, guard, spec) in PUBLISHED_EDITS.items():
        scenario = found[name]
        assert (scenario.strictness, scenario.primary_guard) == (strictness, guard)
        assert resolve_spec(scenario, MISTRAL, tuned) == spec


def test_history() -> None:
    """Suite history holds what was renamed or replaced."""
    found = {s.id: (s.strictness, s.edit_spec or s.parameters["factor"])
             for s in catalogue().select("history")}  # fmt: skip
    assert found == HISTORY


# id -> what its detectors name: the pass conditions of the published table
CONDITIONS = {
    "quant_4bit_stress": ["primary_metric_acceptable", "spectral_stable", "spectral_caps_applied"],
    "fp8_e5m2_stress": ["primary_metric_acceptable", "spectral_caps_baseline_relative"],
    "lora_rank8_stress": ["primary_metric_acceptable", "degraded", "spectral_caps_applied"],
    "fine_tune_step3_stress": ["primary_metric_acceptable", "degraded", "spectral_caps_applied"],
    "prune_50pct_stress": ["primary_metric_acceptable", "degraded"],
    "svd_rank32_stress": ["primary_metric_acceptable", "degraded"],
    "extreme_quant": ["primary_metric_acceptable", "degraded", "spectral_stable"],
    "rank_collapse": ["spectral_stable", "primary_metric_acceptable", "degraded"],
    "norm_collapse": ["spectral_stable", "primary_metric_acceptable", "degraded"],
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_published_conditions(name: str) -> None:
    """The detectors of the published suites are those of the published table."""
    (scenario,) = catalogue().select("subset", [name])
    listed = [*scenario.detectors_any_of, *scenario.detectors_all_of]
    assert [d.get("flag") or d.get("field") or d["kind"] for d in listed] == CONDITIONS[name]


@pytest.mark.parametrize("scenario", catalogue().scenarios, ids=lambda s: s.id)
def test_classes(scenario: Scenario) -> None:
    """Kind, category and artifact class agree, and no subject claims an optimized backend."""
    damage = scenario.category == "error_injection"
    assert scenario.is_error == damage
    assert (scenario.artifact_class == "fault_injection_fixture") == damage
    assert not scenario.entry["optimized_deployment_backend"]
    assert scenario.catastrophic_required == (scenario.strictness == "must_fail")
    assert scenario.primary_guard_required <= damage


def test_smoke_all_holds_every_id_that_fits() -> None:
    """The entry of suite smoke where there is one, else the published one; two ids cannot be."""
    held = {s.id: s for s in catalogue().select("smoke-all")}
    assert set(catalogue().ids) - set(held) == {"byoe", "svd_rank32_l31_clean"}
    for scenario in catalogue().select("smoke"):
        assert held[scenario.id] == scenario


@pytest.mark.parametrize("suite", ["smoke", *STANDARD])
def test_published_injections(suite: str) -> None:
    """Every suite holds the nine injections with the published numbers, and must detect each."""
    found = {s.id: s for s in catalogue().select(suite)}
    for name, (guard, numbers) in INJECTIONS.items():
        scenario = found[name]
        assert scenario.is_error
        assert scenario.error_type == name
        assert (scenario.strictness, scenario.primary_guard) == ("must_detect", guard)
        assert scenario.primary_guard_required
        assert parse_damage(name, scenario.parameters).parameters().items() >= numbers.items()


@pytest.mark.parametrize(("suite", "count"), PROBE_SUITES.items())
def test_guard_probes(suite: str, count: int) -> None:
    """Each suite holds its probes with the published numbers; each asks its own guard to speak."""
    found = [s for s in catalogue().select(suite) if s.error_type in (RMT, SPECTRAL, VE)]
    assert len(found) == count
    for scenario in found:
        error_type, guard, strictness, numbers = PROBES[scenario.id]
        assert (scenario.error_type, scenario.primary_guard) == (error_type, guard)
        assert scenario.strictness == strictness
        if suite.startswith("smoke"):
            numbers = numbers | SMOKE_PROBES.get(scenario.id, {})
        damage = parse_damage(error_type, scenario.parameters)
        checked = damage.check(cast(Checkpoint, None))  # no default of a probe depends on it
        other_modes = {"noise": 0.05, "row_factor": 1.6} if error_type == RMT else {}
        assert checked.parameters() == numbers | other_modes
        asked = {"kind": "guard_signal_baseline_relative", "guard": guard}
        relative = any(d.items() >= asked.items() for d in scenario.detectors_all_of)
        assert relative == scenario.primary_guard_required


def test_smoke_edits() -> None:
    """Suite smoke holds its own clean and stress edits and the rank-1 control."""
    found = {s.id: s for s in catalogue().select("smoke")}
    for name, spec in SMOKE_EDITS.items():
        assert found[name].edit_spec == spec
    assert {"svd_one_layer_clean", "svd_stress", "rank1_projection"} <= set(found)
    assert found["rank1_projection"].primary_guard == "spectral"
    assert all(s.strictness == "must_fail" for s in found.values() if s.category == "stress")


def test_noop_is_exact() -> None:
    """Unchanged bytes have to give a ratio of exactly 1, in every suite."""
    for suite in catalogue().suites:
        (noop,) = (s for s in catalogue().select(suite) if s.is_noop)
        assert (noop.id, noop.exact_ratio, noop.strictness) == ("noop_clean", 1.0, "must_pass")


def test_everything_can_be_made() -> None:
    """Every spec and every injection of the catalogue is one that the makers accept."""
    tuned = load_tuned(TUNED)
    for scenario in catalogue().scenarios:
        if scenario.edit_type == "custom":
            continue
        if scenario.is_error:
            parse_damage(str(scenario.error_type), scenario.parameters)
        for model in tuned.models if scenario.is_edit else ():
            parse_edit_spec(resolve_spec(scenario, model, tuned))


def test_selection_is_exact() -> None:
    """A selection holds what was asked for, in catalogue order, and nothing else."""
    chosen = catalogue().select("smoke", ["nan_injection", "noop_clean", "nan_injection"])
    assert [s.id for s in chosen] == ["noop_clean", "nan_injection"]
    stress = catalogue().select("smoke", categories=["stress"])
    assert [s.id for s in stress] == ["quant_4bit_stress", "prune_50pct_stress", "svd_stress"]


def test_same_id_by_suite() -> None:
    """An id that two suites define differently is taken from the suite that was asked for."""
    specs = {
        suite: next(s.edit_spec for s in catalogue().select(suite, ["quant_4bit_stress"]))
        for suite in ("smoke", "subset")
    }
    assert specs == {"smoke": "quant_rtn:4:64:all", "subset": "quant_rtn:4:32:all"}


def test_an_unknown_suite() -> None:
    """One line with the file, a near match and what there is."""
    with pytest.raises(ConfigError, match=r"'smok' is not a suite.*did you mean smoke\?") as caught:
        catalogue().select("smok")
    assert str(CATALOGUE) in str(caught.value)
    assert "workshop3" in str(caught.value)


def document() -> dict[str, Any]:
    """The catalogue as JSON, free to be changed."""
    return copy.deepcopy(dict(catalogue().document))


def test_an_id_twice_in_a_suite() -> None:
    """A suite that would hold one id twice is refused."""
    changed = document()
    changed["scenarios"].append(changed["scenarios"][0])
    with pytest.raises(ConfigError, match="noop_clean stands twice in suite"):
        parse_catalogue(changed, "x.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("scenarios", 0, "strictnes"), "must_pass", "did you mean strictness"),
        (("scenarios", 0, "strictness"), "should_pass", "/scenarios/0/strictness is"),
        (("scenarios", 0, "suites"), [], "/scenarios/0/suites"),
        (("schema",), "v2", "/schema"),
    ],
)
def test_contract(path: tuple[Any, ...], value: object, message: str) -> None:
    """A misspelt key or value is refused with the file and the JSON pointer."""
    changed = document()
    target = changed
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        parse_catalogue(changed, "x.json")
    assert message in str(caught.value)
    assert "x.json" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "generation"),
    [
        ("deployable_optimized_subject", {"kind": "edit", "edit_spec": "noop"}),
        ("validation_subject_checkpoint", {"kind": "deployable_edit", "edit_spec": "torchao:int8"}),
        ("deployable_optimized_subject", {"kind": "error", "error_type": "nan_injection"}),
    ],
)
def test_classes_that_are_not_made(kind: str, generation: dict[str, str], tmp_path: Path) -> None:
    """A class that the way of making a subject cannot give: a line with what can."""
    document = json.loads(CATALOGUE.read_text())
    document["scenarios"][0] |= {"artifact_class": kind, "generation": generation}
    (tmp_path / "scenarios.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError) as caught:
        load_catalogue(tmp_path / "scenarios.json")
    line = str(caught.value)
    assert f"scenario {document['scenarios'][0]['id']} is of class {kind}" in line
    assert "edit_spec custom is what you bring" in line
    assert "\n" not in line


def test_evidence_alone_is_packed_by_hand(tmp_path: Path) -> None:
    """A run has nothing to measure of such a scenario; the line names the command."""
    document = json.loads(CATALOGUE.read_text())
    document["scenarios"][0]["artifact_class"] = "evidence_only_pack"
    parse_catalogue(document, "received")  # a pack may hold one
    path = tmp_path / "scenarios.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="evidence-pack build OUT --run-dir DIR") as caught:
        load_catalogue(path)
    assert "noop_clean is of class evidence_only_pack" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gptq:4", "known: bitsandbytes, llama_cpp, torchao"),
        ("llama_cpp:Q4_K", "did you mean Q4_K_M?"),
        ("torchao:int8:zeros", "known: scales_damaged"),
        ("torchao:int8:scales_damaged:2", "torchao:FORM"),
    ],
)
def test_packing_that_no_backend_does(spec: str, said: str) -> None:
    """An unknown backend, form or damage is refused when the catalogue is read."""
    document = json.loads(CATALOGUE.read_text())
    document["scenarios"][0] |= {
        "artifact_class": "deployable_optimized_subject",
        "generation": {"kind": "deployable_edit", "edit_spec": spec},
    }
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_catalogue(document, "x.json")


def test_effective_manifest() -> None:
    """The manifest holds the selection and says how it came about; reading it gives the same."""
    manifest = effective_manifest(catalogue(), "smoke", ["nan_injection"])
    assert manifest["_meta"]["applied_suite"] == "smoke"
    assert manifest["_meta"]["scenario_ids_filter"] == ["nan_injection"]
    assert [s.id for s in parse_catalogue(manifest, "m").select("smoke")] == ["nan_injection"]
    assert effective_manifest(catalogue(), "smoke")["_meta"]["scenario_ids_filter"] is None


def test_tuned_per_model() -> None:
    """Tuned parameters differ by model and are found by id or by folder name."""
    tuned = load_tuned(TUNED)
    (prune,) = catalogue().select("subset", ["prune_clean"])
    assert resolve_spec(prune, QWEN14, tuned) == "magnitude_prune:0.12:attn"
    assert resolve_spec(prune, "qwen__qwen2.5-14b", tuned) == "magnitude_prune:0.12:attn"


def test_untuned_model() -> None:
    """No entry for a model is one line that names the model, the edit and the file."""
    (prune,) = catalogue().select("subset", ["prune_clean"])
    with pytest.raises(ConfigError) as caught:
        resolve_spec(prune, "acme/unknown", load_tuned(TUNED))
    line = str(caught.value)
    parts = ("acme/unknown", "magnitude_prune", TUNED.name, "invarlock advanced tune")
    assert all(part in line for part in parts)
    with pytest.raises(ConfigError, match=r"nowhere.json, which is not there"):
        resolve_spec(prune, MISTRAL, read_or_empty(Path("nowhere.json")))


def test_skipped_entry(tmp_path: Path) -> None:
    """An entry that is not selected is never used; defaults are, for models without one."""
    table = json.loads(TUNED.read_text())
    table["models"][MISTRAL]["magnitude_prune"] |= {"status": "skipped", "reason": "too lossy"}
    table["defaults"] = {
        "magnitude_prune": {"status": "selected", "sparsity": 0.05, "scope": "ffn"}
    }
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(table))
    (prune,) = catalogue().select("subset", ["prune_clean"])
    with pytest.raises(ConfigError, match=r"skipped \(too lossy\)"):
        resolve_spec(prune, MISTRAL, load_tuned(path))
    assert resolve_spec(prune, "acme/new", load_tuned(path)) == "magnitude_prune:0.05:ffn"


def test_expected_evaluations() -> None:
    """Every scenario of every model in every run is expected once."""
    scenarios = catalogue().select("smoke", ["noop_clean", "nan_injection"])
    found = expected_evaluations(scenarios, ["b", "a", "a"], [2, 1])
    assert len(found) == 8
    assert len(set(found)) == 8
    assert found[:3] == (("a", "noop_clean", 1), ("a", "noop_clean", 2), ("a", "nan_injection", 1))


def test_categories_may_have_different_numbers_of_runs() -> None:
    """The manifest says how many evaluations of each there are; all of them are expected."""
    ids = ["noop_clean", "nan_injection"]
    manifest = effective_manifest(catalogue(), "smoke", ids, (), {"clean": 3, "error_injection": 1})
    found = expected_evaluations(parse_catalogue(manifest, "m").scenarios, ["a"], [1, 2])
    assert found == (*(("a", "noop_clean", n) for n in (1, 2, 3)), ("a", "nan_injection", 1))


def test_command(tmp_path: Path) -> None:
    """The command writes the same bytes each time, and nothing when an id is unknown."""
    base = ["scenarios", "--catalogue", str(CATALOGUE), "--suite", "smoke"]
    first, second, third = (tmp_path / name for name in "abc")
    assert main([*base, "--out", str(first)]) == 0
    assert main([*base, "--out", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert main([*base, "--scenario", "nope", "--out", str(third)]) == 2
    assert not third.exists()


def test_import_is_light() -> None:
    """Importing the module (every Snakemake job does) is light."""
    code = (
        "import sys, invarlock.scenarios; "
        "print([m for m in ('numpy', 'torch', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
