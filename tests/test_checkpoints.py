"""Reading checkpoint folders: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from invarlock.checkpoints import Checkpoint, read_header, tokenizer_digest
from invarlock.errors import InputError
from invarlock.files import sha256_bytes
from invarlock.guards.invariants import open_subject
from invarlock.model_folder import open_model
from invarlock.shards import ShardEntry, write_shard


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three shards."""
    return make_llama(tmp_path_factory.mktemp("sharded") / "model", shards=3)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A Llama of one shard, free to be damaged."""
    return make_llama(tmp_path / "model", layers=1, hidden=8)


def write_raw(path: Path, header: object, data: bytes) -> Path:
    """A shard with any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None) -> dict[str, object]:
    """A header entry of bytes."""
    return {"dtype": "U8", "shape": shape or [end - begin], "data_offsets": [begin, end]}


def test_load_gives_the_same_tensors_as_the_safetensors_library(sharded: Path) -> None:
    """Every tensor of every shard equals what the reference reader returns."""
    checkpoint = Checkpoint.open(sharded)
    reference = {k: v for s in checkpoint.shards for k, v in load_file(sharded / s).items()}
    assert list(checkpoint.tensors) == sorted(reference)
    for name, tensor in reference.items():
        assert torch.equal(checkpoint.load(name), tensor)


def test_writing_to_a_loaded_tensor_leaves_the_file_alone(single: Path) -> None:
    """The mapping is private."""
    before = (single / "model.safetensors").read_bytes()
    Checkpoint.open(single).load("model.norm.weight").fill_(7)
    assert (single / "model.safetensors").read_bytes() == before


def test_counts_are_those_of_the_tensors(sharded: Path) -> None:
    """Parameters and bytes are summed over the shards (bf16: two bytes each)."""
    checkpoint = Checkpoint.open(sharded)
    expected = 320 * 16 + 16 + 2 * (16 * 16 * 2 + 8 * 16 * 2 + 3 * 48 * 16 + 2 * 16)
    assert checkpoint.n_parameters == expected
    assert checkpoint.weight_bytes == 2 * expected


def test_tensor_digest_is_the_sha256_of_its_bytes(sharded: Path) -> None:
    """Chunked hashing equals hashing all bytes at once."""
    checkpoint = Checkpoint.open(sharded)
    name = "model.embed_tokens.weight"
    chunked = [bytes(chunk) for chunk in checkpoint.chunks(name, 1000)]
    assert [len(c) for c in chunked[:-1]] == [1000] * (len(chunked) - 1)
    assert sha256_bytes(b"".join(chunked)) == checkpoint.tensor_digest(name)
    assert Checkpoint.open(sharded).tensor_digest(name) == sha256_bytes(checkpoint.read(name))


def test_digest_does_not_depend_on_the_shards(tmp_path: Path, sharded: Path) -> None:
    """The same weights in one file have the same digest."""
    other = make_llama(tmp_path / "one", shards=1)
    assert Checkpoint.open(other).digest() == Checkpoint.open(sharded).digest()


@pytest.mark.parametrize("what", ["weight", "config", "tokenizer"])
def test_digest_changes_with_every_part(single: Path, what: str) -> None:
    """One weight bit, one configuration value or one vocabulary entry changes the digest."""
    before = Checkpoint.open(single).digest()
    if what == "weight":
        data = bytearray((single / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (single / "model.safetensors").write_bytes(data)
    else:
        name = "config.json" if what == "config" else "tokenizer.json"
        document = json.loads((single / name).read_text())
        document["rope_theta" if what == "config" else "version"] = "2.0"
        (single / name).write_text(json.dumps(document))
    assert Checkpoint.open(single).digest() != before


def test_tokenizer_digest_ignores_layout_and_place(single: Path, tmp_path: Path) -> None:
    """Only the content of tokenizer.json counts."""
    document = json.loads((single / "tokenizer.json").read_text())
    before = tokenizer_digest(single)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document, indent=7))
    assert before == tokenizer_digest(tmp_path) != tokenizer_digest(tmp_path / "nowhere")


def test_tokenizer_digest_sees_a_file_that_was_written_over(tmp_path: Path) -> None:
    """Of one length and one time stamp; what was decoded before says nothing of other bytes."""
    path = tmp_path / "tokenizer.json"
    found = []
    for text in ('{"model": 1}', '{"model": 2}', '{"model": 1}'):
        path.write_text(text)
        os.utime(path, (0, 0))
        found.append(tokenizer_digest(tmp_path))
    assert found[0] == found[2] != found[1]
    path.write_text('{"model": 1')
    with pytest.raises(InputError, match="tokenizer"):
        tokenizer_digest(tmp_path)


def test_opening_needs_no_torch(sharded: Path) -> None:
    """Reading headers and digests works where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from invarlock.checkpoints import Checkpoint\n"
        "import invarlock.roles, invarlock.edits.specs, invarlock.damage.specs\n"
        "print(Checkpoint.open(sys.argv[1]).digest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sharded)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == Checkpoint.open(sharded).digest()


# --- damaged headers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{nonsense", "not JSON"),
        (None, "impossible header length"),  # a web page in place of a shard
        (b'{"a": 1, "a": 2}', "duplicate key"),
        (b"[" * 100, "nested deeper"),
        (["a"], "not a JSON object"),
        ({"__metadata__": {"a": 1}}, "not a map of strings"),
        ({"a": {"dtype": "U8"}}, "other keys"),
        ({"a": {**entry(0, 4), "dtype": "Q4"}}, "unknown dtype"),
        ({"a": {**entry(0, 4), "shape": [True]}}, "impossible shape"),
        ({"a": {**entry(0, 4), "shape": [-4]}}, "impossible shape"),
        ({"a": {**entry(0, 4), "data_offsets": [0]}}, "impossible data_offsets"),
        ({"a": entry(0, 4, [3])}, "does not fill"),
        ({"a": entry(0, 3), "b": entry(2, 4)}, "overlaps"),
        ({"a": entry(0, 1), "b": entry(2, 4)}, "hole"),
        ({"a": entry(1, 4)}, "hole"),
    ],
)
def test_bad_headers_are_named(tmp_path: Path, header: object, message: str) -> None:
    """Each way in which a header can lie has its line, with the file's name."""
    path = write_raw(tmp_path / "bad.safetensors", header, b"1234")
    if header is None:
        path.write_bytes(b"<!DOCTYPE html>" * 40)
    with pytest.raises(InputError, match=message) as caught:
        read_header(path)
    assert "bad.safetensors" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_corrupted_headers_never_crash(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any change of header bytes is either harmless or an InputError."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "x.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 33))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        tensors = read_header(path)
    except InputError:
        return
    assert sum(info.nbytes for info in tensors.values()) <= len(raw)


# --- damaged folders -----------------------------------------------------------------------

Change = Callable[[Path], object]
FIRST, LAST = (f"model-0000{n}-of-00003.safetensors" for n in (1, 3))
INDEX = "model.safetensors.index.json"


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Change:
    """Other bytes in a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def index(change: Callable[[dict[str, str]], object]) -> Change:
    """Another weight map."""

    def changed(folder: Path) -> None:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        change(weight_map)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return changed


def _in_two_shards(folder: Path) -> None:
    extra = load_file(folder / LAST) | {"model.embed_tokens.weight": torch.zeros(1)}
    save_file(extra, folder / LAST)


# what was done to a folder of three shards -> (how, a part of the line)
BROKEN: dict[str, tuple[Change, str]] = {
    "empty": (rewrite(LAST, lambda b: b""), "inside its header length.*found 0 bytes"),
    "shorter than its length": (
        rewrite(LAST, lambda b: b[:5]), "inside its header length.*found 5 bytes",
    ),
    "shorter than its header": (
        rewrite(LAST, lambda b: b[:60]), "truncated inside its header.*found 60 bytes",
    ),
    "offsets beyond the end": (
        rewrite(LAST, lambda b: b[:-1]),
        r"the shard is truncated; expected [0-9,]+ bytes.*found [0-9,]+ bytes",
    ),
    "longer than its header": (rewrite(LAST, lambda b: b + b"\0"), "longer than its header says"),
    "impossible header": (
        rewrite(LAST, lambda b: b"\xff" * 8 + b[8:]), "impossible header length",
    ),
    "header is no JSON": (rewrite(LAST, lambda b: b[:8] + b"#" + b[9:]), "not JSON"),
    "missing shard": (
        lambda folder: (folder / LAST).unlink(), f"{LAST} is named by the index but missing",
    ),
    "tensor in two shards": (_in_two_shards, f"in two shards: {FIRST} and {LAST}"),
    "two sets of weights": (
        lambda folder: shutil.copy(folder / FIRST, folder / "model.safetensors"),
        "two sets of weights",
    ),
    "broken index": (rewrite(INDEX, lambda b: b[:-40]), "not JSON"),
    "index of a tensor that is not there": (
        index(lambda names: names.update({"model.extra.weight": FIRST})),
        "where the index puts it",
    ),
    "index of a tensor in another shard": (
        index(lambda names: names.update({"model.norm.weight": FIRST})),
        "where the index puts it",
    ),
    "index without a tensor": (
        index(lambda names: names.pop("model.norm.weight")), "not in the index",
    ),
    "index of a path": (
        index(lambda names: names.update({"model.norm.weight": "../x"})), "not a file name",
    ),
    "empty index": (index(lambda names: names.clear()), "missing or empty"),
    "broken configuration": (rewrite("config.json", lambda b: b[:-2]), "not JSON"),
    "broken tokenizer": (rewrite("tokenizer.json", lambda b: b[:-9]), "not JSON"),
}  # fmt: skip


def test_a_second_file_of_weights_without_an_index(single: Path) -> None:
    """Servers read both, one over the other; a file with tensors of other names is none of it."""
    other = load_file(single / "model.safetensors")
    save_file({f"x.{name}": tensor for name, tensor in other.items()}, single / "other.safetensors")
    assert Checkpoint.open(single).shards == ("model.safetensors",)
    save_file({"model.norm.weight": torch.ones(8)}, single / "model-00001-of-00002.safetensors")
    opened, (finding,) = open_subject(single)
    assert opened is None
    assert re.search("two sets of weights: 1 tensor .* servers", finding["message"])


@pytest.mark.parametrize("damage", BROKEN)
def test_every_damaged_folder_is_one_line(sharded: Path, tmp_path: Path, damage: str) -> None:
    """Refused where somebody names it; of a subject it is one fatal finding, without its path."""
    folder = shutil.copytree(sharded, tmp_path / "subject")
    change, expected = BROKEN[damage]
    change(folder)
    opened, (finding,) = open_subject(folder)
    assert opened is None
    assert (finding["type"], finding["severity"]) == ("unreadable_checkpoint", "fatal")
    assert re.search(expected, finding["message"])
    assert str(tmp_path) not in finding["message"]
    assert "\n" not in finding["message"]
    if damage != "broken tokenizer":  # which only what reads texts opens
        with pytest.raises(InputError, match=expected):
            open_model(folder)


# --- writing -------------------------------------------------------------------------------


def test_written_shards_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    """Our writer's file loads elsewhere with the same values, shapes and metadata."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(5, dtype=torch.float64)}
    raw = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    entries = [
        ShardEntry("b", "F32", (2, 3), lambda: [raw["b"][:7], raw["b"][7:]]),
        ShardEntry("a", "F64", (5,), lambda: [raw["a"]]),
    ]
    sums = write_shard(tmp_path / "x.safetensors", entries, {"format": "pt"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert sums == {name: sha256_bytes(data) for name, data in raw.items()}


def test_writer_refuses_a_producer_of_another_length(tmp_path: Path) -> None:
    """A producer that yields too few bytes cannot make a file that looks whole."""
    entries = [ShardEntry("a", "U8", (3,), lambda: [b"xy"])]
    with pytest.raises(ValueError, match="2 bytes for 3"):
        write_shard(tmp_path / "x.safetensors", entries, {})
