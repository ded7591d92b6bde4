"""Magnitude pruning: exactly ``count`` entries of a matrix, smallest first, ties by position.

The bit pattern of |w|, read as an integer, orders finite floats like their values. The
threshold is found by counting 16-bit digits of the patterns from the top (radix selection),
so it is exact, needs no sorted copy, and its memory does not grow with the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.edits.blocks import BLOCK_ELEMENTS, Loss, finite_norm, squared_norm
from invarlock.edits.kind import EditSpec, Limits
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch

_DIGIT_BITS = 16


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
    import torch

    flat = weight.view(-1)
    loss = Loss()
    for block in torch.split(flat, BLOCK_ELEMENTS):
        loss.norm += finite_norm(block)
    if count == 0:
        return loss
    threshold, ties = _select(flat, count)
    for block, pattern in zip(torch.split(flat, BLOCK_ELEMENTS), _patterns(flat), strict=True):
        chosen = pattern < threshold
        if ties:
            equal = pattern == threshold
            found = int(torch.count_nonzero(equal))
            if found > ties:
                equal &= equal.cumsum(0) <= ties
            chosen |= equal
            ties -= min(found, ties)
        bits = block.view(pattern.dtype)
        removed = bits * chosen  # as integers: several times faster than filling floats by a mask
        loss.error += squared_norm(removed.view(block.dtype))
        loss.zeros += int(torch.count_nonzero(chosen))
        bits -= removed
    return loss


def _patterns(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bits of |w| as non-negative integers, block by block."""
    import torch

    integer: torch.dtype = getattr(torch, f"int{8 * flat.element_size()}")
    for block in torch.split(flat.view(integer), BLOCK_ELEMENTS):
        yield block & torch.iinfo(integer).max


def _select(flat: torch.Tensor, count: int) -> tuple[int, int]:
    """The pattern of the ``count``-th smallest magnitude, and how many entries equal to it go."""
    import torch

    prefix, left = 0, count
    for shift in range(8 * flat.element_size() - _DIGIT_BITS, -1, -_DIGIT_BITS):
        histogram = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64)
        above = shift + _DIGIT_BITS
        for pattern in _patterns(flat):
            digits = pattern >> shift  # of the top digit no bit is above: patterns have no sign
            if above < 8 * flat.element_size():
                digits = digits[pattern >> above == prefix] & ((1 << _DIGIT_BITS) - 1)
            histogram += torch.bincount(digits, minlength=1 << _DIGIT_BITS)
        before = histogram.cumsum(0)
        digit = int(torch.searchsorted(before, left))
        left -= int(before[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT_BITS | digit
    return prefix, left
