"""The hub module against a small hub on loopback: pin, download, and everything it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import MOVED, REVISION
from hub_world import TEXT, World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A hub, a cold cache and a folder."""
    with open_world(tmp_path) as opened:
        yield opened


def test_pin_download_and_cut(world: World) -> None:
    """Pinned with the network on, placed with it on, and everything again with it off."""
    assert world.pin(text=TEXT) == (0, "")
    assert not [line for line in world.asked if "safetensors" in line], "weights at pin time"
    assert world.baseline("--net")[0] == 0
    assert (world.folder / "b/model.safetensors").is_file()
    assert not (world.folder / "b/pytorch_model.bin").exists()
    before = len(world.asked)
    assert world.baseline("--storage", "snapshot_symlink") == (0, "")
    words = ["--seq-len", "8", "--preview", "4", "--final", "4", "--seed", "0", "--out", "w.json"]
    cut = ["--tokenizer", "b", "--text", TEXT, "--revisions", "r.json", *words]
    assert world.run("windows", *cut) == (0, "")
    assert len(world.asked) == before, "the network was used though it is off"


def test_a_cold_cache_names_the_command(world: World) -> None:
    """Pinned, never downloaded, network off."""
    world.pin()
    code, line = world.baseline()
    assert code == 3
    assert "not in the hub cache" in line
    assert "--net" in line


def test_a_wrong_byte_in_a_download_is_refused(world: World) -> None:
    """Weights of the right size with another byte: not placed, now or from the cache later."""
    good = world.model.files["model.safetensors"]
    world.model.wrong["model.safetensors"] = good[:-1] + bytes([good[-1] ^ 1])
    assert world.pin()[0] == 0
    code, line = world.baseline("--net")
    assert code == 3
    assert "another content" in line
    assert "model.safetensors" in line
    assert not (world.folder / "b").exists()
    assert world.baseline()[0] == 3


def test_a_small_file_that_is_not_the_commits_is_refused(world: World) -> None:
    """Small files are checked against the git object id of the commit."""
    good = world.model.files["config.json"]
    world.model.wrong["config.json"] = good.replace(b"silu", b"gelu")
    code, line = world.pin()
    assert code == 3
    assert "not the one of the commit" in line
    assert "config.json" in line


@pytest.mark.parametrize("how", ["gated", "private"])
def test_closed_repositories_are_refused_before_a_download(how: str, world: World) -> None:
    """No file is asked for."""
    setattr(world.model, how, "auto" if how == "gated" else True)
    code, line = world.pin()
    assert code == 2
    assert how in line
    assert "local:FOLDER" in line
    assert not [asked for asked in world.asked if "resolve" in asked]


def test_remote_code_is_refused_before_a_download(world: World) -> None:
    """The hub's own tag is enough."""
    world.model.tags = ["custom_code"]
    code, line = world.pin()
    assert code == 2
    assert "--allow-remote-code" in line
    assert not [asked for asked in world.asked if "resolve" in asked]


def test_a_missing_repository_is_named(world: World) -> None:
    """No such public repository."""
    code, line = world.pin(source="hub:o/none")
    assert code == 3
    assert "hub:o/none: no such public repository" in line


def test_a_revision_that_went_away_is_named(world: World) -> None:
    """A commit that the repository does not hold (any more)."""
    code, line = world.pin(source=f"hub:o/m@{MOVED}")
    assert code == 3
    assert "moved or deleted" in line


def test_a_repository_that_moved_on_does_not_move_the_pin(world: World) -> None:
    """A second pin of a source without revision keeps the first and says what changed."""
    world.pin()
    before = (world.folder / "r.json").read_bytes()
    world.model.revision = MOVED
    code, line = world.pin()
    assert code == 3
    assert REVISION in line
    assert MOVED in line
    assert (world.folder / "r.json").read_bytes() == before


def test_pickle_only_repositories_are_refused(world: World) -> None:
    """No safetensors weights: the line names the switch."""
    del world.model.files["model.safetensors"]
    code, line = world.pin()
    assert code == 2
    assert "pickle weights" in line
    assert "--allow-pickle" in line


def test_an_unknown_split_lists_the_known(world: World) -> None:
    """The data set's own splits are in the line."""
    code, line = world.pin(text="hub:o/d?config=en&split=dev")
    assert code == 2
    assert "validation" in line
