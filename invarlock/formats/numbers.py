"""Numbers of few bits, and numbers that share a scale: what packed weights are made of.

FP4 is E2M1: a sign, two bits of exponent and one of mantissa, two numbers to a byte, the first in
the low half. E8M0 is a power of two: its byte is the exponent plus 127, and 255 is not a number
(both by the OCP specification of microscaling formats). Whole numbers of any width stand densely
in words of 32 bits, the first in the lowest bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Magnitudes of FP4 by the lower three bits; the fourth is the sign.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
WORD = 32  # bits
NOT_A_NUMBER = 255  # as an E8M0 byte
BIAS = 127
POWERS = ("U8", "F8_E8M0")  # safetensors codes of E8M0
SMALLEST = 2.0**-126  # a scale of less is zero


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


def spread(numbers: torch.Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    """What each element of a matrix shares with its block, in a shape that broadcasts to its own.

    Args:
        numbers: (..., blocks of rows, blocks of columns).
        block: rows and columns of a block; those at the edges may be smaller.
        shape: (..., rows, columns).
    """
    rows, columns = shape[-2:]
    if numbers.shape[-2] > 1:
        numbers = numbers.repeat_interleave(block[0], -2)[..., :rows, :]
    if numbers.shape[-1] > 1:
        numbers = numbers.repeat_interleave(block[1], -1)[..., :columns]
    return numbers
