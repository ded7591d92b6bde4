"""The injectors and their parameters, with the published numbers as defaults."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from invarlock.errors import ConfigError

Value = int | float | str


@dataclass(frozen=True)
class Damage:
    """Base of all injectors."""

    error_type: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float):
                continue
            if field.name == "layer":
                allowed, expected = value >= -1, "a layer, or -1 for the middle one"
            else:
                allowed, expected = 0 < value < float("inf"), "a positive number"
            if not allowed:
                raise ConfigError(
                    f"parameter {field.name} is out of range",
                    where=self.error_type,
                    expected=expected,
                    found=str(value),
                )

    def parameters(self) -> dict[str, Value]:
        """Every parameter with its value, by name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class NanInjection(Damage):
    """Element [0, 0] of the first weight matrix of block 0 becomes NaN."""

    error_type: ClassVar[str] = "nan_injection"


@dataclass(frozen=True)
class InfInjection(Damage):
    """Element [0, 0] of the first attention matrix becomes positive infinity."""

    error_type: ClassVar[str] = "inf_injection"


@dataclass(frozen=True)
class ShapeMismatch(Damage):
    """Token embedding and head grow by zero rows, and vocab_size with them."""

    error_type: ClassVar[str] = "shape_mismatch"
    extra_rows: int = 8


@dataclass(frozen=True)
class MissingTensors(Damage):
    """The last blocks are dropped, and the configuration shortened to match."""

    error_type: ClassVar[str] = "missing_tensors"
    layers: int = 1


@dataclass(frozen=True)
class ExtremeQuant(Damage):
    """Every weight matrix to 2 bits: scale max|w| / 2, levels -2 to 1."""

    error_type: ClassVar[str] = "extreme_quant"


@dataclass(frozen=True)
class ScaleExplosion(Damage):
    """The first feed-forward matrix times a factor."""

    error_type: ClassVar[str] = "scale_explosion"
    factor: float = 100.0


@dataclass(frozen=True)
class RankCollapse(Damage):
    """The first attention matrices become first column times first row, of the old norm."""

    error_type: ClassVar[str] = "rank_collapse"
    matrices: int = 8


@dataclass(frozen=True)
class NormCollapse(Damage):
    """The first attention matrices become zero."""

    error_type: ClassVar[str] = "norm_collapse"
    matrices: int = 32


@dataclass(frozen=True)
class WeightTyingBreak(Damage):
    """Tied head and embedding are parted (same values, two tensors); untied ones are tied."""

    error_type: ClassVar[str] = "weight_tying_break"


@dataclass(frozen=True)
class Rank1Projection(Damage):
    """One projection of one layer becomes its best rank-1 approximation.

    Defaults: the projection that leaves the feed-forward block, of the middle layer (-1).
    """

    error_type: ClassVar[str] = "rank1_projection"
    projection: str = ""
    layer: int = -1


DAMAGES: dict[str, type[Damage]] = {
    kind.error_type: kind
    for kind in (
        NanInjection, InfInjection, ShapeMismatch, MissingTensors, ExtremeQuant, ScaleExplosion,
        RankCollapse, NormCollapse, WeightTyingBreak, Rank1Projection,
    )
}  # fmt: skip


def parse_damage(error_type: str, parameters: Mapping[str, object]) -> Damage:
    """The injector ``error_type`` with ``parameters`` over its defaults.

    Raises:
        ConfigError: unknown injector, unknown parameter, wrong type or value out of range.
    """
    kind = DAMAGES.get(error_type)
    if kind is None:
        raise ConfigError(
            f"{error_type!r} is not an error type", hint=_suggest(error_type, list(DAMAGES))
        )
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Value] = {}
    for name, value in parameters.items():
        where = f"{error_type}: {name}"
        if name not in fields:
            raise ConfigError("not a parameter", where=where, hint=_suggest(name, list(fields)))
        values[name] = _typed(value, str(fields[name].type), where)
    return kind(**values)


def _typed(value: object, wanted: str, where: str) -> Value:
    if isinstance(value, int) and not isinstance(value, bool) and wanted in ("int", "float"):
        return value if wanted == "int" else float(value)
    if isinstance(value, float | str) and type(value).__name__ == wanted:
        return value
    raise ConfigError("wrong type", where=where, expected=wanted, found=repr(value))


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return "known: " + ", ".join(known) if known else "it takes no parameters"
