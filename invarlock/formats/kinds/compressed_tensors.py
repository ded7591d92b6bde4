"""compressed-tensors, as llm-compressor writes it and vLLM serves it.

Beside each packed matrix stand its scales: ``weight`` in FP8 or int8 with ``weight_scale``, or
``weight_packed``, words of 32 bits with whole numbers of 1 to 8 bits, or bytes with two FP4
numbers. ``quantization_config`` says in ``config_groups`` which modules are packed how; what
multiplies them is transformers with the package of that name.

On a CPU that package unpacks the weights into dense matrices when they are loaded. Activations
that the format quantizes are quantized there too, before each product, by rounding them in the
dtype of the run; the integer or FP8 products of a server are none of these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from msgspec import Struct, ValidationError, convert

from invarlock.errors import InputError, NotACheckpointError
from invarlock.formats.kind import Package, PackedTensor
from invarlock.formats.numbers import (
    POWERS,
    SMALLEST,
    fp4,
    powers,
    spread,
    whole_numbers,
    words_for,
)
from invarlock.formats.packed import (
    Packed,
    dtype_of,
    method_of,
    module_of,
    quantization_of,
    require_fit,
    stored_tensor,
    torch_dtype,
)
from invarlock.formats.patterns import require_patterns
from invarlock.shards import FLOAT_DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

PACKED = ".weight_packed"
PLAIN = ".weight"
SCALE = ".weight_scale"
GLOBAL = ".weight_global_scale"
SHAPE = ".weight_shape"
ZERO = ".weight_zero_point"
ORDER = ".weight_g_idx"
PATTERN = "re:"  # what a pattern of names of modules begins with
# What activations and caches of keys and values are rounded by: no weights.
BESIDE = re.compile(r".*\.(?:input|output|q|k|v)_(?:scale|zero_point|global_scale)")
WORDS_OF = {
    "tensor": "one scale",
    "channel": "a scale per row",
    "token": "a scale per token",
    "attn_head": "a scale per head",
}


class Args(Struct, frozen=True):
    """How numbers are rounded (of weights, of inputs)."""

    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: str | None = None
    block_structure: list[int] | None = None
    dynamic: bool | str = False

    @property
    def shares(self) -> str:
        """What shares a scale: tensor, channel, group, tensor_group, block, token."""
        if self.strategy is not None:
            return self.strategy
        return "tensor" if not self.group_size else "channel" if self.group_size < 0 else "group"

    def block(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that share a scale."""
        if self.shares == "channel":
            return 1, columns
        if self.shares == "block" and self.block_structure and len(self.block_structure) == 2:
            return self.block_structure[0], self.block_structure[1]
        if self.shares in ("group", "tensor_group"):
            return 1, self.group_size or 0
        return rows, columns

    def words(self) -> str:
        """As people call it."""
        name = f"int{self.num_bits}" if self.type == "int" else f"FP{self.num_bits}"
        if self.type == "float" and self.num_bits == 8:
            name += " E4M3"
        shared = WORDS_OF.get(self.shares, "")
        if self.shares in ("group", "tensor_group"):
            shared = f"groups of {self.group_size}"
        elif self.shares == "block" and self.block_structure:
            shared = "blocks of " + "x".join(map(str, self.block_structure))
        zero = "" if self.symmetric else ", zero points"
        return f"{name}, {shared}{zero}"


class Group(Struct, frozen=True):
    """Modules that are packed alike."""

    targets: list[str]
    weights: Args | None = None
    input_activations: Args | None = None
    output_activations: Args | None = None
    format: str | None = None


class Quantization(Struct, frozen=True):
    """``quantization_config``, as far as it is asked for."""

    config_groups: dict[str, Group] = {}
    ignore: list[str] = []
    format: str = "dense"
    kv_cache_scheme: Args | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None

    def patterns(self) -> Iterator[str]:
        """All patterns of names."""
        for targets in (self.ignore, *(group.targets for group in self.config_groups.values())):
            yield from (target[len(PATTERN) :] for target in targets if target.startswith(PATTERN))

    def ignores(self, module: str) -> bool:
        """Whether a module is said to be dense: by its name, or a pattern of names."""
        return any(
            re.match(name[len(PATTERN) :], module) if name.startswith(PATTERN) else name == module
            for name in self.ignore
        )

    def group_of(self, module: str) -> Group | None:
        """The group of a module: by its name, by a pattern of names, by its class."""
        found: dict[int, Group] = {}
        for group in self.config_groups.values():
            for target in group.targets:
                if target.startswith(PATTERN):
                    rank = 1 if re.match(target[len(PATTERN) :], module) else 3
                else:  # a class is not to be seen here: a word that is no module's name is one
                    rank = 0 if target == module else 3 if "." in target else 2
                if rank < 3:
                    found.setdefault(rank, group)
        return found[min(found)] if found else None


def read_quantization(config: Mapping[str, Any], where: str) -> Quantization:
    """``quantization_config`` of ``config.json``.

    Raises:
        InputError: it is damaged.
        NotACheckpointError: the weights are packed in a way that is not read.
    """
    try:
        found = convert(quantization_of(config), Quantization)
    except ValidationError as error:
        raise InputError(
            f"quantization_config is not as compressed-tensors writes it: {error}",
            where=f"{where}/config.json",
        ) from error
    sparse = (found.sparsity_config or {}).get("format", "dense")
    other = [name for name in (found.format, sparse) if re.search("sparse|24|mxfp6", str(name))]
    if other or (found.transform_config or {}).get("config_groups"):
        what = f"packed as {other[0]}" if other else "rotated by the transforms of transform_config"
        raise NotACheckpointError(
            f"the weights are {what}, which is not read here", where=where,
            expected="a format of compressed-tensors that only quantizes",
            hint="vLLM would read it; name the dense checkpoint it was made from",
        )  # fmt: skip
    return found


class CompressedTensors(Packed):
    """FP8, int8, whole numbers of few bits in words, NVFP4 and MXFP4 of compressed-tensors."""

    name: ClassVar[str] = "compressed-tensors"
    title: ClassVar[str] = "compressed-tensors"
    marks: ClassVar[tuple[str, ...]] = (PACKED, SCALE)
    packages: ClassVar[tuple[Package, ...]] = (Package("compressed_tensors", "compressed-tensors"),)

    def packs(self, config: Mapping[str, Any]) -> bool:
        return method_of(config) == "compressed-tensors"

    def leaves_dense(self, module: str, config: Mapping[str, Any]) -> bool:
        found = convert(quantization_of(config), Quantization)
        return found.ignores(module) or found.group_of(module) is None

    def drops(self, name: str) -> bool:
        return BESIDE.fullmatch(name) is not None

    def layout(
        self, stored: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
    ) -> Iterator[PackedTensor]:
        quantization = read_quantization(config, where)
        require_patterns(quantization.patterns(), map(module_of, stored), f"{where}/config.json")
        for name in stored:
            if name.endswith(PACKED):
                module = name.removesuffix(PACKED)
            elif name.endswith(SCALE) and name.removesuffix(SCALE) + PACKED not in stored:
                module = name.removesuffix(SCALE)
            else:
                continue
            group = quantization.group_of(module)
            if group is None or group.weights is None:
                raise InputError(
                    f"{module} is packed, but no group of quantization_config holds it",
                    where=where, expected=", ".join(quantization.config_groups) or "config_groups",
                )  # fmt: skip
            if quantization.ignores(module):
                raise InputError(
                    f"{module} is packed, and quantization_config ignores it: servers would load a"
                    " dense one", where=where, hint="remove it from ignore",
                )  # fmt: skip
            yield _packed(module, group.weights, stored, dtype_of(config), where)

    def values(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor:
        module, args = _module_of(tensor, config)
        rows, columns = tensor.shape[-2:]
        plain = parts.get(module + PLAIN)
        words = parts.get(module + PACKED)
        if plain is not None:
            numbers = plain.float()
        elif args.type == "float":
            assert words is not None
            numbers = fp4(words)
        else:
            assert words is not None
            numbers = whole_numbers(words, args.num_bits, columns).float()
            numbers -= 1 << (args.num_bits - 1)
        scales = _scales(module, tensor.shape, parts)
        if module + ZERO in parts:
            zeros = _zeros(parts[module + ZERO], args, rows).float().view(scales.shape)
            numbers -= _spread(module, args, zeros, tensor.shape, parts)
        numbers *= _spread(module, args, scales, tensor.shape, parts)
        return numbers.to(torch_dtype(tensor.dtype))

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor | None:
        module, args = _module_of(tensor, config)
        scales = _scales(module, tensor.shape, parts)
        return _spread(module, args, scales, tensor.shape, parts)

    def loading(self, source: Path, config: Mapping[str, Any], device: str) -> Mapping[str, object]:
        from transformers import CompressedTensorsConfig

        if self._rounds_activations(read_quantization(config, str(source))):
            return {}
        # into plain dense modules, at once: the package's own way leaves modules that look as if
        # they quantized something, and does not load zero points that are packed
        return {"quantization_config": CompressedTensorsConfig(dequantize=True)}

    def _rounds_activations(self, found: Quantization) -> bool:
        """Whether modules have to stay as the package makes them: with activations or caches that
        are rounded, or of several groups, of which the dense way knows one."""
        groups = found.config_groups.values()
        rounded = any(g.input_activations or g.output_activations for g in groups)
        return rounded or found.kv_cache_scheme is not None or len(groups) > 1

    def loaded(self, model: Any, source: Path) -> Any:
        """Unpack what was loaded, which the package would do at the first pass of the whole model.

        A part of the model may be run before; and of NVFP4 and MXFP4 the package makes bfloat16,
        whatever the dtype of the run.
        """
        if not hasattr(model, "ct_decompress_hook"):
            return model
        from compressed_tensors.compressors import decompress_module

        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None or scheme.weights is None:
                continue
            rounds = scheme.input_activations or scheme.output_activations
            decompress_module(module, leave_decompressed=bool(rounds))
            if not rounds:  # what it had before is the class's own
                vars(module).pop("forward", None)
            module.weight.data = module.weight.data.to(model.dtype)
        model.hf_quantizer.compressor.remove_decompression_hook(model)
        return model

    def detail(self, model: Any) -> Mapping[str, str]:
        rounded: Counter[str] = Counter()
        caches = 0
        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None:
                continue
            if scheme.weights is None:
                caches += 1
            elif scheme.input_activations is not None:
                rounded[_activations(scheme.input_activations)] += 1
        dtype = str(model.dtype).removeprefix("torch.")
        said = {"weights": f"unpacked into dense {dtype} when loaded"}
        said["activations"] = "as they are"
        if rounded:
            before = "; ".join(f"{what}: {count} products" for what, count in rounded.items())
            said["activations"] = f"rounded before each product, which is of {dtype} ({before})"
        if caches:
            said["cache"] = f"keys and values of {caches} layers are rounded only where a cache is"
            said["cache"] += " used, and these passes use none"
        return said


def _activations(args: Any) -> str:
    """The rounding of activations, from the package's own record of it."""
    own = convert({key: getattr(args, key) for key in Args.__struct_fields__}, Args, strict=False)
    return f"{own.words()}, {'dynamic' if own.dynamic else 'static'}"


def _module_of(tensor: PackedTensor, config: Mapping[str, Any]) -> tuple[str, Args]:
    module = tensor.name.removesuffix(PLAIN)
    group = convert(quantization_of(config), Quantization).group_of(module)
    assert group is not None
    assert group.weights is not None
    return module, group.weights


def _scales(module: str, shape: tuple[int, ...], parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The scales as a matrix of blocks, float32; those of next to nothing are zero."""
    import torch

    own = parts[module + SCALE]
    scales = powers(own) if own.element_size() == 1 and own.dtype != torch.float8_e4m3fn else own
    scales = scales.float()
    if module + GLOBAL in parts:
        scales = scales / parts[module + GLOBAL].float()
    scales = scales.masked_fill(scales.abs() < SMALLEST, 0.0)
    if scales.numel() == 1:
        return scales.view(*(1 for _ in shape))
    return scales if scales.dim() == len(shape) else scales.unsqueeze(-1)


def _spread(
    module: str,
    args: Args,
    numbers: torch.Tensor,
    shape: tuple[int, ...],
    parts: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Numbers of blocks as the elements of the matrix have them."""
    order = parts.get(module + ORDER)
    if order is not None:  # the columns of a group need not stand side by side
        return numbers.index_select(-1, order.int())
    return spread(numbers, args.block(*shape[-2:]), shape)


def _zeros(packed: torch.Tensor, args: Args, rows: int) -> torch.Tensor:
    """Zero points as signed numbers; packed ones stand in words along the rows."""
    import torch

    if packed.dtype != torch.int32:
        return packed
    numbers = whole_numbers(packed.transpose(-1, -2), args.num_bits, rows)
    return numbers.transpose(-1, -2) - (1 << (args.num_bits - 1))


def _packed(
    module: str, args: Args, stored: Mapping[str, TensorInfo], dtype: str, where: str
) -> PackedTensor:
    """The tensor that the parts of a module make.

    Raises:
        InputError: one is missing, or they do not fit together.
    """
    given = [stored[module + PLAIN]] if module + PLAIN in stored else []
    given += [stored[module + PACKED]] if module + PACKED in stored else []
    if len(given) != 1 or module + SCALE not in stored:
        raise InputError(
            f"{module} does not have one packed weight and its scales", where=where,
            expected=f"{SCALE[1:]} and one of {PLAIN[1:]} and {PACKED[1:]}",
            found=", ".join(info.name.removeprefix(module)[1:] for info in given) or "no weight",
        )  # fmt: skip
    (weight,) = given
    parts = [n for n in (SCALE, GLOBAL, ORDER) if module + n in stored]
    shape, kind = weight.shape, f"{args.type}{args.num_bits}"
    require_fit(len(shape) > 1, "a matrix", shape, module, where)
    if weight.name.endswith(PLAIN):
        codes = {"int": "I8", "float": "F8_E4M3"}
    elif args.type == "float":
        codes = {"float": "U8"}
        shape = (*shape[:-1], 2 * shape[-1])
        require_fit(args.num_bits == 4, "FP4", kind, module, where)
    else:
        codes = {"int": "I32"}
        shape = _written_shape(module, stored, where)
        parts.append(SHAPE)
        words = (*shape[:-1], words_for(shape[-1], args.num_bits))
        require_fit(weight.shape == words, f"words {words} of {shape}", weight.shape, module, where)
    require_fit(weight.dtype == codes.get(args.type), codes, weight.dtype, module, where)
    fits = 1 <= args.num_bits <= 8 and len(shape) > 1
    require_fit(fits, "a matrix of 1 to 8 bits", f"{kind}, {shape}", module, where)
    blocks = _blocks(module, args, shape, where)
    scales = stored[module + SCALE].shape
    known = {(*shape[:-2], *blocks)}
    known |= {(*shape[:-2], blocks[0])} if blocks[1] == 1 else set()
    known |= {(), (1,)} if blocks == (1, 1) else set()
    scaled = f"scales of {(*shape[:-2], *blocks)} ({args.words()})"
    require_fit(scales in known, scaled, scales, module, where)
    whole = stored.get(module + GLOBAL)
    require_fit(whole is None or whole.numel == 1, "one global scale", whole, module, where)
    types = {*FLOAT_DTYPES, *POWERS}
    if codes == {"float": "U8"}:  # two FP4 numbers to a byte
        types = {*POWERS} if whole is None else {"F8_E4M3"}
    code = stored[module + SCALE].dtype
    require_fit(code in types, f"scales of {' or '.join(sorted(types))}", code, module, where)
    if not args.symmetric:
        zeros = stored.get(module + ZERO)
        rows = words_for(shape[-2], args.num_bits) if codes.get("int") == "I32" else blocks[0]
        expected = (*shape[:-2], rows, blocks[1])
        found = zeros.shape if zeros else "none"
        require_fit(found == expected, f"zero points {expected}", found, module, where)
        held = zeros.dtype if zeros else ""
        wanted = "I32" if codes.get("int") == "I32" else "I8"
        require_fit(held == wanted, f"zero points of {wanted}", held, module, where)
        parts.append(ZERO)
    names = (weight.name, *(module + part for part in parts))
    return PackedTensor(
        module + PLAIN, dtype, shape, names, _called(args, module + GLOBAL in stored),
        float(args.num_bits), sum(stored[name].nbytes for name in names),
    )  # fmt: skip


def _called(args: Args, global_scale: bool) -> str:
    """The scheme as people call it: two are known by names of their own."""
    if args.type == "float" and args.num_bits == 4:
        return f"{'NVFP4' if global_scale else 'MXFP4'}, groups of {args.group_size}"
    return args.words()


def _written_shape(module: str, stored: Mapping[str, TensorInfo], where: str) -> tuple[int, ...]:
    """The shape of a matrix whose rows end inside a word, which the file holds as numbers."""
    info = stored.get(module + SHAPE)
    if info is None:
        raise InputError(f"{module} has packed words and no {SHAPE[1:]}", where=where)
    sizes = info.shape in ((2,), (3,)) and info.dtype in ("I32", "I64")
    require_fit(sizes, f"{SHAPE[1:]}: two or three sizes", info.shape, module, where)
    return tuple(int(size) for size in stored_tensor(Path(where), info).tolist())


def _blocks(module: str, args: Args, shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """How many blocks have a scale, down and across.

    Raises:
        InputError: groups do not divide the columns; what shares a scale is not known.
    """
    rows, columns = shape[-2:]
    if args.shares not in ("tensor", "channel", "group", "tensor_group", "block"):
        raise InputError(f"{module}: weights share scales by {args.shares!r}", where=where)
    high, wide = args.block(rows, columns)
    if min(high, wide) < 1 or (args.shares != "block" and columns % wide):
        raise InputError(
            f"groups of {wide} do not divide the {columns} columns of {module}", where=where,
            hint="the group_size of quantization_config is not the one it was packed with",
        )  # fmt: skip
    return -(-rows // high), -(-columns // wide)
