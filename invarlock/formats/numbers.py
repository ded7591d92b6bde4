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
MANTISSA, EXPONENT, HALF = 23, 0x7F800000, 0x400000  # bits of a float32
SMALLEST = 2.0**-126  # a scale of less is zero


def fp4(packed: torch.Tensor) -> torch.Tensor:
    """The numbers of bytes (..., n): (..., 2 n), float32."""
    import torch

    table = torch.tensor([*FP4, *(-value for value in FP4)])
    codes = torch.arange(256)
    pairs = torch.stack((table[codes & 15], table[codes >> 4]), dim=-1)
    return pairs[packed.int()].flatten(-2)


def fp6(packed: torch.Tensor, mantissa: int, least: int) -> torch.Tensor:
    """The numbers of bytes (..., 3 n): (..., 4 n), float32. Six bits each: a sign, an exponent,
    and a mantissa; the first in the lowest bits.

    Args:
        packed: three bytes for four numbers.
        mantissa: bits of it.
        least: exponent of the smallest normal number.
    """
    import torch

    table = []
    for code in range(32):
        exponent, rest = code >> mantissa, code & ((1 << mantissa) - 1)
        normal = 1.0 if exponent else 0.0
        table.append((normal + rest / (1 << mantissa)) * 2.0 ** (least + max(exponent - 1, 0)))
    signed = torch.tensor([*table, *(-value for value in table)])
    threes = packed.int().reshape(*packed.shape[:-1], -1, 3)
    word = threes[..., 0] | threes[..., 1] << 8 | threes[..., 2] << 16
    codes = torch.stack([word >> place & 63 for place in (0, 6, 12, 18)], dim=-1)
    return signed[codes].flatten(-2)


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
    # as many words as a number has bits hold 32 of them, in the same places each time
    cycles = -(-count // WORD)
    whole = torch.nn.functional.pad(words, (0, cycles * bits - words.shape[-1]))
    whole = whole.reshape(*words.shape[:-1], cycles, bits)
    numbers = torch.empty(*whole.shape[:-1], WORD, dtype=torch.int32)
    for number in range(WORD):
        at, place = divmod(number * bits, WORD)
        found, left = whole[..., at] >> place, WORD - place
        if left < bits:  # the rest is in the next word; the sign was shifted in
            found = found & ((1 << left) - 1) | whole[..., at + 1] << left
        numbers[..., number] = found & ((1 << bits) - 1)
    return numbers.flatten(-2)[..., :count]


def nearest_float(numbers: torch.Tensor, mantissa: int, least: int, largest: float) -> torch.Tensor:
    """The nearest numbers of a short floating format, of two the one with an even mantissa.

    Args:
        numbers: float32; what is beyond the largest is cut.
        mantissa: bits that are stored of it.
        least: exponent of its smallest normal number.
        largest: its largest number.
    """
    import torch

    cut = numbers.clamp(-largest, largest)
    # added to a number and taken away again, it leaves the steps of its own size: those of the
    # format around the number, or below the normal ones all the same
    steps = (cut.view(torch.int32) & EXPONENT).clamp_(min=BIAS + least << MANTISSA)
    steps += (MANTISSA - mantissa << MANTISSA) + HALF
    size = steps.view(torch.float32)
    return cut.add_(size).sub_(size)


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
