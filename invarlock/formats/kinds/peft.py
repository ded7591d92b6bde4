"""PEFT adapters of the LoRA family, beside the baseline that they were trained on.

The effective weights are the merged view: the baseline's matrix with ``scale * B @ A`` added, and
for DoRA its rows scaled to the stored magnitudes, rounded to the baseline's type as
``merge_and_unload`` rounds them. The execution is not merged: peft runs the adapter beside the
baseline's layers, as servers of adapters do.

An adapter says by name which model it was trained on. Names prove nothing: whether it fits the
baseline is decided by the matrices that it names and by their shapes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from invarlock.errors import InputError, NotACheckpointError
from invarlock.files import read_json_object
from invarlock.formats.kind import Format, Inventory, Package, PackedTensor, Tensors
from invarlock.formats.kinds.pickle import Pickle
from invarlock.formats.kinds.safetensors import Safetensors
from invarlock.formats.packed import DENSE, elements, module_of, sliced, stored_tensor
from invarlock.formats.patterns import require_patterns
from invarlock.loading_faults import LoadingError
from invarlock.shards import DTYPES, TensorInfo, read_shard_header
from invarlock.shipped_files import chosen, is_unread, kind_of, names_in
from invarlock.shown import listed

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor of an adapter
TOKENIZER = "tokenizer.json"
# What ships with a tokenizer: an adapter that brings its own brings all of these or goes without.
OF_TOKENIZERS = ("chat_template", "tokenizer_config", "special_tokens", "tokenizer_files")
# Ways to begin a training that leave the baseline's own weights as they are.
INITIALIZERS = (True, False, "gaussian", "eva", "orthogonal")
# Members of adapter_config.json that change nothing of a trained adapter.
HARMLESS = frozenset({
    "auto_mapping", "revision", "task_type", "inference_mode", "lora_dropout", "peft_version",
    "megatron_core", "loftq_config", "corda_config", "eva_config",
    "lora_ga_config", "qalora_group_size", "ensure_weight_tying", "lora_bias", "runtime_config",
})  # fmt: skip
LISTED = 3  # names in a line


class AdapterConfig(msgspec.Struct):
    """``adapter_config.json`` of a LoRA adapter, as far as it changes what the weights are."""

    r: Annotated[int, msgspec.Meta(ge=1)] = 8
    lora_alpha: float = 8
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, Annotated[int, msgspec.Meta(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    base_model_name_or_path: str | None = None
    peft_type: str = ""

    def scale(self, module: str, rank: int) -> float:
        """What the product of the two matrices of a module is multiplied by."""
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def rank(self, module: str) -> int:
        """The rank that the module has."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def targets(self, module: str) -> bool:
        """Whether the module is one that the adapter changes."""
        if not _named(self.target_modules, module) or _named(self.exclude_modules, module):
            return False
        if self.layers_to_transform is None:
            return True
        layers = self.layers_to_transform
        number = re.search(r"\.(\d+)\.", module)
        wanted = [layers] if isinstance(layers, int) else layers
        return number is not None and int(number[1]) in wanted

    def patterns(self) -> Iterator[str]:
        """All patterns of names, as they are matched."""
        yield from (p for p in (self.target_modules, self.exclude_modules) if isinstance(p, str))
        for patterns in (self.rank_pattern, self.alpha_pattern):
            yield from map(_ending, patterns or ())

    @property
    def kind(self) -> str:
        """What people call this kind."""
        if self.use_dora:
            return "DoRA"
        return "rsLoRA" if self.use_rslora else "LoRA"


def _by_pattern(patterns: Mapping[str, float] | None, module: str, otherwise: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(_ending(pattern), module):
            return value
    return otherwise


def _ending(pattern: str) -> str:
    """The pattern of names that end as another says."""
    return rf"(.*\.)?({pattern})"


def _named(names: list[str] | str | None, module: str) -> bool:
    if isinstance(names, str):  # one pattern
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def read_config(source: Path) -> AdapterConfig:
    """``adapter_config.json`` of a LoRA adapter.

    Raises:
        NotACheckpointError: of another kind, or one that does more than is read here.
        InputError: damaged.
    """
    path = source / CONFIG
    written = read_json_object(path)
    kind = str(written.get("peft_type", ""))
    merge = _merge_hint(source)
    if kind.upper() != "LORA":
        raise NotACheckpointError(
            f"is a PEFT adapter of the kind {kind or 'that it does not name'}, whose weights are"
            " not read here", where=str(source), expected="LORA (with or without rsLoRA or DoRA)",
            hint=merge,
        )  # fmt: skip
    try:
        config = msgspec.convert(written, AdapterConfig)
    except msgspec.ValidationError as error:
        raise InputError(f"not a LoRA configuration: {error}", where=str(path)) from error
    if config.init_lora_weights not in INITIALIZERS:
        raise NotACheckpointError(
            f"init_lora_weights is {config.init_lora_weights}, which changes the baseline's own"
            " weights too", where=str(path), expected="a plain LoRA adapter",
            hint="save it with path_initial_model_for_weight_conversion, or " + merge,
        )  # fmt: skip
    known = {*AdapterConfig.__struct_fields__, *HARMLESS}
    more = sorted(k for k, v in written.items() if v and k not in known)
    if more:
        raise NotACheckpointError(
            f"the adapter sets {more[0]}, which is not read here", where=str(path), hint=merge
        )
    return config


def _merge_hint(source: Path) -> str:
    return (
        "merge it: python -c 'from peft import AutoPeftModelForCausalLM as M;"
        f' M.from_pretrained("{source}").merge_and_unload().save_pretrained("MERGED")\''
        ", copy the tokenizer there, and name MERGED"
    )


@dataclass(frozen=True)
class Change:
    """What an adapter makes of one tensor of the baseline; parts that it lacks are None.

    ``scale``: of the product of B and A, and of ``offset``.
    """

    module: str  # as the adapter calls it
    saved: TensorInfo | None = None  # in place of the baseline's
    a: TensorInfo | None = None
    b: TensorInfo | None = None
    magnitude: TensorInfo | None = None
    offset: TensorInfo | None = None  # added to a bias
    embedding: bool = False
    scale: float = 1.0

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """The stored tensors, in the order of the fields."""
        found = (self.saved, self.a, self.b, self.magnitude, self.offset)
        return tuple(info for info in found if info is not None)


@dataclass(frozen=True)
class Adapted(TensorInfo):
    """A tensor that an adapter changes: ``begin`` and ``end`` count bytes of its values."""

    change: Change
    base: TensorInfo


@dataclass(frozen=True)
class Bound:
    """An adapter with the baseline that it is read beside."""

    source: Path
    baseline: Path
    held: Inventory  # of the baseline, which is dense
    config: AdapterConfig

    @cached_property
    def stored(self) -> dict[str, TensorInfo]:
        """The adapter's own tensors."""
        return read_shard_header(self.source / WEIGHTS).tensors

    @cached_property
    def changes(self) -> dict[str, Change]:
        """What becomes of which tensor of the baseline.

        Raises:
            NotACheckpointError: the adapter is of another model.
            InputError: a part of it is missing.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, info in sorted(self.stored.items()):
            module, part, path = _split(name, str(self.source / WEIGHTS))
            row = found.setdefault(self._target(path, module), {"module": module})
            row[part] = info
            row["embedding"] = row.get("embedding", False) or ".lora_embedding_" in name
        for target, row in found.items():
            self._refuse_resized(target, row.get("saved"))
            self._refuse_tied(target, row["module"])
        return {target: self._change(target, Change(**row)) for target, row in found.items()}

    def _target(self, path: str, module: str) -> str:
        """The baseline's tensor that the adapter calls ``path``; classes put words before names."""
        names = self.held.tensors
        if path in names:
            return path
        alike = [n for n in names if path.endswith(f".{n}") or n.endswith(f".{path}")]
        if len(alike) == 1:
            return alike[0]
        if module.rpartition(".")[2] == "lm_head":
            self._refuse_resized("", self.stored.get(f"{PREFIX}{path}"))
            raise self._two_models(module)
        raise self._another(f"changes {module}, which is not there")

    def _change(self, target: str, change: Change) -> Change:
        """With its scale, once the shapes are known to fit."""
        base = self.held.tensors[target]
        for part in (change.saved, change.offset):
            if part is not None and part.shape != base.shape:
                raise self._another(f"has {_shape(part.shape)} for {change.module}", base)
        rank = self.config.rank(change.module)
        scaled = replace(change, scale=self.config.scale(change.module, rank))
        if change.a is None and change.b is None and change.magnitude is None:
            return scaled
        where = str(self.source / WEIGHTS)
        dora = self.config.use_dora
        if change.a is None or change.b is None or (change.magnitude is None) is dora:
            held = [part.name.rpartition(f"{change.module}.")[2] for part in change.parts]
            raise InputError(
                f"a part of the adapter of {change.module} is missing", where=where,
                expected="A, B" + (" and a magnitude" if dora else ""),
                found=", ".join(held),
                hint="copy or download the folder again",
            )  # fmt: skip
        a, b = change.a.shape, change.b.shape
        if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
            raise InputError(
                f"the matrices of {change.module} have another rank than {CONFIG} says",
                where=where, expected=str(rank), found=f"{_shape(a)} and {_shape(b)}",
            )  # fmt: skip
        shape = (b[0], a[1])
        if self.transposed(change):
            shape = shape[::-1]
        if shape != base.shape:
            raise self._another(f"is for {_shape(shape)} at {change.module}", base)
        of_rows = base.shape[1 if self.transposed(change) else 0]
        if change.magnitude is not None and change.magnitude.shape != (of_rows,):
            found = _shape(change.magnitude.shape)
            raise self._another(f"has magnitudes of {found} for {change.module}", base)
        return scaled

    def transposed(self, change: Change) -> bool:
        """Whether the baseline's matrix is (inputs, outputs), as embeddings are."""
        return change.embedding or self.config.fan_in_fan_out

    def _refuse_resized(self, target: str, saved: TensorInfo | None) -> None:
        """A table of more tokens than the baseline has, or of fewer."""
        config = read_json_object(self.baseline / "config.json")
        rows, base = config.get("vocab_size"), self.held.tensors.get(target)
        if saved is None or len(saved.shape) != 2 or saved.shape[0] == rows:
            return
        if base is not None and (base.shape[0] != rows or base.shape[1:] != saved.shape[1:]):
            return
        raise NotACheckpointError(
            f"the adapter was trained with a vocabulary of {saved.shape[0]} tokens, the baseline"
            f" has {rows}", where=str(self.source),
            hint="merge it: python -c 'from transformers import AutoModelForCausalLM as A; from"
            f' peft import PeftModel as P; m = A.from_pretrained("{self.baseline}");'
            f" m.resize_token_embeddings({saved.shape[0]});"
            f' P.from_pretrained(m, "{self.source}").merge_and_unload().save_pretrained("MERGED")\''
            ", copy the adapter's tokenizer there, and name MERGED",
        )  # fmt: skip

    def _refuse_tied(self, target: str, module: str) -> None:
        """An embedding that is the head too: merged both change, not merged only one does."""
        config, base = read_json_object(self.baseline / "config.json"), self.held.tensors[target]
        rows = config.get("vocab_size")
        tables = [i for i in self.held.tensors.values() if len(i.shape) == 2 and i.shape[0] == rows]
        tied = config.get("tie_word_embeddings", len(tables) == 1)
        if tied and len(base.shape) == 2 and base.shape[0] == rows:
            raise self._two_models(module)

    def _two_models(self, module: str) -> NotACheckpointError:
        return NotACheckpointError(
            f"the adapter changes {module}, and the baseline has one matrix for embedding and"
            " head: merged and not merged are two models", where=str(self.source),
            hint=_merge_hint(self.source),
        )  # fmt: skip

    def _another(self, what: str, base: TensorInfo | None = None) -> NotACheckpointError:
        named = self.config.base_model_name_or_path
        return NotACheckpointError(
            f"is an adapter of another model than the baseline: it {what}", where=str(self.source),
            expected=f"{base.name} of {_shape(base.shape)}" if base else "the baseline's modules",
            hint="name the baseline that it was trained on" + (f" ({named})" if named else ""),
        )  # fmt: skip

    def values(self, info: Adapted) -> torch.Tensor:
        """The merged values, as ``merge_and_unload`` of the baseline as it is stored has them."""
        import torch

        change = info.change
        base = stored_tensor(self.baseline, info.base)
        dtype = base.dtype
        if change.saved is not None:
            base = stored_tensor(self.source, change.saved).to(dtype)
        if change.offset is not None:
            offset = stored_tensor(self.source, change.offset).float() * change.scale
            base = (base.float() + offset).to(dtype)
        if change.a is None or change.b is None:
            return base
        a, b = (stored_tensor(self.source, part).float() for part in (change.a, change.b))
        added = (b @ a).T * change.scale if self.transposed(change) else b @ a * change.scale
        if change.magnitude is None:
            if change.embedding:  # peft rounds what it adds to these first
                added = added.to(dtype)
            # a zero that is added would change the sign of a zero
            return torch.where(added == 0, base, (base + added).to(dtype))
        merged = base.float() + added
        along = 0 if self.transposed(change) else 1
        magnitude = stored_tensor(self.source, change.magnitude).float()
        factor = (magnitude / merged.norm(dim=along)).unsqueeze(along)
        values: torch.Tensor = (factor * merged).to(dtype)
        return values


def _split(name: str, where: str) -> tuple[str, str, str]:
    """Module, part of a :class:`Change` and name of the baseline's tensor of a stored name."""
    if name.startswith(PREFIX):
        plain = name.removeprefix(PREFIX)
        for pattern, part, kind in PARTS:
            if found := pattern.fullmatch(plain):
                return found[1], part, f"{found[1]}.{kind or found[2]}"
    raise InputError(f"{name} is no tensor of a LoRA adapter", where=where)


PARTS = tuple(
    (re.compile(pattern), part, kind)
    for pattern, part, kind in (
        (r"(.+)\.lora_(?:A\.weight|embedding_A)", "a", "weight"),
        (r"(.+)\.lora_(?:B\.weight|embedding_B)", "b", "weight"),
        (r"(.+)\.lora_B\.bias", "offset", "bias"),
        (r"(.+)\.lora_magnitude_vector(?:\.weight)?", "magnitude", "weight"),
        (r"((?!.*\.lora_).+?)(?:\.base_layer)?\.(weight|bias)", "saved", ""),
    )
)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


class Peft(Format):
    """``adapter_config.json`` and ``adapter_model.safetensors``, without weights of a model."""

    name: ClassVar[str] = "peft"
    order: ClassVar[int] = 20
    packed: ClassVar[bool] = True
    title: ClassVar[str] = "PEFT adapter"
    configured: ClassVar[bool] = False
    packages: ClassVar[tuple[Package, ...]] = (Package("peft", "peft"),)

    def __init__(self, bound: Bound | None = None) -> None:
        self._bound = bound

    @property
    def bound(self) -> Bound:
        """What :meth:`beside` found."""
        if self._bound is None:
            raise AssertionError("an adapter is read beside its baseline")
        return self._bound

    def files(self, names: Collection[str]) -> set[str]:
        whole = Safetensors().files(names) or Pickle().files(names)
        return {WEIGHTS} if {CONFIG, WEIGHTS} <= set(names) and not whole else set()

    def beside(self, source: Path, baseline: Path | None) -> Format:
        config = read_config(source)
        if baseline is None:
            base = config.base_model_name_or_path
            raise NotACheckpointError(
                f"is a PEFT adapter ({config.kind})" + (f" of {base}" if base else "")
                + ", which is read beside a baseline alone", where=str(source),
                hint="name it as the subject of the model that it was trained on; or "
                + _merge_hint(source),
            )  # fmt: skip
        if not DENSE.files(os.listdir(baseline)):
            raise NotACheckpointError(
                "an adapter is read beside a dense baseline", where=str(baseline),
                expected="safetensors",
            )  # fmt: skip
        bound = Bound(source, baseline, DENSE.inventory(baseline), config)
        modules = map(module_of, (*bound.stored, *bound.held.tensors))
        require_patterns(config.patterns(), modules, str(source / CONFIG))
        return Peft(bound)

    def small_files(self, source: Path, baseline: Path | None, folder: Path) -> None:
        own = chosen(names_in(source), False) | ({TOKENIZER} & names_in(source))
        brings = TOKENIZER in own or "tokenizer_files" in map(kind_of, own)
        for name in sorted(names_in(self.bound.baseline)):
            of_tokenizer = name == TOKENIZER or kind_of(name) in OF_TOKENIZERS
            if not (name in own or is_unread(name) or (brings and of_tokenizer)):
                _link(self.bound.baseline / name, folder / name)
        for name in sorted(own):
            _link(source / name, folder / name)

    def inventory(self, folder: Path) -> Inventory:
        bound, changes = self.bound, self.bound.changes
        tensors: dict[str, TensorInfo] = dict(bound.held.tensors)
        packed = {}
        for name, change in sorted(changes.items()):
            base = tensors[name]
            tensors[name] = Adapted(
                name=name, dtype=base.dtype, shape=base.shape, file=base.file, begin=0,
                end=DTYPES[base.dtype][0] * elements(base.shape), change=change, base=base,
            )  # fmt: skip
            low = f"{bound.config.kind}, rank {change.a.shape[0]}" if change.a else "saved whole"
            packed[name] = PackedTensor(
                name=name, dtype=base.dtype, shape=base.shape,
                parts=tuple(part.name for part in change.parts), scheme=low,
                bits=8.0 * DTYPES[change.parts[0].dtype][0],
                stored_bytes=sum(part.nbytes for part in change.parts),
            )  # fmt: skip
        return Inventory(tensors, (CONFIG, WEIGHTS), {}, packed)

    def chunks(self, folder: Path, info: TensorInfo, size: int) -> Iterator[memoryview]:
        if isinstance(info, Adapted):
            yield from sliced(self.bound.values(info), info, size)
        else:
            yield from DENSE.chunks(self.bound.baseline, info, size)

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        config, changes = self.bound.config, self.bound.changes
        if config.target_modules != "all-linear":
            low_rank = {change.module for change in changes.values() if change.a}
            stray = sorted(module for module in low_rank if not config.targets(module))
            if stray:
                names = listed(stray, LISTED)
                yield f"{CONFIG} does not target what the adapter has weights for: {names}"
            found = baseline.tensors.items()
            matrices = (n for n, i in found if len(i.shape) == 2 and n not in changes)
            modules = (n.removesuffix(".weight") for n in matrices if n.endswith(".weight"))
            lacking = sorted(filter(config.targets, modules))
            if lacking:
                names = listed(lacking, LISTED)
                yield f"{CONFIG} targets what the adapter has no weights for: {names}"
        changed = [name.rpartition(".")[0] for name in changes]
        for name in config.modules_to_save or ():
            if not any(_named([name], module) for module in changed):
                yield f"{CONFIG} says that {name} is saved, and the adapter does not hold it"

    def notes(self, source: Path, baseline: Path) -> Iterator[str]:
        named = (self.bound.config.base_model_name_or_path or "").rstrip("/").rpartition("/")[2]
        if named and named.lower() not in str(baseline.resolve().name).lower():
            yield (
                f"the adapter names {named} as its model; the matrices that it changes are those of"
                " the baseline by name and shape, which is what counts here"
            )

    def loaded(self, model: Any, source: Path) -> Any:
        """The model with the adapter beside its layers, not merged."""
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(model, str(source))
        lost = sorted(self.bound.stored.keys() - _held(adapted))
        if lost:
            raise LoadingError(
                f"peft does not load {len(lost)} of the adapter's tensors: {listed(lost, LISTED)}",
                where=str(source),
            )
        plain = adapted.get_base_model()
        for module in plain.modules():
            inner = getattr(module, "base_layer", None) or _saved_in(module)
            if inner is not None:
                # hooks find a layer by the parameters that it owns; what peft puts in its place
                # owns none, and shows what the layer inside and the adapter write together
                module._parameters.update(inner._parameters)
        return plain


def _saved_in(module: Any) -> Any:
    """The module that a wrapper of peft runs in place of the baseline's; None where it is none."""
    saved = getattr(module, "modules_to_save", None)
    return saved["default"] if saved is not None and "default" in saved else None


def _held(adapted: Any) -> set[str]:
    """The parameters of peft's model, by the names that adapters are stored under."""
    names = {name.replace(".default", "") for name, _ in adapted.named_parameters()}
    names |= {name.replace(".modules_to_save", "") for name in names}
    return names | {name.replace("magnitude_vector.weight", "magnitude_vector") for name in names}


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target.resolve())
