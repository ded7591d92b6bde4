"""A low-rank update, trained and merged: W + alpha / rank * B A (Hu et al. 2021, arXiv 2106.09685).

A begins normal with variance 1 / inputs and B at zero; a 3-D stack has a pair for each of its
matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.edits.kind import Limits, TrainedEdit, rank_misfit
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LoraMerge(TrainedEdit):
    """A low-rank update trained on the suite's text, added to each matrix: W + alpha/rank * B A."""

    edit_type: ClassVar[str] = "lora_merge"
    storage_format: ClassVar[str] = "dense_float"
    candidates: ClassVar[tuple[str, ...]] = ("4:8:attn", "4:4:attn", "4:2:attn", "4:1:attn")
    learning_rate: ClassVar[float] = 1e-3  # of A and B; part of the edit, so not a parameter
    steps: ClassVar[int] = 4
    rank: Annotated[int, Limits("rank of the update", low=1)]
    alpha: Annotated[float, Limits("the update is scaled by alpha / rank", above=0)]
    scope: Scope

    def misfit(self, outputs: int, inputs: int) -> str:
        return rank_misfit(self.rank, outputs, inputs)

    def schedule(self) -> tuple[float, int]:
        return self.learning_rate, self.steps

    def part(self, weight: torch.Tensor, transposed: bool, seed: int) -> LowRank:
        return LowRank(weight, self, seed, transposed=transposed)


class LowRank:
    """A weight that stays, and a trained update of low rank for each of its matrices."""

    def __init__(
        self, weight: torch.Tensor, spec: LoraMerge, seed: int, *, transposed: bool
    ) -> None:
        import torch

        self.original = weight.detach().to("cpu", copy=True)
        self.transposed = transposed
        self.scale = spec.alpha / spec.rank
        *stack, outputs, inputs = (weight.mT if transposed else weight).shape
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn((*stack, spec.rank, inputs), generator=generator) / inputs**0.5
        second = torch.zeros((*stack, outputs, spec.rank))
        self.leaves = [first.requires_grad_(), second.requires_grad_()]

    def value(self) -> torch.Tensor:
        """The merged weight in float32, a function of the leaves."""
        first, second = self.leaves
        update = self.scale * (second @ first)
        merged: torch.Tensor = self.original.float() + (update.mT if self.transposed else update)
        return merged
