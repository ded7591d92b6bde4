"""From an injector to the change of the checkpoint that it means; nothing is written here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.damage import kernels
from invarlock.damage.probes import probe_change, settle_probe
from invarlock.damage.specs import (
    Damage,
    ExtremeQuant,
    InfInjection,
    MissingTensors,
    NanInjection,
    NormCollapse,
    Rank1Projection,
    RankCollapse,
    RmtNormNoise,
    ScaleExplosion,
    ShapeMismatch,
    SpectralModerateScale,
    VeMlpScaleSkew,
    WeightTyingBreak,
)
from invarlock.damage.targets import (
    all_matrices,
    block_matrices,
    feed_forward_or_any,
    layer_count,
    projection_matrix,
    required_architecture,
    vocabulary_tensors,
)
from invarlock.edits.apply import Kernel, rewritten_matrices, tensor_seed
from invarlock.edits.blocks import Loss
from invarlock.edits.lowrank_svd import low_rank_
from invarlock.edits.stream import Change, NewTensor
from invarlock.errors import ConfigError, InputError
from invarlock.roles import Role, is_tied, layer_of, role_of
from invarlock.shards import DTYPES


def settle(baseline: Checkpoint, damage: Damage) -> Damage:
    """The injector with the defaults that depend on the model made explicit."""
    if isinstance(damage, RmtNormNoise):
        return settle_probe(damage)
    if not isinstance(damage, Rank1Projection):
        return damage
    known = required_architecture(baseline)
    return Rank1Projection(
        projection=damage.projection or known.ffn_output,
        layer=layer_count(baseline) // 2 if damage.layer < 0 else damage.layer,
    )


def plan_change(baseline: Checkpoint, damage: Damage, seed: int) -> Change:
    """The change that a settled ``damage`` means.

    Raises:
        ConfigError: the checkpoint has no target for it.
        InputError: the checkpoint is too small, or its configuration does not fit its tensors.
    """
    match damage:
        case ShapeMismatch(extra_rows=extra):
            return _more_rows(baseline, extra)
        case MissingTensors(layers=layers):
            return _fewer_layers(baseline, layers)
        case WeightTyingBreak():
            return _other_tying(baseline)
        case RmtNormNoise() | SpectralModerateScale() | VeMlpScaleSkew():
            return probe_change(baseline, damage)
    targets, kernel = _targets_and_kernel(baseline, damage, seed)
    # Single elements and one projection: of a stack of experts only the first is meant.
    one = isinstance(damage, NanInjection | InfInjection | Rank1Projection)
    return Change(
        {i.name: rewritten_matrices(baseline, i, kernel, Loss(), only_first=one) for i in targets}
    )


def _targets_and_kernel(
    baseline: Checkpoint, damage: Damage, seed: int
) -> tuple[list[TensorInfo], Kernel]:
    match damage:
        case NanInjection():
            return block_matrices(baseline)[:1], lambda m: kernels.poke_(m, float("nan"))
        case InfInjection():
            first = block_matrices(baseline, Role.ATTN)[:1]
            return first, lambda m: kernels.poke_(m, float("inf"))
        case ExtremeQuant():
            return all_matrices(baseline), kernels.two_bits_
        case ScaleExplosion(factor=factor):
            return feed_forward_or_any(baseline)[:1], lambda m: kernels.scale_(m, factor)
        case RankCollapse(matrices=count) | NormCollapse(matrices=count):
            collapse = isinstance(damage, RankCollapse)
            kernel = kernels.outer_of_first_ if collapse else kernels.zero_
            return block_matrices(baseline, Role.ATTN)[:count], kernel
        case Rank1Projection(projection=projection, layer=layer):
            info = projection_matrix(baseline, projection, layer)
            own_seed = tensor_seed(seed, info.name)
            return [info], lambda m: low_rank_(m, 1, own_seed)
    raise ConfigError(f"{damage.error_type} has no arithmetic")


def _more_rows(baseline: Checkpoint, extra: int) -> Change:
    """``extra`` zero rows for every tensor with one row per token."""
    replaced = {}
    for info in vocabulary_tensors(baseline):
        zeros = bytes(extra * info.numel // info.shape[0] * DTYPES[info.dtype][0])
        shape = (info.shape[0] + extra, *info.shape[1:])
        replaced[info.name] = NewTensor(info.dtype, shape, _Padded(baseline, info.name, zeros))
    config = {**baseline.config, "vocab_size": baseline.config["vocab_size"] + extra}
    return Change(replaced, config=config)


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A tensor's bytes followed by ``zeros``."""

    source: Checkpoint
    name: str
    zeros: bytes

    def __call__(self) -> Iterable[bytes | memoryview]:
        return itertools.chain(self.source.chunks(self.name), [self.zeros])


def _fewer_layers(baseline: Checkpoint, layers: int) -> Change:
    """The last blocks dropped; layer count and per-layer lists shortened."""
    key = required_architecture(baseline).layer_count
    count = baseline.config.get(key)
    if count != layer_count(baseline):
        raise InputError(
            f"/{key} is {count!r}, but the tensors form {layer_count(baseline)} layers",
            where=str(baseline.folder / "config.json"),
        )
    left = count - layers
    if left < 1:
        raise ConfigError(
            f"{layers} of {count} layers cannot be dropped",
            where=str(baseline.folder),
            expected="at least one layer to be left",
        )
    dropped = frozenset(n for n in baseline.tensors if (layer_of(n) or 0) >= left)
    config: dict[str, Any] = {**baseline.config, key: left}
    for name, value in baseline.config.items():
        if "layer" in name and isinstance(value, list) and len(value) == count:
            config[name] = value[:left]
    return Change(dropped=dropped, config=config)


def _other_tying(baseline: Checkpoint) -> Change:
    """Tied: the head gets a tensor of its own. Untied: the head's tensor goes."""
    head = required_architecture(baseline).head
    embedding = next(
        info
        for info in vocabulary_tensors(baseline)
        if role_of(info.name, baseline.config) is Role.EMBED
    )
    config = {**baseline.config, "tie_word_embeddings": not is_tied(baseline.config)}
    if is_tied(baseline.config):
        clone = NewTensor(embedding.dtype, embedding.shape, lambda: baseline.chunks(embedding.name))
        if head in baseline.tensors:
            return Change({head: clone}, config=config)
        return Change(added={head: (embedding.file, clone)}, config=config)
    if head not in baseline.tensors:
        raise InputError(
            f"no tensor {head}, though the configuration says it is not tied",
            where=str(baseline.folder),
        )
    return Change(dropped=frozenset({head}), config=config)
