"""What a kind of edit is: a class whose fields are its parameters, in the order of a spec string.

    @dataclass(frozen=True)
    class Halve(EditSpec):
        edit_type: ClassVar[str] = "halve"
        storage_format: ClassVar[str] = "dense_float"
        candidates: ClassVar[tuple[str, ...]] = ("2:ffn",)
        times: Annotated[int, Limits("how often", low=1)]
        scope: Scope

        def apply(self, stored, transposed, seed): ...

A file like that in ``invarlock/edits/kinds`` is all that a new edit needs: the parser, the search
for tuned parameters, the contracts and the page of edits are made of it. An edit of one matrix at a
time has ``apply``; one that rewrites tensors together has ``change`` (``invarlock.edits.rewrite``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, get_type_hints

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.edits.blocks import Loss
from invarlock.edits.scope import Scope, select_targets
from invarlock.edits.stream import (
    CheckpointChange,
    Kernel,
    Subject,
    rewritten_matrices,
    tensor_seed,
    write_subject,
)
from invarlock.errors import ConfigError
from invarlock.roles import is_transposed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Limits:
    """What a parameter may be: one of ``words``, or a number within the bounds."""

    about: str  # what it means, as contracts and pages say it
    low: float | None = None  # at least
    above: float | None = None  # more than
    high: float | None = None  # at most
    words: tuple[str, ...] = ()

    def admits(self, value: object) -> bool:
        """Whether the value is one of the words, or a finite number within the bounds."""
        if self.words:
            return value in self.words
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.high is not None and value > self.high:
            return False
        return value > self.above if self.above is not None else value >= (self.low or 0)

    def __str__(self) -> str:
        """What is admitted, for people."""
        if self.words:
            return " or ".join(self.words)
        if self.above is not None:
            return f"above {self.above:g}, " + ("finite" if self.high is None else self._up_to)
        return f"{self.low:g} or more" if self.high is None else f"{self.low:g} to {self.high:g}"

    @property
    def _up_to(self) -> str:
        return f"up to {self.high:g}"

    def schema(self, kind: type) -> dict[str, Any]:
        """The same for values of a type, as a JSON schema."""
        if self.words:
            return {"enum": list(self.words), "description": self.about}
        bounds = {"minimum": self.low, "exclusiveMinimum": self.above, "maximum": self.high}
        return {
            "type": "integer" if kind is int else "number",
            **{key: bound for key, bound in bounds.items() if bound is not None},
            "description": self.about,
        }


class Trainable(Protocol):
    """What is trained of one weight: ``leaves`` get gradients, ``value`` makes a weight of them."""

    leaves: list[torch.Tensor]

    def value(self) -> torch.Tensor:
        """The new weight in float32, a function of the leaves."""


@dataclass(frozen=True)
class EditSpec:
    """Base of all edits: what can be asked for, whether it fits, what it does, what it says."""

    edit_type: ClassVar[str]
    storage_format: ClassVar[str]
    # What a search for tuned parameters tries, as parameters of a spec string, from the most to
    # the least that is changed; {middle} is the number of the layer in the middle.
    candidates: ClassVar[tuple[str, ...]] = ()
    allows_no_change: ClassVar[bool] = False  # whether bytes equal to the baseline's are no mistake
    keeps_weights: ClassVar[bool] = False  # every weight stays: an evaluation calls it a no-op
    by_rows: ClassVar[bool] = False  # whether each output is changed for itself alone
    in_memory: ClassVar[bool] = False  # the whole model is loaded, where others are streamed

    def __post_init__(self) -> None:
        for name, limits in self.limits().items():
            value = getattr(self, name)
            if not limits.admits(value):
                raise ConfigError(
                    f"{name} is out of range",
                    where=self.edit_type,
                    expected=str(limits),
                    found=repr(value) if limits.words else str(value),
                )

    @classmethod
    def types(cls) -> dict[str, type]:
        """The type of each parameter, the scope with them, in the order of a spec string."""
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def limits(cls) -> dict[str, Limits]:
        """What each parameter may be, by name (the scope apart)."""
        hints = get_type_hints(cls, include_extras=True)
        return {n: hints[n].__metadata__[0] for n in cls.types() if n != "scope"}

    @classmethod
    def schemas(cls) -> dict[str, dict[str, Any]]:
        """The JSON schema of each parameter, by name (the scope apart)."""
        types = cls.types()
        return {name: limits.schema(types[name]) for name, limits in cls.limits().items()}

    @classmethod
    def form(cls) -> str:
        """The spec string with a place for each parameter."""
        return ":".join([cls.edit_type, *(f"<{name}>" for name in cls.types())])

    def check(self, targets: Sequence[tuple[TensorInfo, bool]]) -> None:
        """Refuse targets that the edit does not fit; the flag of each says stored transposed.

        Raises:
            ConfigError: names the tensor, its shape and the parameter.
        """
        problems = []
        for info, transposed in targets:
            first, second = info.shape[-2:]
            problem = self.misfit(*((second, first) if transposed else (first, second)))
            if problem:
                problems.append(f"tensor {info.name} of shape {list(info.shape)}: {problem}")
        if problems:
            more = f" (and {len(problems) - 1} more tensors)" if len(problems) > 1 else ""
            raise ConfigError(problems[0] + more, where=self.edit_type)

    def misfit(self, outputs: int, inputs: int) -> str:
        """Why a matrix of this shape cannot be edited; empty when it can."""
        return ""

    def apply(self, stored: torch.Tensor, transposed: bool, seed: int) -> Loss:
        """Change one matrix in place.

        Args:
            stored: (rows, columns) as the checkpoint keeps it.
            transposed: whether its rows are inputs, not outputs.
            seed: of the draws for this tensor alone.

        Raises:
            InputError: a value is not finite.
        """
        raise NotImplementedError(f"{self.edit_type} changes no matrix")

    def targets(self, baseline: Checkpoint) -> list[tuple[TensorInfo, bool]]:
        """The tensors that are edited one by one, each with whether it is stored transposed.

        Raises:
            ConfigError: the scope matches nothing, or a parameter does not fit a tensor.
            InputError: a target is not stored as floating-point numbers.
        """
        found = select_targets(baseline, self.reach) if self.reach else []
        pairs = [(info, is_transposed(info.name, baseline.config)) for info in found]
        self.check(pairs)
        return pairs

    def unsuited(self, config: Mapping[str, Any]) -> str:
        """Why no model with this ``config.json`` can be edited so; empty where it may be."""
        return ""

    def change(self, baseline: Checkpoint, seed: int, loss: Loss) -> CheckpointChange:
        """The change of the checkpoint; nothing is written here.

        Args:
            baseline: what is edited.
            seed: of all draws.
            loss: what the change costs is added to it when the tensors are written.

        Raises:
            ConfigError: the scope matches nothing, or the edit does not fit the model.
            InputError: a target is not stored as floating-point numbers.
        """
        replaced = {}
        for info, transposed in self.targets(baseline):
            kernel = partial(self.apply, transposed=transposed, seed=tensor_seed(seed, info.name))
            by_rows = self.by_rows and not transposed
            replaced[info.name] = rewritten_matrices(baseline, info, kernel, loss, by_rows=by_rows)
        return CheckpointChange(replaced)

    def write(self, baseline: Checkpoint, change: CheckpointChange, out: Path) -> Subject:
        """Write the edited checkpoint to ``out``.

        Raises:
            ConfigError: no byte changed, and the edit is none that may leave all as it was.
            InputError: a target holds NaN or infinity, or a file cannot be read or written.
        """
        return write_subject(baseline, change, out, allow_identical=self.allows_no_change)

    @property
    def reach(self) -> Scope | None:
        """The scope; None for an edit that has none."""
        return getattr(self, "scope", None)

    def parameters(self) -> dict[str, int | float | str]:
        """The edit's own parameters, by name (the scope apart)."""
        return {name: getattr(self, name) for name in self.limits()}

    def describe(self) -> dict[str, object]:
        """The members of ``edit_metadata.json`` that say what was asked for."""
        return {
            "edit_type": self.edit_type,
            "storage_format": self.storage_format,
            "actual_storage_format": self.storage_format,
            "scope": str(self.reach or "none"),
            "parameters": self.parameters(),
        }

    def details(self, loss: Loss, n_edited: int) -> dict[str, float]:
        """What the edit did to ``n_edited`` elements, beside the relative error."""
        return {}


@dataclass(frozen=True)
class TextEdit(EditSpec):
    """Base of the edits whose values come from a text that goes through the model."""


@dataclass(frozen=True)
class TrainedEdit(TextEdit):
    """Base of the edits whose values come from training, not from arithmetic on a matrix alone."""

    def schedule(self) -> tuple[float, int]:
        """Learning rate and number of steps of the optimizer."""
        raise NotImplementedError

    def part(self, weight: torch.Tensor, transposed: bool, seed: int) -> Trainable:
        """What is trained of one weight; draws depend on ``seed`` only."""
        raise NotImplementedError


def matrices_edited(
    baseline: Checkpoint, kernels: Mapping[str, Kernel], loss: Loss
) -> CheckpointChange:
    """Each matrix, by name, changed by its kernel; what that costs is added to ``loss``."""
    return CheckpointChange(
        {
            name: rewritten_matrices(baseline, baseline.tensors[name], kernel, loss)
            for name, kernel in kernels.items()
        }
    )


def rows_of_outputs(stored: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The matrix as (outputs, inputs)."""
    return stored.T if transposed else stored


def rank_misfit(rank: int, outputs: int, inputs: int) -> str:
    """Why a matrix has no approximation or update of this rank; empty when it has."""
    return (
        f"rank {rank} is larger than its smaller dimension" if rank > min(outputs, inputs) else ""
    )
