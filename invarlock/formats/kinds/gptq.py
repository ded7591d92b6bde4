"""GPTQ: columns of 2, 3, 4 or 8 bits in words down the inputs, in groups with a scale and a zero.

Of each linear layer there are ``qweight`` (inputs * bits / 32, outputs), ``scales`` (groups,
outputs), ``qzeros`` (groups, outputs * bits / 32) and mostly ``g_idx``, the group of each input. A
weight is scale * (integer - zero point). Of zero points, the first layout (``gptq``) stores one
less, and ``gptq_v2`` the number itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.counts import counted
from invarlock.errors import InputError
from invarlock.files import read_json_object
from invarlock.formats.kind import Inventory, PackedTensor, Tensors
from invarlock.formats.packed import (
    Made,
    Packed,
    dtype_of,
    method_of,
    module_of,
    parts_of,
    quantization_of,
    require_fit,
    stored_tensor,
    torch_dtype,
    two,
    uneven,
    unpacked,
)
from invarlock.shards import TensorInfo

if TYPE_CHECKING:
    import torch

LAYOUTS = ("gptq", "gptq_v2")
BITS = (2, 3, 4, 8)
RUNNERS = ("gptqmodel", "optimum")  # with both, transformers runs the packed weights


class Gptq(Packed):
    """``quant_method`` gptq, in the layout of AutoGPTQ or the second one of GPTQModel."""

    name: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ"
    marks: ClassVar[tuple[str, ...]] = (".qweight", ".qzeros", ".g_idx")

    def packs(self, config: Mapping[str, Any]) -> bool:
        return method_of(config) == "gptq" and _layout_of(config) in LAYOUTS

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        lacking = [name for name in RUNNERS if find_spec(name) is None]
        return f"{' and '.join(lacking)} not installed" if lacking else ""

    def inventory(self, folder: Path) -> Inventory:
        """See :meth:`Format.inventory`. Some makers store a bias of zeros for every layer."""
        held = super().inventory(folder)
        biases = [name.removesuffix("weight") + "bias" for name in held.packed]
        if not all(name in held.tensors for name in biases):
            return held
        empty = {n for n in biases if not stored_tensor(folder, held.tensors[n]).any()}
        kept = {name: info for name, info in held.tensors.items() if name not in empty}
        return Inventory(kept, held.files, held.metadata, held.packed)

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        needed = (".qzeros", ".scales")
        for module, parts in parts_of(stored, ".qweight", needed, where):
            weight, zeros, scales = (parts[end] for end in (".qweight", *needed))
            groups, outputs = two(scales, where)
            words = two(weight, where)
            if words[1] != outputs and words[1] == two(zeros, where)[1]:
                raise InputError(
                    f"{module} is packed along its outputs, as AWQ does, and config.json says GPTQ",
                    where=where, hint="set quant_method to what packed the weights",
                )  # fmt: skip
            bits = two(zeros, where)[1] * 32 // max(outputs, 1)
            inputs = words[0] * 32 // max(bits, 1)
            fits = bits in BITS and words == (inputs * bits // 32, outputs)
            fits = fits and zeros.shape == (groups, outputs * bits // 32)
            require_fit(
                fits and weight.dtype == zeros.dtype == "I32",
                f"qweight and qzeros of int32 words of {BITS} bits for {outputs} outputs in"
                f" {counted(groups, 'group')}",
                f"qweight {list(words)} {weight.dtype}, qzeros {list(zeros.shape)} {zeros.dtype}",
                module, where,
            )  # fmt: skip
            found = self.declared(module, config)
            if not found.get("dynamic"):  # else rules say for each layer
                _check_declared(found, bits, inputs, groups, module, where)
            names = [parts[end].name for end in (".qweight", *needed)]
            index = stored.get(f"{module}.g_idx")
            if index is not None:
                if index.shape != (inputs,):
                    raise InputError(
                        f"{index.name} does not say the group of each input", where=where,
                        expected=f"[{inputs}]", found=str(list(index.shape)),
                    )  # fmt: skip
                names.append(index.name)
            elif inputs % groups:
                raise uneven(inputs // groups, inputs, module, where)
            yield PackedTensor(
                name=f"{module}.weight",
                dtype=dtype_of(config),
                shape=(outputs, inputs),
                parts=tuple(names),
                scheme=f"int{bits}, groups of {inputs // groups}",
                bits=bits,
                stored_bytes=sum(stored[name].nbytes for name in names),
            )

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        scales = parts[tensor.parts[2]]
        return scales[_groups(tensor, parts).clamp(0, len(scales) - 1)].T

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        import torch

        integers = unpacked(parts[tensor.parts[0]], int(tensor.bits))
        zeros, scales = self._zeros(tensor, parts, config), parts[tensor.parts[2]].float()
        groups = _groups(tensor, parts)
        there = (groups >= 0) & (groups < len(scales))
        groups = groups.clamp(0, len(scales) - 1)
        made = scales[groups] * (integers - zeros[groups])
        # an input of a group that is not there has no value
        made = torch.where(there[:, None], made, torch.nan)
        return made.T.contiguous().to(torch_dtype(tensor.dtype))

    def stores_one_less(self, config: Mapping[str, Any]) -> bool:
        """Whether zero points are stored less one."""
        return _layout_of(config) == LAYOUTS[0]

    def _zeros(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        """The zero points: (groups, outputs)."""
        bits = int(tensor.bits)
        stored = unpacked(parts[tensor.parts[1]].T, bits).T
        if self.stores_one_less(config):
            return stored + 1 & (1 << bits) - 1  # the highest stands for zero, which wrapped around
        return stored

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        yield from super().faults(source, baseline)
        config = read_json_object(source / "config.json")
        found = [i for i in self.inventory(source).tensors.values() if isinstance(i, Made)]
        for info in found:
            parts = info.read(source)
            yield from _index_fault(info.of, parts, quantization_of(config))
            middle = 1 << int(info.of.bits) - 1
            if self.declared(module_of(info.name), config).get("sym") is True:
                off = int((self._zeros(info.of, parts, config) != middle).sum())
                if off:
                    yield (
                        f"{info.name}: config.json says that the integers are symmetric, and"
                        f" {counted(off, 'zero point')} not {middle}: kernels that read them and"
                        " kernels that do not would run two models"
                    )


def _layout_of(config: Mapping[str, Any]) -> str:
    found = quantization_of(config)
    return str(found.get("checkpoint_format") or found.get("format") or LAYOUTS[0]).lower()


def _groups(tensor: PackedTensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The group of each input."""
    import torch

    if len(tensor.parts) > 3:
        return parts[tensor.parts[3]].long()
    inputs = tensor.shape[1]
    return torch.arange(inputs) // (inputs // len(parts[tensor.parts[2]]))


def _index_fault(
    tensor: PackedTensor, parts: Mapping[str, torch.Tensor], found: Mapping[str, Any]
) -> Iterator[str]:
    """A map from inputs to groups that no maker writes."""
    import torch

    groups, count = _groups(tensor, parts), len(parts[tensor.parts[2]])
    inputs = tensor.shape[1]
    name = tensor.parts[-1]
    if not bool(((groups >= 0) & (groups < count)).all()):
        yield f"{name} names groups that are not there: {count} are"
        return
    sizes = torch.bincount(groups, minlength=count)
    if bool((sizes != inputs // count).any()):
        yield (
            f"{name} gives groups {int(sizes.min())} to {int(sizes.max())} inputs, and each has"
            f" {inputs // count}"
        )
    elif found.get("desc_act") is False and bool((groups.diff() < 0).any()):
        yield f"{name} takes the inputs out of their order, and config.json says desc_act: false"


def _check_declared(
    found: Mapping[str, Any], bits: int, inputs: int, groups: int, module: str, where: str
) -> None:
    declared = found.get("bits", bits)
    if declared != bits:
        raise InputError(
            f"{module} does not hold the bits that config.json says", where=where,
            expected=repr(declared), found=str(bits),
        )  # fmt: skip
    size = found.get("group_size", inputs // groups)
    if not isinstance(size, int) or size < 1:  # -1: one group
        size = inputs
    if inputs % size:
        raise uneven(size, inputs, module, where)
    if groups != inputs // size:
        raise InputError(
            f"{module} has scales for {counted(groups, 'group')}", where=where,
            expected=f"{inputs // size}, by the group size {size} of config.json",
        )  # fmt: skip
