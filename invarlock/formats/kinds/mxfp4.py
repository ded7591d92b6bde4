"""MXFP4 experts, as gpt-oss ships them: ``quant_method: mxfp4``.

The matrices of all experts of a layer are stored as ``*_blocks`` (experts, rows, groups, 16 bytes
of two FP4 numbers each) and ``*_scales`` (experts, rows, groups), powers of two for 32 numbers. The
model has them the other way round: (experts, columns, rows). All else is dense.

On a CPU transformers unpacks them into dense ones when it loads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError
from invarlock.formats.kind import PackedTensor
from invarlock.formats.numbers import POWERS, SMALLEST, fp4, powers
from invarlock.formats.packed import (
    Unpacked,
    dtype_of,
    method_of,
    parts_of,
    torch_dtype,
)
from invarlock.shards import TensorInfo

if TYPE_CHECKING:
    import torch

BLOCKS, SCALES = "_blocks", "_scales"
BYTES = 16  # of a group
GROUP = 2 * BYTES  # numbers that share a scale


class Mxfp4(Unpacked):
    """MXFP4 experts of gpt-oss."""

    name: ClassVar[str] = "mxfp4"
    title: ClassVar[str] = "MXFP4"
    activations: ClassVar[str] = "as they are"
    marks: ClassVar[tuple[str, ...]] = (f".gate_up_proj{BLOCKS}", f".down_proj{BLOCKS}")

    def packs(self, config: Mapping[str, Any]) -> bool:
        return method_of(config) == "mxfp4"

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        for name, parts in parts_of(stored, BLOCKS, (SCALES,), where):
            blocks, scales = parts[BLOCKS], parts[SCALES]
            fits = len(blocks.shape) == 4 and blocks.shape[-1] == BYTES
            fits = fits and blocks.dtype == "U8" and scales.dtype in POWERS
            if not fits or scales.shape != blocks.shape[:-1]:
                raise InputError(
                    f"the blocks and scales of {name} do not fit together", where=where,
                    expected=f"{BYTES} bytes and a scale for each group of {GROUP} numbers",
                    found=f"{list(blocks.shape)} {blocks.dtype} and {list(scales.shape)}"
                    f" {scales.dtype}",
                )  # fmt: skip
            experts, rows, groups, _ = blocks.shape
            yield PackedTensor(
                name, dtype_of(config), (experts, groups * GROUP, rows),
                (blocks.name, scales.name), f"MXFP4, groups of {GROUP}", 4.0,
                blocks.nbytes + scales.nbytes,
            )  # fmt: skip

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        import torch

        blocks, scales = (parts[name] for name in tensor.parts)
        values = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype))
        for expert, own in enumerate(values):  # one at a time: those of a layer fill gigabytes
            numbers = fp4(blocks[expert]) * powers(scales[expert]).unsqueeze(-1)
            own.copy_(numbers.flatten(-2).t())
        return values

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        scales = powers(parts[tensor.parts[1]])
        scales = scales.masked_fill(scales < SMALLEST, 0.0)
        return scales.repeat_interleave(GROUP, -1).transpose(-1, -2)

    def loading(self, source: Path, config: Mapping[str, Any], device: str) -> Mapping[str, object]:
        from transformers.utils.quantization_config import Mxfp4Config

        return {"quantization_config": Mxfp4Config(dequantize=True)}
