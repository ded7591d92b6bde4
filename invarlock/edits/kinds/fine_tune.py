"""Some steps of AdamW on every matrix of the scope itself (:mod:`invarlock.run.train`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.edits.kind import Limits, TrainedEdit
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch

MOST_STEPS = 1000  # an edit to be judged, not a training run


@dataclass(frozen=True)
class FineTune(TrainedEdit):
    """Steps of AdamW on the suite's text, on every matrix of the scope itself."""

    edit_type: ClassVar[str] = "fine_tune"
    storage_format: ClassVar[str] = "dense_float"
    candidates: ClassVar[tuple[str, ...]] = (
        "0.0001:1:ffn",
        "0.00005:1:ffn",
        "0.00002:1:ffn",
        "0.00001:1:ffn",
    )
    learning_rate: Annotated[float, Limits("learning rate of AdamW", above=0, high=1)]
    steps: Annotated[int, Limits("optimizer steps", low=1, high=MOST_STEPS)]
    scope: Scope

    def schedule(self) -> tuple[float, int]:
        return self.learning_rate, self.steps

    def part(self, weight: torch.Tensor, transposed: bool, seed: int) -> Dense:
        return Dense(weight)


class Dense:
    """A weight that is trained itself."""

    def __init__(self, weight: torch.Tensor) -> None:
        import torch

        on_host = weight.detach().to("cpu", torch.float32, copy=True)
        self.leaves = [on_host.requires_grad_()]

    def value(self) -> torch.Tensor:
        """The weight in float32, a function of the leaves."""
        return self.leaves[0]
