"""Numbers of few bits, and numbers that share a scale: what packed weights are made of.

FP4 is E2M1: a sign, two bits of exponent and one of mantissa, two numbers to a byte, the first in
the low half. E8M0 is a power of two: its byte is the exponent plus 127, and 255 is not a number
(both by the OCP specification of microscaling formats). Whole numbers of any width stand densely
in words of 32 bits, the first in the lowest bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Magnitudes of FP4 by the lower three bits; the fourth is the sign.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
WORD = 32  # bits
NOT_A_NUMBER = 255  # as an E8M0 byte
BIAS = 127
SMALLEST = 2.0**-126  # a scale of less is zero
# Of the largest number of a matrix: a group of less may have a scale that a small float rounds off.
NOTHING = 1e-5


def fp4(packed: torch.Tensor) -> torch.Tensor:
    """The numbers of bytes (..., n): (..., 2 n), float32."""
    import torch

    table = torch.tensor([*FP4, *(-value for value in FP4)])
    codes = torch.arange(256)
    pairs = torch.stack((table[codes & 15], table[codes >> 4]), dim=-1)
    return pairs[packed.int()].flatten(-2)


def powers(scales: torch.Tensor) -> torch.Tensor:
    """The powers of two that E8M0 bytes stand for, float32."""
    import torch

    table = torch.tensor([*(2.0 ** (byte - BIAS) for byte in range(NOT_A_NUMBER)), torch.nan])
    return table[scales.view(torch.uint8).int()]


def whole_numbers(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` numbers of each row of words (..., n), from 0 up: int32."""
    import torch

    if WORD % bits == 0:  # none goes over the end of a word
        places = torch.arange(0, WORD, bits, dtype=torch.int32)
        numbers = (words.unsqueeze(-1) >> places) & ((1 << bits) - 1)
        return numbers.flatten(-2)[..., :count]
    begins = torch.arange(count) * bits
    at, place = begins // WORD, begins % WORD
    wide = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, 1))
    both = (wide[..., at] >> place) | (wide[..., at + 1] << (WORD - place))
    return (both & ((1 << bits) - 1)).int()


def words_for(count: int, bits: int) -> int:
    """How many words hold so many numbers."""
    return -(-count * bits // WORD)


def by_block(
    values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], zeros: torch.Tensor | None
) -> torch.Tensor:
    """(values - zeros) * scales, where each block of a matrix has one scale and one zero.

    In place: ``values`` (..., rows, columns) are changed.

    Args:
        values: float32.
        scales: (..., blocks of rows, blocks of columns), float32.
        block: rows and columns of a block; those at the edges may be smaller.
        zeros: in the shape of the scales, float32; None for none.
    """
    rows, columns = values.shape[-2:]
    high, wide = block
    whole = (rows, columns) == (scales.shape[-2] * high, scales.shape[-1] * wide)
    view = values.view(*values.shape[:-2], -1, high, columns // wide, wide) if whole else values

    def spread(numbers: torch.Tensor) -> torch.Tensor:
        if whole:
            return numbers[..., :, None, :, None]
        tall = numbers.repeat_interleave(high, -2)[..., :rows, :]
        return tall.repeat_interleave(wide, -1)[..., :columns]

    if zeros is not None:
        view.sub_(spread(zeros))
    view.mul_(spread(scales))
    return values


def nothing_left(
    scales: torch.Tensor, block: tuple[int, int], dense: Callable[[], torch.Tensor]
) -> int:
    """How many scales are zero where the dense matrix is not.

    Args:
        scales: as of :func:`by_block`.
        block: the same.
        dense: gives the matrix (..., rows, columns); asked only where a scale is zero.
    """
    import torch

    zero = scales.abs() < SMALLEST
    if not zero.any():
        return 0
    values = dense().float().abs()
    high, wide = block
    padding = (0, -values.shape[-1] % wide, 0, -values.shape[-2] % high)
    padded = torch.nn.functional.pad(values, padding)
    across = padded.shape[-1] // wide
    largest = padded.reshape(*padded.shape[:-2], -1, high, across, wide).amax((-3, -1))
    return int((zero & (largest > NOTHING * largest.max())).sum())
