"""Router statistics of a mixture of experts, taken by forward hooks that only read.

Softmax and top-k are computed from the router's logits in float32 and summed in float64, whatever
the model runs in. Tokens that the model's ``attention_mask`` excludes are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from invarlock.guards.moe import RouterStats
from invarlock.roles import Role, layer_of, role_of

if TYPE_CHECKING:
    import torch


class _Sums:
    """Of one router: tokens, their entropy in nats, and the choices of each expert."""

    def __init__(self, experts: int) -> None:
        self.tokens = 0
        self.entropy = 0.0
        self.choices: NDArray[np.int64] = np.zeros(experts, dtype=np.int64)


class RouterProbe:
    """Hooks on the routers of a model, and what they saw; a model without routers costs nothing.

    ``top_k`` is the number of experts per token; 0 before a router was seen.
    """

    def __init__(self) -> None:
        self.top_k = 0
        self._sums: dict[str, _Sums] = {}
        self._mask: torch.Tensor | None = None

    @contextmanager
    def attach(self, model: Any) -> Iterator[RouterProbe]:
        """Watch the forward passes made inside the block; several add up."""
        config = {"model_type": model.config.model_type}
        routers = [
            (name, module)
            for name, module in model.named_modules()
            if role_of(f"{name}.weight", config) is Role.ROUTER
        ]
        hooks = [module.register_forward_hook(self._hook(name)) for name, module in routers]
        if routers:
            self.top_k = int(model.config.num_experts_per_tok)
            body = getattr(model, model.base_model_prefix, model)
            hooks.append(body.register_forward_pre_hook(self._see_mask, with_kwargs=True))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            self._mask = None

    def results(self) -> list[RouterStats]:
        """One entry per router, sorted by name."""
        return [
            RouterStats(
                name=name,
                layer=layer_of(name),
                entropy=sums.entropy / max(1, sums.tokens),
                tokens=sums.tokens,
                utilization=tuple((sums.choices / max(1, sums.choices.sum())).tolist()),
            )
            for name, sums in sorted(self._sums.items())
        ]

    def _see_mask(self, _module: object, _args: object, kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")

    def _hook(self, name: str) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            self._see(name, output[0] if isinstance(output, tuple) else output)

        return hook

    def _see(self, name: str, logits: torch.Tensor) -> None:
        """Add the tokens of one pass; ``logits`` (..., experts)."""
        import torch

        flat = logits.detach().reshape(-1, logits.shape[-1])
        if self._mask is not None:
            flat = flat[self._mask.reshape(-1).to(flat.device) != 0]
        sums = self._sums.setdefault(name, _Sums(flat.shape[-1]))
        probabilities = flat.float().softmax(dim=-1)  # (tokens, experts)
        chosen = probabilities.topk(self.top_k, dim=-1).indices
        entropy = torch.special.entr(probabilities).sum(dim=-1)
        sums.tokens += len(flat)
        sums.entropy += float(entropy.cpu().double().sum())
        sums.choices += np.bincount(chosen.cpu().numpy().ravel(), minlength=flat.shape[-1])
