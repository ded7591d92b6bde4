"""One edit, from a parsed spec to a checkpoint folder and its metadata."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.edits.blocks import Loss, one_thread, row_blocks, transform_rows
from invarlock.edits.fp8_quant import to_fp8_
from invarlock.edits.lowrank_svd import low_rank_
from invarlock.edits.magnitude_prune import prune_smallest_
from invarlock.edits.quant_rtn import round_to_nearest_
from invarlock.edits.scope import Scope, select_targets
from invarlock.edits.specs import (
    EditSpec,
    Fp8Quant,
    LowRankSvd,
    MagnitudePrune,
    Noop,
    QuantRtn,
    check_shapes,
)
from invarlock.edits.stream import Change, NewTensor, Subject, write_subject
from invarlock.errors import ConfigError, InputError
from invarlock.roles import is_transposed
from invarlock.shards import DTYPES

# Changes one matrix in place; 2-D, in storage order.
Kernel = Callable[[torch.Tensor], Loss]


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
    scope: Scope | None = getattr(spec, "scope", None)
    targets = select_targets(baseline, scope) if scope else []
    pairs = [(info, is_transposed(info.name, baseline.config)) for info in targets]
    check_shapes(spec, pairs)
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
            kernel = _kernel(spec, info, transposed, seed)
        else:
            kernel = _values(trained.tensors[info.name])
        replaced[info.name] = rewritten_matrices(baseline, info, kernel, loss)
    with one_thread():
        subject = write_subject(
            baseline, Change(replaced), out, allow_identical=isinstance(spec, Noop)
        )
    return Edited(spec, seed, tuple(info for info, _ in pairs), subject, loss, trained)


def rewritten_matrices(
    source: Checkpoint, info: TensorInfo, kernel: Kernel, loss: Loss, *, only_first: bool = False
) -> NewTensor:
    """The tensor with ``kernel`` applied to its matrix, or to each matrix of a 3-D stack.

    ``kernel`` gets a view (rows, columns) in storage order, a vector as one row; what it reports
    is added to ``loss`` when the tensor is written. With ``only_first`` the other matrices of a
    stack stay.
    """

    def chunks() -> Iterator[memoryview]:
        itemsize, dtype_name = DTYPES[info.dtype]
        dtype: torch.dtype = getattr(torch, dtype_name)
        rows, columns = (1, *info.shape)[-2:]
        matrices = source.chunks(info.name, max(1, rows * columns * itemsize))
        for number, chunk in enumerate(matrices):
            if only_first and number:
                yield chunk
                continue
            matrix = torch.frombuffer(chunk, dtype=dtype).view(rows, columns)
            try:
                loss.add(kernel(matrix))
            except InputError as error:
                raise InputError(
                    f"tensor {info.name}: {error.what}",
                    where=str(source.folder / info.file),
                    expected=error.expected,
                ) from error
            yield chunk

    return NewTensor(info.dtype, info.shape, chunks)


def _kernel(spec: EditSpec, info: TensorInfo, transposed: bool, seed: int) -> Kernel:
    """The arithmetic of ``spec`` for one tensor; draws depend on the seed and the name only."""
    match spec:
        case QuantRtn(bits=bits, group_size=group_size):
            return lambda stored: round_to_nearest_(
                _by_output(stored, transposed), bits, group_size
            )
        case Fp8Quant(format=fmt):
            return lambda stored: to_fp8_(_by_output(stored, transposed), fmt)
        case MagnitudePrune():
            return lambda stored: prune_smallest_(stored, spec.count(stored.numel()))
        case LowRankSvd(rank=rank):
            own_seed = tensor_seed(seed, info.name)
            return lambda stored: low_rank_(stored, rank, own_seed)
    raise ConfigError(f"{spec.edit_type} has no arithmetic")


def _values(tensor: torch.Tensor) -> Kernel:
    """A kernel that puts in the matrices of ``tensor``, one a call, in their order."""
    matrices = iter(tensor.reshape(-1, *tensor.shape[-2:]))

    def put(stored: torch.Tensor) -> Loss:
        blocks = row_blocks(next(matrices))
        return transform_rows(stored, lambda _: next(blocks))

    return put


def _by_output(stored: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The matrix as (outputs, inputs)."""
    return stored.T if transposed else stored


def tensor_seed(seed: int, name: str) -> int:
    """Seed of one tensor's draws, independent of the order in which tensors are edited."""
    return zlib.crc32(name.encode(), seed % 2**32)  # torch looks at 32 bits of a seed only
