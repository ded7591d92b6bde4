"""From an injector to the change of the checkpoint that it means; nothing is written here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.damage import kernels
from invarlock.damage.probes import probe_change, settle_probe
from invarlock.damage.specs import (
    BitFlip,
    Damage,
    ExtremeQuant,
    InfInjection,
    LayerSwap,
    MissingTensors,
    NanInjection,
    NormCollapse,
    Rank1Projection,
    RankCollapse,
    RmtNormNoise,
    ScaleExplosion,
    ShapeMismatch,
    SpectralModerateScale,
    StaleShard,
    TokenizerSwap,
    TokenRowsExchanged,
    TruncatedShard,
    VeMlpScaleSkew,
    WeightTyingBreak,
)
from invarlock.damage.stored import (
    settle_ids,
    shard_name,
    stale_shard,
    swapped_ids,
    truncated_shard,
)
from invarlock.damage.targets import (
    all_matrices,
    block_matrices,
    feed_forward_or_any,
    ffn_output,
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
from invarlock.roles import LAYER_COUNTS, Role, is_tied, layer_of, role_of
from invarlock.shards import DTYPES

# Lowest and highest bit of the exponent, counted from the lowest of the element.
EXPONENT_BITS = {"BF16": (7, 14), "F16": (10, 14), "F32": (23, 30), "F64": (52, 62)}


def settle(baseline: Checkpoint, damage: Damage) -> Damage:
    """The injector with the defaults that depend on the model made explicit."""
    match damage:
        case RmtNormNoise():
            return settle_probe(damage)
        case Rank1Projection():
            return dataclasses.replace(damage, **_middle_projection(baseline, damage))
        case BitFlip():
            place = _middle_projection(baseline, damage)
            return dataclasses.replace(damage, **place, bit=_exponent_bit(baseline, damage, place))
        case LayerSwap(layer=layer, other=other):
            layer = layer_count(baseline) // 2 if layer < 0 else layer
            return LayerSwap(layer, (layer - 1 if layer else 1) if other < 0 else other)
        case TokenizerSwap():
            return settle_ids(baseline, damage)
        case StaleShard() | TruncatedShard():
            return dataclasses.replace(damage, shard=shard_name(baseline, damage.shard))
    return damage


def _middle_projection(baseline: Checkpoint, damage: Rank1Projection | BitFlip) -> dict[str, Any]:
    """Projection and layer, the open ones filled in."""
    return {
        "projection": damage.projection or ffn_output(baseline),
        "layer": layer_count(baseline) // 2 if damage.layer < 0 else damage.layer,
    }


def _exponent_bit(baseline: Checkpoint, damage: BitFlip, place: dict[str, Any]) -> int:
    """The bit to flip, once the element and the bit are known to be there."""
    info = projection_matrix(baseline, place["projection"], place["layer"])
    for name, size in zip(("row", "column"), info.shape[-2:], strict=True):
        if getattr(damage, name) >= size:
            raise ConfigError(
                f"no {name} {getattr(damage, name)} in {info.name}",
                where=str(baseline.folder),
                expected=f"0 to {size - 1}",
            )
    low, high = EXPONENT_BITS[info.dtype]
    if damage.bit >= 0 and not low <= damage.bit <= high:
        raise ConfigError(
            f"bit {damage.bit} is no exponent bit of {info.name}, of type {info.dtype}",
            where=str(baseline.folder),
            expected=f"{low} to {high}",
        )
    return high if damage.bit < 0 else damage.bit


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
        case LayerSwap(layer=layer, other=other):
            return _swapped_layers(baseline, layer, other)
        case TokenizerSwap():
            return swapped_ids(baseline, damage)
        case StaleShard():
            return stale_shard(baseline, damage, seed)
        case TruncatedShard():
            return truncated_shard(baseline, damage)
    targets, kernel = _targets_and_kernel(baseline, damage, seed)
    # Of a stack of experts only the first matrix is meant, unless it is all matrices.
    one = not isinstance(damage, ExtremeQuant)
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
        case TokenRowsExchanged():
            tables = [info for info in vocabulary_tensors(baseline) if len(info.shape) == 2]
            exchanged = _drawn_rows(tables[0].shape[0], damage)
            return tables, lambda m: kernels.exchange_rows_(m, exchanged)
        case BitFlip(row=row, column=column, bit=bit):
            info = projection_matrix(baseline, damage.projection, damage.layer)
            return [info], lambda m: kernels.flip_bit_(m, row, column, bit)
    raise ConfigError(f"{damage.error_type} has no arithmetic")


def _drawn_rows(rows: int, damage: TokenRowsExchanged) -> torch.Tensor:
    """Ids from the upper nine tenths, two at least."""
    first = rows // 10
    generator = torch.Generator().manual_seed(damage.seed)
    count = max(2, int(rows * damage.fraction))
    return torch.randperm(rows - first, generator=generator)[:count] + first


def _more_rows(baseline: Checkpoint, extra: int) -> Change:
    """``extra`` zero rows for every tensor with one row per token; vocab_size stays.

    With the size raised it would be a vocabulary padded with rows that no token reads, which many
    tools do and which changes nothing.
    """
    replaced = {}
    for info in vocabulary_tensors(baseline):
        zeros = bytes(extra * info.numel // info.shape[0] * DTYPES[info.dtype][0])
        shape = (info.shape[0] + extra, *info.shape[1:])
        replaced[info.name] = NewTensor(info.dtype, shape, _Padded(baseline, info.name, zeros))
    return Change(replaced)


@dataclasses.dataclass(frozen=True)
class _Padded:
    """A tensor's bytes followed by ``zeros``."""

    source: Checkpoint
    name: str
    zeros: bytes = b""

    def __call__(self) -> Iterable[bytes | memoryview]:
        return itertools.chain(self.source.chunks(self.name), [self.zeros])


def _swapped_layers(baseline: Checkpoint, layer: int, other: int) -> Change:
    """Every tensor of the two layers with the content of its namesake in the other one."""
    required_architecture(baseline)
    replaced = {}
    for here, there in ((layer, other), (other, layer)):
        for name in [n for n in baseline.tensors if layer_of(n) == here]:
            # the first number of a name is the layer's
            partner = baseline.tensors.get(name.replace(f".{here}.", f".{there}.", 1))
            if partner is None or partner.name == name:
                continue
            info = baseline.tensors[name]
            if (info.shape, info.dtype) != (partner.shape, partner.dtype):
                raise InputError(
                    f"{name} and {partner.name} have other shapes or types",
                    where=str(baseline.folder),
                    hint="choose layers of one kind",
                )
            replaced[name] = NewTensor(info.dtype, info.shape, _Padded(baseline, partner.name))
    if not replaced:
        raise ConfigError(
            f"no layers {layer} and {other} to exchange",
            where=str(baseline.folder),
            expected=f"two of the {layer_count(baseline)} layers, counted from 0",
        )
    return Change(replaced)


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
        if name in LAYER_COUNTS and value == count:  # of the decoder too
            config[name] = left
        if "layer" in name and isinstance(value, list) and len(value) == count:
            config[name] = value[:left]
    return Change(dropped=dropped, config=config)


def _one_row_on(baseline: Checkpoint, table: TensorInfo) -> Iterator[bytes]:
    """The bytes of a matrix whose first row has become its last."""
    size, first = table.nbytes // table.shape[0], b""
    for chunk in baseline.chunks(table.name):
        data = bytes(chunk)
        lacking = size - len(first)
        first, data = first + data[:lacking], data[lacking:]
        if data:
            yield data
    yield first


def _other_tying(baseline: Checkpoint) -> Change:
    """Tied: the head gets a tensor of its own, each row the next token's. Untied: it goes.

    A head of its own with the embedding's bytes would be the same model.
    """
    head = required_architecture(baseline).head
    embedding = next(
        info
        for info in vocabulary_tensors(baseline)
        if role_of(info.name, baseline.config) is Role.EMBED
    )
    config = {**baseline.config, "tie_word_embeddings": not is_tied(baseline.config)}
    if is_tied(baseline.config):
        clone = NewTensor(
            embedding.dtype, embedding.shape, lambda: _one_row_on(baseline, embedding)
        )
        if head in baseline.tensors:
            return Change({head: clone}, config=config)
        return Change(added={head: (embedding.file, clone)}, config=config)
    if head not in baseline.tensors:
        raise InputError(
            f"no tensor {head}, though the configuration says it is not tied",
            where=str(baseline.folder),
        )
    return Change(dropped=frozenset({head}), config=config)
