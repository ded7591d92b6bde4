"""What `evaluate` takes from people who bring their own edit: a file, a folder's name, a mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import measuring_here
from measuring_factory import World, read

from invarlock.cli.edit_config import label_of_folder, read_edit_config
from invarlock.errors import ConfigError, InputError
from invarlock.reporting.replay import replay


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("e.yaml", "label: mine\nplan: quant_rtn:4:64:ffn", "mine"),
        ("e.yaml", "edit:\n  name: quant_rtn\n  parameters: {bits: 4}", "quant_rtn"),
        ("e.json", '{"plan": "quant_rtn:4:64:ffn"}', "quant_rtn"),
        ("e.json", '{"parameters": {"bits": 4}}', ""),
    ],
)
def test_a_file_names_an_edit(tmp_path: Path, name: str, text: str, label: str) -> None:
    """Bare or in ``edit``, in YAML or JSON; without a label the plan's first word is one."""
    (tmp_path / name).write_text(text)
    found = read_edit_config(tmp_path / name)
    assert found.label == label
    assert set(found.recorded) <= {"plan", "parameters"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lable: x", "/lable is 'lable'; expected one of name, label, plan, parameters; did you"),
        ("{}", "names no edit; expected name, label, plan, parameters"),
        ("- 1", "names no edit"),
        ("plan: 3", "/plan is no edit's; expected text or a mapping"),
        ("parameters: 3", "/parameters is no edit's; expected a mapping"),
        ("{name: a, label: b}", "name and label differ; found a and b"),
        ("parameters: {calibrated: 2024-05-01}", "write dates as text"),
        ("parameters: {scale: .nan}", "numbers that are finite"),
    ],
)
def test_a_file_that_names_none_is_refused(tmp_path: Path, text: str, line: str) -> None:
    """One line with the file, what is wrong, and the nearest member."""
    path = tmp_path / "edit.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_edit_config(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert line in str(refused.value)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file, and one that is no YAML."""
    with pytest.raises(InputError):
        read_edit_config(tmp_path / "none.yaml")
    for text in ("a: [", "plan: 2023-13-45", "plan: !!int foo", "[" * 5000):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match="not YAML"):
            read_edit_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("quant_rtn", "quant_rtn"),
        ("opt-quant-rtn-4bit", "quant_rtn"),
        ("Llama_magnitude_prune_50", "magnitude_prune"),
        ("myquant_rtnx", ""),
        ("subject", ""),
        ("noop", ""),
        ("resaved", ""),
    ],
)
def test_the_folder_names_the_edit_as_a_whole_word(tmp_path: Path, folder: str, label: str) -> None:
    """An edit that leaves the weights is told by the weights, never by a name."""
    assert label_of_folder(tmp_path / folder) == label


def test_the_report_repeats_the_edit(world: World, tmp_path: Path) -> None:
    """Label, plan and parameters, and the report still follows from its evidence."""
    config = tmp_path / "edit.json"
    plan = {"label": "ours", "plan": {"kind": "rtn"}, "parameters": {"bits": 4}}
    config.write_text(json.dumps(plan))
    with measuring_here():
        words = ("--edit-config", str(config), "--execution-mode", "host")
        assert world.evaluate(world.baseline, tmp_path / "out", *words) == 0
    report = read(tmp_path / "out")
    wanted = {"name": "ours", "scenario": None, "plan": {"kind": "rtn"}, "parameters": {"bits": 4}}
    assert report["edit"] == wanted
    assert replay(report) == []
    manifest = read(tmp_path / "out", "runtime.manifest.json")
    assert manifest["execution_mode"] == "host-bypass"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--execution-mode", "container"], "this is not the image: no record of an image was"),
        (["--execution-mode", "container"], "snakemake --profile profiles/container"),
        (["--execution-mode", "host", "--require-container"], "host goes without --require-cont"),
        (["--edit-config", "{config}", "--edit-label", "other"], "name two edits; expected other"),
    ],
)
def test_what_cannot_be_is_one_line(
    world: World, tmp_path: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is measured, with exit 2."""
    config = tmp_path / "edit.yaml"
    config.write_text("label: mine")
    words = [word.format(config=config) for word in words]
    assert world.evaluate(world.baseline, tmp_path / "out", *words) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out/report.json").exists()
