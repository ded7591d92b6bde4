"""Float32 work copies of a matrix, a block of rows at a time, and what the change cost."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from invarlock.errors import InputError

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 1 << 18  # elements of a work copy; 1 MB of float32 stays in the cache
# The same where elements are changed one by one: what an operation costs to be called shows there.
SIMPLE_ELEMENTS = 1 << 19
_SMALLEST = 1e-24  # squared norms below this may be sums of squares that float32 cannot hold


@dataclass
class Loss:
    """Squared Frobenius norms of the change and of the original, summed over matrices."""

    error: float = 0.0
    norm: float = 0.0
    zeros: int = 0

    def add(self, other: Loss) -> None:
        """Add another matrix's sums to this one's."""
        self.error += other.error
        self.norm += other.norm
        self.zeros += other.zeros

    @property
    def relative(self) -> float:
        """Frobenius norm of the change over that of the original; 0 for an all-zero original."""
        return (self.error / self.norm) ** 0.5 if self.norm else 0.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums and products in one order whatever the number of cores, so that bytes are the same."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def row_blocks(weight: torch.Tensor, elements: int = BLOCK_ELEMENTS) -> Iterator[torch.Tensor]:
    """Views of consecutive rows with about ``elements`` elements each."""
    import torch

    yield from torch.split(weight, max(1, elements // max(1, weight.shape[1])))


def squared_norm(block: torch.Tensor) -> float:
    """Squared Frobenius norm: each row of a matrix summed in float32, the rows in float64.

    A vector, and what leaves the range of float32 when it is squared, is summed in float64.
    """
    import torch

    if block.dim() == 2:
        norms = torch.linalg.vector_norm(block, dim=1, dtype=torch.float32)
        total = float(norms.double().square_().sum())
        if _SMALLEST < total < math.inf:
            return total
    return float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2


def refuse_non_finite(block: torch.Tensor) -> None:
    """Raise when a block of the original holds NaN or infinity.

    Raises:
        InputError: it does; the caller adds the tensor's name.
    """
    import torch

    if not bool(torch.isfinite(block).all()):
        raise InputError("the weights hold NaN or infinity", expected="finite numbers only")


def finite_norm(block: torch.Tensor) -> float:
    """:func:`squared_norm` of a block of the original.

    Raises:
        InputError: it holds NaN or infinity.
    """
    norm = squared_norm(block)
    if not math.isfinite(norm):  # the sum shows it for a fraction of a look at every element
        refuse_non_finite(block)
    return norm


def scales_to(largest: float, found: torch.Tensor) -> torch.Tensor:
    """What the largest magnitude that was found is divided by to give ``largest``.

    1 where all are zero, so that they stay zeros.
    """
    import torch

    scale = found / largest
    return torch.where(scale > 0, scale, 1.0)


def clamp_coarse_(quotients: torch.Tensor, scale: torch.Tensor, largest: float) -> None:
    """Bring numbers that were divided by :func:`scales_to` back to ``largest``, in place.

    A normal scale is right to 24 bits, and nothing is far above; a subnormal one has lost bits.
    """
    import torch

    if float(scale.min()) < torch.finfo(torch.float32).tiny:
        quotients.clamp_(-largest, largest)


def transform_rows(
    weight: torch.Tensor,
    transform: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    elements: int = BLOCK_ELEMENTS,
) -> Loss:
    """Replace ``weight`` (rows, columns) in place by ``transform`` of float32 blocks of rows.

    Args:
        weight: the matrix.
        transform: gets a block, which it leaves as it is, and room for two (2, rows, columns),
            in which it may make its result.
        elements: about how many a block has.

    Raises:
        InputError: a value is not finite, or its replacement is not in the storage dtype.
    """
    import torch

    loss = Loss()
    held: torch.Tensor | None = None  # every block is made in the same memory
    for rows in row_blocks(weight, elements):
        if held is None:
            held = torch.empty((3, *rows.shape), dtype=torch.float32)
        work, room = held[0, : len(rows)], held[1:, : len(rows)]
        # A copy, also of float32: the original is needed again for the error below.
        work.copy_(rows)
        loss.norm += finite_norm(work)
        rows.copy_(transform(work, room))
        # Read back from the storage type: its rounding is part of what the edit changed.
        loss.error += squared_norm(room[0].copy_(rows).sub_(work))
    _refuse_misfit(loss, weight.dtype)
    return loss


def transform_magnitudes(
    weight: torch.Tensor,
    transform: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    elements: int = BLOCK_ELEMENTS,
) -> Loss:
    """Like :func:`transform_rows` for numbers that keep their signs: it gets and gives magnitudes.

    Signs are taken off and put back in the storage type, whose numbers take half of the time.

    Args:
        weight: the matrix.
        transform: gets a block, the largest number of each of its rows, and room.
        elements: about how many a block has.

    Raises:
        InputError: a value is not finite, or its replacement is not in the storage dtype.
    """
    import torch

    loss = Loss()
    held: torch.Tensor | None = None
    integer: torch.dtype = getattr(torch, f"int{8 * weight.element_size()}")
    for rows in row_blocks(weight, elements):
        if held is None:
            held = torch.empty((3, *rows.shape), dtype=torch.float32)
            stored = torch.empty_like(rows, memory_format=torch.contiguous_format)
        work, room = held[0, : len(rows)], held[1:, : len(rows)]
        magnitudes = torch.abs(rows, out=stored[: len(rows)])
        work.copy_(magnitudes)
        loss.norm += finite_norm(work)
        # The bits of magnitudes are in the order of their values.
        bits = magnitudes.view(integer)
        largest = bits.amax(dim=-1, keepdim=True).view(weight.dtype).float()
        magnitudes.copy_(transform(work, largest, room))
        torch.copysign(magnitudes, rows, out=rows)
        loss.error += squared_norm(room[0].copy_(magnitudes).sub_(work))
    _refuse_misfit(loss, weight.dtype)
    return loss


def _refuse_misfit(loss: Loss, dtype: torch.dtype) -> None:
    """Raise where what was written is not finite."""
    if not math.isfinite(loss.error):
        name = str(dtype).removeprefix("torch.")
        raise InputError(f"the edited weights do not fit {name}", expected="finite numbers only")
