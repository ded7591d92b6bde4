"""One edit, from a parsed spec to a checkpoint folder and its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.edits.blocks import Loss, one_thread, row_blocks, transform_rows
from invarlock.edits.kind import EditSpec, matrices_edited
from invarlock.edits.kinds.importance_prune import ImportancePrune
from invarlock.edits.stream import Kernel, Subject

if TYPE_CHECKING:
    import torch


class FromText(Protocol):
    """What a text that went through the model gave for an edit."""

    @property
    def section(self) -> tuple[str, Mapping[str, object]]:
        """The member of ``edit_metadata.json`` that says how, with its content."""

    def kernel(self, name: str, transposed: bool) -> Kernel:
        """What changes a tensor, by the checkpoint's name, accordingly."""


@dataclass(frozen=True)
class Trained:
    """What training gave: the new content of every target, and how it came about."""

    tensors: Mapping[str, torch.Tensor]  # by the checkpoint's names, in its shapes
    losses: Sequence[Mapping[str, float]]  # of each step's batch in nats: before and after it
    record: Mapping[str, object]  # optimizer, windows and arithmetic

    @property
    def section(self) -> tuple[str, Mapping[str, object]]:
        """How it was trained, losses to six digits."""
        losses = [{when: six_digits(loss) for when, loss in step.items()} for step in self.losses]
        return "training", {**self.record, "losses": losses}

    def kernel(self, name: str, transposed: bool) -> Kernel:
        """A kernel that replaces a matrix by the next one of a tensor, which may stack several."""
        tensor = self.tensors[name]
        matrices = iter(tensor.reshape(-1, *tensor.shape[-2:]))

        def put(stored: torch.Tensor) -> Loss:
            blocks = row_blocks(next(matrices))
            return transform_rows(stored, lambda *_: next(blocks))

        return put


@dataclass(frozen=True)
class Calibrated:
    """How large the inputs of every target were, and on what that was measured."""

    spec: ImportancePrune
    inputs: Mapping[str, torch.Tensor]  # by the checkpoint's names: L2 norm of each input
    record: Mapping[str, object]  # windows and arithmetic
    name: ClassVar[str] = "calibration"

    @property
    def section(self) -> tuple[str, Mapping[str, object]]:
        """Windows and arithmetic."""
        return self.name, self.record

    def kernel(self, name: str, transposed: bool) -> Kernel:
        """A kernel that prunes a matrix by what its inputs weigh."""
        return partial(self.spec.prune, transposed=transposed, inputs=self.inputs[name])


@dataclass(frozen=True)
class Edited:
    """The result of an edit: what was meant, what was written and what it cost."""

    spec: EditSpec
    seed: int
    targets: tuple[TensorInfo, ...]  # tensors of the baseline that were written anew
    subject: Subject
    loss: Loss
    given: FromText | None = None


def apply_edit(
    baseline: Checkpoint, spec: EditSpec, out: Path, seed: int = 0, given: FromText | None = None
) -> Edited:
    """Write the edited checkpoint to ``out``; all shapes are checked before a byte is written.

    ``given``: what a text gave for an edit that takes one.

    Raises:
        ConfigError: the scope matches nothing, a parameter does not fit a tensor, the edit does not
            fit the model, or it changed no byte (unless it is ``noop``).
        InputError: a target holds NaN or infinity, or a file cannot be read or written.
    """
    loss = Loss()
    if given is None:
        change = spec.change(baseline, seed, loss)
    else:
        kernels = {i.name: given.kernel(i.name, turned) for i, turned in spec.targets(baseline)}
        change = matrices_edited(baseline, kernels, loss)
    with one_thread():
        subject = spec.write(baseline, change, out)
    targets = tuple(baseline.tensors[name] for name in sorted(change.replaced))
    return Edited(spec, seed, targets, subject, loss, given)


def six_digits(value: float) -> float:
    """Enough to read, and mostly the same on machines that sum differently."""
    return float(f"{value:.6g}")
