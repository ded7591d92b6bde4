"""Damage to whole layers: one too few, or two in each other's place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from invarlock.checkpoints import Checkpoint
from invarlock.counts import counted
from invarlock.damage.kind import Damage
from invarlock.damage.targets import (
    language_stacks,
    layer_count,
    required_architecture,
    stack_of,
)
from invarlock.edits.stream import CheckpointChange, NewTensor
from invarlock.errors import ConfigError, InputError
from invarlock.roles import LAYER_COUNTS, layer_of

TEXT_CONFIG = "text_config"  # the section for the language model within a larger one


@dataclass(frozen=True)
class MissingTensors(Damage):
    """The last blocks are dropped, and the configuration shortened to match."""

    error_type: ClassVar[str] = "missing_tensors"
    layers: int = 1

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        key = required_architecture(baseline).layer_count
        stacks, count = language_stacks(baseline), layer_count(baseline)
        sections = layers_in(baseline.config, count, key)
        if not sections:
            raise InputError(
                f"/{key} is {baseline.config.get(key)!r}, but the tensors form"
                f" {counted(count, 'layer')}",
                where=str(baseline.folder / "config.json"),
            )
        left = count - self.layers
        if left < 1:
            raise ConfigError(
                f"{self.layers} of {count} layers cannot be dropped",
                where=str(baseline.folder),
                expected="at least one layer to be left",
            )
        deepest = {stack for stack, layers in stacks.items() if len(layers) == count}
        numbers = {name: layer_of(name) for name in baseline.tensors}
        dropped = frozenset(
            name
            for name, layer in numbers.items()
            if layer is not None and layer >= left and stack_of(name, layer) in deepest
        )
        config = dict(baseline.config)
        for name, values in sections.items():
            shorter = shortened(values, count, left, key)
            config = {**config, name: shorter} if name else {**config, **shorter}
        return CheckpointChange(dropped=dropped, config=config)


def layers_in(config: Mapping[str, Any], count: int, key: str) -> dict[str, Mapping[str, Any]]:
    """The parts of a configuration that are of so many layers, by the name of their section.

    Args:
        config: ``config.json``.
        count: of layers, of the deepest stack.
        key: the architecture's own name of the number.
    """
    sections = _sections(config, key)
    return {name: values for name, values in sections.items() if _says(values, count, key)}


def _sections(config: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """Where a number of layers may stand: the configuration itself (the empty name), else the
    section for the language model within a larger one, else every section."""
    text = config.get(TEXT_CONFIG)
    if key in config or not any(isinstance(value, dict) for value in config.values()):
        return {"": config}
    if isinstance(text, dict):
        return {TEXT_CONFIG: text}
    return {"": config, **{name: v for name, v in config.items() if isinstance(v, dict)}}


def _is_count(name: str, value: object, count: int, key: str) -> bool:
    """Whether a setting is the number of layers, by the architecture's key or another's."""
    return name in (key, *LAYER_COUNTS) and value == count


def _is_list(name: str, value: object, count: int) -> bool:
    """Whether a setting has an item for each layer."""
    return "layer" in name and isinstance(value, list) and len(value) == count


def _says(values: Mapping[str, Any], count: int, key: str) -> bool:
    """Whether a section is of so many layers."""
    return any(_is_count(k, v, count, key) or _is_list(k, v, count) for k, v in values.items())


def shortened(values: Mapping[str, Any], count: int, left: int, key: str) -> dict[str, Any]:
    """A section of ``left`` layers instead of ``count``; of the decoder too, where its number
    stands beside. The rest as in :func:`layers_in`."""
    return {
        name: left
        if _is_count(name, value, count, key)
        else value[:left]
        if _is_list(name, value, count)
        else value
        for name, value in values.items()
    }


@dataclass(frozen=True)
class LayerSwap(Damage):
    """Every tensor of one layer is exchanged with that of the same name in another.

    Defaults: the middle layer (-1) and the one before it (-1).
    """

    error_type: ClassVar[str] = "layer_swap"
    places: ClassVar[Mapping[str, str]] = {"layer": "a layer", "other": "another layer"}
    layer: int = -1
    other: int = -1

    def check(self, baseline: Checkpoint) -> Self:
        layer = layer_count(baseline) // 2 if self.layer < 0 else self.layer
        other = (layer - 1 if layer else 1) if self.other < 0 else self.other
        return dataclasses.replace(self, layer=layer, other=other)

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        layer, other = self.layer, self.other
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
                replaced[name] = NewTensor(
                    info.dtype, info.shape, partial(baseline.chunks, partner.name)
                )
        if not replaced:
            raise ConfigError(
                f"no layers {layer} and {other} to exchange",
                where=str(baseline.folder),
                expected=f"two of the {layer_count(baseline)} layers, counted from 0",
            )
        return CheckpointChange(replaced)
