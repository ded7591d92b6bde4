"""Copies of packed folders that differ in one thing, and what the invariants say of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from checkpoint_factory import weights
from safetensors import safe_open
from safetensors.torch import save_file

from invarlock.checkpoints import Checkpoint
from invarlock.guards.findings import Failure
from invarlock.guards.invariants import check_checkpoint

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], object]
NOTHING: Change = lambda tensors: None  # noqa: E731


def each_once(
    make: Callable[[Path, Path, str], object], baseline: Path, root: Path
) -> Callable[[str], Path]:
    """The folder of a name, made of the baseline when it is first asked for."""

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            make(baseline, root / name, name)
        return root / name

    return folder


def comes_back(baseline: Path, subject: Path, stood: Tensors, scheme: str) -> None:
    """Every weight is what the packer meant, in the dtype of the model, and nothing is found."""
    opened = Checkpoint.open(subject)
    assert opened.tensors.keys() == Checkpoint.open(baseline).tensors.keys()
    assert set(opened.packed) == set(stood)
    for tensor, values in stood.items():
        torch.testing.assert_close(
            opened.load(tensor), values.to(torch.bfloat16), rtol=2**-8, atol=1e-7, msg=tensor
        )
    assert opened.packing()["schemes"].keys() == {scheme}
    assert fatal(baseline, subject) == []


def changed(
    source: Path, out: Path, change: Change = NOTHING, said: Mapping[str, object] | None = None
) -> Path:
    """A copy with other tensors, and other members of how config.json says they are packed."""
    shutil.copytree(source, out)
    file = out / "model.safetensors"
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = {name: tensor.clone() for name, tensor in weights(source).items()}
    change(tensors)
    save_file(tensors, file, metadata)
    document = json.loads((out / "config.json").read_text())
    for key in {"quantization", "quantization_config"} & document.keys():
        document[key] |= said or {}
    (out / "config.json").write_text(json.dumps(document))
    return out


def fatal(baseline: Path, subject: Path) -> list[Failure]:
    """The findings that refuse the subject."""
    found = check_checkpoint(Checkpoint.open(baseline), Checkpoint.open(subject))
    return [failure for failure in found if failure["severity"] == "fatal"]


def put(name: str, value: float, place: int = 0) -> Change:
    """One number of a tensor."""

    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[place] = value

    return change


def without(name: str) -> Change:
    """A tensor less."""
    return lambda tensors: tensors.pop(name)


def cut(name: str) -> Change:
    """A tensor without its last row."""

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name][:-1].clone()

    return change
