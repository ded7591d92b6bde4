"""Pickle checkpoints as subjects: what they hold, and only where the switch allows them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama, weights
from measuring_factory import World, read

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError, NotACheckpointError
from invarlock.guards.invariants import check_checkpoint

PICKLE = ("pickle",)


def pickled(folder: Path, out: Path, *, shards: int = 1, zipped: bool = True) -> Path:
    """A copy whose weights are in ``.bin`` files."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = weights(folder)
    names, weight_map = sorted(tensors), {}
    for number in range(shards):
        file = "pytorch_model.bin"
        if shards > 1:
            file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        mine = {name: tensors[name] for name in names[number::shards]}
        torch.save(mine, out / file, _use_new_zipfile_serialization=zipped)
        weight_map |= dict.fromkeys(mine, file)
    if shards > 1:
        (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return out


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small Llama."""
    return make_llama(tmp_path / "base")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "older kind"])
def test_it_holds_what_was_saved(base: Path, tmp_path: Path, shards: int, zipped: bool) -> None:
    """Names, types and bytes are those of the safetensors that it was saved from."""
    subject = pickled(base, tmp_path / "subject", shards=shards, zipped=zipped)
    found, baseline = Checkpoint.open(subject, base, PICKLE), Checkpoint.open(base)
    assert found.tensors.keys() == baseline.tensors.keys()
    for name in baseline.tensors:
        assert torch.equal(found.load(name), baseline.load(name))
        assert found.tensor_digest(name) == baseline.tensor_digest(name)
    assert check_checkpoint(baseline, found) == []
    chunks = [bytes(c) for c in found.chunks("model.embed_tokens.weight", 1000)]
    assert {len(c) for c in chunks[:-1]} == {1000}
    assert b"".join(chunks) == baseline.read("model.embed_tokens.weight")


def test_without_the_switch_one_line_names_it(base: Path, tmp_path: Path) -> None:
    """The file is not even opened: it is no pickle at all."""
    subject = pickled(base, tmp_path / "subject")
    (subject / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    with pytest.raises(NotACheckpointError, match="--allow-pickle") as caught:
        Checkpoint.open(subject, base)
    assert "\n" not in str(caught.value)


def test_code_in_a_pickle_never_runs(base: Path, tmp_path: Path) -> None:
    """With the switch, too: what is more than tensors is refused in one line."""
    subject, mark = pickled(base, tmp_path / "subject"), tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (mark,)  # type: ignore[return-value]

    torch.save({"model.norm.weight": Evil()}, subject / "pytorch_model.bin")
    with pytest.raises(InputError, match="not a readable pickle") as caught:
        Checkpoint.open(subject, base, PICKLE)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_damaged_ones_are_one_line(base: Path, tmp_path: Path) -> None:
    """Cut off, a tensor twice, no map of tensors, a shard that is not there."""
    subject = pickled(base, tmp_path / "subject", shards=3)
    first, second, third = sorted(subject.glob("*.bin"))
    whole = third.read_bytes()
    third.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable pickle"):
        Checkpoint.open(subject, base, PICKLE)
    third.unlink()
    with pytest.raises(InputError, match="named by the index but missing"):
        Checkpoint.open(subject, base, PICKLE)
    third.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match="is in two shards"):
        Checkpoint.open(subject, base, PICKLE)
    torch.save([1, 2], second)
    with pytest.raises(InputError, match="not a map of tensors"):
        Checkpoint.open(subject, base, PICKLE)


def test_an_evaluation_of_pickled_weights(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They pass with the switch, which costs nothing of the result, and are refused without it."""
    subject = pickled(world.baseline, tmp_path / "subject")
    assert world.evaluate(subject, tmp_path / "no") == 3
    assert "--allow-pickle" in capsys.readouterr().err
    assert world.evaluate(subject, tmp_path / "out", "--allow-pickle") == 0
    report = read(tmp_path / "out")
    assert report["primary_metric"]["ratio_vs_baseline"] == 1.0
    assert report["assurance"]["outcome"] == "pass"
    assert report["meta"]["execution"]["format"] == "pickle"
