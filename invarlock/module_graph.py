"""What each tensor of a model is for, found from the modules that the library builds.

The model of a ``config.json`` is built on the meta device: modules and shapes, no weights. What a
tensor is for follows from where its module stands and what it maps:

* the embedding and the head are those that the model says are its own;
* the layers are the items of the outermost module lists, those of towers for images or sound left
  out (their models say that they take no tokens);
* in a layer, a module without children whose weight is a vector is a norm;
* a module that holds a convolution along the tokens, or the decay of a state, is a mixer;
* a stack of matrices, or a list of modules of one kind inside a feed-forward block, holds experts;
  the matrix beside it with a row for each of them is the router;
* attention cannot be told from a feed-forward block by shapes (both go from the residual stream and
  back), and is told by what its class is called;
* every other linear map of a layer is feed-forward.

The projection that leaves a block is the last one registered whose outputs are as wide as the
residual stream. Only what a run or an edit needs is built here: the verifier reads roles from
reports.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from invarlock.architecture import Architecture, Role
from invarlock.library_classes import CAUSAL, classes_of, loader_of
from invarlock.library_log import quiet

if TYPE_CHECKING:
    import torch

# Configuration keys that hold a number of layers.
LAYER_COUNTS = (
    "num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "n_layers",
    "decoder_layers", "num_blocks", "num_layers_per_stack",
)  # fmt: skip
# Words of class names: what structure cannot tell.
_ATTENTION = re.compile(r"Attention|Attn|MLA$|MoA$")
_MIXER = re.compile(r"Mamba|Mixer|Recurrent|DeltaNet|LSTMLayer|ShortConv|Rglru")
_FEED_FORWARD = re.compile(r"MLP$|Mlp$|FeedForward$|FFN$|Intermediate$|MoE$|Moe")
_ROUTER = re.compile(r"Router|Gating|Gate$")
_EXPERTS = re.compile(r"Experts?(?:GLU)?$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, an expert, an item of a list
# Parameters of a state-space or other recurrent mixer.
_STATE = frozenset({"A_log", "dt_bias", "time_decay", "recurrent_param"})
_BLOCKS = (Role.ATTN, Role.MIXER, Role.FFN, Role.EXPERT)


@dataclass(frozen=True)
class _Found:
    """One parameter of the model, by the model's name."""

    name: str
    role: Role
    transposed: bool = False
    leaves: bool = False  # its outputs are the residual stream's


def architecture_from_modules(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a ``config.json``; None where the library has no model for it.

    The result is kept: to build a large model takes seconds even without weights.
    """
    return _built(json.dumps(config, sort_keys=True, default=str))


@functools.lru_cache(maxsize=8)
def _built(config: str) -> Architecture | None:
    model = meta_model(json.loads(config))
    return None if model is None else describe(model)


def meta_model(config: Mapping[str, Any]) -> Any:
    """The model of a ``config.json`` without weights, as it is loaded; None where there is none.

    Code that comes with a checkpoint is not run.
    """
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, loader = config.get("model_type"), loader_of(config, CAUSAL)
    if kind not in classes_of(loader) or kind not in CONFIG_MAPPING:
        return None
    quiet()  # to build it loads packages that write what they like
    values = {k: _floats(v) for k, v in config.items() if k not in ("model_type", "auto_map")}
    try:
        # the meta device as context: whatever the class makes while it is built has no storage
        with torch.device("meta"):
            build: Any = getattr(transformers, loader)
            return build.from_config(AutoConfig.for_model(str(kind), **values))
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError,
            StrictDataclassError):  # fmt: skip
        return None  # what keeps it from being built is said where the model is loaded


def _floats(value: Any) -> Any:
    """A value of ``config.json`` in which the library's form of infinity and NaN is read."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: _floats(inner) for key, inner in value.items()}
    return [_floats(inner) for inner in value] if isinstance(value, list) else value


def _more_rows(model: Any) -> int:
    """Rows that the class itself adds to the embedding of the tokens: for pictures, for silence."""
    rows = getattr(getattr(model.get_input_embeddings(), "weight", None), "shape", (0,))[0]
    declared = getattr(model.config.get_text_config(), "vocab_size", None)
    return max(0, rows - declared) if isinstance(declared, int) else 0


def describe(model: Any) -> Architecture:
    """What the tensors of a built model mean, under the names that its files have."""
    found = list(_parameters(model))
    stored = [(name, entry) for entry in _one_of_each(found) for name in _stored(model, entry)]
    patterns = _patterns(stored, model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    table = f"{names.get(id(embedding), '')}.weight"
    token_table = {table, _as_stored(model, table)}  # files may call it otherwise
    tied = head is not None and getattr(head, "weight", 0) is getattr(embedding, "weight", 1)
    others = [n for n, e in stored if e.role is Role.EMBED and n not in token_table]
    norms = [n for n, e in stored if e.role is Role.NORM and not re.search(r"\.\d+\.", n)]
    weights = [n for n in norms if n.endswith("weight")]
    return Architecture(
        patterns=patterns,
        head=_as_stored(model, f"{names.get(id(head), 'lm_head')}.weight"),
        tied_by_default=tied,
        layer_count=_layer_count(model.config),
        more_rows=_more_rows(model),
        ffn_output=_output_name(stored, (Role.FFN, Role.EXPERT)) or _output_name(stored, _BLOCKS),
        attn_outputs=tuple(_output_names(stored, (Role.ATTN, Role.MIXER))),
        last_norm=_pattern(weights[-1], model) if weights else "",
        other_tables="|".join(_pattern(name, model) for name in others),
        transposed="|".join(sorted({_pattern(n, model) for n, e in stored if e.transposed})),
    )  # fmt: skip


# --- from modules to roles ----------------------------------------------------------------------


def _parameters(model: Any) -> Iterator[_Found]:
    """Every parameter with what it is for; a shared one under its first name."""
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    width = _width(model, embedding)
    seen: set[int] = set()

    def walk(module: Any, name: str) -> Iterator[_Found]:
        """Outside the layers."""
        from torch.nn import ModuleList

        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield _Found(f"{name}{key}", _outside(module, parameter, head))
        for key, child in module.named_children():
            if _is_tower(child, embedding):
                continue
            if isinstance(child, ModuleList) and _matrices(child):
                for number, layer in enumerate(child):
                    yield from _layer(layer, f"{name}{key}.{number}.", width, seen)
            else:
                yield from walk(child, f"{name}{key}.")

    yield from walk(model, "")


def _is_tower(module: Any, embedding: Any) -> bool:
    """Whether a module is for images or sound: it says that it takes no tokens, and has no table
    of them (Whisper's decoder says what its encoder takes)."""
    takes = getattr(module, "main_input_name", "input_ids")
    return takes not in ("input_ids", "inputs_embeds") and not any(
        inner is embedding for inner in module.modules()
    )


def _width(model: Any, embedding: Any) -> int:
    """Width of the residual stream: the commonest width of a norm, else the embedding's."""
    from torch.nn import ModuleList

    widths: Counter[int] = Counter()
    for module in model.modules():
        if isinstance(module, ModuleList):
            for layer in module:
                norms: list[Any] = [child for child in layer.children() if _is_norm(child)]
                widths.update(len(norm.weight) for norm in norms)
    if widths:
        return widths.most_common(1)[0][0]
    return int(embedding.weight.shape[-1]) if hasattr(embedding, "weight") else 0


def _outside(module: Any, parameter: torch.Tensor, head: Any) -> Role:
    """The role of a parameter outside the layers."""
    from torch.nn import Embedding

    if head is not None and any(parameter is own for own in head.parameters()):
        # a tied head is the embedding, which stands first
        return Role.EMBED if isinstance(module, Embedding) else Role.HEAD
    if isinstance(module, Embedding) or "Embedding" in type(module).__name__:
        return Role.EMBED if parameter.ndim == 2 else Role.OTHER
    return Role.NORM if _is_norm(module) else Role.OTHER


def _layer(layer: Any, prefix: str, width: int, seen: set[int]) -> Iterator[_Found]:
    """The parameters of one layer."""
    experts = _expert_count(layer)
    found: list[_Found] = []

    def walk(module: Any, name: str, role: Role | None, block: bool, router: bool = False) -> None:
        """``role``: of the block around it; ``block``: whether experts are near; ``router``:
        whether it is the matrix of one."""
        from torch.nn import Embedding, ModuleList

        norm = _is_norm(module)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            mine = Role.NORM if norm else role
            leaf = key in ("weight", "bias") and not isinstance(module, Embedding)
            if role is Role.EXPERT:
                stacked = any(p.ndim == 3 for p in module.parameters(recurse=False))
                # beside stacks of matrices, what has an axis less is their biases
                mine = Role.EXPERT if parameter.ndim == (3 if stacked else 2) else Role.OTHER
            elif (
                not norm
                and experts
                and role is not Role.MIXER
                and (router or _routes(module, parameter, experts, block and role is Role.FFN))
            ):
                mine = Role.ROUTER
            elif not norm and (not leaf or parameter.ndim > 2):
                mine = Role.OTHER  # a state's decay, a kernel, a scale of its own
            elif mine is None:
                # in no block, a map between other widths than the stream's mixes copies of it
                mixes = parameter.ndim == 2 and width not in parameter.shape
                mine = Role.OTHER if mixes else Role.FFN
            found.append(
                _Found(f"{name}{key}", mine, _is_transposed(module, key, parameter, width),
                       _leaves(module, key, parameter, width))
            )  # fmt: skip
        for key, child in module.named_children():
            inner = role
            if role is not Role.EXPERT:
                inner = _block_role(child, role)
                if _holds_experts(child, experts, role):
                    inner = Role.EXPERT
            walk(
                child,
                f"{name}{key}.",
                inner,
                block or isinstance(child, ModuleList) or bool(experts and inner is Role.FFN),
                _is_router_matrix(module, child, experts),
            )

    walk(layer, prefix, None, False)
    yield from found


def _block_role(module: Any, around: Role | None) -> Role | None:
    """The role that a module gives to what it holds; that of the block around it by default."""
    from torch.nn import Conv1d

    if around in (Role.ATTN, Role.MIXER):
        return around
    kind = type(module).__name__
    state = any(name in _STATE for name, _ in module.named_parameters(recurse=False))
    if state or any(isinstance(child, Conv1d) for child in module.children()):
        return (
            Role.ATTN
            if kind.endswith("SelfAttention")
            and not _matrices_of_convolutions(module)
            and not state
            else Role.MIXER
        )
    if _ATTENTION.search(kind):  # first: the name of a model of mixtures has "Moe" in every class
        return Role.ATTN
    if _FEED_FORWARD.search(kind):
        return Role.FFN
    if _MIXER.search(kind) and not re.search(r"(?:Layer|Block)$", kind.replace("LSTMLayer", "")):
        return Role.MIXER
    return around


def _matrices_of_convolutions(module: Any) -> bool:
    from torch.nn import Conv1d

    return any(isinstance(c, Conv1d) and c.kernel_size[0] > 1 for c in module.children())


def _holds_experts(module: Any, experts: int, around: Role | None) -> bool:
    """Whether a module of a feed-forward block is the stack or the list of the experts."""
    from torch.nn import ModuleList

    if not experts or around is Role.MIXER:
        return False
    if isinstance(module, ModuleList):
        return len(module) == experts and around is not Role.ATTN and bool(_matrices(module))
    own = [p for _, p in module.named_parameters(recurse=False) if p.ndim == 3]
    return any(p.shape[0] == experts for p in own) or bool(_EXPERTS.search(type(module).__name__))


def _expert_count(layer: Any) -> int:
    """How many experts a layer has: the length of its stacks or lists of matrices; 0 for none."""
    from torch.nn import ModuleList

    for module in layer.modules():
        kind = type(module).__name__
        own = [p for _, p in module.named_parameters(recurse=False)]
        stacks = [p.shape[0] for p in own if p.ndim == 3 and min(p.shape) > 1]
        if stacks and ("Expert" in kind or "MoE" in kind or "Moe" in kind):
            # of stacks that differ, the shorter: a router may also choose experts that do nothing
            return int(min(stacks))
        if (
            isinstance(module, ModuleList)
            and len(module) > 1
            and _FEED_FORWARD.search(type(module[0]).__name__)
        ):
            return len(module)
        for key in ("num_experts", "moe_num_experts"):
            if "Expert" in kind and isinstance(getattr(module, key, None), int):
                return int(getattr(module, key))
    return 0


def _routes(module: Any, parameter: torch.Tensor, experts: int, block: bool) -> bool:
    """Whether a parameter beside the experts is a matrix with a row for each, or its bias."""
    if _ROUTER.search(type(module).__name__):
        return parameter.shape[0] >= experts and parameter.ndim < 3
    # as many rows as experts is no sign of its own: of eight experts, a key projection may have as
    # many; so only what stands in the block that holds them
    return block and parameter.shape[0] == experts and parameter.ndim < 3


def _is_router_matrix(router: Any, child: Any, experts: int) -> bool:
    """Whether a router's one linear map is this: with rows for experts that do nothing, too."""
    from torch.nn import Linear

    return (
        bool(_ROUTER.search(type(router).__name__))
        and isinstance(child, Linear)
        and sum(isinstance(other, Linear) for other in router.modules()) == 1
        and len(child.weight) >= experts
    )


def _is_norm(module: Any) -> bool:
    """Whether a module scales features: no children, and a weight that is a vector."""
    weight: Any = getattr(module, "weight", None)
    return (
        getattr(weight, "ndim", 0) == 1
        and next(module.children(), None) is None
        and {name for name, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"}
        and len(weight) > 1
    )


def _matrices(module: Any) -> int:
    """How many parameters with two or three axes a module holds."""
    return sum(p.ndim in (2, 3) for p in module.parameters())


def _is_transposed(module: Any, key: str, parameter: torch.Tensor, width: int) -> bool:
    """Whether a matrix is stored (inputs, outputs): a Conv1D, or a stack whose first goes in so."""
    if type(module).__name__ == "Conv1D":
        return key == "weight"
    stacks = [(k, p) for k, p in module.named_parameters(recurse=False) if p.ndim == 3]
    if parameter.ndim != 3 or len(stacks) < 2 or parameter.shape[1] == parameter.shape[2]:
        return False
    if key == stacks[-1][0]:  # the last one goes out
        return parameter.shape[2] == width
    return parameter.shape[1] == width


def _leaves(module: Any, key: str, parameter: torch.Tensor, width: int) -> bool:
    """Whether a matrix maps into the residual stream from something of another width, or may."""
    if parameter.ndim < 2:
        return False
    outputs = -1 if _is_transposed(module, key, parameter, width) else -2
    return int(parameter.shape[outputs]) == width


# --- names ---------------------------------------------------------------------------------------


def _one_of_each(found: list[_Found]) -> list[_Found]:
    """One of the parameters whose names differ in numbers only, and whose roles are the same."""
    kinds = {(_NUMBER.sub("#", f.name), f.role, f.transposed): f for f in reversed(found)}
    return list(reversed(kinds.values()))


def _stored(model: Any, entry: _Found) -> list[str]:
    """The names of a parameter in the model and, where they are others, in its files."""
    return list(dict.fromkeys((entry.name, *_reverted(model, entry.name))))


def _as_stored(model: Any, name: str) -> str:
    return next(iter(_reverted(model, name)), name)


def _reverted(model: Any, name: str) -> list[str]:
    from transformers.core_model_loading import revert_weight_conversion

    parameter = dict(model.named_parameters(remove_duplicate=False)).get(name)
    if parameter is None:
        return []
    try:
        return list(revert_weight_conversion(model, {name: parameter.detach()}))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError):
        return []  # several tensors make one: its name in the model is all there is


def _pattern(name: str, model: Any) -> str:
    """A pattern of names that differ in numbers only, with or without the base model's prefix."""
    text = _NUMBER.sub("@", name)
    prefix = f"{model.base_model_prefix}."
    optional = len(prefix) > 1 and text.startswith(prefix)
    plain = re.escape(text.removeprefix(prefix) if optional else text).replace("@", r"\d+")
    return f"(?:{re.escape(prefix)})?{plain}" if optional else plain


def _patterns(stored: list[tuple[str, _Found]], model: Any) -> tuple[tuple[Role, str], ...]:
    """Role and pattern of every name, the first of two roles of one pattern deciding."""
    roles: dict[str, Role] = {}
    for name, entry in stored:
        roles.setdefault(_pattern(name, model), entry.role)
    return tuple((role, text) for text, role in roles.items() if role is not Role.OTHER)


def _output_names(stored: list[tuple[str, _Found]], roles: tuple[Role, ...]) -> list[str]:
    """Ends of the names of the matrices that leave blocks of these roles, commonest first."""
    last: dict[tuple[str, Role], str] = {}
    for name, entry in stored:
        if entry.role in roles and entry.leaves and re.search(r"\.\d+\.", name):
            stem = re.sub(r"\d+", "#", name.rpartition(".")[0].rpartition(".")[0])
            if entry.role is not Role.EXPERT or name.endswith((".weight", "proj")):
                last[(stem if entry.role is not Role.ATTN else "attention", entry.role)] = name
    return list(dict.fromkeys(_ending(name, stored) for name in last.values()))


def _output_name(stored: list[tuple[str, _Found]], roles: tuple[Role, ...]) -> str:
    return next(iter(_output_names(stored, roles)), "")


def _ending(name: str, stored: list[tuple[str, _Found]]) -> str:
    """The shortest end of a name that no matrix of another role has."""
    parts = name.removesuffix(".weight").split(".")
    role = next(entry.role for other, entry in stored if other == name)
    for length in range(1, len(parts)):
        ending = ".".join(parts[-length:])
        others = {
            e.role
            for n, e in stored
            if f".{n.removesuffix('.weight')}".endswith(f".{ending}") and e.role in _BLOCKS
        }
        if others <= {role, Role.EXPERT, Role.FFN} or others == {role}:
            return ending
    return parts[-1]


def _layer_count(config: Any) -> str:
    """The configuration's own key of its number of layers."""
    names = getattr(config, "attribute_map", {})
    mapped = names.get("num_hidden_layers", "num_hidden_layers")
    keys = (mapped, *LAYER_COUNTS)
    return next((key for key in keys if isinstance(vars(config).get(key), int)), mapped)
