"""Eight-bit floats, scaled: each output channel's largest magnitude becomes the format's maximum.

For a channel w: scale = max|w| / M with M = 448 (e4m3) or 57344 (e5m2) in float32, and
w' = cast(clamp(w / scale, -M, M)) * scale, the cast rounding half to even. The formats are
those of Micikevicius et al. 2022 (arXiv 2209.05433); e4m3 has no infinity ("fn").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.edits.blocks import (
    SIMPLE_ELEMENTS,
    Loss,
    clamp_coarse_,
    scales_to,
    transform_magnitudes,
)
from invarlock.edits.kind import EditSpec, Limits, rows_of_outputs
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch

FP8_MAX = {"e4m3": 448.0, "e5m2": 57344.0}  # largest finite value of the format
MANTISSA_BITS = {"e4m3": 3, "e5m2": 2}
LOWEST_EXPONENT = {"e4m3": -6, "e5m2": -14}  # of a normal number
_MANTISSA_BITS, _EXPONENT_BITS = 23, 0x7F800000  # of float32: how many, and which


@dataclass(frozen=True)
class Fp8Quant(EditSpec):
    """Scaled per output channel to the largest value of an 8-bit float format, cast and back."""

    edit_type: ClassVar[str] = "fp8_quant"
    storage_format: ClassVar[str] = "float_dequantized"
    by_rows: ClassVar[bool] = True
    candidates: ClassVar[tuple[str, ...]] = (
        "e5m2:ffn",
        "e5m2:attn",
        "e5m2:ffn@layer={middle}",
        "e4m3:ffn",
    )
    format: Annotated[str, Limits("the format", words=tuple(FP8_MAX))]
    scope: Scope

    def apply(self, stored: torch.Tensor, transposed: bool, seed: int) -> Loss:
        return to_fp8_(rows_of_outputs(stored, transposed), self.format)


def to_fp8_(weight: torch.Tensor, fmt: str) -> Loss:
    """Send ``weight`` (outputs, inputs) through format ``fmt`` and back, in place.

    Raises:
        InputError: a value is not finite.
    """
    import torch

    largest = FP8_MAX[fmt]

    def transform(work: torch.Tensor, found: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        scale = scales_to(largest, found)
        result = torch.div(work, scale, out=room[0])
        clamp_coarse_(result, scale, largest)
        round_to_fp8_(result, fmt, room[1])
        return result.mul_(scale)

    return transform_magnitudes(weight, transform, SIMPLE_ELEMENTS)


def round_to_fp8_(magnitudes: torch.Tensor, fmt: str, room: torch.Tensor) -> None:
    """Round float32 numbers from 0 to the format's maximum to the nearest of ``fmt``, in place.

    As a cast there and back does, half to even, in half of its time. To each number a power of two
    is added and taken away again, so large that the last bit of the sum is worth what the step of
    ``fmt`` is at that number: adding rounds to that step. ``room`` is of the same shape.
    """
    import torch

    mantissa, lowest = MANTISSA_BITS[fmt], LOWEST_EXPONENT[fmt]
    powers = torch.bitwise_and(
        magnitudes.view(torch.int32), _EXPONENT_BITS, out=room.view(torch.int32)
    ).view(torch.float32)  # the largest power of two in each number
    powers.clamp_(min=2.0**lowest)  # subnormal numbers have the step of the smallest normal ones
    larger = 2.0 ** (_MANTISSA_BITS - mantissa)
    magnitudes.add_(powers, alpha=larger).sub_(powers, alpha=larger)
