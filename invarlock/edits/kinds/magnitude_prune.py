"""Magnitude pruning: exactly ``count`` entries of a matrix, smallest first, ties by position.

The bit pattern of |w|, read as an integer, orders finite floats like their values. The
threshold is found by counting 16-bit digits of the patterns from the top (radix selection),
so it is exact, needs no sorted copy, and its memory does not grow with the matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.edits.blocks import (
    BLOCK_ELEMENTS,
    Loss,
    finite_norm,
    refuse_non_finite,
    squared_norm,
)
from invarlock.edits.kind import EditSpec, Limits
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch

_DIGIT_BITS = 16
_BLOCK = 1 << 20  # entries; as many bytes of 16-bit integers as of a block of float32


@dataclass(frozen=True)
class MagnitudePrune(EditSpec):
    """The floor(n * sparsity) entries of smallest magnitude of each matrix set to zero."""

    edit_type: ClassVar[str] = "magnitude_prune"
    storage_format: ClassVar[str] = "dense_float_with_zeros"
    candidates: ClassVar[tuple[str, ...]] = (
        "0.12:ffn",
        "0.1:ffn",
        "0.08:ffn",
        "0.05:ffn",
        "0.02:ffn",
    )
    sparsity: Annotated[float, Limits("fraction of each matrix set to zero", above=0, high=1)]
    scope: Scope

    def count(self, n: int) -> int:
        """floor(n * sparsity) of the decimal number that was written, not of its double."""
        return math.floor(n * Fraction(repr(self.sparsity)))

    def apply(self, stored: torch.Tensor, transposed: bool, seed: int) -> Loss:
        return prune_smallest_(stored, self.count(stored.numel()))

    def details(self, loss: Loss, n_edited: int) -> dict[str, float]:
        return {"target_sparsity": self.sparsity, "actual_sparsity": loss.zeros / n_edited}


def prune_smallest_(weight: torch.Tensor, count: int) -> Loss:
    """Set the ``count`` entries of smallest magnitude of a contiguous tensor to zero, in place.

    Entries of equal magnitude go in storage order. Zeros that were there count.

    Raises:
        InputError: a value is not finite.
    """
    import numpy as np
    import torch

    flat = weight.view(-1)
    bits = flat.view(getattr(torch, f"int{8 * flat.element_size()}"))
    numbers = _digits(bits, _shifts(bits)[0])
    # Of a dtype of one digit this is how often each magnitude occurs: all sums follow from it.
    counted = len(_shifts(bits)) == 1
    squares = _squares(bits.dtype, flat.dtype) if counted else None
    loss = Loss(zeros=count)
    if squares is None:
        loss.norm = sum(finite_norm(block) for block in torch.split(flat, BLOCK_ELEMENTS))
    else:
        present = torch.where(numbers > 0, squares, 0.0)
        refuse_non_finite(present)
        loss.norm = float(numbers.double() @ present)
    if count == 0:
        return loss
    threshold, ties = _select(bits, count, numbers)
    if squares is not None:
        gone = numbers[:threshold].double() @ squares[:threshold]
        loss.error = float(gone + ties * squares[threshold])
    room = torch.empty_like(bits[:_BLOCK])
    for block in torch.split(bits, _BLOCK):
        # numpy takes half of torch's time for integers, and a tenth to compare those of 16 bits
        values, pattern = block.numpy(), room[: len(block)].numpy()
        integer = values.dtype.type
        np.bitwise_and(values, integer(np.iinfo(integer).max), out=pattern)
        limit = threshold  # what is below it goes
        if ties:
            equal = pattern == limit
            found = int(np.count_nonzero(equal))
            if found <= ties:
                limit += 1
            else:
                found = ties
                pattern[np.flatnonzero(equal)[:ties]] = -1
            ties -= found
        # Without branches and masks of bytes: -1 where an entry stays, 0 where it goes.
        np.subtract(integer(limit - 1), pattern, out=pattern)
        np.right_shift(pattern, np.iinfo(integer).bits - 1, out=pattern)
        if squares is None:
            removed = torch.from_numpy(values & ~pattern)
            loss.error += squared_norm(removed.view(flat.dtype))
        np.bitwise_and(values, pattern, out=values)
    return loss


def _squares(integer: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    """The square of each magnitude of a 16-bit float, by its pattern."""
    import torch

    patterns = torch.arange(torch.iinfo(integer).max + 1, dtype=integer)
    return patterns.view(dtype).double().square_()


def _shifts(bits: torch.Tensor) -> range:
    """Where the digits of a pattern begin, the highest first."""
    return range(8 * bits.element_size() - _DIGIT_BITS, -1, -_DIGIT_BITS)


def _digits(bits: torch.Tensor, shift: int, prefix: int | None = None) -> torch.Tensor:
    """How often each digit occurs in the bits of |w|; of those below ``prefix`` only, if given."""
    import torch

    # of the top digit the highest bit is the sign
    size = 1 << (_DIGIT_BITS if prefix is not None else _DIGIT_BITS - 1)
    numbers = torch.zeros(size, dtype=torch.int64)
    room = torch.empty_like(bits[:_BLOCK])
    for block in torch.split(bits, _BLOCK):
        pattern = torch.bitwise_and(block, torch.iinfo(bits.dtype).max, out=room[: len(block)])
        digits = pattern >> shift if shift else pattern
        if prefix is not None:
            digits = digits[pattern >> shift + _DIGIT_BITS == prefix] & ((1 << _DIGIT_BITS) - 1)
        numbers += torch.bincount(digits, minlength=size)
    return numbers


def _select(bits: torch.Tensor, count: int, numbers: torch.Tensor) -> tuple[int, int]:
    """The pattern of the ``count``-th smallest magnitude, and how many entries equal to it go.

    ``numbers``: how often each top digit occurs.
    """
    import torch

    prefix, left = 0, count
    for shift in _shifts(bits):
        if shift != _shifts(bits)[0]:
            numbers = _digits(bits, shift, prefix)
        before = numbers.cumsum(0)
        digit = int(torch.searchsorted(before, left))
        left -= int(before[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT_BITS | digit
    return prefix, left
