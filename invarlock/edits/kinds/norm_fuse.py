"""Norm weights absorbed into the maps behind them, as engines and rotations do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from invarlock.checkpoints import Checkpoint
from invarlock.edits.rewrite import Block, Rewrite, Rewriter, fuse_norm

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NormFuse(Rewrite):
    """The weight of every norm in a block absorbed into the maps behind it, and then one.

    The norm before the head stays as it is: a head that is the embedding cannot take it over.
    """

    edit_type: ClassVar[str] = "norm_fuse"

    def parts(self) -> tuple[str, ...]:
        return ("norm", "q", "k", "v", "gate", "up", "router")

    def rewriter(self, baseline: Checkpoint, seed: int) -> Rewriter:
        return self._rewrite

    def _rewrite(self, block: Block, random: torch.Generator) -> None:
        for side in self.sides():
            fuse_norm(block, side)
