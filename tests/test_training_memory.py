"""What training edits leave on a device: neither gradients nor the inside of layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factory import make_llama, make_mixture
from measuring_factory import write_tiny_windows

from invarlock.checkpoints import Checkpoint
from invarlock.edits.kinds.fine_tune import FineTune
from invarlock.edits.specs import parse_edit_spec
from invarlock.run import train as train_module
from invarlock.run.loading import Loaded, Target
from invarlock.run.train import BATCH_WINDOWS, Training, to_host, train
from invarlock.windows import WindowPlan


@pytest.mark.parametrize("make", [make_llama, make_mixture])
def test_no_gradient_stays_on_the_device(
    make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither after a pass nor during it, and nothing is kept of the inside of a layer."""
    folder, loss_of = tmp_path / "model", train_module._loss
    make(folder)
    windows = tmp_path / "windows.json"
    write_tiny_windows(folder, windows, WindowPlan(20, 2, 2, 5))
    inner = json.loads((folder / "config.json").read_text())["intermediate_size"]
    seen: list[int] = []
    kept: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.update(tensor.shape[-1:])
        return tensor

    def watched(loaded: Loaded, *given: Any, learn: bool) -> float:
        weights = [p for p in loaded.model.parameters() if p.requires_grad]

        def count(*_: object) -> None:
            seen.append(sum(p.grad is not None for p in weights))

        watches = [p.register_post_accumulate_grad_hook(count) for p in weights]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(loaded, *given, learn=learn)
        for watch in watches:
            watch.remove()
        count()
        return loss

    monkeypatch.setattr(train_module, "_loss", watched)
    spec = parse_edit_spec("fine_tune:0.01:2:ffn")
    assert isinstance(spec, FineTune)
    train(Checkpoint.open(folder), spec, Training(windows, Target("cpu", "float32"), 1, 3))
    assert len(seen) > 2 * BATCH_WINDOWS
    assert set(seen) == {0}
    assert kept
    assert inner not in kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_add_up_on_the_host_as_autograd_adds_them(dtype: torch.dtype) -> None:
    """Three passes, of which one does not reach the second weight: the same bits."""
    torch.manual_seed(0)
    mine = {name: torch.randn((4, 4), dtype=dtype, requires_grad=True) for name in "ab"}
    plain = {name: w.detach().clone().requires_grad_() for name, w in mine.items()}
    found = to_host(mine)
    for number in range(3):
        x = torch.randn((2, 4), dtype=dtype)
        for weights in (mine, plain):
            y = (x @ weights["a"]).tanh() @ weights["a"]
            (y if number == 1 else y @ weights["b"]).square().sum().backward()
    assert all(weight.grad is None for weight in mine.values())
    assert all(torch.equal(found[name], plain[name].grad) for name in "ab")
