"""Scales folded from one tensor into the next, as SmoothQuant and AWQ do before they round.

Both choose the scales from activations; what a fold does to the weights and not to the function is
the same for any. Here they are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.checkpoints import Checkpoint
from invarlock.edits.kind import Limits
from invarlock.edits.rewrite import ATTN, FFN, READERS, Block, Rewrite, Rewriter
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScaleFold(Rewrite):
    """Scales moved from each norm into the maps behind it, between up and down, value and output.

    The function stays (SmoothQuant, AWQ). A scale is exp(spread * N(0, 1)), a channel, neuron or
    value dimension each; up and down where a gate stands beside them, or a ReLU behind.
    """

    edit_type: ClassVar[str] = "scale_fold"
    spread: Annotated[
        float, Limits("standard deviation of the logarithm of a scale", above=0, high=2)
    ]
    scope: Scope

    def parts(self) -> tuple[str, ...]:
        return ("norm", "q", "k", "v", "o", "gate", "up", "down", "router")

    def rewriter(self, baseline: Checkpoint, seed: int) -> Rewriter:
        return self._rewrite

    def _rewrite(self, block: Block, random: torch.Generator) -> None:
        for side in self.sides():
            norm = block.norm(side)
            scale = self._scales(norm.weight.numel(), random)
            norm.weight.div_(scale)
            if norm.bias is not None:
                norm.bias.div_(scale)
            for weight in block.weights(*READERS[side]):
                weight.mul_(scale)
        if ATTN in self.sides():
            heads, groups, width = block.heads
            scale = self._scales(groups * width, random)
            for weight in block.weights("v"):
                weight.mul_(scale[:, None])
            for bias in block.biases("v"):
                bias.mul_(scale)
            shared = scale.view(groups, width).repeat_interleave(heads // groups, dim=0).flatten()
            for weight in block.weights("o"):
                weight.div_(shared)
        if FFN in self.sides() and block.scales_freely():
            for up, down in zip(block.weights("up"), block.weights("down"), strict=True):
                scale = self._scales(up[..., 0].numel(), random).view(up.shape[:-1])
                up.mul_(scale[..., None])
                down.div_(scale[..., None, :])
                for bias in block.biases("up"):  # of a dense block: experts have none
                    bias.mul_(scale)

    def _scales(self, count: int, random: torch.Generator) -> torch.Tensor:
        import torch

        drawn: torch.Tensor = torch.exp(self.spread * torch.randn(count, generator=random))
        return drawn
