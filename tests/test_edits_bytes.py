"""The bytes that round to nearest, FP8 and pruning give, held against digests that stand recorded.

The contents come of SHAKE-256, so that no generator and no version of a library can move them, and
every operation between them and the stored bytes is exact by IEEE 754: the digests are those of any
machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import pytest
import torch

from invarlock.edits.blocks import Loss
from invarlock.edits.kinds.fp8_quant import to_fp8_
from invarlock.edits.kinds.magnitude_prune import prune_smallest_
from invarlock.edits.kinds.quant_rtn import round_to_nearest_
from invarlock.errors import InputError

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
EXPONENT = {"bf16": (7, 8), "f16": (10, 5), "f32": (23, 8)}  # lowest bit and width
# one row, odd sizes, and more than a block of work with rows left over
SHAPES = [(1, 24), (7, 105), (37, 96), (301, 1920)]
CONTENTS = ("ordinary", "wide", "ties", "subnormal", "zeros")


def raw(dtype: str, shape: tuple[int, int], content: str) -> torch.Tensor:
    """Bit patterns of finite numbers, as integers."""
    low, width = EXPONENT[dtype]
    size = (low + width + 1) // 8
    seed = f"{dtype} {shape} {content}".encode()
    data = bytearray(hashlib.shake_256(seed).digest(shape[0] * shape[1] * size))
    integer = torch.int16 if size == 2 else torch.int32
    bits = torch.frombuffer(data, dtype=integer).view(shape).clone()
    ones = (1 << width) - 1
    rest = ~(ones << low)
    exponents = (bits >> low) & ones
    if content == "ordinary":  # magnitudes of a weight: sixteen binades below 1
        exponents = (exponents % 16) + max(0, (ones >> 1) - 16)
    elif content == "wide":  # all finite numbers
        exponents = exponents.clamp(max=ones - 1)
    elif content == "ties":  # eight magnitudes
        exponents, rest = (ones >> 1) - exponents % 4, rest & ~((1 << low - 1) - 1)
    else:  # rows whose scale is among the smallest numbers, and beside them all zeros of a sign
        exponents = exponents * 0
    bits = (bits & rest) | (exponents << low)
    if content == "zeros":
        bits &= -1 << (low + width)  # signs stay
        bits[::2] = raw(dtype, shape, "ordinary")[::2]
    return bits


def stored(dtype: str, shape: tuple[int, int], content: str) -> torch.Tensor:
    """The same as numbers."""
    return raw(dtype, shape, content).view(DTYPES[dtype])


def rtn(weight: torch.Tensor) -> Iterator[Callable[[torch.Tensor], Loss]]:
    """Every number of bits, with groups that divide the row, odd ones too."""
    columns = weight.shape[1]
    groups = [0, *(g for g in (1, 3, 7, 8, 15, 32, 105, 128) if columns % g == 0)]
    for bits in range(2, 9):
        for group in groups if weight.numel() < 100_000 else [0, 32, 128]:
            yield lambda w, b=bits, g=group: round_to_nearest_(w, b, g)  # type: ignore[misc]


def fp8(weight: torch.Tensor) -> Iterator[Callable[[torch.Tensor], Loss]]:
    """Both formats."""
    for fmt in ("e4m3", "e5m2"):
        yield lambda w, f=fmt: to_fp8_(w, f)  # type: ignore[misc]


def prune(weight: torch.Tensor) -> Iterator[Callable[[torch.Tensor], Loss]]:
    """None, one, some, all but one, all."""
    n = weight.numel()
    for count in (0, 1, n // 10, n // 3, n // 2 + 1, n - 1, n):
        yield lambda w, c=count: prune_smallest_(w, c)  # type: ignore[misc]


KERNELS = {"quant_rtn": rtn, "fp8_quant": fp8, "magnitude_prune": prune}


def result(weight: torch.Tensor, kernel: Callable[[torch.Tensor], Loss]) -> bytes:
    """The bytes that a kernel leaves, or the line that it ends with."""
    try:
        kernel(weight)
    except InputError as error:
        return str(error.what).encode()
    integer = torch.int16 if weight.element_size() == 2 else torch.int32
    return weight.contiguous().view(integer).numpy().tobytes()


def digests(edit: str) -> dict[str, str]:
    """Forty digits of the SHA-256 over all shapes and parameters, by dtype and content.

    Golden files show whole digests as a word: those of most files depend on the machine.
    """
    found = {}
    for dtype in DTYPES:
        for content in CONTENTS:
            digest = hashlib.sha256()
            for shape in SHAPES:
                for kernel in KERNELS[edit](stored(dtype, shape, content)):
                    digest.update(result(stored(dtype, shape, content), kernel))
            found[f"{dtype} {content}"] = digest.hexdigest()[:40]
    return found


@pytest.mark.parametrize("edit", KERNELS)
def test_the_bytes_are_the_recorded_ones(edit: str, golden: Callable[[str, str], None]) -> None:
    """For every dtype, content, shape and parameter."""
    golden(f"edits/{edit}.json", json.dumps(digests(edit), indent=1) + "\n")


@pytest.mark.parametrize("edit", ["quant_rtn", "fp8_quant"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_transposed_matrix_gets_the_same_bytes(edit: str, dtype: str, content: str) -> None:
    """Whichever way it is stored."""
    for shape in ((7, 105), (301, 1920)):
        for kernel in KERNELS[edit](stored(dtype, shape, content)):
            turned = stored(dtype, shape, content).T.contiguous().T
            assert result(turned, kernel) == result(stored(dtype, shape, content), kernel)
