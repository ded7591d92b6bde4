"""One record a command: its parser, its JSON, and the words that a rule passes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from repository_copy import ROOT
from settings_factory import FILE, settings

from invarlock.cli import COMMANDS, module_of
from invarlock.cli.job import EvaluateOptions, Job
from invarlock.cli.options import (
    _options,
    add_options,
    from_json,
    parsed,
    shared,
    to_json,
    words,
)
from invarlock.cli.run import RunOptions
from invarlock.cli.scenarios import ScenariosOptions
from invarlock.cli.tune import TuneOptions

pytestmark = pytest.mark.usefixtures("in_repository")

RECORDS = [m.OPTIONS for m in map(module_of, COMMANDS) if hasattr(m, "OPTIONS")] + [
    record for m in map(module_of, COMMANDS) for record, _, _ in getattr(m, "ACTIONS", {}).values()
]
NEEDED = ["--baseline", "b", "--subject", "s", "--windows", "w", "--out", "o"]


def said(record: type, *line: str) -> Any:
    """The record that a command line says."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser, record)
    return parsed(record, parser.parse_args(line))


def test_options_take_the_type_of_their_field() -> None:
    """Numbers, paths, switches, A,B, several words, and an option that is repeated."""
    found = said(EvaluateOptions, *NEEDED, "--accept", "b, a,b", "--alpha", "0.1", "--gpus", "2",
                 "--record-failure")  # fmt: skip
    assert (found.baseline, found.accept) == (Path("b"), ("a", "b"))
    assert (found.alpha, found.gpus, found.record_failure) == (0.1, 2, True)
    assert (found.preset, found.edit_label, found.tier) == (None, "", "balanced")
    given = ["--catalogue", "c", "--suite", "s", "--runs", "clean=2", "--runs", "stress=1"]
    assert said(ScenariosOptions, *given).runs == ("clean=2", "stress=1")
    assert said(ScenariosOptions, *given).scenario == ()


def test_what_is_required_has_to_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A field without a default is a required option, one with choices takes no other value."""
    with pytest.raises(SystemExit):
        said(EvaluateOptions, *NEEDED[:-2])
    assert "the following arguments are required: --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        said(EvaluateOptions, *NEEDED, "--assurance", "weak")
    assert "--assurance: invalid choice: 'weak'" in capsys.readouterr().err


def test_a_job_comes_back_from_json_as_it_was() -> None:
    """Paths and tuples survive the way to the measuring process."""
    options = said(EvaluateOptions, *NEEDED, "--accept", "a", "--preset", "p")
    job = Job(**vars(options), image_ref="", image_digest="")
    assert from_json(Job, json.loads(json.dumps(to_json(job)))) == job


def test_a_candidate_is_evaluated_with_the_options_of_the_search() -> None:
    """What two commands share is taken over, also what only a default says."""
    line = ["--baseline", "b", "--edits", "quant_rtn", "--selection-windows", "s", "--out", "o",
            "--confirmation-windows", "c", "--judged-windows", "j"]  # fmt: skip
    found = shared(said(TuneOptions, *line, "--kl-mean-max", "0.5"), Job)
    assert (found["kl_mean_max"], found["seed"], found["preset"]) == (0.5, 43, None)
    assert "windows" not in found
    assert "edits" not in found


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_setting_that_an_option_names_is_one(record: type) -> None:
    """The names lead to a value of the shipped settings."""
    for option in _options(record):
        for key in ("setting", "unless"):
            if name := option.field.metadata[key]:
                settings().value(name)


def test_no_setting_can_be_set_in_vain() -> None:
    """An option of a command takes it, or code names it; where variables set it, it is not read."""
    taken = {
        option.field.metadata[key]
        for record in RECORDS
        for option in _options(record)
        for key in ("setting", "unless")
    }
    places = [*ROOT.glob("invarlock/**/*.py"), *ROOT.glob("rules/*.smk"), ROOT / "Snakefile"]
    code = "".join(path.read_text() for path in places if path.name != "variables.py")
    named = set(re.findall(r"[\"']([a-z_]+)[\"']", code))
    sections = {key: part for key, part in FILE.items() if isinstance(part, dict) and part}
    every = [f"{section}.{key}" for section, part in sections.items() for key in part]
    every += FILE.keys() - sections.keys()
    unread = [key for key in every if key not in taken and key.rpartition(".")[2] not in named]
    assert not unread, "read it in rules/, or name it in setting= of an option"


def test_settings_and_what_a_job_has_become_words() -> None:
    """Empty values and switches that are off are left out; what is given wins."""
    found = shlex.split(words(RunOptions, settings(), model_id="a b", seed=7))
    assert found == [
        *("--hidden-states-mb", "1000"),
        *("--profile", "dev", "--tier", "balanced", "--model-id", "a b", "--device", "auto"),
        *("--dtype", "auto", "--token-budget", "1024", "--threads", "1"),
        *("--determinism", "strict", "--seed", "7"),
    ]
    given = settings(device="cuda", allow_remote_code=True, token_budget=0)
    assert words(RunOptions, given, "token_budget", "allow_remote_code") == (
        "--token-budget 16384 --allow-remote-code"
    )
    host = settings(allow_host_execution=False, tail_mode="fail")
    found = shlex.split(words(EvaluateOptions, host, accept=["a", "b"], edit_label=""))
    assert {"--require-container", "--tail-mode", "--accept", "a,b"} <= set(found)
    assert "--edit-label" not in found


def test_words_are_read_as_they_were_meant() -> None:
    """The parser of the command gets from the words what the settings say."""
    mine = settings(bootstrap={**FILE["bootstrap"], "alpha": 0.01}, seed=9)
    entry = json.dumps({"id": "x y", "quoted": "it's"})
    line = words(EvaluateOptions, mine, scenario=entry, model_id="m", accept=())
    found = said(EvaluateOptions, *NEEDED, *shlex.split(line))
    assert (found.alpha, found.seed, found.scenario, found.accept) == (0.01, 9, entry, ())
    repeated = words(ScenariosOptions, mine, "suite", scenario=["a", "b"], catalogue="c")
    assert said(ScenariosOptions, *shlex.split(repeated)).scenario == ("a", "b")


def test_an_option_that_a_record_lacks_is_a_mistake() -> None:
    """A misspelt name does not pass for an empty one."""
    with pytest.raises(TypeError, match="RunOptions has no option scenario"):
        words(RunOptions, settings(), scenario="x")
