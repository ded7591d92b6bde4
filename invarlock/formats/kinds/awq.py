"""AWQ: columns of 4 bits in words along the outputs, in AWQ's own order (version GEMM).

Of each linear layer there are ``qweight`` (inputs, outputs / 8), ``qzeros`` (groups, outputs / 8)
and ``scales`` (groups, outputs). A weight is scale * (integer - zero point).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError
from invarlock.formats.kind import PackedTensor
from invarlock.formats.packed import (
    Packed,
    dtype_of,
    method_of,
    parts_of,
    quantization_of,
    require_fit,
    torch_dtype,
    two,
    uneven,
    unpacked,
)
from invarlock.shards import TensorInfo

if TYPE_CHECKING:
    import torch

BITS = 4
# Of eight outputs that share a word, the place of each in it, counted from the lowest bits.
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class Awq(Packed):
    """``quant_method`` awq, version GEMM."""

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    marks: ClassVar[tuple[str, ...]] = (".qweight", ".qzeros")

    def packs(self, config: Mapping[str, Any]) -> bool:
        found = quantization_of(config)
        version = found.get("version") or found.get("format") or found.get("checkpoint_format")
        return method_of(config) == "awq" and str(version or "gemm").lower() == "gemm"

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        return "" if find_spec("gptqmodel") else "gptqmodel not installed"

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        needed = (".qzeros", ".scales")
        for module, parts in parts_of(stored, ".qweight", needed, where):
            found = self.declared(module, config)
            bits = found.get("bits", found.get("w_bit", BITS))
            size = found.get("group_size", found.get("q_group_size"))
            if bits != BITS:
                raise InputError(
                    f"AWQ with {bits} bits", where=f"{where}/config.json", expected=f"{BITS} bits"
                )
            weight, zeros, scales = (parts[end] for end in (".qweight", *needed))
            groups, outputs = two(scales, where)
            inputs, words = two(weight, where)
            if words == outputs and zeros.shape == (groups, outputs // 8):
                raise InputError(
                    f"{module} is packed along its inputs, as GPTQ does, and config.json says AWQ",
                    where=where, hint="set quant_method to what packed the weights",
                )  # fmt: skip
            fits = words * 8 == outputs and zeros.shape == (groups, words)
            require_fit(
                fits and weight.dtype == zeros.dtype == "I32",
                f"qweight [inputs, {outputs // 8}] and qzeros [{groups}, {outputs // 8}], I32",
                f"qweight {list(weight.shape)} {weight.dtype}, qzeros {list(zeros.shape)}"
                f" {zeros.dtype}",
                module, where,
            )  # fmt: skip
            declared = size if isinstance(size, int) and size > 0 else inputs // groups
            if inputs % declared or inputs % groups:
                raise uneven(declared, inputs, module, where)
            if size not in (None, -1) and groups * declared != inputs:
                raise InputError(
                    f"{module} has scales for {groups} groups", where=where,
                    expected=f"{inputs // declared}, by the group size {size} of config.json",
                )  # fmt: skip
            yield PackedTensor(
                name=f"{module}.weight",
                dtype=dtype_of(config),
                shape=(outputs, inputs),
                parts=(weight.name, zeros.name, scales.name),
                scheme=f"int4, groups of {inputs // groups}",
                bits=BITS,
                stored_bytes=weight.nbytes + zeros.nbytes + scales.nbytes,
            )

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        scales = parts[tensor.parts[2]]
        return scales.T.repeat_interleave(tensor.shape[1] // len(scales), 1)

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        weight, zeros, scales = (parts[name] for name in tensor.parts)
        size = tensor.shape[1] // len(scales)
        outputs, inputs = tensor.shape
        by_group = _outputs(weight).reshape(outputs, -1, size) - _outputs(zeros)[:, :, None]
        made = by_group * scales.float().T[:, :, None]
        return made.reshape(outputs, inputs).to(torch_dtype(tensor.dtype))


def _outputs(words: torch.Tensor) -> torch.Tensor:
    """The integers of words along the outputs, a row for each output."""
    integers = unpacked(words.T, BITS)
    return integers.reshape(-1, 8, integers.shape[1])[:, list(PLACES)].reshape(integers.shape)
