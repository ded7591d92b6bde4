"""torchao: tensor subclasses in safetensors files, taken apart into the tensors that they hold.

Each file says in its metadata of what class a parameter is. ``P.weight`` of a class that is read
here lies as ``P._weight_qdata`` (an integer a byte), ``P._weight_scale`` and mostly
``P._weight_zero_point``; scales and zero points are of blocks that tile the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError, NotACheckpointError
from invarlock.files import parse_json
from invarlock.formats.kind import CODES, Package, PackedTensor
from invarlock.formats.packed import Packed, dtype_of, method_of, torch_dtype
from invarlock.shards import TensorInfo, read_shard_header

if TYPE_CHECKING:
    import torch

CLASSES = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
PLAIN = "Tensor"


class Torchao(Packed):
    """``quant_method`` torchao, of classes that keep an integer a byte."""

    name: ClassVar[str] = "torchao"
    title: ClassVar[str] = "torchao"
    marks: ClassVar[tuple[str, ...]] = ("._weight_qdata", "._weight_scale", "._weight_zero_point")
    packages: ClassVar[tuple[Package, ...]] = (Package("torchao", "torchao"),)

    def packs(self, config: Mapping[str, Any]) -> bool:
        return method_of(config) == "torchao"

    def loading(self, source: Path, config: Mapping[str, Any], device: str) -> Mapping[str, object]:
        # its kernels multiply what comes in the dtype that the weights stand for, and no other
        return {"dtype": torch_dtype(dtype_of(config))}

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        for file in sorted({info.file for info in stored.values()}):
            for name, text in sorted(read_shard_header(Path(where) / file).metadata.items()):
                if "." in name:
                    said = parse_json(text.encode(), f"{where}/{file}: {name}")
                    if not isinstance(said, dict):
                        raise InputError(f"the metadata of {name} is no object", where=where)
                    if said.get("_type") != PLAIN:
                        yield _packed(stored, name, said, where)

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        return _by_value(parts[tensor.parts[1]], tensor.shape)

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        integers = parts[tensor.parts[0]].float()
        if len(tensor.parts) > 2:
            integers = integers - _by_value(parts[tensor.parts[2]], tensor.shape)
        made = integers * self.scales(tensor, parts, config)
        return made.to(torch_dtype(tensor.dtype))


def _packed(
    stored: Mapping[str, TensorInfo], name: str, said: Mapping[str, Any], where: str
) -> PackedTensor:
    kind, inner = said.get("_type"), said.get("_data")
    if kind not in CLASSES or not isinstance(inner, dict):
        raise NotACheckpointError(
            f"{name} is packed by torchao's {kind}, which is not read here", where=where,
            expected=" or ".join(CLASSES),
            hint="name the dense checkpoint it was packed from, or dequantize it and save that",
        )  # fmt: skip
    module, _, parameter = name.rpartition(".")
    names = [f"{module}._{parameter}_{part}" for part in ("qdata", "scale", "zero_point")]
    if names[2] not in stored:
        names.pop()
    lacking = [part for part in names if part not in stored]
    if lacking:
        raise InputError(f"{lacking[0]} is missing, of which {name} is made", where=where)
    shape = stored[names[0]].shape
    grid = stored[names[1]].shape
    tiles = len(grid) == len(shape) and not any(
        not count or size % count for count, size in zip(grid, shape, strict=True)
    )
    zeros_fit = len(names) < 3 or stored[names[2]].shape == grid
    if not tiles or not zeros_fit or stored[names[0]].dtype != "I8":
        raise InputError(
            f"the scales of {name} do not tile it", where=where,
            expected="a count along each side that divides the weight's",
            found=f"{list(grid)} for {list(shape)}",
        )  # fmt: skip
    dtype = inner.get("dtype")
    dtype = dtype.get("_data") if isinstance(dtype, dict) else None
    target = inner.get("target_dtype")
    integer = target.get("_data") if isinstance(target, dict) else "int8"
    held = "int8" if integer == "int8" else f"{integer} in int8"
    by = "a scale per row" if grid[-1] == 1 else f"groups of {shape[-1] // grid[-1]}"
    rounded = inner.get("act_quant_kwargs") or inner.get("activation_quantization")
    inputs = ", inputs rounded too" if rounded else ""
    return PackedTensor(
        name=name,
        dtype=CODES.get(str(dtype), "BF16"),
        shape=shape,
        parts=tuple(names),
        scheme=f"{held}, {by}{inputs}",
        bits=8,
        stored_bytes=sum(stored[part].nbytes for part in names),
    )


def _by_value(grid: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """What holds for blocks that tile a matrix, for each value of it."""
    grid = grid.float()
    for side, size in enumerate(shape):
        grid = grid.repeat_interleave(size // grid.shape[side], side)
    return grid
