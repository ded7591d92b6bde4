"""bitsandbytes: 4 bits by a table of sixteen numbers (nf4, fp4), or 8 bits by row (LLM.int8).

4 bits: ``weight`` holds two numbers a byte, the first in the high half; ``quant_map`` is the table,
``absmax`` the scale of each block, itself in 8 bits by a table of its own where it is quantized
twice (``nested_*``); the shape and the sizes of blocks stand as JSON in ``quant_state``. 8 bits:
``weight`` holds integers of 127 to the largest of a row, which ``SCB`` holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError, NotACheckpointError
from invarlock.files import parse_json
from invarlock.formats.kind import CODES, Package, PackedTensor
from invarlock.formats.packed import (
    Packed,
    dtype_of,
    elements,
    method_of,
    quantization_of,
    stored_tensor,
    torch_dtype,
)
from invarlock.shards import TensorInfo

if TYPE_CHECKING:
    import torch

STATE = ".quant_state.bitsandbytes__"
TABLES = ("nf4", "fp4")
# What an integer of the largest number of a row is divided by: the constant of its kernels, which
# is 1 / 127 in float32.
ONE_OF_127 = 7.874015718698502e-3


class Bitsandbytes(Packed):
    """``quant_method`` bitsandbytes."""

    name: ClassVar[str] = "bitsandbytes"
    title: ClassVar[str] = "bitsandbytes"
    marks: ClassVar[tuple[str, ...]] = (".SCB", ".absmax", ".quant_map", ".weight_format")
    packages: ClassVar[tuple[Package, ...]] = (
        Package("bitsandbytes", "bitsandbytes"),
        Package("accelerate", "bitsandbytes"),
    )

    def packs(self, config: Mapping[str, Any]) -> bool:
        return method_of(config) == "bitsandbytes"

    def loading(self, source: Path, config: Mapping[str, Any], device: str) -> Mapping[str, object]:
        return {"device_map": {"": device}, "dtype": torch_dtype(dtype_of(config))}

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        said = quantization_of(config)
        for name, info in stored.items():
            four, eight = STATE in name, name.endswith(".SCB")
            if not four and not eight:
                continue
            if said.get("load_in_8bit" if four else "load_in_4bit") is True:
                raise InputError(
                    f"{name} is of {4 if four else 8} bits, and config.json says"
                    f" {8 if four else 4}",
                    where=where, hint="copy the config.json that was saved with the weights",
                )  # fmt: skip
            if four:
                yield _in_four_bits(stored, name, where)
            else:
                yield _in_eight_bits(stored, info, config, where)

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        if tensor.bits == 8:
            return parts[tensor.parts[1]][:, None]
        state = _state_of(tensor, parts)
        return _by_value(_absmax(tensor, parts, state), state["blocksize"], tensor.shape)

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        import torch

        stored = parts[tensor.parts[0]]
        dtype = torch_dtype(tensor.dtype)
        if tensor.bits == 8:
            return (stored * (parts[tensor.parts[1]][:, None] * ONE_OF_127)).to(dtype)
        halves = stored.reshape(-1).view(torch.uint8)
        places = torch.stack([halves >> 4, halves & 15], 1).reshape(-1)[: elements(tensor.shape)]
        table = parts[f"{tensor.name}.quant_map"][places.long()].reshape(tensor.shape)
        return (table * self.scales(tensor, parts, config)).to(dtype)


def _in_four_bits(stored: Mapping[str, TensorInfo], name: str, where: str) -> PackedTensor:
    weight, _, kind = name.partition(STATE)
    if kind not in TABLES:
        raise NotACheckpointError(
            f"{weight} is in bitsandbytes' {kind}", where=where, expected=" or ".join(TABLES)
        )
    state = _read_state(stored_tensor(Path(where), stored[name]), f"{where}: {name}")
    ends = ["", ".absmax", ".quant_map"]
    if "nested_blocksize" in state:
        ends += [".nested_absmax", ".nested_quant_map"]
    lacking = [end for end in ends if weight + end not in stored]
    if lacking:
        raise InputError(f"{name} is there without {weight}{lacking[0]}", where=where)
    shape = tuple(state["shape"])
    blocks = -(-elements(shape) // state["blocksize"])
    sizes = {"": -(-elements(shape) // 2), ".quant_map": 16, ".absmax": blocks}
    if "nested_blocksize" in state:
        sizes |= {".nested_absmax": -(-blocks // state["nested_blocksize"])}
        sizes |= {".nested_quant_map": 256}
    for end, size in sizes.items():
        part = stored[weight + end]
        code = "U8" if end == ".absmax" and "nested_blocksize" in state else "F32"
        wanted: tuple[object, ...] = (code, [size]) if end else (size, "bytes")
        found: tuple[object, ...] = (part.dtype, [*part.shape]) if end else (part.nbytes, "bytes")
        if found != wanted:
            raise InputError(
                f"{part.name} does not fit a weight of {list(shape)} in blocks of"
                f" {state['blocksize']}",
                where=where, expected=_words(wanted), found=_words(found),
            )  # fmt: skip
    names = (*(weight + end for end in ends), name)
    twice = ", scales in 8 bits" if "nested_blocksize" in state else ""
    return PackedTensor(
        name=weight,
        dtype=CODES[state["dtype"]],
        shape=shape,
        parts=names,
        scheme=f"{kind}, blocks of {state['blocksize']}{twice}",
        bits=4,
        stored_bytes=sum(stored[part].nbytes for part in names),
    )


def _words(kind: tuple[object, ...]) -> str:
    return " ".join(map(str, kind))


def _in_eight_bits(
    stored: Mapping[str, TensorInfo], scales: TensorInfo, config: Mapping[str, Any], where: str
) -> PackedTensor:
    module = scales.name.removesuffix(".SCB")
    weight, order = stored.get(f"{module}.weight"), stored.get(f"{module}.weight_format")
    fits = weight is not None and weight.dtype == "I8" and len(weight.shape) == 2
    if weight is None or not fits or scales.shape != weight.shape[:1] or scales.dtype != "F32":
        raise InputError(
            f"{scales.name} is not the scale of each row of {module}.weight", where=where,
            expected=f"I8 [{scales.numel}, inputs]",
            found="no such tensor" if weight is None else f"{weight.dtype} {list(weight.shape)}",
        )  # fmt: skip
    if order is not None and bool(stored_tensor(Path(where), order).any()):
        raise NotACheckpointError(f"{order.name} is not 0, by row", where=where)
    names = (weight.name, scales.name, *([] if order is None else [order.name]))
    return PackedTensor(
        name=weight.name,
        dtype=dtype_of(config),
        shape=weight.shape,
        parts=names,
        scheme="int8, a scale per row",
        bits=8,
        stored_bytes=sum(stored[part].nbytes for part in names),
    )


def _read_state(stored: torch.Tensor, where: str) -> dict[str, Any]:
    """What ``quant_state`` says, checked.

    Raises:
        InputError: it is damaged.
    """
    import torch

    state: Any = parse_json(stored.reshape(-1).view(torch.uint8).numpy().tobytes(), where)
    if not isinstance(state, dict):
        raise InputError("is no JSON object", where=where)
    shape, sizes = state.get("shape"), [state.get("blocksize"), state.get("nested_blocksize", 1)]
    whole = isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)
    whole = whole and isinstance(state.get("nested_offset", 0.0), int | float)
    if not whole or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise InputError("names no shape and sizes of blocks", where=where, found=str(state)[:200])
    if state.get("dtype") not in ("bfloat16", "float16", "float32"):
        raise InputError("names no dtype", where=where, found=str(state.get("dtype")))
    return state


def _state_of(tensor: PackedTensor, parts: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return _read_state(parts[tensor.parts[-1]], tensor.parts[-1])


def _absmax(
    tensor: PackedTensor, parts: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> torch.Tensor:
    """The scale of each block of values."""
    stored = parts[f"{tensor.name}.absmax"]
    if "nested_blocksize" not in state:
        return stored
    table = parts[f"{tensor.name}.nested_quant_map"][stored.long()]
    outer = parts[f"{tensor.name}.nested_absmax"]
    offset: float = state.get("nested_offset", 0.0)
    return table * _by_value(outer, state["nested_blocksize"], table.shape) + offset


def _by_value(blocks: torch.Tensor, size: int, shape: tuple[int, ...]) -> torch.Tensor:
    return blocks.float().repeat_interleave(size)[: elements(shape)].reshape(shape)
