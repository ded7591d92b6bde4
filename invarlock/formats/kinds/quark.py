"""AMD's Quark, as its export writes it and vLLM and SGLang serve it.

``quantization_config`` of ``config.json`` says of the weights and of the inputs of products what
they are rounded to (``dtype``), what shares a scale (``qscheme``) and, of inputs, whether it is
taken from themselves (``is_dynamic``): for all modules (``global_quant_config``), by patterns of
their names (``layer_quant_config``) or by their class (``layer_type_quant_config``). ``exclude``
lists dense ones. Each packed matrix is ``weight`` in E4M3, int8, or bytes of FP4 or FP6 numbers,
and ``weight_scale``: one number, one a row, or powers of two (E8M0), one for 32 columns.

transformers runs these by Quark itself, where that is installed; here dense kernels multiply what
the weights stand for, and inputs are rounded before (:mod:`invarlock.formats.rounded_inputs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError
from invarlock.formats.kind import Inventory, PackedTensor, Tensors
from invarlock.formats.numbers import POWERS, SMALLEST, fp4, fp6, powers, spread
from invarlock.formats.packed import (
    CACHES,
    DENSE,
    by_module,
    config_of,
    dtype_of,
    method_of,
    module_of,
    quantization_of,
    refuse_stacked,
    require_fit,
    torch_dtype,
    two,
)
from invarlock.formats.patterns import require_patterns
from invarlock.formats.rounded_inputs import (
    STATIC,
    Inputs,
    Rounding,
    RoundsInputs,
    to_even_mx,
    to_fp8,
    to_fp8_by_token,
    to_int8,
)
from invarlock.shards import FLOAT_DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

WEIGHT, SCALE = ".weight", ".weight_scale"
ZEROS = (".weight_zero_point", ".input_zero_point")  # stored, and zero: int8 is symmetric
CACHED = ("k_proj", "v_proj")  # whose outputs are keys and values
PATTERN = "re:"  # what a regular expression in ``exclude`` begins with
OUTPUT = ".output_scale"  # of keys and values, for caches
WHOLE, ROWS, GROUPS = "per_tensor", "per_channel", "per_group"  # what shares a scale
GROUP = 32


@dataclass(frozen=True)
class Numbers:
    """What ``dtype`` of a weight means."""

    stored: str  # safetensors code
    title: str
    bits: int
    shared: tuple[str, ...]  # what may share a scale
    scales: frozenset[str]


FLOATS, BYTES = frozenset(FLOAT_DTYPES), frozenset(POWERS)
NUMBERS: Mapping[str, Numbers] = {
    "fp8_e4m3": Numbers("F8_E4M3", "FP8 E4M3", 8, (WHOLE, ROWS), FLOATS),
    "int8": Numbers("I8", "int8", 8, (WHOLE, ROWS), FLOATS),
    "fp4": Numbers("U8", "MXFP4", 4, (GROUPS,), BYTES),
    "fp6_e2m3": Numbers("U8", "MXFP6 E2M3", 6, (GROUPS,), BYTES),
    "fp6_e3m2": Numbers("U8", "MXFP6 E3M2", 6, (GROUPS,), BYTES),
}
E2M3, E3M2 = (3, 0), (2, -2)  # bits of the mantissa, exponent of the smallest normal number
FP6 = {"fp6_e2m3": E2M3, "fp6_e3m2": E3M2}
# How inputs are rounded, by their dtype, what shares a scale and whether that is their own.
INPUTS: Mapping[tuple[str, str, bool], tuple[Rounding, str]] = {
    ("fp8_e4m3", WHOLE, False): (to_fp8, STATIC),
    ("fp8_e4m3", ROWS, True): (to_fp8_by_token, "FP8 E4M3, a scale per token"),
    ("int8", WHOLE, False): (to_int8, "int8, one scale, static"),
    ("fp4", GROUPS, True): (to_even_mx(1, 0, 6.0), "MXFP4, groups of 32"),
    ("fp6_e2m3", GROUPS, True): (to_even_mx(*E2M3, 7.5), "MXFP6 E2M3, groups of 32"),
    ("fp6_e3m2", GROUPS, True): (to_even_mx(*E3M2, 28.0), "MXFP6 E3M2, groups of 32"),
}
# Values of ``ch_axis`` of weights: rows have scales of their own, or groups within a row.
AXES: Mapping[str, tuple[int | None, ...]] = {WHOLE: (None,), ROWS: (None, 0), GROUPS: (None, -1)}
SHARED = {WHOLE: "one scale", ROWS: "a scale per row", GROUPS: f"groups of {GROUP}"}


class Quark(RoundsInputs):
    """Weights that Quark packed."""

    name: ClassVar[str] = "quark"
    title: ClassVar[str] = "Quark"
    caches: ClassVar[tuple[str, ...]] = (OUTPUT, *CACHES)

    def packs(self, config: Mapping[str, Any]) -> bool:
        said = quantization_of(config)
        return method_of(config) == "quark" and _read(said) and all(map(_known, _rules(said)))

    def drops(self, name: str) -> bool:
        return name.endswith((self.scale, *ZEROS, *self.caches))

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        return "Quark is not run here"

    def declared(self, module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        said = quantization_of(config)
        layers = said.get("layer_quant_config")
        for pattern, rule in layers.items() if isinstance(layers, dict) else ():
            if isinstance(rule, dict) and fnmatchcase(module, pattern):
                return rule
        rule = said.get("global_quant_config")
        return rule if isinstance(rule, dict) else {}

    def leaves_dense(self, module: str, config: Mapping[str, Any]) -> bool:
        return any(
            re.match(name.removeprefix(PATTERN), module)
            if name.startswith(PATTERN)
            else fnmatchcase(module, name) or f".{module}.".endswith(f".{name}.")
            for name in _excluded(config)
        )

    def inventory(self, folder: Path) -> Inventory:
        """See :meth:`Format.inventory`."""
        listed = _excluded(config_of(folder))
        patterns = (n.removeprefix(PATTERN) for n in listed if n.startswith(PATTERN))
        names = map(module_of, DENSE.inventory(folder).tensors)
        require_patterns(patterns, names, f"{folder}/config.json")
        return super().inventory(folder)

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        codes = {numbers.stored for numbers in NUMBERS.values()}
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
            rule = _part(self.declared(module, config), "weight")
            said, shared = str(rule.get("dtype")), str(rule.get("qscheme"))
            numbers = NUMBERS[said]
            rows, held = two(weight, where)
            columns = held * 8 // numbers.bits
            fits = {
                WHOLE: scale.shape in ((), (1,)),
                ROWS: scale.shape in ((rows,), (rows, 1)),
                GROUPS: scale.shape == (rows, columns // GROUP) and columns % GROUP == 0,
            }
            require_fit(
                weight.dtype == numbers.stored and scale.dtype in numbers.scales and fits[shared],
                f"{numbers.title}, {shared}, as config.json says",
                f"weight {list(weight.shape)} {weight.dtype}, weight_scale {list(scale.shape)}"
                f" {scale.dtype}",
                module, where,
            )  # fmt: skip
            yield PackedTensor(
                name=name,
                dtype=dtype_of(config),
                shape=(rows, columns),
                parts=(weight.name, scale.name),
                scheme=f"{numbers.title}, {SHARED[shared]}",
                bits=float(numbers.bits),
                stored_bytes=weight.nbytes + scale.nbytes,
            )

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        weight, said = parts[tensor.parts[0]], self._dtype(tensor, config)
        if said in FP6:
            numbers = fp6(weight, *FP6[said])
        else:
            numbers = fp4(weight) if said == "fp4" else weight.float()
        return (numbers * self.scales(tensor, parts, config)).to(torch_dtype(tensor.dtype))

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        stored = parts[tensor.parts[1]]
        if NUMBERS[self._dtype(tensor, config)].scales is not BYTES:
            return stored.float().reshape(-1, 1)
        own = powers(stored)
        own = own.masked_fill(own < SMALLEST, 0.0)
        return spread(own, (1, GROUP), tensor.shape)

    def _dtype(self, tensor: PackedTensor, config: Mapping[str, Any]) -> str:
        return str(_part(self.declared(module_of(tensor.name), config), "weight").get("dtype"))

    def inputs(self, weight: str, config: Mapping[str, Any]) -> Inputs | None:
        rule = _part(self.declared(module_of(weight), config), "input_tensors")
        if not rule:
            return None
        dynamic = bool(rule.get("is_dynamic"))
        return Inputs(*INPUTS[str(rule["dtype"]), str(rule["qscheme"]), dynamic], not dynamic)

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        yield from super().faults(source, baseline)
        for end in ZEROS:
            for name, zeros in by_module(source, (end,)).items():
                if bool(zeros.any()):
                    yield f"{name}{end} is not zero, and config.json says that int8 is symmetric"


def _excluded(config: Mapping[str, Any]) -> list[str]:
    """The modules that are said to be dense, by name or pattern."""
    listed = quantization_of(config).get("exclude")
    return [n for n in listed if isinstance(n, str)] if isinstance(listed, list) else []


def _part(rule: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a rule says of weights or inputs; empty where it says nothing."""
    found = rule.get(name)
    return found if isinstance(found, dict) else {}


def _rules(said: Mapping[str, Any]) -> list[Any]:
    """The rules for modules."""
    layers = said.get("layer_quant_config")
    return [said.get("global_quant_config"), *(layers.values() if isinstance(layers, dict) else ())]


def _read(said: Mapping[str, Any]) -> bool:
    """Whether all of a configuration is read here: no rules by class, rounded attention or
    rotations of inputs."""
    export = said.get("export")
    made = export.get("weight_format") if isinstance(export, dict) else None
    rotated = "rotation" in str(said.get("algo_config") or "").lower()
    others = said.get("layer_type_quant_config") or said.get("softmax_quant_spec")
    layers, listed = said.get("layer_quant_config"), said.get("exclude")
    shaped = isinstance(layers, dict | None) and isinstance(listed, list | None)
    rules = {"": said.get("global_quant_config"), **(layers if isinstance(layers, dict) else {})}
    outputs = any(  # those of keys and values are rounded for caches alone
        isinstance(rule, dict) and rule.get("output_tensors") and not name.endswith(CACHED)
        for name, rule in rules.items()
    )
    return made in (None, "real_quantized") and shaped and not (others or rotated or outputs)


def _known(rule: object) -> bool:
    """Whether a rule is read here."""
    if not isinstance(rule, dict) or rule.get("bias"):
        return False
    weight, inputs = _part(rule, "weight"), rule.get("input_tensors")
    numbers = NUMBERS.get(str(weight.get("dtype")))
    if numbers is None or weight.get("qscheme") not in numbers.shared:
        return False
    if not _symmetric(weight) or weight.get("ch_axis") not in AXES[weight["qscheme"]]:
        return False
    if weight["qscheme"] == GROUPS and not _of_powers(weight):
        return False
    if inputs is None:
        return True
    if not isinstance(inputs, dict) or not _symmetric(inputs):
        return False
    key = str(inputs.get("dtype")), str(inputs.get("qscheme")), bool(inputs.get("is_dynamic"))
    even = inputs.get("scale_calculation_mode") in (None, "even")
    return key in INPUTS and (key[1] != GROUPS or (_of_powers(inputs) and even))


def _symmetric(rule: Mapping[str, Any]) -> bool:
    """Whether numbers have no zero point; of whole ones it has to be said."""
    said = rule.get("symmetric")
    return said is True or (said is None and rule.get("dtype") != "int8")


def _of_powers(rule: Mapping[str, Any]) -> bool:
    """Whether 32 columns share a power of two."""
    return rule.get("group_size") == GROUP and rule.get("scale_format") in (None, "e8m0")
