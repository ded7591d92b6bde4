"""Weights that are packed into tensors of other names and types, in safetensors files.

    class Gptq(Packed):
        name = "gptq"
        def packs(self, config): return method_of(config) == "gptq"
        def layout(self, stored, config, where): ...   # names and shapes, by headers alone
        def values(self, tensor, parts, config): ...   # the numbers that one tensor stands for

The rest follows: folders are opened, compared and measured by what the weights stand for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.files import read_json_object
from invarlock.formats.kind import CODES, Format, Inventory, PackedTensor, byte_range
from invarlock.formats.kinds.safetensors import Safetensors
from invarlock.shards import DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

DENSE = Safetensors()
# Members of config.json that say how the weights are packed.
QUANTIZED = ("quantization_config", "compression_config", "quantization")


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How ``config.json`` says that the weights are packed; empty where it says nothing."""
    found = next((config[k] for k in QUANTIZED if isinstance(config.get(k), dict)), None)
    return found if found is not None else {}


def method_of(config: Mapping[str, Any]) -> str:
    """``quant_method`` of ``config.json``; empty where it has none."""
    method = quantization_of(config).get("quant_method", "")
    return str(method).lower()


def dtype_of(config: Mapping[str, Any]) -> str:
    """The safetensors code of the dtype in which the model runs, bfloat16 where none is named."""
    named = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    code = CODES.get(str(named).removeprefix("torch."), "BF16")
    return code if code in ("F16", "BF16", "F32") else "BF16"


class Packed(Format):
    """Base of formats that pack weights into safetensors; ``config.json`` names the format."""

    inside: ClassVar[str] = "safetensors"
    packed: ClassVar[bool] = True

    def files(self, names: Collection[str]) -> set[str]:
        return DENSE.files(names)

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        """The tensors of the model that are packed, by names, shapes and ``config.json`` alone.

        Stored tensors that none of them is made of are the model's as they stand.

        Args:
            stored: what the files hold, by name.
            config: ``config.json``.
            where: the folder, for errors.

        Raises:
            InputError: parts are missing or do not fit together, such as a group size that does
                not divide the columns.
        """
        raise NotImplementedError

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        """The numbers that a packed tensor stands for, in its shape and dtype.

        Args:
            tensor: one of :meth:`layout`.
            parts: its stored tensors, by name.
            config: ``config.json``.
        """
        raise NotImplementedError

    def drops(self, name: str) -> bool:
        """Whether a stored tensor is no weight although no packed tensor is made of it."""
        return False

    def inventory(self, folder: Path) -> Inventory:
        held = DENSE.inventory(folder)
        config = read_json_object(folder / "config.json")
        packed = {t.name: t for t in self.layout(held.tensors, config, str(folder))}
        parts = {part for tensor in packed.values() for part in tensor.parts}
        plain = {
            name: info
            for name, info in held.tensors.items()
            if name not in parts and not self.drops(name)
        }
        made = {
            t.name: Made(
                name=t.name,
                dtype=t.dtype,
                shape=t.shape,
                file=held.tensors[t.parts[0]].file,
                begin=0,
                end=DTYPES[t.dtype][0] * elements(t.shape),
                of=t,
                stored=tuple(held.tensors[part] for part in t.parts),
            )
            for t in packed.values()
        }
        tensors = dict(sorted((plain | made).items()))
        return Inventory(tensors, held.files, held.metadata, dict(sorted(packed.items())))

    def chunks(self, folder: Path, info: TensorInfo, size: int) -> Iterator[memoryview]:
        if not isinstance(info, Made):
            yield from DENSE.chunks(folder, info, size)
            return
        config = read_json_object(folder / "config.json")
        parts = {part.name: stored_tensor(folder, part) for part in info.stored}
        yield from sliced(self.values(info.of, parts, config), info, size)


@dataclass(frozen=True)
class Made(TensorInfo):
    """A tensor that is made of others: ``begin`` and ``end`` count bytes of its values."""

    of: PackedTensor
    stored: tuple[TensorInfo, ...]


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements."""
    count = 1
    for size in shape:
        count *= size
    return count


def stored_tensor(folder: Path, info: TensorInfo) -> torch.Tensor:
    """A tensor as a file holds it.

    Raises:
        InputError: the file cannot be read.
    """
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[info.dtype][1])
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    (chunk,) = byte_range(folder / info.file, info, info.nbytes)
    return torch.frombuffer(chunk, dtype=dtype).reshape(info.shape)


def sliced(values: torch.Tensor, info: TensorInfo, size: int) -> Iterator[memoryview]:
    """The bytes of a tensor from ``info.begin`` to ``info.end``, ``size`` at a time."""
    import torch

    flat = values.detach().contiguous().view(-1).view(torch.uint8).numpy().data
    for start in range(info.begin, info.end, max(size, 1)):
        yield flat[start : min(start + size, info.end)]
