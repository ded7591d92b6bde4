"""Eight-bit floats, scaled: each output channel's largest magnitude becomes the format's maximum.

For a channel w: scale = max|w| / M with M = 448 (e4m3) or 57344 (e5m2) in float32, and
w' = cast(clamp(w / scale, -M, M)) * scale, the cast rounding half to even. The formats are
those of Micikevicius et al. 2022 (arXiv 2209.05433); e4m3 has no infinity ("fn").
"""

from __future__ import annotations

import torch

from invarlock.edits.blocks import Loss, transform_rows
from invarlock.edits.specs import FP8_MAX

_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def to_fp8_(weight: torch.Tensor, fmt: str) -> Loss:
    """Send ``weight`` (outputs, inputs) through format ``fmt`` and back, in place.

    Raises:
        InputError: a value is not finite.
    """
    largest, dtype = FP8_MAX[fmt], _DTYPES[fmt]

    def transform(work: torch.Tensor) -> torch.Tensor:
        scale = work.abs().amax(dim=1, keepdim=True) / largest
        scale = torch.where(scale > 0, scale, 1.0)
        scaled = (work / scale).clamp_(-largest, largest)
        return scaled.to(dtype).to(torch.float32).mul_(scale)

    return transform_rows(weight, transform)
