"""The effective configuration: file, environment and command line, checked before any job."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repository_copy import ROOT
from settings_factory import FILE, MISTRAL, SMOLLM2, SUITES, refusal, settings

from invarlock.config import effective_settings, settings_with
from invarlock.contracts import load_contract
from invarlock.errors import ConfigError, InputError
from invarlock.scenarios import load_catalogue
from invarlock.variables import VARIABLES

pytestmark = pytest.mark.usefixtures("in_repository")


# --- the files -----------------------------------------------------------------------------


def objects(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object with named keys of a schema by pointer, the outermost first."""
    yield at, schema
    for name, part in schema["properties"].items():
        if "properties" in part:
            yield from objects(part, f"{at}/{name}")


def test_file_and_contract_have_the_same_keys() -> None:
    """config.yaml holds exactly the keys of its contract, at every level, and all are required."""
    for pointer, schema in objects(load_contract("config")):
        part: Any = FILE
        for name in pointer.split("/")[1:]:
            part = part[name]
        assert set(part) == set(schema["properties"]) == set(schema["required"]), pointer
        assert schema["additionalProperties"] is False, pointer


def test_the_shipped_file_is_valid_for_every_suite() -> None:
    """Every suite of suites.yaml is in its catalogue and names models that are listed."""
    shipped = FILE["catalogue"]
    named = {suite.get("catalogue", shipped) for suite in SUITES["suites"].values()}
    assert {name for path in named for name in load_catalogue(ROOT / path).suites} == set(
        SUITES["suites"]
    )
    for name, suite in SUITES["suites"].items():
        assert set(suite["models"]) <= set(SUITES["models"])
        if name != "byoe":
            assert [m.model_id for m in settings(suite=name).models] == suite["models"]


def test_a_suite_may_name_its_catalogue(tmp_path: Path) -> None:
    """What the command names comes before it, and the record has the one in force."""
    found = settings(suite="detection")
    assert found.recorded()["values"]["catalogue"] == "detection.json"
    assert "rank_collapse_half" in [s.id for s in found.scenarios]
    document = json.loads((ROOT / "scenarios/detection.json").read_text())
    own = tmp_path / "own.json"
    own.write_text(json.dumps(document | {"scenarios": document["scenarios"][:1]}))
    assert len(settings(suite="detection", catalogue=str(own)).scenarios) == 1


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"suit": "smoke"}, ["/suit is not a known key", "did you mean suite?"]),
        ({"boostrap": {}}, ["/boostrap", "did you mean bootstrap?"]),
        ({"windows": {**FILE["windows"], "seqlen": 8}}, ["/windows/seqlen", "mean seq_len?"]),
        ({"runs": {"clean": 1}}, ["/runs lacks the key stress"]),
        ({"suite": "smok"}, ["'smok'", "did you mean smoke?", "subset"]),
        ({"tier": "balance"}, ["'balance'", "did you mean balanced?"]),
        ({"models": ["Mistral-7B-v0.1"]}, [f"did you mean {MISTRAL}?", "local:FOLDER"]),
        ({"geometry": {"Mistral": {"seq_len": 8}}}, ["/geometry is 'Mistral'", SMOLLM2]),
        ({"geometry": {SMOLLM2: {"seqlen": 8}}}, ["/seqlen", "did you mean seq_len?"]),
        ({"geometry": {SMOLLM2: {"preview": 0}}}, ["/preview is 0"]),
        ({"categories": "claen"}, ["'claen' is not a scenario category", "did you mean clean?"]),
        ({"scenarios": "noop_clean", "categories": "stress"}, ["no scenario of suite smoke"]),
        ({"scenarios": ["noop_claen"]}, ["'noop_claen'", "did you mean noop_clean?", "svd_stress"]),
        ({"scenarios": "noop_clean, nosuch"}, ["'nosuch' is not a scenario of suite smoke"]),
        ({"scenarios": "fp8_e5m2_stress"}, ["not in suite smoke", "belongs to full"]),
        ({"device": "gpu"}, ["/device is 'gpu'", "'cuda'"]),
        ({"timeout_minutes": 0}, ["/timeout_minutes"]),
        ({"net": True}, ["/net is True"]),
        ({"threads": "two"}, ["/threads is 'two'", "integer"]),
        ({"edit_label": "a b; rm"}, ["/edit_label"]),
        ({"accept": "chat_template"}, ["/accept has no effect with suite smoke"]),
        ({"accept": ["a b"]}, ["/accept/0"]),
        ({"out": "runs/{}"}, ["/out holds a brace", "found runs/{}"]),
        ({"models": ["local:a{b}"]}, ["/models holds a brace"]),
        ({"text": "local:a{b.txt"}, ["/text holds a brace"]),
        ({"require_signature": True}, ["keygen"]),
        ({"calibration": {"seeds": 2, "windows": 16}}, ["/calibration/seeds"]),
        ({"repeats": 1}, ["repeats is 1; expected 0, or 2 and more"]),
        # as the command line hands them over
        ({"keep_subjects": "maybe"}, ["/keep_subjects is 'maybe'"]),
        ({"windows": {**FILE["windows"], "final": "four"}}, ["/windows/final is 'four'"]),
    ],
)
def test_a_wrong_value_is_named(given: dict[str, object], words: list[str]) -> None:
    """A misspelt key, an unknown name or a value out of range is one line that helps."""
    line = refusal(**given)
    for word in words:
        assert word in line, line


def test_byoe_needs_both_folders(tmp_path: Path) -> None:
    """Suite byoe without baseline or subject says which one is missing and how to give it."""
    assert "suite byoe needs baseline" in refusal(suite="byoe")
    line = refusal(suite="byoe", baseline=str(tmp_path))
    assert "suite byoe needs subject" in line
    assert "baseline=DIR subject=DIR" in line


@pytest.mark.parametrize("key", ["baseline", "subject", "pack"])
def test_a_missing_folder_is_named(key: str, tmp_path: Path) -> None:
    """A folder that is not there is refused with its path before any job."""
    there = {"suite": "byoe", "baseline": str(tmp_path), "subject": str(tmp_path)}
    given = {**there, key: str(tmp_path / "nowhere")}
    line = refusal(InputError, **given)
    assert f"/{key} is not a folder" in line
    assert str(tmp_path / "nowhere") in line
    assert "hub:" not in line
    assert "not a URL: /a/b" in refusal(InputError, **{**there, key: "file:///a/b"})


def test_a_name_of_the_hub_is_written_with_its_prefix() -> None:
    """A baseline named OWNER/NAME is no folder, and the line says how the hub's is named."""
    line = refusal(InputError, suite="byoe", baseline="acme/none", subject=".")
    assert line.endswith("if a model of the hub is meant: hub:acme/none")


def test_a_missing_tuned_file_does_not_matter_where_it_is_not_used(tmp_path: Path) -> None:
    """Suite smoke holds no tuned edit and does not read the table; suite subset does."""
    nowhere = str(tmp_path / "tuned.json")
    assert settings(tuned_edit_params=nowhere).edit_specs
    loaded = settings(suite="subset", tuned_edit_params=nowhere)
    with pytest.raises(ConfigError, match=f"{nowhere}, which is not there"):
        loaded.edit_spec(loaded.models[0].slug, "prune_clean")


# --- environment and precedence ---------------------------------------------------------------

# Variable -> (text, value that it must give).
SPOKEN: dict[str, tuple[str, object]] = {
    "PACK_SUITE": ("subset", "subset"),
    "PACK_MODELS": (MISTRAL, [MISTRAL]),
    "PACK_MODELS_CSV": (MISTRAL, [MISTRAL]),
    "PACK_SCENARIO_IDS": ("noop_clean", ["noop_clean"]),
    "PACK_SCENARIOS_MANIFEST_FILE": ("./scenarios/scenarios.json", "./scenarios/scenarios.json"),
    "PACK_INCLUDE_DEPLOYABLE_EDITS": ("1", True),
    "PACK_DEPLOY_BACKENDS": ("bitsandbytes,torchao", ["bitsandbytes", "torchao"]),
    "OUTPUT_DIR": ("runs/mine", "runs/mine"),
    "PACK_OUTPUT_DIR": ("runs/mine", "runs/mine"),
    "PACK_NET": ("1", 1),
    "INVARLOCK_ALLOW_NETWORK": ("1", 1),
    "PACK_TUNED_EDIT_PARAMS_FILE": ("other/tuned.json", "other/tuned.json"),
    "PACK_DETERMINISM": ("throughput", "throughput"),
    "INVARLOCK_DETERMINISM": ("throughput", "throughput"),
    "INVARLOCK_OMP_THREADS": ("2", 2),
    "PACK_REPEATS": ("3", 3),
    "PACK_DEFER_REPORT_RENDERING": ("1", True),
    "PACK_BASELINE_STORAGE_MODE": ("snapshot_symlink", "snapshot_symlink"),
    "PACK_CLEANUP_MODELS": ("0", True),  # not cleaning up is keeping
    "PACK_VERIFY_PROFILE": ("ci", "ci"),
    "PACK_EVALUATE_ASSURANCE": ("strict", "strict"),
    "PACK_REPORT_ASSURANCE": ("strict", "strict"),
    "PACK_SIGNING_KEY": ("keys/key.pem", "keys/key.pem"),
    "MIN_FREE_DISK_GB": ("7.5", 7.5),
    "INVARLOCK_TIER": ("aggressive", "aggressive"),
    "INVARLOCK_ALLOW_REMOTE_CODE": ("true", True),
    "INVARLOCK_ALLOW_HOST_EXECUTION": ("no", False),
    "INVARLOCK_TELEMETRY": ("1", True),
    "INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE": ("1", True),
    "INVARLOCK_CONTAINER_ENGINE": ("podman", "podman"),
    "INVARLOCK_RUNTIME_IMAGE": ("images/mine.sif", "images/mine.sif"),
    "INVARLOCK_RUNTIME_IMAGE_DIGEST": (f"sha256:{'a' * 64}", f"sha256:{'a' * 64}"),
}
SIGNING = {"PACK_STRICT_MODE", "PACK_SIGN_MANIFEST", "PACK_GPG_SIGN"}  # tests/test_variables.py


def test_every_environment_variable_is_tested() -> None:
    """The table of this test and the one of the package hold the same variables."""
    assert set(SPOKEN) | SIGNING == {v.name for v in VARIABLES.values() if v.gives}


@pytest.mark.parametrize("name", sorted(SPOKEN))
def test_the_environment_overrides_the_file(name: str) -> None:
    """Each variable changes its key, and the origin says so; empty it says nothing."""
    text, value = SPOKEN[name]
    gives = VARIABLES[name].gives
    assert gives is not None
    (key,) = gives(text)
    found = settings({name: text})
    assert found.values[key] == value != FILE[key]
    assert found.origins[key] == f"environment {name}"
    recorded = found.recorded()  # state/config.json
    if key not in settings_with("path", "secret", "check"):
        assert recorded["values"][key] in (value, Path(text).name)
        assert recorded["origins"][key] == f"environment {name}"
    unsaid = settings({name: ""})
    assert (unsaid.values[key], unsaid.origins[key]) == (FILE[key], "config")


def test_the_command_line_overrides_the_environment() -> None:
    """Given values win over the environment, which wins over the file."""
    found = settings({"INVARLOCK_TIER": "aggressive", "PACK_NET": "1"}, tier="conservative")
    assert found.values["tier"] == "conservative"
    assert found.values["net"] == 1
    assert found.origins["tier"] == "given"
    assert found.origins["seed"] == "config"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("MODEL_1", "Mistral-7B-v0.1", f"did you mean {MISTRAL}?"),
        ("MODEL_1", "local:/nope", "/models names no folder; found /nope"),
        ("INVARLOCK_TIER", "weird", "/tier is 'weird'"),
        ("PACK_REPEATS", "1", "repeats is 1; expected 0, or 2 and more"),
        ("PACK_DETERMINISM", "maybe", "'maybe'"),
        ("PACK_REPEATS", "few", "'few'"),
        ("INVARLOCK_ALLOW_REMOTE_CODE", "perhaps", "'perhaps'"),
    ],
)
def test_a_wrong_value_of_a_variable_names_it(name: str, text: str, words: str) -> None:
    """A value of the environment is refused like one of the file, under the variable's name."""
    line = refusal(InputError if "/nope" in text else ConfigError, environment={name: text})
    assert line.startswith((f"{name}: ", f"{name} cannot be read")), line
    assert words in line


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-2", "-0.5", "2 GB"])
def test_free_disk_is_a_number_of_gigabytes(text: str) -> None:
    """What is none is one line: the variable, what it takes, what it says; -1 is the suite's."""
    assert refusal(environment={"MIN_FREE_DISK_GB": text}) == (
        "MIN_FREE_DISK_GB cannot be read; expected GB that must stay free, 0 or more, or -1 for"
        f" the suite's; found {text!r}"
    )
    assert settings({"MIN_FREE_DISK_GB": "-1"}).min_free_disk_gb == 2


# --- included files ----------------------------------------------------------------------------


def including(path: Path, text: str) -> dict[str, Any]:
    """The settings that include a file of this text."""
    path.write_text(text)
    return {"include": [str(path)], "allow_config_include_outside": True}


def test_an_included_file_says_what_the_command_line_could(tmp_path: Path) -> None:
    """A section is merged over the file's, under the command line's; a list may be words."""
    text = "windows: {seed: 5, preview: 9}\nscenarios: nan_injection, noop_clean\n"
    given = including(tmp_path / "mine.yaml", text)
    found = settings(**given)
    assert found.values["windows"] == {**FILE["windows"], "seed": 5, "preview": 9}
    assert [s.id for s in found.scenarios] == ["noop_clean", "nan_injection"]
    assert found.origins["windows"] == found.origins["scenarios"] == "include mine.yaml"

    spoken = {"windows": {"seed": "43", "final": "7"}}  # 43 as in the file
    merged = {**FILE, **given, "windows": {**FILE["windows"], **spoken["windows"]}}
    both = effective_settings(merged, FILE, SUITES, {}, spoken)
    expected = {"seq_len": 0, "preview": 9, "final": 7, "seed": 43, "add_bos": "auto"}
    assert both.values["windows"] == expected
    assert both.origins["windows"] == "given"


@pytest.mark.parametrize(
    "text",
    [
        "windows: {seed: x}", "windows: 5", "windows: {sed: 5}", "seed: x", "pack: no/pe",
        "suite: smok", "tier: weird", "models: nosuch", "models: local:no/pe", "repeats: 1",
        "geometry: {nosuch: {seq_len: 8}}", "require_signature: true", "out: a{b}",
    ],
)  # fmt: skip
def test_a_wrong_value_of_an_included_file_names_it(text: str, tmp_path: Path) -> None:
    """Not config/config.yaml, where nothing is wrong."""
    kind = InputError if "no/pe" in text else ConfigError
    line = refusal(kind, **including(tmp_path / "mine.yaml", text))
    assert re.match(f"mine.yaml: /?{text.partition(':')[0]}", line), line


# --- what comes out --------------------------------------------------------------------------


def test_calibration_never_uses_the_seed_that_is_judged_on() -> None:
    """Null edits are measured on the window seeds that follow `windows.seed`."""
    windows = {"seq_len": 0, "preview": 0, "final": 0, "seed": 50, "add_bos": "auto"}
    found = settings(windows=windows, calibration={"seeds": 4, "windows": 16})
    assert list(found.calibration_seeds()) == [51, 52, 53, 54]


def test_runs_follow_the_category(tmp_path: Path) -> None:
    """Each category has its number of runs; the user's subject counts as clean."""
    runs = {"clean": 2, "stress": 3, "error_injection": 4}
    found = settings(runs=runs)
    for name, last in (("noop_clean", 2), ("svd_stress", 3), ("nan_injection", 4)):
        assert list(found.runs(found.scenario(name))) == list(range(1, last + 1))
    byoe = settings(suite="byoe", baseline=str(tmp_path), subject=str(tmp_path), runs=runs)
    assert list(byoe.runs(byoe.scenario("byoe"))) == [1, 2]


def test_byoe_takes_the_folder(tmp_path: Path) -> None:
    """The model of suite byoe is the baseline folder, named after it."""
    (tmp_path / "My Model").mkdir()
    found = settings(suite="byoe", baseline=str(tmp_path / "My Model"), subject=str(tmp_path))
    (model,) = found.models
    assert (model.model_id, model.slug) == ("My Model", "my-model")
    assert model.source == f"local:{tmp_path / 'My Model'}"
    assert found.out == Path("evidence_pack_runs/byoe")


def test_nothing_recorded_names_this_machine(tmp_path: Path) -> None:
    """state/config.json holds no path of this machine, whichever key was given one."""
    (tmp_path / "base").mkdir()
    catalogue = tmp_path / "scenarios.json"
    catalogue.write_text((ROOT / "scenarios/scenarios.json").read_text())
    paths = {key: str(tmp_path / "base") for key in ("baseline", "subject", "out", "pack")}
    recorded = settings(
        {"PACK_SIGNING_KEY": str(tmp_path / "key.pem")},
        suite="byoe",
        text=f"local:{tmp_path}/speech.txt",
        catalogue=str(catalogue),
        tuned_edit_params=str(tmp_path / "tuned.json"),
        container_image=str(tmp_path / "image.sif"),
        **paths,
    ).recorded()
    assert str(tmp_path) not in json.dumps(recorded)
    assert recorded["values"]["text"] == "local:speech.txt"
    assert recorded["values"]["catalogue"] == "scenarios.json"
    assert recorded["origins"]["suite"] == "given"


def test_every_other_value_is_recorded() -> None:
    """All keys but the paths, the key and how packs are verified are recorded with their origin."""
    recorded = settings(seed=7).recorded()
    assert set(FILE) - set(recorded["values"]) == {
        "baseline", "calibrations", "out", "pack", "run", "signing_key", "subject",
        "expected_fingerprint", "trust_store", "verify_assurance", "verify_baseline",
        "verify_profile", "verify_replay", "verify_strict", "model", "sentinel_mode",
        "sentinel_edits",
    }  # fmt: skip
    assert set(recorded["values"]) == set(recorded["origins"])
    assert recorded["values"]["seed"] == 7


def test_sections_of_the_command_line_are_typed() -> None:
    """`--config 'windows={seq_len: 16, ...}'` hands over text; it counts as the numbers it says."""
    text = {"seq_len": "16", "preview": "4", "final": "4", "seed": "1", "add_bos": "auto"}
    found = settings(windows=text, bootstrap={"replicates": "200", "alpha": "0.1"})
    assert found.models[0].seq_len == 16
    assert found.values["bootstrap"] == {"replicates": 200, "alpha": 0.1}


def test_switches_of_the_command_line() -> None:
    """`--config keep_subjects=true` arrives as text, and `out=` as nothing."""
    found = settings(keep_subjects="true", require_signature="false", out=None)
    assert found.values["keep_subjects"] is True
    assert found.values["require_signature"] is False
    assert found.values["out"] == ""


def test_a_setting_without_effect_is_refused(tmp_path: Path) -> None:
    """Folders without suite byoe, and models with it, are mistakes and not passed over."""
    assert "/baseline has no effect with suite smoke" in refusal(baseline=str(tmp_path))
    assert "/models has no effect with suite byoe" in refusal(
        suite="byoe", baseline=str(tmp_path), subject=str(tmp_path), models=[MISTRAL]
    )
    slots = {"MODEL_1": MISTRAL, "MODEL_3": SMOLLM2}
    assert refusal(
        environment=slots, suite="byoe", baseline=str(tmp_path), subject=str(tmp_path)
    ) == ("MODEL_1, MODEL_3: /models has no effect with suite byoe; unset MODEL_1 MODEL_3")
