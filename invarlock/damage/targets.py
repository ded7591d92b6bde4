"""What an injector hits: the model's matrices in the order of its computation."""

from __future__ import annotations

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.errors import ConfigError, InputError
from invarlock.roles import (
    ARCHITECTURES,
    Architecture,
    Role,
    architecture_of,
    layer_of,
    model_type_of,
    role_of,
)
from invarlock.shards import FLOAT_DTYPES

_ROLE_ORDER = (Role.ATTN, Role.MIXER, Role.ROUTER, Role.EXPERT, Role.FFN)
_PROJECTION_ORDER = (
    "q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "c_fc", "c_proj",
    "query", "key", "value", "dense", "gate_proj", "up_proj", "gate_up_proj", "down_proj",
    "w1", "w2", "w3",
)  # fmt: skip
FUSED_OUTPUT = "down_proj"  # out of the feed-forward block, where experts are fused


def required_architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture's table.

    Raises:
        InputError: there is none for this ``model_type``.
    """
    known = architecture_of(checkpoint.config)
    if known is None:
        raise InputError(
            f"nothing says what the tensors of model_type {model_type_of(checkpoint.config)!r} are",
            where=str(checkpoint.folder / "config.json"),
            expected="a causal model that transformers builds, or one of "
            + ", ".join(ARCHITECTURES),
        )
    return known


def block_matrices(checkpoint: Checkpoint, *roles: Role) -> list[TensorInfo]:
    """Floating-point matrices of the blocks with one of ``roles`` (any without), in model order.

    Raises:
        ConfigError: there is none.
    """
    required_architecture(checkpoint)
    matrices = [
        (role_of(name, checkpoint.config), info)
        for name, info in checkpoint.tensors.items()
        if is_matrix(info) and layer_of(name) is not None
    ]
    found = [info for role, info in matrices if role in (roles or _ROLE_ORDER)]
    if not found and Role.ATTN in roles:  # a mixer stands in attention's place
        found = [info for role, info in matrices if role is Role.MIXER]
    if not found:
        wanted = " or ".join(roles) if roles else "block"
        raise ConfigError(f"the checkpoint has no {wanted} matrix", where=str(checkpoint.folder))
    return sorted(found, key=lambda info: _model_order(info.name, checkpoint))


def all_matrices(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Every floating-point weight matrix, embeddings and head among them, sorted by name.

    Raises:
        ConfigError: there is none.
    """
    required_architecture(checkpoint)
    roles = {Role.EMBED, Role.HEAD, *_ROLE_ORDER}
    found = [
        info
        for name, info in checkpoint.tensors.items()
        if is_matrix(info) and role_of(name, checkpoint.config) in roles
    ]
    if not found:
        raise ConfigError("the checkpoint has no weight matrix", where=str(checkpoint.folder))
    return found


def feed_forward_or_any(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Feed-forward and expert matrices in model order; all block matrices where there are none."""
    found = block_matrices(checkpoint)
    roles = {info.name: role_of(info.name, checkpoint.config) for info in found}
    return [i for i in found if roles[i.name] in (Role.FFN, Role.EXPERT)] or found


def is_matrix(info: TensorInfo) -> bool:
    """Whether the tensor is a floating-point matrix or a stack of matrices."""
    return len(info.shape) in (2, 3) and info.dtype in FLOAT_DTYPES and info.numel > 0


def projection_matrix(checkpoint: Checkpoint, projection: str, layer: int) -> TensorInfo:
    """The matrix of ``projection`` in ``layer``; with several experts, the first one's.

    Raises:
        ConfigError: no such layer or projection.
    """
    in_layer = [info for info in block_matrices(checkpoint) if layer_of(info.name) == layer]
    if not in_layer:
        count = layer_count(checkpoint)
        raise ConfigError(
            f"no layer {layer}", where=str(checkpoint.folder), expected=f"0 to {count - 1}"
        )
    named = [i for i in in_layer if is_named(i.name, projection)]
    # The attention block of BERT and GPT-2 has a projection of the same name.
    named.sort(key=lambda info: role_of(info.name, checkpoint.config) is Role.ATTN)
    if not named:
        raise ConfigError(
            f"no projection {projection!r} in layer {layer}",
            where=str(checkpoint.folder),
            expected="one of " + ", ".join(sorted({_projection(i.name) for i in in_layer})),
        )
    return named[0]


def ffn_output(checkpoint: Checkpoint) -> str:
    """The projection that leaves the feed-forward block, as the checkpoint's layout names it."""
    known = required_architecture(checkpoint).ffn_output
    separate = any(is_named(info.name, known) for info in block_matrices(checkpoint))
    return known if separate else FUSED_OUTPUT


def is_named(tensor_name: str, projection: str) -> bool:
    """Whether the tensor's name ends in ``projection``, itself one or more parts of a name."""
    return f".{tensor_name.removesuffix('.weight')}".endswith(f".{projection}")


def layer_count(checkpoint: Checkpoint) -> int:
    """Number of transformer blocks that the tensors form: of several stacks, of the deepest."""
    return max(map(len, language_stacks(checkpoint).values()), default=0)


def language_stacks(checkpoint: Checkpoint) -> dict[str, set[int]]:
    """The layers of each stack by what its tensors' names begin with; those of a tower for images
    or sound, of which no tensor has a part in the language model, are left out."""
    stacks: dict[str, set[int]] = {}
    spoken: set[str] = set()
    for name in checkpoint.tensors:
        layer = layer_of(name)
        if layer is None:
            continue
        stack = stack_of(name, layer)
        stacks.setdefault(stack, set()).add(layer)
        if role_of(name, checkpoint.config) is not Role.OTHER:
            spoken.add(stack)
    return {stack: layers for stack, layers in stacks.items() if stack in spoken or not spoken}


def stack_of(name: str, layer: int) -> str:
    """What the name of a tensor of this layer begins with, up to the layer's number."""
    return f"{name}.".partition(f".{layer}.")[0]


def vocabulary_tensors(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Embedding and head tensors with one row per token (``vocab_size``).

    Raises:
        InputError: none has as many rows as the configuration says.
    """
    required_architecture(checkpoint)
    rows = checkpoint.config.get("vocab_size")
    found = [
        info
        for name, info in checkpoint.tensors.items()
        if role_of(name, checkpoint.config) in (Role.EMBED, Role.HEAD) and info.shape[:1] == (rows,)
    ]
    if not any(role_of(info.name, checkpoint.config) is Role.EMBED for info in found):
        raise InputError(
            f"no token embedding with vocab_size = {rows} rows", where=str(checkpoint.folder)
        )
    return found


def _projection(name: str) -> str:
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def _model_order(name: str, checkpoint: Checkpoint) -> tuple[int, int, bool, int, str]:
    """Layer, attention before feed-forward, output projections last, then the listed order."""
    projection = _projection(name)
    place = _PROJECTION_ORDER.index(projection) if projection in _PROJECTION_ORDER else 99
    role = _ROLE_ORDER.index(role_of(name, checkpoint.config))
    return layer_of(name) or 0, role, ".output." in name, place, name
