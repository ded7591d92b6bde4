"""Weights that are packed into tensors of other names and types, in safetensors files.

    class Gptq(Packed):
        name = "gptq"
        def packs(self, config): return method_of(config) == "gptq"
        def layout(self, stored, config, where): ...   # names and shapes, by headers alone
        def values(self, tensor, parts, config): ...   # the numbers that one tensor stands for

The rest follows: folders are opened, compared and measured by what the weights stand for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.counts import counted
from invarlock.errors import InputError, NotACheckpointError
from invarlock.files import read_json_object
from invarlock.formats.kind import CODES, Format, Inventory, PackedTensor, Tensors, byte_range
from invarlock.formats.kinds.safetensors import Safetensors
from invarlock.formats.numbers import WORD, whole_numbers
from invarlock.formats.patterns import require_patterns
from invarlock.shards import DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

DENSE = Safetensors()
# Of a tensor's largest value, what counts for nothing where a scale is zero.
NEGLIGIBLE = 1e-5
# Members of config.json that say how the weights are packed.
QUANTIZED = ("quantization_config", "compression_config", "quantization")
# Files of makers (GPTQ, AWQ, AutoRound) that say it, too; some loaders read these first.
BESIDE = ("quantize_config.json", "quant_config.json", "quantization_config.json")
# ModelOpt's file, by which servers read weights as packed whatever config.json says.
MODELOPT, MODELOPT_FILE = "modelopt", "hf_quant_config.json"
# Members of those that list modules which are not packed.
LEFT_DENSE = (
    "modules_to_not_convert",
    "llm_int8_skip_modules",
    "ignored_layers",
    "ignore",
    "exclude",
)
OTHER_RULES = ("dynamic",)  # members that say for each module by itself
CACHES = (".k_scale", ".v_scale")  # of caches of keys and values
NUMBER = re.compile(r"\.\d+\.")
LAYERS = "layers."


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How ``config.json`` says that the weights are packed; empty where it says nothing."""
    found = next((config[k] for k in QUANTIZED if isinstance(config.get(k), dict)), None)
    return found if found is not None else {}


def refuse_two(config: Mapping[str, Any], where: str) -> None:
    """Refuse a ``config.json`` that says twice, and not the same, how the weights are packed.

    Raises:
        NotACheckpointError: one loader would read one model, and another another.
    """
    said = {key: config[key] for key in QUANTIZED if isinstance(config.get(key), dict)}
    if len(said) > 1 and len({str(sorted(map(str, v.items()))) for v in said.values()}) > 1:
        raise NotACheckpointError(
            "config.json says twice how the weights are packed, and not the same",
            where=f"{where}/config.json", found=" and ".join(said),
            hint="remove the one that does not tell what the files hold",
        )  # fmt: skip


def config_of(folder: Path) -> dict[str, Any]:
    """``config.json``, with what ModelOpt's file says of the packing where it says nothing."""
    config = read_json_object(folder / "config.json")
    beside = folder / MODELOPT_FILE
    if not quantization_of(config) and beside.is_file():
        said = said_in(beside)
        if said.get("quant_algo") or said.get("kv_cache_quant_algo"):
            config[QUANTIZED[0]] = {"quant_method": MODELOPT, **said}
    return config


def method_of(config: Mapping[str, Any]) -> str:
    """``quant_method`` of ``config.json``; empty where it has none."""
    return str(quantization_of(config).get("quant_method") or "").lower()


def module_of(name: str) -> str:
    """The module that a tensor is of."""
    return name.rpartition(".")[0]


def dtype_of(config: Mapping[str, Any]) -> str:
    """The safetensors code of the dtype in which the model runs, bfloat16 where none is named."""
    named = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    code = CODES.get(str(named).removeprefix("torch."), "BF16")
    return code if code in ("F16", "BF16", "F32") else "BF16"


class Packed(Format):
    """Base of formats that pack weights into safetensors; ``config.json`` names the format."""

    inside: ClassVar[str] = "safetensors"
    packed: ClassVar[bool] = True
    packing_files: ClassVar[frozenset[str]] = frozenset({*BESIDE, MODELOPT_FILE})
    # How the names of its stored tensors end, which no dense model's do.
    marks: ClassVar[tuple[str, ...]] = ()
    # Whether config.json says which modules are packed, so that loaders go by it.
    lists_modules: ClassVar[bool] = True

    def stored(self, held: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        """What the files hold, by names that :meth:`layout` and the model know."""
        return held

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
            where: the folder, for errors, and for a shape that is stored as numbers.

        Raises:
            InputError: parts are missing or do not fit together, such as a group size that does
                not divide the columns.
        """
        raise NotImplementedError

    def scales(
        self, tensor: PackedTensor, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> torch.Tensor | None:
        """What each value is multiplied by, in a shape that broadcasts to the tensor's.

        Scales of zero are looked for in it; None where the format has none of its own.
        """
        return None

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

    def packs_none(self, config: Mapping[str, Any]) -> bool:
        """Whether ``config.json`` says that no weight is packed, only something else."""
        return False

    def declared(self, module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What ``config.json`` says of how a module is packed."""
        return quantization_of(config)

    def rounded_away(self, tensor: PackedTensor, config: Mapping[str, Any]) -> float:
        """The magnitude up to which an honest scale is zero, whatever the rest of the tensor is."""
        return 0.0

    def leaves_dense(self, module: str, config: Mapping[str, Any]) -> bool:
        """Whether ``config.json`` says that a module is not packed: by its name, that of something
        it is part of, or the end of its own; some loaders take it for a pattern of the beginning.
        """
        path = f".{module}."
        return any(
            f".{name.strip('.')}." in path
            or (is_pattern(name) and re.match(rf"(?:{name})(?:(?<=\.)|(?=\.|$))", module))
            for name in _left_dense(config)
        )

    def drops(self, name: str) -> bool:
        """Whether a stored tensor is no weight although no packed tensor is made of it."""
        return False

    def inventory(self, folder: Path) -> Inventory:
        held = DENSE.inventory(folder)
        config = config_of(folder)
        named = filter(is_pattern, _left_dense(config))  # loaders take each for one
        require_patterns(named, map(module_of, held.tensors), f"{folder}/config.json")
        stored = self.stored(held.tensors)
        packed = {t.name: t for t in self.layout(stored, config, str(folder))}
        parts = {part for tensor in packed.values() for part in tensor.parts}
        plain = {
            name: info
            for name, info in stored.items()
            if name not in parts and not self.drops(name)
        }
        made = {
            t.name: Made(
                name=t.name,
                dtype=t.dtype,
                shape=t.shape,
                file=stored[t.parts[0]].file,
                begin=0,
                end=DTYPES[t.dtype][0] * elements(t.shape),
                of=t,
                stored=tuple(stored[part] for part in t.parts),
            )
            for t in packed.values()
        }
        tensors = dict(sorted((plain | made).items()))
        return Inventory(tensors, held.files, held.metadata, dict(sorted(packed.items())))

    def chunks(self, folder: Path, info: TensorInfo, size: int) -> Iterator[memoryview]:
        if not isinstance(info, Made):
            yield from DENSE.chunks(folder, info, size)
            return
        config = config_of(folder)
        yield from sliced(self.values(info.of, info.read(folder), config), info, size)

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        """See :meth:`Format.faults`: scales of zero where the baseline's weights are not.

        And scales of activations that are no positive numbers, modules that are packed where
        ``config.json`` says that they are not, or dense where it says that they are packed, and
        a second file that says otherwise how weights are packed.
        """
        config = config_of(source)
        held = self.inventory(source)
        yield from self._contradictions(held, config)
        for path in (source / name for name in sorted(self.packing_files)):
            if path.is_file():
                yield from disagreement(quantization_of(config), said_in(path), path.name)
        lost: dict[str, int] = {}
        for name, info in held.tensors.items():
            if not isinstance(info, Made) or name not in baseline.tensors:
                continue
            scales = self.scales(info.of, info.read(source), config)
            if scales is None or bool(scales.all()):
                continue
            before = baseline.load(name)
            if before.shape == info.shape:
                # what rounds to a scale of zero by itself is no damage
                small = max(
                    float(before.abs().max()) * NEGLIGIBLE, self.rounded_away(info.of, config)
                )
                lost[name] = int(((scales == 0).expand(info.shape) & (before.abs() > small)).sum())
        lost = {name: count for name, count in lost.items() if count}
        if lost:
            first = next(iter(lost))
            yield (
                f"scales of zero take {counted(sum(lost.values()), 'weight')} away that the"
                f" baseline has, in {counted(len(lost), 'tensor')}: first {first}"
            )
        stored = DENSE.inventory(source).tensors
        for name in (n for n in stored if self.drops(n) and n.endswith("scale")):
            values = stored_tensor(source, stored[name]).float()
            if not bool(((values > 0) & values.isfinite()).all()):
                yield f"{name} is no positive number: what is rounded by it is lost"

    def _contradictions(self, held: Inventory, config: Mapping[str, Any]) -> Iterator[str]:
        """Where ``config.json`` says otherwise than the file which modules are packed.

        What is dense and not said to be is known for odd by its like in other layers alone: which
        modules a maker packs is otherwise its own business.
        """
        if not self.lists_modules:
            return
        packed = [name for name in held.packed if self.leaves_dense(module_of(name), config)]
        if packed:
            yield (
                f"config.json says that {counted(len(packed), 'module is', 'modules are')} not"
                " packed, and the file holds packed weights of them: loaders that believe it load"
                f" scales as nothing and numbers as weights; first {packed[0]}"
            )
        if any(quantization_of(config).get(key) for key in OTHER_RULES):
            return
        alike = {_in_any_layer(name) for name in held.packed}
        # whatever the models around them are called by the class that the list was written for
        named = {_from_layers(name) for name in _left_dense(config) if LAYERS in name}
        dense = [
            name
            for name, info in held.tensors.items()
            if name not in held.packed
            and len(info.shape) > 1
            and _in_any_layer(name) in alike
            and not self.leaves_dense(module_of(name), config)
            and not any(f"{_from_layers(name)}.".startswith(f"{part}.") for part in named)
        ]
        if dense:
            yield (
                f"{counted(len(dense), 'module is', 'modules are')} dense, packed in other layers,"
                f" and not among those that config.json says are left dense: first {dense[0]}"
            )


class Unpacked(Packed):
    """Base of those whose weights transformers unpacks into dense matrices when it loads them."""

    activations: ClassVar[str]  # how they are rounded here, and elsewhere

    def loaded(self, model: Any, source: Path) -> Any:
        return in_one_dtype(model)

    def detail(self, model: Any) -> Mapping[str, str]:
        dtype = str(model.dtype).removeprefix("torch.")
        weights = f"unpacked into dense {dtype} when loaded"
        return {"weights": weights, "activations": self.activations}


@dataclass(frozen=True)
class Made(TensorInfo):
    """A tensor that is made of others: ``begin`` and ``end`` count bytes of its values."""

    of: PackedTensor
    stored: tuple[TensorInfo, ...]

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """What it is made of, by name."""
        return {part.name: stored_tensor(folder, part) for part in self.stored}


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _left_dense(config: Mapping[str, Any]) -> list[str]:
    said = quantization_of(config)
    lists = [said[key] for key in LEFT_DENSE if isinstance(said.get(key), list)]
    return [name for names in lists for name in names if isinstance(name, str) and name]


def _from_layers(name: str) -> str:
    return name[name.find(LAYERS) :]


def _in_any_layer(name: str) -> str:
    return NUMBER.sub(".N.", name)


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

    dtype = torch_dtype(info.dtype)
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    (chunk,) = byte_range(folder / info.file, info, info.nbytes)
    return torch.frombuffer(chunk, dtype=dtype).reshape(info.shape)


def by_module(source: Path, ends: Collection[str]) -> dict[str, torch.Tensor]:
    """Stored tensors whose names end so, float32, by the modules that they are of."""
    stored = DENSE.inventory(source).tensors
    return {
        module_of(name): stored_tensor(source, info).float()
        for name, info in stored.items()
        if name.endswith(tuple(ends))
    }


def input_faults(packed: Collection[str], scales: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """What is wrong with the scales by which inputs are rounded.

    Args:
        packed: the weights whose inputs have to have one.
        scales: by names of modules.
    """
    lacking = [name for name in packed if module_of(name) not in scales]
    if lacking:
        has = counted(len(lacking), "packed matrix has", "packed matrices have")
        yield (f"the inputs of {has} no scale, by which the format rounds them: first {lacking[0]}")
    for name, scale in scales.items():
        if scale.numel() != 1:
            yield f"{name}: inputs have {scale.numel()} scales; kernels take one"


def cache_notes(source: Path, ends: tuple[str, ...] = CACHES) -> Iterator[str]:
    """That scales of caches of keys and values are there, which nothing here rounds by."""
    if any(name.endswith(ends) for name in DENSE.inventory(source).tensors):
        yield (
            "served, caches of keys and values are rounded by the scales that are stored; these"
            " passes use no cache, so that those scales are not judged"
        )


def refuse_stacked(name: str, where: str) -> NotACheckpointError:
    """The line for experts that are packed in one tensor."""
    return NotACheckpointError(
        f"{name} holds all experts of a layer in one packed tensor, which is not read here",
        where=where, hint="name the dense checkpoint they were packed from",
    )  # fmt: skip


def in_one_dtype(model: Any) -> Any:
    """The model with the parameters that were not packed in the dtype of the run, too: of a packed
    model the library leaves them as they are stored."""
    import torch

    if model.config.dtype == torch.float32:
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
    return model


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers of some bits that int32 words hold end to end, lowest bit first.

    Args:
        words: (W, ...); integers may reach from one word into the next.
        bits: of each integer.

    Returns:
        (32 W / bits, ...) of int64.
    """
    count = words.shape[0] * WORD // bits
    return whole_numbers(words.movedim(0, -1), bits, count).movedim(-1, 0).long()


def parts_of(
    stored: Mapping[str, TensorInfo], mark: str, needed: Collection[str], where: str
) -> Iterator[tuple[str, dict[str, TensorInfo]]]:
    """The modules whose weight is packed: the name of each, and its stored tensors by their ends.

    Args:
        stored: what the files hold, by name.
        mark: the end of a name that tells a packed module, such as ".qweight".
        needed: the ends of the names of what else it has to have.
        where: the folder, for errors.

    Raises:
        InputError: a module lacks a part, or a part its module.
    """
    for name in stored:
        end = next((end for end in (mark, *needed) if name.endswith(end)), None)
        if end is None:
            continue
        module = name.removesuffix(end)
        lacking = [part for part in (mark, *needed) if module + part not in stored]
        if lacking:
            raise InputError(
                f"{name} is there without {module}{lacking[0]}", where=where,
                hint="pack the weights again, or copy all of their files",
            )  # fmt: skip
        if end == mark:
            yield module, {part: stored[module + part] for part in (mark, *needed)}


def two(info: TensorInfo, where: str) -> tuple[int, int]:
    """The shape of a matrix.

    Raises:
        InputError: it is none, or is empty.
    """
    if len(info.shape) != 2 or not info.numel:
        raise InputError(f"{info.name} is no matrix", where=where, found=str(list(info.shape)))
    return info.shape[0], info.shape[1]


def require_fit(holds: bool, expected: object, found: object, module: str, where: str) -> None:
    """Refuse parts of a packed weight that do not belong together.

    Raises:
        InputError: they do not.
    """
    if not holds:
        raise InputError(
            f"the parts of {module} do not fit together", where=where, expected=str(expected),
            found=str(found),
        )  # fmt: skip


def uneven(size: int, columns: int, module: str, where: str) -> InputError:
    """The line for groups that do not fill the columns of a weight."""
    return InputError(
        f"the group size {size} does not divide the {columns} columns of {module}", where=where,
        hint="pack the weights again with a group size that does",
    )  # fmt: skip


# Members of quantization_config that a second file says too, and its other name of them.
SAID_TWICE = {
    "bits": "w_bit",
    "group_size": "q_group_size",
    "sym": "",
    "desc_act": "",
    "zero_point": "",
    "checkpoint_format": "",
    "version": "",
    "quant_algo": "",
}


def disagreement(found: Mapping[str, Any], beside: Mapping[str, Any], name: str) -> Iterator[str]:
    """Where a second file says something else of the packing: some loaders read that one."""
    for key, older in SAID_TWICE.items():
        other = beside.get(key, beside.get(older))
        mine = found.get(key)
        if mine is None or other is None or str(other).lower() == str(mine).lower():
            continue
        yield f"config.json says {key}: {found[key]}, and {name} says {other}"


def said_in(path: Path) -> Mapping[str, Any]:
    """What a file says of the packing; ModelOpt's says it in a member."""
    said = read_json_object(path)
    inner = said.get("quantization")
    return inner if isinstance(inner, dict) else said


def torch_dtype(code: str) -> torch.dtype:
    """The dtype of a safetensors code."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[code][1])
    return dtype


def sliced(values: torch.Tensor, info: TensorInfo, size: int) -> Iterator[memoryview]:
    """The bytes of a tensor from ``info.begin`` to ``info.end``, ``size`` at a time."""
    import torch

    flat = values.detach().contiguous().view(-1).view(torch.uint8).numpy().data
    for start in range(info.begin, info.end, max(size, 1)):
        yield flat[start : min(start + size, info.end)]
