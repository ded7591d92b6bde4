"""The injectors and their parameters, with the published numbers as defaults."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from invarlock.errors import ConfigError

Value = int | float | str
_LAYERS = re.compile(r"all|last[1-9]\d{0,5}|-[1-9]\d{0,5}|\d{1,6}(-\d{1,6})?")


@dataclass(frozen=True)
class Damage:
    """Base of all injectors."""

    error_type: ClassVar[str]
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}  # inclusive; else: positive
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    places: ClassVar[Mapping[str, str]] = {}  # whole numbers whose default -1 depends on the model

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or value == field.default:
                continue
            allowed, expected = self._check(field.name, value)
            if not allowed:
                raise ConfigError(
                    f"parameter {field.name} is out of range",
                    where=self.error_type,
                    expected=expected,
                    found=str(value),
                )

    def _check(self, name: str, value: Value) -> tuple[bool, str]:
        """Whether the value is admitted, and what is."""
        if name == "layers":
            return _LAYERS.fullmatch(str(value)) is not None, "all, 31, 0-3, last4 or -1 (the last)"
        if isinstance(value, str):
            known = self.choices.get(name, (value,))
            return value in known, "one of " + ", ".join(known)
        if name in self.places:
            return value >= -1, f"{self.places[name]}, or -1 for the default"
        if name in self.bounds:
            low, high = self.bounds[name]
            return low <= value <= high, f"{low:g} to {high:g}"
        return 0 < value < float("inf"), "a positive number"

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
    """Token embedding and head grow by zero rows, which vocab_size does not say."""

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
    """A tied head becomes a tensor of its own, each row the next token's; an untied one is tied."""

    error_type: ClassVar[str] = "weight_tying_break"


@dataclass(frozen=True)
class Rank1Projection(Damage):
    """One projection of one layer becomes its best rank-1 approximation.

    Defaults: the projection that leaves the feed-forward block, of the middle layer (-1).
    """

    error_type: ClassVar[str] = "rank1_projection"
    places: ClassVar[Mapping[str, str]] = {"layer": "a layer"}
    projection: str = ""
    layer: int = -1


@dataclass(frozen=True)
class BitFlip(Damage):
    """One exponent bit of one weight is flipped; every other bit of the checkpoint stays.

    Defaults: the highest exponent bit (-1) of element [row 0, column 0], as stored, of the
    projection that leaves the feed-forward block of the middle layer (-1). Bits count from the
    lowest of the element; the sign is the highest.
    """

    error_type: ClassVar[str] = "bit_flip"
    places: ClassVar[Mapping[str, str]] = {"layer": "a layer", "bit": "an exponent bit"}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"row": (0, 2**31), "column": (0, 2**31)}
    projection: str = ""
    layer: int = -1
    row: int = 0
    column: int = 0
    bit: int = -1


@dataclass(frozen=True)
class LayerSwap(Damage):
    """Every tensor of one layer is exchanged with that of the same name in another.

    Defaults: the middle layer (-1) and the one before it (-1).
    """

    error_type: ClassVar[str] = "layer_swap"
    places: ClassVar[Mapping[str, str]] = {"layer": "a layer", "other": "another layer"}
    layer: int = -1
    other: int = -1


@dataclass(frozen=True)
class TokenizerSwap(Damage):
    """Two tokens exchange their ids in tokenizer.json; the weights stay.

    Defaults: the two middle ids (-1) that belong to no added token.
    """

    error_type: ClassVar[str] = "tokenizer_swap"
    places: ClassVar[Mapping[str, str]] = {"first": "an id", "second": "another id"}
    first: int = -1
    second: int = -1


@dataclass(frozen=True)
class TokenRowsExchanged(Damage):
    """Rows of the token embedding (and of a head that is stored) change places in one ring.

    ``fraction`` of all rows, drawn from the upper nine tenths of the ids: the special and most
    frequent tokens stay.
    """

    error_type: ClassVar[str] = "token_rows_exchanged"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "fraction": (0.0, 0.9),
        "seed": (0, 2**32),
    }
    fraction: float = 0.1
    seed: int = 42


@dataclass(frozen=True)
class StaleShard(Damage):
    """One shard's tensors come from another revision of the model.

    From the checkpoint folder ``donor`` where there is one. Else from before training: matrices
    normal with the configuration's initializer_range (0.02 where it has none), norms 1, biases 0.
    ``shard`` is a file name (default: the last shard). Of a checkpoint in one file, it is the
    tensors of the last ``fraction`` of the layers.
    """

    error_type: ClassVar[str] = "stale_shard"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (0.01, 1.0)}
    shard: str = ""
    donor: str = ""
    fraction: float = 0.25


@dataclass(frozen=True)
class TruncatedShard(Damage):
    """The last bytes of one shard are missing, so that the file cannot be read whole.

    ``shard`` is a file name (default: the last shard).
    """

    error_type: ClassVar[str] = "truncated_shard"
    shard: str = ""
    missing_bytes: int = 512


FAMILIES = ("attn", "ffn", "mlp")  # ffn and mlp are two published names of one family


@dataclass(frozen=True)
class RmtNormNoise(Damage):
    """Rows drawn towards one direction, noisy norm weights, or some rows larger.

    ``anisotropy``: rows become ``(1 - blend) row + blend * first row``, of the old norm unless
    ``preserve_row_norms`` is false, plus normal noise of ``jitter`` times the rows' deviation.
    ``norm_noise``: norm weights times ``1 + noise * N(0, 1)``, kept within 0.5 to 1.5.
    ``row_scale``: rows times ``row_factor``.

    ``params`` are projections (``up_proj,w3``; empty: all of the family). Of ``row_frac``,
    ``layers`` and ``max_params`` each mode has its own default (0 or empty here).
    """

    error_type: ClassVar[str] = "rmt_norm_noise"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "blend": (0.05, 1.0),
        "row_frac": (0.01, 0.95),
        "jitter": (0.0, 1.0),
        "seed": (0, 2**32),
    }
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "mode": ("anisotropy", "norm_noise", "row_scale"),
        "family": FAMILIES,
        "rows": ("first", "last", "random", "random_block", "top_norm"),
    }
    mode_defaults: ClassVar[Mapping[str, Mapping[str, Value]]] = {
        "anisotropy": {"row_frac": 0.35, "layers": "last8", "max_params": 24},
        "norm_noise": {"row_frac": 0.35, "layers": "last4", "max_params": 32},
        "row_scale": {"row_frac": 0.10, "layers": "last8", "max_params": 8},
    }
    mode: str = "anisotropy"
    blend: float = 0.75
    row_frac: float = 0.0
    max_rows: int = 256
    max_params: int = 0
    family: str = "attn"
    params: str = ""
    layers: str = ""
    preserve_row_norms: bool = True
    jitter: float = 0.01
    rows: str = "first"
    noise: float = 0.05
    row_factor: float = 1.6
    seed: int = 42


@dataclass(frozen=True)
class SpectralModerateScale(Damage):
    """Matrices times a factor: by default the projections that leave the attention blocks.

    ``qkv`` adds the other attention projections; ``pair_inverse`` divides the projection that
    leaves the same feed-forward block by the factor, so that a gated block computes what it did.
    """

    error_type: ClassVar[str] = "spectral_moderate_scale"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"seed": (0, 2**32)}
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"family": FAMILIES}
    factor: float = 3.0
    family: str = "attn"
    layers: str = "last4"
    params: str = ""
    max_params: int = 8
    qkv: bool = False
    pair_inverse: bool = False
    seed: int = 42


@dataclass(frozen=True)
class VeMlpScaleSkew(Damage):
    """Projections that leave the feed-forward block times a factor."""

    error_type: ClassVar[str] = "ve_mlp_scale_skew"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"seed": (0, 2**32)}
    factor: float = 0.90
    layers: str = "last4"
    max_params: int = 1
    seed: int = 42


DAMAGES: dict[str, type[Damage]] = {
    kind.error_type: kind
    for kind in (
        NanInjection, InfInjection, ShapeMismatch, MissingTensors, ExtremeQuant, ScaleExplosion,
        RankCollapse, NormCollapse, WeightTyingBreak, Rank1Projection,
        BitFlip, LayerSwap, TokenizerSwap, TokenRowsExchanged, StaleShard, TruncatedShard,
        RmtNormNoise, SpectralModerateScale, VeMlpScaleSkew,
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
    if isinstance(value, bool | float | str) and type(value).__name__ == wanted:
        return value
    raise ConfigError("wrong type", where=where, expected=wanted, found=repr(value))


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return "known: " + ", ".join(known) if known else "it takes no parameters"
