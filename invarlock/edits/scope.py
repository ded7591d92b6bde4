"""Which tensors an edit means: roles, optionally limited to one layer or the first ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.counts import counted
from invarlock.errors import ConfigError, InputError
from invarlock.roles import (
    ARCHITECTURES,
    Role,
    architecture_of,
    layer_of,
    model_type_of,
    role_of,
)
from invarlock.shards import FLOAT_DTYPES

# Experts are the feed-forward block of a mixture model; a state-space mixer stands where other
# models have attention.
SCOPES: dict[str, frozenset[Role]] = {
    "ffn": frozenset({Role.FFN, Role.EXPERT}),
    "attn": frozenset({Role.ATTN, Role.MIXER}),
    "all": frozenset({Role.ATTN, Role.MIXER, Role.FFN, Role.EXPERT}),
    "embed": frozenset({Role.EMBED}),
}
_SCOPE = re.compile(r"([a-z]+)(?:@(layers?)=(0|[1-9]\d{0,5}))?")


@dataclass(frozen=True)
class Scope:
    """A parsed scope: ``ffn``, ``attn@layer=3`` (only layer 3), ``all@layers=2`` (layers 0, 1)."""

    base: str
    layer: int | None = None
    first_layers: int | None = None

    def __str__(self) -> str:
        if self.layer is not None:
            return f"{self.base}@layer={self.layer}"
        if self.first_layers is not None:
            return f"{self.base}@layers={self.first_layers}"
        return self.base

    def covers(self, name: str, role: Role) -> bool:
        """Whether the scope means the tensor ``name`` of role ``role``."""
        if role not in SCOPES[self.base]:
            return False
        number = layer_of(name)
        if self.layer is not None:
            return number == self.layer
        return self.first_layers is None or (number is not None and number < self.first_layers)


def parse_scope(text: str, where: str = "") -> Scope:
    """Parse ``base``, ``base@layer=K`` or ``base@layers=K``.

    Raises:
        ConfigError: anything else.
    """
    match = _SCOPE.fullmatch(text)
    if match is None or match.group(1) not in SCOPES:
        raise ConfigError(
            f"{text!r} is not a scope",
            where=where,
            expected=", ".join(SCOPES) + ", optionally with @layer=K or @layers=K",
        )
    base, kind, number = match.groups()
    if kind is None:
        return Scope(base)
    return Scope(base, layer=int(number)) if kind == "layer" else Scope(base, None, int(number))


def select_targets(checkpoint: Checkpoint, scope: Scope) -> list[TensorInfo]:
    """The matrices (and 3-D stacks of expert matrices) that ``scope`` means, sorted by name.

    Raises:
        ConfigError: the scope matches nothing in this checkpoint.
        InputError: a target is not stored as floating-point numbers.
    """
    targets = [
        info
        for name, info in checkpoint.tensors.items()
        if len(info.shape) in (2, 3) and scope.covers(name, role_of(name, checkpoint.config))
    ]
    if not targets:
        raise ConfigError(
            f"the scope {scope} matches no weight matrix",
            where=str(checkpoint.folder),
            hint=_why_nothing(checkpoint, scope),
        )
    for info in targets:
        if info.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"tensor {info.name} cannot be edited",
                where=str(checkpoint.folder / info.file),
                expected="a dtype of " + ", ".join(sorted(FLOAT_DTYPES)),
                found=info.dtype,
            )
    return targets


def _why_nothing(checkpoint: Checkpoint, scope: Scope) -> str:
    if architecture_of(checkpoint.config) is None:
        known = ", ".join(ARCHITECTURES)
        kind = model_type_of(checkpoint.config)
        return f"transformers builds no causal model of model_type {kind!r} (tables: {known})"
    layers = {layer_of(name) for name in checkpoint.tensors} - {None}
    return f"the checkpoint has {counted(len(layers), 'layer')}, counted from 0"
