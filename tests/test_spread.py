"""A model on several devices: where its layers go, and that it computes what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architecture_factory import ARCHITECTURES, make_architecture
from repository_copy import ROOT
from transformers import AutoModelForCausalLM, T5Config

from invarlock.run.spread import assigned, layers_of, spread


def two_devices(*words: object) -> subprocess.CompletedProcess[str]:
    """The models of folders on two devices, in a process of its own."""
    return subprocess.run(
        [sys.executable, "tests/two_devices.py", *map(str, words)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def folder_of(name: str, parent: Path) -> Path:
    """A small checkpoint of an architecture; of T5, which is measured too, only what it is."""
    folder = parent / name
    if name == "t5":
        config = T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            architectures=["T5ForConditionalGeneration"],
        )  # fmt: skip
        config.save_pretrained(folder)
    else:
        make_architecture(name, folder)
    return folder


def test_every_architecture_runs_on_two_devices(tmp_path: Path) -> None:
    """No operation meets tensors of both; the logits are where the inputs are; both hold layers."""
    names = [*ARCHITECTURES, "t5"]
    done = two_devices(*(folder_of(name, tmp_path) for name in names))
    found = dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=False))
    assert done.returncode == 0, f"after {list(found)}: {done.stderr[-3000:]}"
    assert {name: result["logits"] for name, result in found.items()} == dict.fromkeys(
        names, "gpu:0"
    )
    assert all(set(result["bytes"]) == {"gpu:0", "gpu:1"} for result in found.values())


def test_two_devices_are_told_apart(tmp_path: Path) -> None:
    """Without what moves the inputs, the same check fails."""
    done = two_devices("--without-hooks", folder_of(next(iter(ARCHITECTURES)), tmp_path))
    assert done.returncode != 0
    assert "gpu:0" in done.stderr
    assert "gpu:1" in done.stderr


class Tower(torch.nn.Module):
    """Matrices around a list of layers."""

    def __init__(self, around: int, layers: list[int]) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(around, 1, bias=False)
        self.body = torch.nn.Module()
        self.body.layers = torch.nn.ModuleList(torch.nn.Linear(n, 1, bias=False) for n in layers)


@pytest.mark.parametrize(
    ("around", "layers", "expected"),
    [
        (1, [10, 10, 10, 10], "aabb"),
        (20, [10, 10, 10, 10], "abbb"),
        (100, [10, 10, 10, 10], "bbbb"),
        (1, [30, 10, 10, 10], "abbb"),
        (9, [5], "b"),
        (1, [], ""),
    ],
)
def test_each_device_gets_its_share_of_the_bytes(
    around: int, layers: list[int], expected: str
) -> None:
    """In order, what lies around the layers counted on the first."""
    tower = Tower(around, layers)
    assert "".join(assigned(tower, layers_of(tower), ["a", "b"])) == expected


def test_the_same_logits_as_before(smollm2: Path) -> None:
    """The real model over one device named twice: bit for bit, and its tied matrix is still one."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    model.requires_grad_(False).eval()
    ids = torch.arange(40)[None] + 1000
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        count = len(list(model.parameters()))
        spread(model, ["cpu", "cpu"])
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(list(model.parameters())) == count
