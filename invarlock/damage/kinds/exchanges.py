"""Damage that permutes, copies or exchanges parts: each matrix alone looks as it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.damage.kind import Damage, matrices_changed
from invarlock.damage.targets import layer_count, projection_matrix, required_architecture
from invarlock.edits.stream import CheckpointChange, NewTensor
from invarlock.errors import ConfigError, InputError
from invarlock.roles import is_transposed, layer_of

if TYPE_CHECKING:
    import torch

_LAYER: Mapping[str, str] = {"layer": "a layer"}


@dataclass(frozen=True)
class _OneLayer(Damage):
    """Base of damage to one layer; the default (-1) lies two thirds down."""

    places: ClassVar[Mapping[str, str]] = _LAYER
    layer: int = -1

    def check(self, baseline: Checkpoint) -> Self:
        required_architecture(baseline)
        layer = layer_count(baseline) * 2 // 3 if self.layer < 0 else self.layer
        return dataclasses.replace(self, layer=layer)


@dataclass(frozen=True)
class ValueHeadsShifted(_OneLayer):
    """Each value head of a layer computes what the one before it did."""

    error_type: ClassVar[str] = "value_heads_shifted"

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        def shift(heads: torch.Tensor) -> None:
            heads.copy_(heads.roll(1, 0))

        return _heads_changed(baseline, self.layer, ("v_proj",), shift)


@dataclass(frozen=True)
class KvHeadCopied(_OneLayer):
    """A key and value head of a layer is overwritten by the one before it."""

    error_type: ClassVar[str] = "kv_head_copied"

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        def copy(heads: torch.Tensor) -> None:
            heads[1] = heads[0]

        return _heads_changed(baseline, self.layer, ("k_proj", "v_proj"), copy)


def _heads_changed(
    baseline: Checkpoint,
    layer: int,
    projections: tuple[str, ...],
    apply: Callable[[torch.Tensor], None],
) -> CheckpointChange:
    """``apply`` done to projections seen as (key and value heads, rows of a head, inputs).

    Raises:
        ConfigError: the layer has no such projection, or one head only.
    """
    config = baseline.config
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    changed = {}
    for projection in projections:
        info = projection_matrix(baseline, projection, layer)
        if type(heads) is not int or heads < 2 or info.shape[0] % heads:
            raise ConfigError(
                "the heads cannot be told apart or changed",
                where=str(baseline.folder / "config.json"),
                expected=f"at least two key and value heads, a divisor of {info.shape[0]} rows",
                found=f"{heads!r}",
            )

        def change(matrix: torch.Tensor, heads: int = heads) -> None:
            apply(matrix.view(heads, -1, matrix.shape[1]))

        changed[info.name] = matrices_changed(baseline, info, change)
    return CheckpointChange(changed)


@dataclass(frozen=True)
class GateUpExchanged(_OneLayer):
    """The gate and up projections of a layer stand in each other's place."""

    error_type: ClassVar[str] = "gate_up_exchanged"

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        gate, up = (projection_matrix(baseline, p, self.layer) for p in ("gate_proj", "up_proj"))
        return _exchanged(baseline, gate, up)


@dataclass(frozen=True)
class NormOfAnotherLayer(_OneLayer):
    """The norm before the feed-forward block of a layer has the weights of that of the layer
    ``other`` (default -1: the first layer)."""

    error_type: ClassVar[str] = "norm_of_another_layer"
    places: ClassVar[Mapping[str, str]] = {**_LAYER, "other": "another layer"}
    other: int = -1

    def check(self, baseline: Checkpoint) -> Self:
        checked = super().check(baseline)
        return dataclasses.replace(checked, other=max(self.other, 0))

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        here, there = (_last_norm(baseline, layer) for layer in (self.layer, self.other))
        content = partial(baseline.chunks, there.name)
        return CheckpointChange({here.name: NewTensor(here.dtype, here.shape, content)})


def _last_norm(baseline: Checkpoint, layer: int) -> TensorInfo:
    """The weight of the norm that a layer applies last.

    Raises:
        ConfigError: the layer has none.
    """
    endings = ("post_attention_layernorm.weight", "ln_2.weight")
    for info in baseline.tensors.values():
        if layer_of(info.name) == layer and info.name.endswith(endings):
            return info
    raise ConfigError(
        f"layer {layer} has no norm before its feed-forward block",
        where=str(baseline.folder),
        expected=" or ".join(endings) + f" in one of {layer_count(baseline)} layers",
    )


def _exchanged(baseline: Checkpoint, first: TensorInfo, second: TensorInfo) -> CheckpointChange:
    """Two tensors with each other's content."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        raise InputError(
            f"{first.name} and {second.name} have other shapes or types",
            where=str(baseline.folder),
        )
    return CheckpointChange(
        {
            info.name: NewTensor(info.dtype, info.shape, partial(baseline.chunks, other.name))
            for info, other in ((first, second), (second, first))
        }
    )


@dataclass(frozen=True)
class NeuronPairsExchanged(Damage):
    """In each layer two neighbouring neurons take each other's inputs: two rows of the up
    projection change places, while what the neurons write stays."""

    error_type: ClassVar[str] = "neuron_pairs_exchanged"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"pairs": (1, 1_000_000)}
    pairs: int = 1

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        required_architecture(baseline)
        changed = {}
        for layer in range(layer_count(baseline)):
            info = _read_by_neurons(baseline, layer)
            transposed = is_transposed(info.name, baseline.config)
            rows = info.shape[-1 if transposed else -2]
            if 2 * self.pairs > rows:
                raise ConfigError(
                    f"{self.pairs} pairs cannot be exchanged",
                    where=str(baseline.folder),
                    expected=f"at most {rows // 2}, half of the rows of {info.name}",
                )
            exchange = partial(self._exchange, transposed=transposed)
            changed[info.name] = matrices_changed(baseline, info, exchange)
        return CheckpointChange(changed)

    def _exchange(self, matrix: torch.Tensor, transposed: bool) -> None:
        import torch

        neurons = matrix.T if transposed else matrix
        order = torch.arange(2 * self.pairs).view(-1, 2).flip(1).reshape(-1)
        neurons[: 2 * self.pairs] = neurons[order]


def _read_by_neurons(baseline: Checkpoint, layer: int) -> TensorInfo:
    """The projection of a layer whose rows are what each neuron reads.

    Raises:
        ConfigError: the layer has none.
    """
    try:
        return projection_matrix(baseline, "up_proj", layer)
    except ConfigError:
        return projection_matrix(baseline, "c_fc", layer)
