"""The hub module against a small hub on loopback: pin, download, what it refuses, what goes wrong.

A hub that cuts, lies, moves or is not there: what a repeated command makes of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
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


def one_byte_other(data: bytes) -> bytes:
    """Of the same size, and not the same."""
    return data[:-1] + bytes([data[-1] ^ 1])


def one_line(result: tuple[int, str], code: int, *words: str) -> None:
    """The exit code, and one line with every word in it."""
    assert result[0] == code, result[1]
    assert result[1].count("\n") == 1, result[1]
    assert all(word in result[1] for word in words), result[1]


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
    one_line(world.baseline(), 3, "not in the hub cache", "--net")


# --- what is refused when it is pinned -----------------------------------------------------------


def another_config(world: World) -> None:
    """A small file whose bytes are not those of the commit's git object."""
    good = world.model.files["config.json"]
    world.model.wrong["config.json"] = good.replace(b"silu", b"gelu")


def nowhere(world: World) -> None:
    """Nothing listens at the address."""
    world.address = "http://127.0.0.1:9"


# what is wrong with the hub, source and text to pin, exit code, words of the line
Row = tuple[Callable[[World], object], str, str, int, tuple[str, ...]]
LOCAL = "local:t.txt"
REFUSED: dict[str, Row] = {
    "another small file": (
        another_config, "hub:o/m", LOCAL, 3, ("not the one of the commit", "config.json"),
    ),
    "gated": (
        lambda w: setattr(w.model, "gated", "auto"), "hub:o/m", LOCAL, 2, ("gated", "local:FOLDER"),
    ),
    "private": (
        lambda w: setattr(w.model, "private", True), "hub:o/m", LOCAL, 2,
        ("private", "local:FOLDER"),
    ),
    "code of its own": (
        lambda w: setattr(w.model, "tags", ["custom_code"]), "hub:o/m", LOCAL, 2,
        ("--allow-remote-code",),
    ),
    "no repository": (
        lambda w: None, "hub:o/none", LOCAL, 3, ("hub:o/none: no such public repository",),
    ),
    "no such commit": (lambda w: None, f"hub:o/m@{MOVED}", LOCAL, 3, ("moved or deleted",)),
    "another commit": (
        lambda w: setattr(w.model, "answers", MOVED), f"hub:o/m@{REVISION}", LOCAL, 3,
        ("another revision", MOVED),
    ),
    "only pickles": (
        lambda w: w.model.files.pop(WEIGHTS), "hub:o/m", LOCAL, 2,
        ("pickle weights", "--allow-pickle"),
    ),
    "unknown split": (
        lambda w: None, "hub:o/m", "hub:o/d?config=en&split=dev", 2, ("validation",),
    ),
    "hub that fails": (
        lambda w: setattr(w.model, "down", 500), "hub:o/m", LOCAL, 3,
        ("the hub answered 500", "repeat"),
    ),
    "hub that is not there": (
        nowhere, "hub:o/m", LOCAL, 3, ("hub:o/m", "cannot be reached", "check the connection"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pinned_is_one_line(world: World, case: str) -> None:
    """No pins are written, and no weights are asked for."""
    change, source, text, code, words = REFUSED[case]
    change(world)
    one_line(world.pin(source=source, text=text), code, *words)
    assert not (world.folder / "r.json").exists()
    asked = [line for line in world.asked if "resolve" in line]
    assert not [line for line in asked if WEIGHTS in line]
    if case in ("gated", "private", "code of its own"):
        assert not asked


# --- what moves on -------------------------------------------------------------------------------


def moved(world: World) -> None:
    """The repository of the model has another commit."""
    world.model.revision = MOVED


def data_moved(world: World) -> None:
    """So has that of the data."""
    world.data.revision = MOVED


def other_bytes(world: World) -> None:
    """The hub's own digest of a file is another one, at the same commit."""
    world.model.files[WEIGHTS] = one_byte_other(world.model.files[WEIGHTS])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (moved, ("hub:o/m", REVISION, MOVED)),
        (data_moved, ("hub:o/d", REVISION, MOVED)),
        (other_bytes, (WEIGHTS, "do not trust it")),
    ],
)
def test_a_second_pin_keeps_the_first(
    world: World, change: Callable[[World], None], words: tuple[str, ...]
) -> None:
    """Of a source without revision; the line names both commits, or the digest that was pinned."""
    assert world.pin(text=TEXT) == (0, "")
    before = (world.folder / "r.json").read_bytes()
    digest = hashlib.sha256(world.model.files[WEIGHTS]).hexdigest()
    change(world)
    result = world.pin(text=TEXT)
    one_line(result, 3, *words, *([digest] if change is other_bytes else []))
    assert (world.folder / "r.json").read_bytes() == before


# --- downloads -----------------------------------------------------------------------------------


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


def test_a_wrong_byte_names_file_and_digests(world: World) -> None:
    """What was pinned, what came, how to get the right file; the cache is not believed either."""
    good = world.model.files[WEIGHTS]
    world.model.wrong[WEIGHTS] = bad = one_byte_other(good)
    world.pin()
    digests = [hashlib.sha256(data).hexdigest() for data in (good, bad)]
    words = (WEIGHTS, "another content", *digests, "delete the file from the hub cache")
    one_line(world.baseline("--net"), 3, *words)
    one_line(world.baseline(), 3, WEIGHTS)
    assert not (world.folder / "b").exists()
    world.model.wrong.clear()
    for path in (world.folder / "hf/hub").rglob(WEIGHTS):
        path.resolve().unlink()
        path.unlink()
    assert world.baseline("--net") == (0, "")


def test_a_pinned_revision_that_vanished_is_named(world: World) -> None:
    """After pinning and before the download."""
    world.pin()
    world.model.revision = MOVED
    one_line(world.baseline("--net"), 3, REVISION, "moved or deleted", "pin again")


# --- without the network -------------------------------------------------------------------------


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


CLOSED = ["--suite", "s", "--text", LOCAL, "--out", "r.json", "--model", "o/m=hub:o/m"]


@pytest.mark.parametrize("how", ["gated", "private"])
def test_without_the_network_closed_pins_are_refused(how: str, world: World) -> None:
    """A pins file from elsewhere cannot bring in what others may not read."""
    world.pin()
    document = json.loads((world.folder / "r.json").read_text())
    document["models"]["o/m"][how] = True
    (world.folder / "r.json").write_text(json.dumps(document))
    one_line(world.run("pin", *CLOSED), 3, "o/m", "gated or private")


def test_without_the_network_code_of_a_model_needs_its_switch(world: World) -> None:
    """An earlier pin that was allowed then is not allowed now."""
    world.model.tags = ["custom_code"]
    assert world.pin("--allow-remote-code")[0] == 0
    one_line(world.run("pin", *CLOSED), 2, "o/m", "--allow-remote-code")
