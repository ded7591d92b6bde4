"""A hub that cuts, lies, moves or is not there: what a repeated command makes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import MOVED, REVISION, Fault
from hub_world import TEXT, World, open_world
from safetensors.numpy import load, save

WEIGHTS = "model.safetensors"
CHUNK = 10 << 20  # bytes that the library writes at once


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A hub, a cold cache and a folder."""
    with open_world(tmp_path) as opened:
        yield opened


def grow(world: World) -> bytes:
    """Weights of more than one chunk."""
    extra = np.arange(3 << 20, dtype=np.float32)
    tensors = load(world.model.files[WEIGHTS]) | {"model.extra": extra}
    world.model.files[WEIGHTS] = save(tensors, {"format": "pt"})
    return world.model.files[WEIGHTS]


def downloads(world: World) -> list[str]:
    """The ranges of the requests for the weights."""
    found = [line for line in world.asked if line.startswith("GET") and WEIGHTS in line]
    return [line.partition(WEIGHTS)[2].strip() for line in found]


def one_line(result: tuple[int, str], code: int, *words: str) -> None:
    """The exit code, and one line with every word in it."""
    assert result[0] == code, result[1]
    assert result[1].count("\n") == 1, result[1]
    assert all(word in result[1] for word in words), result[1]


def test_a_cut_download_goes_on_where_it_stopped(world: World) -> None:
    """In the same command, with a request for the rest, and it ends with the right bytes."""
    data = grow(world)
    world.pin()
    world.model.faults[WEIGHTS] = [Fault(cut=CHUNK + 1000)]
    assert world.baseline("--net") == (0, "")
    assert downloads(world) == ["", f"bytes={CHUNK}-"]
    assert (world.folder / "b" / WEIGHTS).read_bytes() == data


def test_a_repeated_command_ends_a_download_that_failed(world: World) -> None:
    """The line names the file and says what to do; after that the same command is enough."""
    data = grow(world)
    world.pin()
    world.model.faults[WEIGHTS] = [Fault(cut=CHUNK + 1000), *[Fault(status=503)] * 3]
    one_line(world.baseline("--net"), 3, WEIGHTS, "the hub answered 503", "repeat")
    assert not (world.folder / "b").exists()
    assert world.baseline("--net") == (0, "")
    assert (world.folder / "b" / WEIGHTS).read_bytes() == data


def test_a_short_failure_of_the_hub_is_passed_over(world: World) -> None:
    """One 5xx, and the file is asked for again."""
    world.pin()
    world.model.faults[WEIGHTS] = [Fault(status=502)]
    assert world.baseline("--net") == (0, "")
    assert len(downloads(world)) == 2


def test_a_hub_that_fails_is_one_line(world: World) -> None:
    """The number that it answers is in it, and no pins are written."""
    world.model.down = 500
    one_line(world.pin(), 3, "the hub answered 500", "repeat")
    assert not (world.folder / "r.json").exists()


def test_a_hub_that_is_not_there_is_one_line(world: World) -> None:
    """Nothing listens at the address."""
    world.address = "http://127.0.0.1:9"
    one_line(world.pin(), 3, "hub:o/m", "cannot be reached", "check the connection")


def test_a_wrong_byte_names_file_and_digests(world: World) -> None:
    """What was pinned, what came, and how to get the right file."""
    good = world.model.files[WEIGHTS]
    bad = good[:-1] + bytes([good[-1] ^ 1])
    world.model.wrong[WEIGHTS] = bad
    world.pin()
    digests = [hashlib.sha256(data).hexdigest() for data in (good, bad)]
    one_line(world.baseline("--net"), 3, WEIGHTS, *digests, "delete the file from the hub cache")
    world.model.wrong.clear()
    for path in (world.folder / "hf/hub").rglob(WEIGHTS):
        path.resolve().unlink()
        path.unlink()
    assert world.baseline("--net") == (0, "")


def test_a_hub_that_answers_with_another_commit_is_refused(world: World) -> None:
    """The revision that was asked for, and only that."""
    world.model.answers = MOVED
    one_line(world.pin(source=f"hub:o/m@{REVISION}"), 3, "another revision", MOVED)


def test_a_pinned_revision_that_vanished_is_named(world: World) -> None:
    """After pinning and before the download."""
    world.pin()
    world.model.revision = MOVED
    one_line(world.baseline("--net"), 3, REVISION, "moved or deleted", "pin again")


def test_other_bytes_for_a_pinned_commit_are_refused(world: World) -> None:
    """The hub's own digest of a file changed, at the same commit."""
    world.pin()
    before = (world.folder / "r.json").read_bytes()
    good = world.model.files[WEIGHTS]
    world.model.files[WEIGHTS] = good[:-1] + bytes([good[-1] ^ 1])
    one_line(world.pin(), 3, WEIGHTS, hashlib.sha256(good).hexdigest(), "do not trust it")
    assert (world.folder / "r.json").read_bytes() == before


def test_a_data_set_that_moved_on_keeps_its_pin(world: World) -> None:
    """As for models: the first pin holds, and the line names both commits."""
    world.pin(text=TEXT)
    before = (world.folder / "r.json").read_bytes()
    world.data.revision = MOVED
    one_line(world.pin(text=TEXT), 3, "hub:o/d", REVISION, MOVED)
    assert (world.folder / "r.json").read_bytes() == before


def test_without_the_network_earlier_pins_are_used(world: World) -> None:
    """The hub has moved on and nobody asks it: the same pins, byte for byte."""
    world.pin(text=TEXT)
    before, asked = (world.folder / "r.json").read_bytes(), len(world.asked)
    world.model.revision = MOVED
    words = ["pin", "--suite", "s", "--text", TEXT, "--out", "r.json", "--model"]
    assert world.run(*words, "o/m=hub:o/m") == (0, "")
    assert (world.folder / "r.json").read_bytes() == before
    assert len(world.asked) == asked
    one_line(world.run(*words, f"o/m=hub:o/m@{MOVED}"), 3, REVISION, MOVED, "network is off")
    one_line(world.run(*words, "o/x=hub:o/x"), 3, "hub:o/x", "network is off", "net=1")


@pytest.mark.parametrize("how", ["gated", "private"])
def test_without_the_network_closed_pins_are_refused(how: str, world: World) -> None:
    """A pins file from elsewhere cannot bring in what others may not read."""
    world.pin()
    document = json.loads((world.folder / "r.json").read_text())
    document["models"]["o/m"][how] = True
    (world.folder / "r.json").write_text(json.dumps(document))
    words = ["--suite", "s", "--text", "local:t.txt", "--out", "r.json", "--model", "o/m=hub:o/m"]
    one_line(world.run("pin", *words), 3, "o/m", "gated or private")


def test_without_the_network_code_of_a_model_needs_its_switch(world: World) -> None:
    """An earlier pin that was allowed then is not allowed now."""
    world.model.tags = ["custom_code"]
    assert world.pin("--allow-remote-code")[0] == 0
    words = ["--suite", "s", "--text", "local:t.txt", "--out", "r.json", "--model", "o/m=hub:o/m"]
    one_line(world.run("pin", *words), 2, "o/m", "--allow-remote-code")
