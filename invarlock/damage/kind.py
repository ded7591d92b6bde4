"""What a kind of damage is: a class whose fields are its parameters, with published defaults.

    @dataclass(frozen=True)
    class FirstHalved(MatrixDamage):
        error_type: ClassVar[str] = "first_halved"

        def targets(self, baseline): return block_matrices(baseline)[:1]
        def apply(self, matrix, seed): matrix.mul_(0.5)

A class like that in ``invarlock/damage/kinds`` is all that a new damage needs: the command, the
catalogue, the contract and the page of damage find it there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.edits.blocks import Loss
from invarlock.edits.stream import CheckpointChange, NewTensor, rewritten_matrices, tensor_seed
from invarlock.errors import ConfigError

if TYPE_CHECKING:
    import torch

Value = int | float | str
_LAYERS = re.compile(r"all|last[1-9]\d{0,5}|-[1-9]\d{0,5}|\d{1,6}(-\d{1,6})?")


@dataclass(frozen=True)
class Damage:
    """Base of all damage: what can be asked for, what it becomes on a model, what it changes."""

    error_type: ClassVar[str]
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}  # inclusive; else: positive
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    places: ClassVar[Mapping[str, str]] = {}  # whole numbers whose default -1 depends on the model

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or value == field.default:
                continue
            allowed, expected = self.admits(field.name, value)
            if not allowed:
                raise ConfigError(
                    f"parameter {field.name} is out of range",
                    where=self.error_type,
                    expected=expected,
                    found=str(value),
                )

    def admits(self, name: str, value: Value) -> tuple[bool, str]:
        """Whether the value is admitted, and what is."""
        if name == "layers":
            return _LAYERS.fullmatch(str(value)) is not None, "all, 31, 0-3, last4 or -1 (the last)"
        if isinstance(value, str):
            known = self.choices.get(name, (value,))
            return value in known, "one of " + ", ".join(known)
        if name in self.places:
            return value >= -1, f"{self.places[name]}, or -1 for the default"
        if name in self.bounds:
            low, high = self.bounds[name]
            return low <= value <= high, f"{low:g} to {high:g}"
        return 0 < value < float("inf"), "a positive number"

    def check(self, baseline: Checkpoint) -> Self:
        """The damage with the defaults that depend on the model made explicit.

        Raises:
            ConfigError: what a parameter names is not there.
            InputError: no role table for the architecture.
        """
        return self

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        """The change of the checkpoint that a checked damage means; nothing is written here.

        Raises:
            ConfigError: the checkpoint has no target for it.
            InputError: the checkpoint is too small, or its configuration does not fit its tensors.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, object]:
        """The members of ``error_metadata.json`` that say what was asked for."""
        return {"error_type": self.error_type, "parameters": self.parameters()}

    def parameters(self) -> dict[str, Value]:
        """Every parameter with its value, by name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class MatrixDamage(Damage):
    """Base of damage that is arithmetic on some matrices, each by itself."""

    whole_stacks: ClassVar[bool] = False  # of a stack of experts only the first matrix is meant

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        """The tensors that are hit."""
        raise NotImplementedError

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        """Change one matrix (rows, columns) in place, in storage order.

        Args:
            matrix: the matrix.
            seed: of the draws for this tensor alone.
        """
        raise NotImplementedError

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        return CheckpointChange(
            {
                info.name: matrices_changed(
                    baseline,
                    info,
                    partial(self.apply, seed=tensor_seed(seed, info.name)),
                    only_first=not self.whole_stacks,
                )
                for info in self.targets(baseline)
            }
        )


def matrices_changed(
    baseline: Checkpoint,
    info: TensorInfo,
    apply: Callable[[torch.Tensor], object],
    *,
    only_first: bool = True,
) -> NewTensor:
    """The tensor with ``apply`` done to its matrix; what damage costs is not added up."""

    def kernel(matrix: torch.Tensor) -> Loss:
        apply(matrix)
        return Loss()

    return rewritten_matrices(baseline, info, kernel, Loss(), only_first=only_first)
