"""NVIDIA's ModelOpt, as its export writes it and TensorRT-LLM, vLLM and SGLang serve it.

``quant_method: modelopt`` in ``config.json`` or, of older exports, ``hf_quant_config.json`` alone;
``quant_algo`` says how, or ``quantized_layers`` of each module. Each packed matrix is ``weight`` in
E4M3, int8 or bytes of two FP4 numbers, and ``weight_scale``: one number, one a row, one a group of
columns, or one a block of 128 x 128 as (down, 1, across, 1). NVFP4 has ``weight_scale_2`` over its
E4M3 scales. ``pre_quant_scale`` multiplies the columns of the inputs, and with that the weights.

transformers has no kernels for it: dense ones multiply what the weights stand for, and the inputs
are rounded before as the kernels would (:mod:`invarlock.formats.rounded_inputs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError
from invarlock.formats.kind import PackedTensor, Tensors
from invarlock.formats.numbers import POWERS, SMALLEST, fp4, powers, spread
from invarlock.formats.packed import (
    CACHES,
    MODELOPT,
    by_module,
    dtype_of,
    method_of,
    module_of,
    quantization_of,
    refuse_stacked,
    require_fit,
    torch_dtype,
    two,
)
from invarlock.formats.rounded_inputs import (
    STATIC,
    Inputs,
    Rounding,
    RoundsInputs,
    to_fp8,
    to_fp8_by_token,
    to_int8,
    to_mxfp4,
    to_mxfp8,
    to_nvfp4,
)
from invarlock.shards import FLOAT_DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

WEIGHT, SCALE, OVER = ".weight", ".weight_scale", ".weight_scale_2"
BEFORE = ".pre_quant_scale"
STACKED = "_weight_scale"  # beside experts in one tensor, which have no ``.weight``
MIXED = "MIXED_PRECISION"
OF_CACHES = ("kv_cache_quant_algo", "kv_cache_scheme")
BLOCK = 128  # rows and columns that share a scale
E4M3, FP4_BYTES, INT8 = "F8_E4M3", "U8", "I8"


@dataclass(frozen=True)
class Algorithm:
    """What ``quant_algo`` means."""

    weights: str  # safetensors code of ``weight``
    scales: frozenset[str]  # and of ``weight_scale``
    title: str
    group: int = 0  # columns that share a scale; 0: rows, blocks or all do
    inputs: Rounding | None = None
    words: str = ""  # how inputs are rounded, as people call it
    static: bool = False  # whether ``input_scale`` is what they are rounded by


FLOATS, POWER = frozenset(FLOAT_DTYPES), frozenset(POWERS)
NVFP4 = Algorithm(
    FP4_BYTES, frozenset({E4M3}), "NVFP4", 16, to_nvfp4, "NVFP4, groups of 16, one scale", True
)
ALGORITHMS: Mapping[str, Algorithm] = {
    "FP8": Algorithm(E4M3, FLOATS, "FP8 E4M3", 0, to_fp8, STATIC, True),
    "FP8_PER_CHANNEL_PER_TOKEN": Algorithm(
        E4M3, FLOATS, "FP8 E4M3", 0, to_fp8_by_token, "FP8 E4M3, a scale per token"
    ),
    "FP8_PB_WO": Algorithm(E4M3, FLOATS, "FP8 E4M3"),
    "MXFP8": Algorithm(E4M3, POWER, "MXFP8", 32, to_mxfp8, "MXFP8, groups of 32"),
    "MXFP4": Algorithm(FP4_BYTES, POWER, "MXFP4", 32, to_mxfp4, "MXFP4, groups of 32"),
    "W4A8_MXFP4_FP8": Algorithm(FP4_BYTES, POWER, "MXFP4", 32),
    "NVFP4": NVFP4,
    "NVFP4_AWQ": NVFP4,
    "W4A16_NVFP4": Algorithm(FP4_BYTES, frozenset({E4M3}), "NVFP4", 16),
    "W4A8_NVFP4_FP8": Algorithm(FP4_BYTES, frozenset({E4M3}), "NVFP4", 32, to_fp8, STATIC, True),
    "W8A8_SQ_PER_CHANNEL": Algorithm(
        INT8, FLOATS, "int8", 0, to_int8, "int8, one scale, static", True
    ),
}


class ModelOpt(RoundsInputs):
    """Weights that ModelOpt packed."""

    name: ClassVar[str] = "modelopt"
    title: ClassVar[str] = "ModelOpt"
    marks: ClassVar[tuple[str, ...]] = (OVER,)
    before: ClassVar[tuple[str, ...]] = (BEFORE,)

    def packs(self, config: Mapping[str, Any]) -> bool:
        if method_of(config) != MODELOPT:
            return False
        said = quantization_of(config)
        if _named(said) == MIXED:
            layers = said.get("quantized_layers")
            return isinstance(layers, dict) and all(
                isinstance(rule, dict) and _named(rule) in ALGORITHMS for rule in layers.values()
            )
        return _named(said) in ALGORITHMS or self.packs_none(config)

    def packs_none(self, config: Mapping[str, Any]) -> bool:
        """Where it is caches of keys and values that are rounded."""
        said = quantization_of(config)
        return not _named(said) and any(said.get(key) for key in OF_CACHES)

    def drops(self, name: str) -> bool:
        return name.endswith((self.scale, *CACHES))

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        return "transformers has no kernels for the weights of ModelOpt"

    def declared(self, module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        said = quantization_of(config)
        layers = said.get("quantized_layers")
        own = layers.get(module) if isinstance(layers, dict) else None
        return own if isinstance(own, dict) else said

    def leaves_dense(self, module: str, config: Mapping[str, Any]) -> bool:
        said = quantization_of(config)
        if _named(said) == MIXED:
            return self.declared(module, config) is said
        lists = [said.get(key) for key in ("ignore", "exclude_modules")]
        return any(
            fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
            for patterns in lists
            for pattern in (patterns if isinstance(patterns, list) else ())
            if isinstance(pattern, str)
        )

    def _algorithm(self, weight: str, config: Mapping[str, Any]) -> Algorithm:
        return ALGORITHMS[_named(self.declared(module_of(weight), config))]

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        codes = {algorithm.weights for algorithm in ALGORITHMS.values()}
        stacked = next((n for n in stored if n.endswith(STACKED)), None)
        if stacked is not None:
            raise refuse_stacked(stacked.removesuffix(STACKED), where)
        for name, weight in stored.items():
            if not name.endswith(WEIGHT) or weight.dtype not in codes:
                continue
            module = module_of(name)
            if len(weight.shape) > 2:
                raise refuse_stacked(name, where)
            scale = stored.get(module + SCALE)
            if scale is None:
                raise InputError(
                    f"{name} is packed and has no scales", where=where, expected=module + SCALE
                )
            said = _named(self.declared(module, config))
            algorithm = ALGORITHMS.get(said)
            if algorithm is None:
                raise InputError(
                    f"{module} is packed, and quantized_layers does not say how", where=where
                )
            rows, columns = two(weight, where)
            columns *= 2 if weight.dtype == FP4_BYTES else 1
            over, before = stored.get(module + OVER), stored.get(module + BEFORE)
            block = _block_of(scale.shape, rows, columns, algorithm.group)
            require_fit(
                weight.dtype == algorithm.weights
                and scale.dtype in algorithm.scales
                and block is not None
                and (algorithm.scales == {E4M3}) == (over is not None and over.numel == 1)
                and (before is None or before.shape == (columns,)),
                f"{algorithm.title}, as config.json says ({said})",
                f"weight {list(weight.shape)} {weight.dtype}, weight_scale {list(scale.shape)}"
                f" {scale.dtype}" + (f", {OVER[1:]} {list(over.shape)}" if over else ""),
                module, where,
            )  # fmt: skip
            assert block is not None
            parts = [part.name for part in (weight, scale, over, before) if part is not None]
            yield PackedTensor(
                name=name,
                dtype=dtype_of(config),
                shape=(rows, columns),
                parts=tuple(parts),
                scheme=f"{algorithm.title}, {_shared(block, rows, columns)}",
                bits=4.0 if weight.dtype == FP4_BYTES else 8.0,
                stored_bytes=sum(stored[part].nbytes for part in parts),
            )

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        weight = parts[tensor.parts[0]]
        numbers = fp4(weight) if tensor.bits == 4.0 else weight.float()
        numbers = numbers * self.scales(tensor, parts, config)
        before = parts.get(module_of(tensor.name) + BEFORE)
        if before is not None:
            numbers = numbers * before.float()
        return numbers.to(torch_dtype(tensor.dtype))

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        import torch

        stored = parts[tensor.parts[1]]
        powered = stored.element_size() == 1 and stored.dtype != torch.float8_e4m3fn
        own = powers(stored) if powered else stored.float()
        own = own.masked_fill(own < SMALLEST, 0.0) if powered else own
        over = parts.get(module_of(tensor.name) + OVER)
        if over is not None:
            own = own * over.float()
        rows, columns = tensor.shape
        group = self._algorithm(tensor.name, config).group
        block = _block_of(tuple(stored.shape), rows, columns, group) or (rows, columns)
        down, across = -(-rows // block[0]), -(-columns // block[1])
        return spread(own.reshape(down, across), block, tensor.shape)

    def inputs(self, weight: str, config: Mapping[str, Any]) -> Inputs | None:
        algorithm = self._algorithm(weight, config)
        if algorithm.inputs is None:
            return None
        return Inputs(algorithm.inputs, algorithm.words, algorithm.static)

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        yield from super().faults(source, baseline)
        for name, values in by_module(source, (BEFORE,)).items():
            if not bool(((values > 0) & values.isfinite()).all()):
                yield f"{name}{BEFORE}: some of it is no positive number, and inputs are lost"


def _named(said: Mapping[str, Any]) -> str:
    return str(said.get("quant_algo") or "").upper()


def _block_of(
    scales: tuple[int, ...], rows: int, columns: int, group: int
) -> tuple[int, int] | None:
    """Rows and columns that share a scale, by the shape of the scales; None where none fits."""
    if group:
        fits = columns % group == 0 and scales == (rows, columns // group)
        return (1, group) if fits else None
    if scales in ((), (1,)):
        return rows, columns
    if scales in ((rows,), (rows, 1)):
        return 1, columns
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    return (BLOCK, BLOCK) if scales in ((down, across), (down, 1, across, 1)) else None


def _shared(block: tuple[int, int], rows: int, columns: int) -> str:
    """What shares a scale, as people call it."""
    if block == (rows, columns):
        return "one scale"
    if block == (1, columns):
        return "a scale per row"
    return f"blocks of {BLOCK}x{BLOCK}" if block[0] > 1 else f"groups of {block[1]}"
