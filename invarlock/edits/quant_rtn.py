"""Round to nearest: symmetric integer levels, one float32 scale per group, dequantized.

For a group g of an output channel's inputs: scale = max|g| / (2^(bits-1) - 1) in float32 and
g' = round(g / scale) * scale, half to even; so |g' - g| <= scale / 2 before the result is
rounded to the storage dtype. An all-zero group stays zero.
"""

from __future__ import annotations

import torch

from invarlock.edits.blocks import Loss, transform_rows


def round_to_nearest_(weight: torch.Tensor, bits: int, group_size: int) -> Loss:
    """Quantize and dequantize ``weight`` (outputs, inputs) in place.

    ``group_size`` inputs share a scale and must divide them; 0 means the whole channel.

    Raises:
        InputError: a value is not finite.
    """
    levels = 2 ** (bits - 1) - 1  # on each side of zero

    def transform(work: torch.Tensor) -> torch.Tensor:
        groups = work.view(work.shape[0], -1, group_size or work.shape[1])
        scale = groups.abs().amax(dim=2, keepdim=True) / levels
        scale = torch.where(scale > 0, scale, 1.0)
        # The clamp matters only where a subnormal scale has lost bits.
        rounded = (groups / scale).round_().clamp_(-levels, levels)
        return rounded.mul_(scale).view_as(work)

    return transform_rows(weight, transform)
