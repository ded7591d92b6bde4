"""One edit, from a parsed spec to a checkpoint folder and its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.edits.blocks import Loss, one_thread, row_blocks, transform_rows
from invarlock.edits.kind import EditSpec
from invarlock.edits.scope import select_targets
from invarlock.edits.stream import (
    CheckpointChange,
    Kernel,
    Subject,
    rewritten_matrices,
    tensor_seed,
    write_subject,
)
from invarlock.roles import is_transposed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Trained:
    """What training gave: the new content of every target, and how it came about."""

    tensors: Mapping[str, torch.Tensor]  # by the checkpoint's names, in its shapes
    losses: Sequence[Mapping[str, float]]  # of each step's batch in nats: before and after it
    record: Mapping[str, object]  # optimizer, windows and arithmetic


@dataclass(frozen=True)
class Edited:
    """The result of an edit: what was meant, what was written and what it cost."""

    spec: EditSpec
    seed: int
    targets: tuple[TensorInfo, ...]
    subject: Subject
    loss: Loss
    trained: Trained | None = None


def targets_of(baseline: Checkpoint, spec: EditSpec) -> list[tuple[TensorInfo, bool]]:
    """The tensors that ``spec`` means, each with whether it is stored transposed.

    Raises:
        ConfigError: the scope matches nothing, or a parameter does not fit a tensor.
        InputError: a target is not stored as floating-point numbers.
    """
    targets = select_targets(baseline, spec.reach) if spec.reach else []
    pairs = [(info, is_transposed(info.name, baseline.config)) for info in targets]
    spec.check(pairs)
    return pairs


def apply_edit(
    baseline: Checkpoint, spec: EditSpec, out: Path, seed: int = 0, trained: Trained | None = None
) -> Edited:
    """Write the edited checkpoint to ``out``; all shapes are checked before a byte is written.

    ``trained``: the values of an edit that is trained.

    Raises:
        ConfigError: the scope matches nothing, a parameter does not fit a tensor, or the edit
            changed no byte (unless it is ``noop``).
        InputError: a target holds NaN or infinity, or a file cannot be read or written.
    """
    pairs = targets_of(baseline, spec)
    loss = Loss()
    replaced = {}
    for info, transposed in pairs:
        if trained is None:
            own_seed = tensor_seed(seed, info.name)
            kernel: Kernel = partial(spec.apply, transposed=transposed, seed=own_seed)
        else:
            kernel = _values(trained.tensors[info.name])
        replaced[info.name] = rewritten_matrices(baseline, info, kernel, loss)
    with one_thread():
        subject = write_subject(
            baseline, CheckpointChange(replaced), out, allow_identical=spec.allows_no_change
        )
    return Edited(spec, seed, tuple(info for info, _ in pairs), subject, loss, trained)


def _values(tensor: torch.Tensor) -> Kernel:
    """A kernel that replaces a matrix by the next one of ``tensor``, which may stack several."""
    matrices = iter(tensor.reshape(-1, *tensor.shape[-2:]))

    def put(stored: torch.Tensor) -> Loss:
        blocks = row_blocks(next(matrices))
        return transform_rows(stored, lambda _: next(blocks))

    return put
