"""Findings about config.json: which differences block, which can be accepted, and by which name."""

from __future__ import annotations

import json
import shutil

import pytest
from checkpoint_factory import make_llama

from invarlock.checkpoints import Checkpoint
from invarlock.guards.invariants import check_checkpoint


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A tiny Llama with a tied head."""
    return make_llama(tmp_path_factory.mktemp("findings") / "baseline")


@pytest.fixture
def subject(baseline, tmp_path):
    """A copy of it."""
    return shutil.copytree(baseline, tmp_path / "subject")


def edit_config(folder, **changes):
    """Change fields of config.json."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


GENERATION = {"eos_token_id": [1], "bos_token_id": 0}


@pytest.mark.parametrize(
    ("changes", "generation", "expected"),
    [
        ({"eos_token_id": [1]}, None, {}),
        ({"eos_token_id": [1, 1]}, None, {}),
        ({"bos_token_id": "null"}, None, {"config_changed": ("warning", None)}),
        ({"pad_token_id": 1}, None, {"config_changed": ("warning", None)}),
        ({"eos_token_id": "null"}, GENERATION, {"config_changed": ("warning", None)}),
        ({"eos_token_id": "null"}, None, {"config_changed": ("fatal", "eos_token_id")}),
        (
            {"eos_token_id": "null"},
            {},
            {
                "config_changed": ("fatal", "eos_token_id"),
                "generation_config_changed": ("warning", None),  # an empty file more
            },
        ),
        ({"eos_token_id": [1, 5]}, None, {"config_changed": ("fatal", "eos_token_id")}),
        ({"eos_token_id": 5}, GENERATION, {"config_changed": ("fatal", "eos_token_id")}),
        ({"bos_token_id": 5}, None, {"config_changed": ("fatal", "bos_token_id")}),
    ],
)
def test_token_ids_are_compared_as_ids(baseline, subject, changes, generation, expected):
    """A list of one is that one; a lost end of text stops no generation, unless told elsewhere."""
    config = json.loads((subject / "config.json").read_text())
    config |= {key: None if value == "null" else value for key, value in changes.items()}
    (subject / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (subject / "generation_config.json").write_text(json.dumps(generation))
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    assert {f["type"]: (f["severity"], f.get("accept")) for f in failures} == expected


def test_a_difference_that_leaves_the_comparison_possible_has_a_name(baseline, subject):
    """By which it can be accepted; one that does not has none."""
    edit_config(subject, max_position_embeddings=1024, num_attention_heads=4)
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    accepted = {f["message"].split()[1]: f.get("accept") for f in failures}
    assert accepted["max_position_embeddings"] == "max_position_embeddings"
    assert accepted["num_attention_heads"] is None


def test_a_setting_beyond_the_windows_is_fatal(baseline, subject):
    """No window is long enough to show it."""
    rope = {"rope_theta": 10000.0, "rope_type": "default"}
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    edit_config(subject, rope_parameters=rope, rope_scaling=scaling, max_position_embeddings=256)
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    names = {f.get("accept") for f in failures if f["severity"] == "fatal"}
    assert names == {"max_position_embeddings", "rope_parameters", "rope_scaling"}
    assert any("two loaders" in f["message"] for f in failures)


def test_values_that_no_class_takes_are_one_finding(baseline, subject):
    """Said before anything is loaded, in the library's words."""
    edit_config(subject, num_hidden_layers="two")
    failures = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    assert ("config_unreadable", "fatal") in [(f["type"], f["severity"]) for f in failures]
