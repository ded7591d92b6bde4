"""Round to nearest: symmetric integer levels, one float32 scale per group, dequantized.

For a group g of an output channel's inputs: scale = max|g| / (2^(bits-1) - 1) in float32 and
g' = round(g / scale) * scale, half to even; so |g' - g| <= scale / 2 before the result is
rounded to the storage dtype. An all-zero group stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.edits.blocks import (
    SIMPLE_ELEMENTS,
    Loss,
    clamp_coarse_,
    scales_to,
    transform_rows,
)
from invarlock.edits.kind import EditSpec, Limits, rows_of_outputs
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantRtn(EditSpec):
    """Symmetric round to nearest, dequantized; group_size 0 is one group per output channel."""

    edit_type: ClassVar[str] = "quant_rtn"
    storage_format: ClassVar[str] = "float_dequantized"
    by_rows: ClassVar[bool] = True
    candidates: ClassVar[tuple[str, ...]] = (
        "4:32:ffn",
        "4:32:attn",
        "4:32:ffn@layer={middle}",
        "8:32:ffn",
    )
    bits: Annotated[int, Limits("bits per weight", low=2, high=8)]
    group_size: Annotated[int, Limits("inputs per scale; 0: one scale per output channel", low=0)]
    scope: Scope

    def misfit(self, outputs: int, inputs: int) -> str:
        if self.group_size and inputs % self.group_size:
            return f"group_size {self.group_size} does not divide its {inputs} inputs"
        return ""

    def apply(self, stored: torch.Tensor, transposed: bool, seed: int) -> Loss:
        weight = rows_of_outputs(stored, transposed)
        return round_to_nearest_(weight, self.bits, self.group_size)


def round_to_nearest_(weight: torch.Tensor, bits: int, group_size: int) -> Loss:
    """Quantize and dequantize ``weight`` (outputs, inputs) in place.

    ``group_size`` inputs share a scale and must divide them; 0 means the whole channel.

    Raises:
        InputError: a value is not finite.
    """
    import torch

    levels = 2 ** (bits - 1) - 1  # on each side of zero

    def transform(work: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        groups = work.view(work.shape[0], -1, group_size or work.shape[1])
        result = room[0].view_as(groups)
        scale = scales_to(levels, torch.abs(groups, out=result).amax(dim=-1, keepdim=True))
        torch.div(groups, scale, out=result)
        clamp_coarse_(result, scale, levels)
        result.round_().mul_(scale)
        return room[0]

    return transform_rows(weight, transform, SIMPLE_ELEMENTS)
