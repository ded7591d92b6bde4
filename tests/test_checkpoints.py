"""Reading checkpoint folders: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
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


# --- damaged shards ------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 200, -1], ids=["empty", "length", "header", "data"])
def test_truncated_shard_names_file_size_and_expected_size(single: Path, keep: int) -> None:
    """A shard cut anywhere is refused with its name and both sizes."""
    path = single / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(InputError) as caught:
        Checkpoint.open(single)
    line = str(caught.value)
    assert "model.safetensors" in line
    assert "truncated" in line
    assert "\n" not in line
    assert f"found {len(data[:keep])} bytes" in line
    if keep == -1:
        assert f"expected {len(data)} bytes" in line


def test_appended_bytes_are_refused(single: Path) -> None:
    """A shard longer than its header says is refused."""
    with open(single / "model.safetensors", "ab") as handle:
        handle.write(b"x")
    with pytest.raises(InputError, match="longer than its header says"):
        Checkpoint.open(single)


def test_garbage_is_not_a_shard(tmp_path: Path) -> None:
    """Text in place of a header length is refused without reading on."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"<!DOCTYPE html>" * 40)
    with pytest.raises(InputError, match="impossible header length"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{nonsense", "not JSON"),
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


def test_pickle_only_folder_is_refused_in_one_line(single: Path) -> None:
    """A .bin-only folder names the pickle and says what to do."""
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        Checkpoint.open(single)
    line = str(caught.value)
    assert "pytorch_model.bin" in line
    assert "convert the checkpoint to safetensors" in line


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
    ],
)
def test_missing_parts_are_named(single: Path, remove: str, message: str) -> None:
    """A folder without configuration or weights says which."""
    (single / remove).unlink()
    with pytest.raises(InputError, match=message):
        Checkpoint.open(single)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that is not there is an input error, not a traceback."""
    with pytest.raises(InputError, match="no such checkpoint folder"):
        Checkpoint.open(tmp_path / "nowhere")


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[Path, dict[str, str], Path]:
    """A two-shard folder with its weight map and index path."""
    folder = make_llama(tmp_path / "model", layers=1, hidden=8, shards=2)
    index = folder / "model.safetensors.index.json"
    return folder, json.loads(index.read_text())["weight_map"], index


@pytest.mark.parametrize("case", ["lost", "moved", "unlisted", "path", "empty"])
def test_index_disagreements_are_refused(
    indexed: tuple[Path, dict[str, str], Path], case: str
) -> None:
    """An index that does not describe the shards exactly is refused."""
    folder, weights, index = indexed
    first = min(weights.values())
    norm = "model.norm.weight"
    if case == "unlisted":
        del weights[norm]
    elif case == "empty":
        weights = {}
    else:
        name = "model.extra.weight" if case == "lost" else norm
        weights = {**weights, name: {"lost": first, "moved": first, "path": "../x"}[case]}
    index.write_text(json.dumps({"weight_map": weights}))
    messages = {
        "lost": "where the index puts it",
        "moved": "where the index puts it",
        "unlisted": "not in the index",
        "path": "not a file name",
        "empty": "missing or empty",
    }
    with pytest.raises(InputError, match=messages[case]):
        Checkpoint.open(folder)


def test_missing_shard_is_named(indexed: tuple[Path, dict[str, str], Path]) -> None:
    """A shard that the index names and the folder lacks is named."""
    folder, weights, _ = indexed
    shard = max(weights.values())
    (folder / shard).unlink()
    with pytest.raises(InputError, match=f"{shard} is named by the index but missing"):
        Checkpoint.open(folder)


def test_two_sets_of_weights_are_refused(indexed: tuple[Path, dict[str, str], Path]) -> None:
    """A single file beside indexed shards is ambiguous."""
    folder, weights, _ = indexed
    (folder / "model.safetensors").write_bytes((folder / min(weights.values())).read_bytes())
    with pytest.raises(InputError, match="two sets of weights"):
        Checkpoint.open(folder)


def test_tensor_in_two_shards_is_refused(indexed: tuple[Path, dict[str, str], Path]) -> None:
    """A tensor that two shards hold is named with both."""
    folder, weights, _ = indexed
    first, second = sorted(set(weights.values()))
    extra = load_file(folder / second) | {"model.embed_tokens.weight": torch.zeros(1)}
    save_file(extra, folder / second)
    with pytest.raises(InputError, match=f"in two shards: {first} and {second}"):
        Checkpoint.open(folder)


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
