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
from invarlock.damage.targets import layer_count, required_architecture
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
        text = baseline.config.get(TEXT_CONFIG)
        # of a model for images too, what concerns the text stands in a section of its own
        nested = key not in baseline.config and isinstance(text, dict)
        values: Mapping[str, Any] = text if nested and isinstance(text, dict) else baseline.config
        count = values.get(key)
        layers = layer_count(baseline)
        if count != layers:
            raise InputError(
                f"/{key} is {count!r}, but the tensors form {counted(layers, 'layer')}",
                where=str(baseline.folder / "config.json"),
            )
        left = count - self.layers
        if left < 1:
            raise ConfigError(
                f"{self.layers} of {count} layers cannot be dropped",
                where=str(baseline.folder),
                expected="at least one layer to be left",
            )
        dropped = frozenset(n for n in baseline.tensors if (layer_of(n) or 0) >= left)
        config: dict[str, Any] = {**values, key: left}
        for name, value in values.items():
            if name in LAYER_COUNTS and value == count:  # of the decoder too
                config[name] = left
            if "layer" in name and isinstance(value, list) and len(value) == count:
                config[name] = value[:left]
        if nested:
            config = {**baseline.config, TEXT_CONFIG: config}
        return CheckpointChange(dropped=dropped, config=config)


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
