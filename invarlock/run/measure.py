"""Measure one checkpoint: weights first, then one pass over all windows.

The result is everything the comparison needs, so that no model is ever run twice.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.checkpoints import Checkpoint
from invarlock.files import sha256_file
from invarlock.guards.invariants import check_loaded
from invarlock.guards.invariants_decision import Failure
from invarlock.guards.spectral import Module
from invarlock.roles import family_of, is_transposed, layer_of
from invarlock.run.forward import ArmResult, logits_function, run_arm
from invarlock.run.loading import Loaded, Target, load_model
from invarlock.windows import Window, WindowSet, read_windows

if TYPE_CHECKING:
    import torch

ARMS = ("preview", "final")
PROBE_TOKENS = 16  # tokens on which the output head is compared with the whole model


@dataclass(frozen=True)
class RunWindows:
    """The windows of a run with the digest of the file they came from."""

    content: WindowSet
    sha256: str

    @classmethod
    def read(cls, path: Path, tokenizer_sha256: str | None) -> RunWindows:
        """Read and check ``windows.json``; the tokenizer must be the one it was cut with.

        Raises:
            InputError: see :func:`invarlock.windows.read_windows`.
        """
        return cls(read_windows(path, tokenizer_sha256), sha256_file(path))

    def arm(self, name: str) -> Sequence[Window]:
        """The windows of ``preview`` or ``final``."""
        return self.content.preview if name == "preview" else self.content.final


@dataclass
class Measurement:
    """What one run recorded."""

    dtype: str
    device: str
    modules: list[Module]
    arms: dict[str, ArmResult]
    loaded_failures: list[Failure]
    timings: dict[str, float] = field(default_factory=dict)  # wall seconds per phase


def weight_modules(checkpoint: Checkpoint, device: str) -> list[Module]:
    """Statistics of every 2-D weight, and of every expert of a 3-D one, from the file.

    Read from the checkpoint and not from the loaded model: names are the file's, and values
    are those that were stored, whatever dtype the model runs in.
    """
    from invarlock.guards.weight_stats import measure

    modules: list[Module] = []
    for name in sorted(checkpoint.tensors):
        info = checkpoint.tensors[name]
        if len(info.shape) not in (2, 3) or not info.dtype.startswith(("F", "BF")):
            continue
        family, layer = family_of(name, checkpoint.config), layer_of(name)
        weight = checkpoint.load(name).to(device)
        if is_transposed(name, checkpoint.config):
            weight = weight.transpose(-1, -2)
        matrices = [(name, weight)] if weight.dim() == 2 else _experts(name, weight)
        modules += [Module(label, family, layer, measure(w)) for label, w in matrices]
    return modules


def _experts(name: str, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return [(f"{name}[{i}]", matrix) for i, matrix in enumerate(weight)]


def measure_checkpoint(
    checkpoint: Checkpoint,
    windows: RunWindows,
    target: Target,
    *,
    token_budget: int,
    keep_top: bool,
) -> Measurement:
    """Load the checkpoint, measure its weights and run it over the windows once.

    Args:
        checkpoint: the folder; its tensors must be finite.
        windows: what to run it on.
        target: device and dtype.
        token_budget: tokens per batch.
        keep_top: keep the most likely tokens of the final arm (a baseline run).

    Raises:
        InputError: the folder cannot be loaded.
    """
    import torch

    clock = _Clock()
    loaded = load_model(checkpoint.folder, target)
    clock.lap("load_model")
    modules = weight_modules(checkpoint, loaded.device)
    clock.lap("spectral_statistics")
    probe = torch.tensor([windows.content.final[0].tokens[:PROBE_TOKENS]], device=loaded.device)
    logits = logits_function(loaded.model, probe)
    arms = {
        arm: run_arm(
            logits,
            [window.tokens for window in windows.arm(arm)],
            device=loaded.device,
            token_budget=token_budget,
            keep_top=keep_top and arm == "final",
        )
        for arm in ARMS
    }
    clock.lap("forward")
    return Measurement(
        dtype=loaded.dtype,
        device=_device_name(loaded),
        modules=modules,
        arms=arms,
        loaded_failures=check_loaded(loaded.missing, loaded.unexpected),
        timings=clock.seconds,
    )


def _device_name(loaded: Loaded) -> str:
    import torch

    if loaded.device.startswith("cuda"):
        return f"cuda ({torch.cuda.get_device_name(loaded.device)})"
    return loaded.device


class _Clock:
    """Wall seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MB (ru_maxrss is kB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
