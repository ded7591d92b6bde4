"""MLX, as ``mlx_lm.convert -q`` writes it: ``quantization`` in ``config.json``, and no method.

Each packed matrix is ``weight``, a row of 32-bit words that hold its numbers end to end, and
``scales`` of groups of columns. In mode ``affine`` the numbers are whole, of 2 to 8 bits, and a
weight is scale * number + bias, of ``biases``. In the other modes they are floating: ``mxfp4`` and
``mxfp8`` with powers of two, ``nvfp4`` with E4M3 scales. A member of ``quantization`` that is
called as a module says how that module is packed. Which ones are packed, the files say alone.

Experts of a layer stand in one tensor (``switch_mlp``), which is taken apart under the names that
transformers has for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError, NotACheckpointError
from invarlock.formats.kind import PackedTensor
from invarlock.formats.numbers import (
    FP4,
    SMALLEST,
    WORD,
    fp4,
    powers,
    whole_numbers,
)
from invarlock.formats.packed import (
    Packed,
    dtype_of,
    method_of,
    parts_of,
    quantization_of,
    refuse_stacked,
    require_fit,
    torch_dtype,
    two,
)
from invarlock.shards import FLOAT_DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

AFFINE, NVFP4 = "affine", "nvfp4"
SCALES, BIASES = ".scales", ".biases"
EXPERTS = "switch_mlp"
# What transformers calls the experts, and their matrices where not as here, by what holds them.
HOLDERS: Mapping[str, Mapping[str, str]] = {
    "block_sparse_moe": {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"},
}
SMALLEST_E4M3 = 2.0**-9


@dataclass(frozen=True)
class Mode:
    """A way of packing: what it takes where nothing is said, and the scales that it has."""

    bits: tuple[int, ...]
    group: int
    scales: tuple[str, ...]  # safetensors codes
    title: str  # with the bits of whole numbers in place


MODES: Mapping[str, Mode] = {
    AFFINE: Mode((4, 2, 3, 5, 6, 8), 64, tuple(sorted(FLOAT_DTYPES)), "int{}"),
    "mxfp4": Mode((4,), 32, ("U8",), "MXFP4"),
    "mxfp8": Mode((8,), 32, ("U8",), "MXFP8"),
    NVFP4: Mode((4,), 16, ("U8",), "NVFP4"),
}


@dataclass(frozen=True)
class Rule:
    """How a module is packed."""

    mode: str
    bits: int
    group: int


class Mlx(Packed):
    """Weights that mlx-lm packed."""

    name: ClassVar[str] = "mlx"
    title: ClassVar[str] = "MLX"
    lists_modules: ClassVar[bool] = False

    def packs(self, config: Mapping[str, Any]) -> bool:
        said = quantization_of(config)
        return not method_of(config) and "bits" in said and "group_size" in said

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        return "transformers has no kernels for the weights of MLX"

    def stored(self, held: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """See :meth:`Packed.stored`: the experts one by one."""
        return dict(_taken_apart(held))

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        _refuse_others(stored, where)
        for module, parts in parts_of(stored, SCALES, (), where):
            weight, scales = stored.get(f"{module}.weight"), parts[SCALES]
            if weight is None:
                raise InputError(
                    f"{scales.name} is there without {module}.weight", where=where,
                    hint="convert the model again, or copy all of its files",
                )  # fmt: skip
            rule = _rule_of(module, config, where)
            mode = MODES[rule.mode]
            if len(weight.shape) > 2:
                raise refuse_stacked(weight.name, where)
            rows, words = two(weight, where)
            groups = two(scales, where)[1]
            require_fit(
                scales.shape[0] == rows and words * WORD == rule.bits * rule.group * groups,
                f"{rule.bits} bits in groups of {rule.group}, as config.json says",
                f"weight {list(weight.shape)} and scales {list(scales.shape)}", module, where,
            )  # fmt: skip
            require_fit(
                weight.dtype == "U32" and scales.dtype in mode.scales,
                f"weight of U32 and scales of {' or '.join(mode.scales)}",
                f"{weight.dtype} and {scales.dtype}", module, where,
            )  # fmt: skip
            names = [weight.name, scales.name]
            if rule.mode == AFFINE:
                biases = stored.get(module + BIASES)
                wanted = f"biases {list(scales.shape)} {scales.dtype}"
                held = f"biases {list(biases.shape)} {biases.dtype}" if biases else "none"
                require_fit(held == wanted, wanted, held, module, where)
                names.append(module + BIASES)
            yield PackedTensor(
                name=f"{module}.weight",
                dtype=scales.dtype if rule.mode == AFFINE else dtype_of(config),
                shape=(rows, groups * rule.group),
                parts=tuple(names),
                scheme=f"{mode.title.format(rule.bits)}, groups of {rule.group}",
                bits=float(rule.bits),
                stored_bytes=sum(stored[name].nbytes for name in names),
            )

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        scales = _scales(tensor, parts, config)
        return scales.repeat_interleave(tensor.shape[1] // scales.shape[1], 1)

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        import torch

        words = parts[tensor.parts[0]].view(torch.int32)
        mode = _mode_of(tensor, config)
        if mode == AFFINE:
            numbers = whole_numbers(words, int(tensor.bits), tensor.shape[1]).float()
        elif tensor.bits == 8:
            numbers = words.view(torch.float8_e4m3fn).float()
        else:
            numbers = fp4(words.view(torch.uint8))
        scales = _scales(tensor, parts, config)
        grouped = numbers.view(*scales.shape, -1).mul_(scales.unsqueeze(-1))
        if mode == AFFINE:
            grouped += parts[tensor.parts[2]].float().unsqueeze(-1)
        return grouped.view(tensor.shape).to(torch_dtype(tensor.dtype))

    def rounded_away(self, tensor: PackedTensor, config: Mapping[str, Any]) -> float:
        """NVFP4 has no scale of the whole matrix here: half the smallest E4M3 number is none."""
        return FP4[-1] * SMALLEST_E4M3 / 2 if _mode_of(tensor, config) == NVFP4 else 0.0


def _mode_of(tensor: PackedTensor, config: Mapping[str, Any]) -> str:
    return _rule_of(tensor.name.removesuffix(".weight"), config, "").mode


def _rule_of(module: str, config: Mapping[str, Any], where: str) -> Rule:
    """How ``config.json`` says that a module is packed.

    Raises:
        InputError: in a way that MLX does not have.
    """
    said = quantization_of(config)
    own = said.get(_as_stored(module))
    if own is False:
        raise InputError(
            f"/quantization says that {module} is not packed, and the file holds scales of it",
            where=f"{where}/config.json", hint="copy the files of one checkpoint",
        )  # fmt: skip
    found = own if isinstance(own, Mapping) else said
    name = found.get("mode") or AFFINE
    mode = MODES.get(str(name))
    if mode is not None:
        bits = found.get("bits") or mode.bits[0]
        group = found.get("group_size") or mode.group
        whole = not {bool, str} & {type(bits), type(group)}
        if whole and bits in mode.bits and isinstance(group, int) and group > 0:
            return Rule(str(name), int(bits), group)
    raise InputError(
        f"/quantization says of {module} what MLX has no way of packing for",
        where=f"{where}/config.json",
        expected=f"mode {' or '.join(MODES)}, bits that it has, group_size a whole number",
        found=f"mode {name}, bits {found.get('bits')!r}, group_size {found.get('group_size')!r}",
    )  # fmt: skip


def _scales(
    tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> torch.Tensor:
    """The scales of the groups, float32: (rows, groups)."""
    import torch

    stored, mode = parts[tensor.parts[1]], _mode_of(tensor, config)
    if mode == AFFINE:
        return stored.float()
    if mode == NVFP4:
        return stored.view(torch.float8_e4m3fn).float()
    scales = powers(stored)
    return scales.masked_fill(scales < SMALLEST, 0.0)


def _refuse_others(stored: Mapping[str, TensorInfo], where: str) -> None:
    """Refuse what is no model of MLX, and models whose other tensors MLX changes.

    Raises:
        NotACheckpointError: says which.
    """
    if any(name.endswith(".qweight") for name in stored):
        raise NotACheckpointError(
            "config.json does not name what packed the weights, and the tensors are those of GPTQ"
            " or AWQ", where=f"{where}/config.json",
            hint="set quant_method in quantization_config to what packed them",
        )  # fmt: skip
    moved = next((n for n, i in stored.items() if "conv" in n and len(i.shape) > 2), None)
    if moved is not None:
        raise NotACheckpointError(
            "MLX stores convolutions of this architecture, and norms beside some, in another form,"
            " which is not read here", where=where, found=moved,
            hint="name the dense checkpoint it was converted from",
        )  # fmt: skip


def _taken_apart(held: Mapping[str, TensorInfo]) -> Iterator[tuple[str, TensorInfo]]:
    for name, info in held.items():
        before, _, after = name.partition(f".{EXPERTS}.")
        if not after or len(info.shape) < 2 or not info.shape[0]:
            yield name, info
            continue
        matrix, _, end = after.partition(".")
        matrix = HOLDERS.get(before.rpartition(".")[2], {}).get(matrix, matrix)
        size = info.nbytes // info.shape[0]
        for expert in range(info.shape[0]):
            own = f"{before}.experts.{expert}.{matrix}.{end}"
            begin = info.begin + expert * size
            yield own, replace(info, name=own, shape=info.shape[1:], begin=begin, end=begin + size)


def _as_stored(module: str) -> str:
    """What MLX calls a module, of which an expert is a part."""
    before, _, after = module.partition(".experts.")
    if not after:
        return module
    matrix = after.partition(".")[2]
    names = HOLDERS.get(before.rpartition(".")[2], {})
    mine = {theirs: own for own, theirs in names.items()}.get(matrix, matrix)
    return f"{before}.{EXPERTS}.{mine}"
