"""Activation statistics of one batch, taken by forward hooks that only read.

Per hooked module: its output (tokens x features), at most ``MAX_TOKENS`` evenly spaced tokens of
it, every column centred and scaled to unit deviation; its edge risk
``sigma_max / (sqrt(m) + sqrt(n))`` and the variance of its output. One module is worked on at
a time: no activations are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from invarlock.guards.rmt import MAX_TOKENS, Activation, edge
from invarlock.guards.weight_stats import sigma_max
from invarlock.roles import Role, family_of, layer_of, role_of

if TYPE_CHECKING:
    import torch

HOOKED = (Role.ATTN, Role.FFN, Role.EXPERT, Role.ROUTER, Role.EMBED, Role.NORM)
DEVIATION_FLOOR = 0.01  # of a column, in root mean square deviations of its module


@dataclass
class ActivationProbe:
    """Hooks on a model's modules, and what they saw."""

    config: Mapping[str, Any]
    activations: list[Activation] = field(default_factory=list)
    tokens: int = 0  # most tokens that a module was looked at with
    seconds: float = 0.0  # wall time spent in the hooks
    bytes: int = 0  # most bytes that the hooks held at a time, by the sizes of their arrays

    @contextmanager
    def attached(self, model: torch.nn.Module) -> Iterator[None]:
        """Watch the forward passes made inside the block; exactly one is meant."""
        hooks = [
            module.register_forward_hook(self._hook(name, family))
            for name, module, family in hooked_modules(model, self.config)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.activations.sort(key=lambda a: a.name)

    def _hook(self, name: str, family: str) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            values = output[0] if isinstance(output, tuple) else output
            wait_for(values.device)  # else the forward pass so far would count as the probe's
            started = time.perf_counter()
            self._see(name, family, values)
            wait_for(values.device)
            self.seconds += time.perf_counter() - started

        return hook

    def _see(self, name: str, family: str, output: torch.Tensor) -> None:
        import torch

        if any(seen.name == name for seen in self.activations):
            return  # a shared module is looked at once
        flat = output.detach().reshape(-1, output.shape[-1])
        if len(flat) < 2:
            return  # an expert that hardly any token was sent to
        rows = torch.linspace(0, len(flat) - 1, min(len(flat), MAX_TOKENS)).long()
        x = flat[rows.to(flat.device)].float()
        self.tokens = max(self.tokens, len(x))
        self.bytes = max(self.bytes, 2 * x.numel() * x.element_size())
        x -= x.mean(dim=0)
        deviation = x.square().mean(dim=0).sqrt()
        variance = float(deviation.double().square().mean())
        risk = math.inf
        if math.isfinite(variance):
            x /= deviation.clamp_min(max(DEVIATION_FLOOR * math.sqrt(variance), 1e-30))
            risk = sigma_max(x) / edge(*x.shape)
        else:
            variance = math.inf
        self.activations.append(Activation(name, family, layer_of(name + "."), risk, variance))


def wait_for(device: torch.device) -> None:
    """Let a CUDA device finish what it was given; a CPU has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def hooked_modules(
    model: torch.nn.Module, config: Mapping[str, Any]
) -> list[tuple[str, torch.nn.Module, str]]:
    """Name, module and family of every module that holds a parameter with a role in ``HOOKED``."""
    found = []
    for name, module in model.named_modules():
        own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
        known = [p for p in own if role_of(p, config) in HOOKED]
        if known:
            found.append((name, module, family_of(known[0], config)))
    return found


@contextmanager
def scaled_outputs(model: torch.nn.Module, scales: Mapping[str, float]) -> Iterator[None]:
    """Multiply the outputs of modules inside the block; their weights stay as they are."""
    modules = dict(model.named_modules())

    def hook(scale: float) -> Any:
        return lambda _module, _inputs, output: output * scale

    hooks = [modules[name].register_forward_hook(hook(s)) for name, s in scales.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
