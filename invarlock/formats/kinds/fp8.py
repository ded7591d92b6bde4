"""FP8 weights of DeepSeek, Qwen and others: ``quant_method: fp8``.

A matrix is stored in E4M3 with ``weight_scale_inv``, by which it is multiplied: one number for each
block of 128 x 128, or one for the whole matrix (some tools call that ``weight_scale``). Blocks at
the edges may be smaller.

transformers multiplies FP8 only on GPUs that do; elsewhere it unpacks the weights into dense ones
when it loads them, and leaves activations as they are. It takes a block's size from the number of
blocks, which is wrong where blocks do not divide the matrix: there the weights are unpacked here.
Where the file holds the scales that FP8 kernels round activations by (``activation_scheme``
static), they are rounded here too, before each product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError
from invarlock.files import read_json_object
from invarlock.formats.kind import Package, PackedTensor, Tensors
from invarlock.formats.numbers import POWERS, powers, spread
from invarlock.formats.packed import (
    CACHES,
    DENSE,
    Unpacked,
    by_module,
    cache_notes,
    dtype_of,
    input_faults,
    method_of,
    quantization_of,
    torch_dtype,
    two,
)
from invarlock.formats.rounded_inputs import STATIC, round_inputs, to_fp8, words_for
from invarlock.shards import FLOAT_DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

WEIGHT = ".weight"
SCALES = (".weight_scale_inv", ".weight_scale")
INPUTS = (".activation_scale", ".input_scale")


class Fp8(Unpacked):
    """FP8 weights in blocks, or with one scale each."""

    name: ClassVar[str] = "fp8"
    title: ClassVar[str] = "FP8"
    activations: ClassVar[str] = "as they are; FP8 kernels would round them"
    marks: ClassVar[tuple[str, ...]] = (".weight_scale_inv",)
    packages: ClassVar[tuple[Package, ...]] = (Package("accelerate", "fp8"),)

    def packs(self, config: Mapping[str, Any]) -> bool:
        return method_of(config) == "fp8"

    def drops(self, name: str) -> bool:
        return name.endswith((*INPUTS, *CACHES))

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        block = block_of(config, where)
        for name, info in stored.items():
            if not name.endswith(WEIGHT) or info.dtype != "F8_E4M3":
                continue
            shape = two(info, where)
            scales = _scales_of(name, stored)
            if scales is None:
                raise InputError(
                    f"{name} is in FP8 and has no scales", where=where,
                    expected=name.removesuffix(WEIGHT) + SCALES[0],
                )  # fmt: skip
            across = tuple(
                -(-size // high) for size, high in zip(shape, block or shape, strict=True)
            )
            one = scales.numel == 1 and (block is None or across == (1, 1))
            if not one and (block is None or scales.shape != across):
                raise InputError(
                    f"{scales.name} does not have a scale for each block of {name}", where=where,
                    expected=f"{list(across)} of blocks of {block}" if block else "one scale",
                    found=str(list(scales.shape)),
                )  # fmt: skip
            types = sorted({*FLOAT_DTYPES, *POWERS})
            if scales.dtype not in types:
                raise InputError(
                    f"{scales.name} is of no type that scales have", where=where,
                    expected=" or ".join(types), found=scales.dtype,
                )  # fmt: skip
            shared = f"blocks of {block[0]}x{block[1]}" if block else "one scale"
            yield PackedTensor(
                name, dtype_of(config), shape, (name, scales.name), f"FP8 E4M3, {shared}", 8.0,
                info.nbytes + scales.nbytes,
            )  # fmt: skip

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        values = parts[tensor.parts[0]].float()
        values *= self.scales(tensor, parts, config)
        return values.to(torch_dtype(tensor.dtype))

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        own = parts[tensor.parts[1]]
        scales = powers(own) if own.element_size() == 1 else own.float()
        if scales.numel() == 1:
            return scales.view(1, 1)
        return spread(scales, block_of(config, "") or (1, 1), tensor.shape)

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        stored = DENSE.inventory(source).tensors
        block = block_of(config, str(source))
        for tensor in self.layout(stored, config, str(source)):
            weight, scales = (stored[part] for part in tensor.parts)
            if scales.name.endswith(SCALES[1]):
                return "transformers does not read weight_scale of FP8"
            sides = zip(weight.shape, scales.shape, block or (), strict=False)
            if any(count > 1 and size != count * side for size, count, side in sides):
                return "blocks do not divide the matrices, and transformers unpacks others wrongly"
        return ""

    def loading(self, source: Path, config: Mapping[str, Any], device: str) -> Mapping[str, object]:
        from transformers import FineGrainedFP8Config

        # this argument replaces the list of what is not packed
        said = quantization_of(config)
        kept = said.get("modules_to_not_convert") or said.get("ignored_layers")
        return {
            "quantization_config": FineGrainedFP8Config(
                dequantize=True, modules_to_not_convert=kept
            )
        }

    def loaded(self, model: Any, source: Path) -> Any:
        """The model with activations rounded where the file says by which scale."""
        model = super().loaded(model, source)
        scales = _input_scales(source)
        round_inputs(model, ((name, to_fp8, STATIC) for name in scales), scales)
        return model

    def detail(self, model: Any) -> Mapping[str, str]:
        said = dict(super().detail(model))
        return said | {"activations": words_for(model) or said["activations"]}

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        yield from super().faults(source, baseline)
        if not _is_static(source):
            return
        yield from input_faults(self.inventory(source).packed, _input_scales(source))

    def notes(self, source: Path, baseline: Path) -> Iterator[str]:
        yield from cache_notes(source)


def block_of(config: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Rows and columns of a block; None where a matrix has one scale.

    Raises:
        InputError: it is no pair of sizes.
    """
    size = quantization_of(config).get("weight_block_size")
    if size is None:
        return None
    if isinstance(size, list) and len(size) == 2:
        high, wide = size
        if isinstance(high, int) and isinstance(wide, int) and min(high, wide) > 0:
            return high, wide
    raise InputError(
        "/quantization_config/weight_block_size is no pair of sizes",
        where=f"{where}/config.json", found=repr(size), expected="[128, 128]",
    )  # fmt: skip


def _scales_of(name: str, stored: Mapping[str, TensorInfo]) -> TensorInfo | None:
    module = name.removesuffix(WEIGHT)
    return next((stored[module + end] for end in SCALES if module + end in stored), None)


def _is_static(source: Path) -> bool:
    config = read_json_object(source / "config.json")
    return quantization_of(config).get("activation_scheme") == "static"


def _input_scales(source: Path) -> dict[str, torch.Tensor]:
    """By what the activations of each module are divided; empty where they are not static."""
    return by_module(source, INPUTS) if _is_static(source) else {}
