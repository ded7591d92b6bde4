"""The edits that can be asked for: ``type:parameter:...:scope`` parsed into a frozen record."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from invarlock.checkpoints import TensorInfo
from invarlock.edits.scope import Scope, parse_scope
from invarlock.errors import ConfigError

MOST_STEPS = 1000  # of a fine_tune: an edit to be judged, not a training run
FP8_MAX = {"e4m3": 448.0, "e5m2": 57344.0}  # largest finite value of the format


@dataclass(frozen=True)
class EditSpec:
    """Base of all edits; ``shape_problem`` says why a (outputs, inputs) matrix does not fit."""

    edit_type: ClassVar[str]
    storage_format: ClassVar[str]

    def parameters(self) -> dict[str, int | float | str]:
        """The edit's own parameters, by name (the scope apart)."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in pairs if name != "scope"}

    def shape_problem(self, outputs: int, inputs: int) -> str:
        """Empty when a matrix of this shape can be edited, else the reason it cannot."""
        return ""


@dataclass(frozen=True)
class Noop(EditSpec):
    """Every byte as it was."""

    edit_type: ClassVar[str] = "noop"
    storage_format: ClassVar[str] = "unchanged"


@dataclass(frozen=True)
class QuantRtn(EditSpec):
    """Symmetric round to nearest, dequantized; group_size 0 is one group per output channel."""

    edit_type: ClassVar[str] = "quant_rtn"
    storage_format: ClassVar[str] = "float_dequantized"
    bits: int
    group_size: int
    scope: Scope

    def __post_init__(self) -> None:
        _require(2 <= self.bits <= 8, "quant_rtn", "bits", self.bits, "2 to 8")
        _require(self.group_size >= 0, "quant_rtn", "group_size", self.group_size, "0 or more")

    def shape_problem(self, outputs: int, inputs: int) -> str:
        if self.group_size and inputs % self.group_size:
            return f"group_size {self.group_size} does not divide its {inputs} inputs"
        return ""


@dataclass(frozen=True)
class Fp8Quant(EditSpec):
    """Scaled per output channel to the largest value of an 8-bit float format, cast and back."""

    edit_type: ClassVar[str] = "fp8_quant"
    storage_format: ClassVar[str] = "float_dequantized"
    format: str
    scope: Scope

    def __post_init__(self) -> None:
        known = " or ".join(FP8_MAX)
        _require(self.format in FP8_MAX, "fp8_quant", "format", repr(self.format), known)


@dataclass(frozen=True)
class MagnitudePrune(EditSpec):
    """The floor(n * sparsity) entries of smallest magnitude of each matrix set to zero."""

    edit_type: ClassVar[str] = "magnitude_prune"
    storage_format: ClassVar[str] = "dense_float_with_zeros"
    sparsity: float
    scope: Scope

    def __post_init__(self) -> None:
        _require(
            0 < self.sparsity <= 1, "magnitude_prune", "sparsity", self.sparsity, "above 0, up to 1"
        )

    def count(self, n: int) -> int:
        """floor(n * sparsity) of the decimal number that was written, not of its double."""
        return math.floor(n * Fraction(repr(self.sparsity)))


@dataclass(frozen=True)
class LowRankSvd(EditSpec):
    """The best approximation of each matrix by one of rank ``rank``."""

    edit_type: ClassVar[str] = "lowrank_svd"
    storage_format: ClassVar[str] = "dense_float_lowrank_approximated"
    rank: int
    scope: Scope

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "lowrank_svd", "rank", self.rank, "1 or more")

    def shape_problem(self, outputs: int, inputs: int) -> str:
        return _rank_problem(self.rank, outputs, inputs)


@dataclass(frozen=True)
class LoraMerge(EditSpec):
    """A low-rank update trained on the suite's text, added to each matrix: W + alpha/rank * B A."""

    edit_type: ClassVar[str] = "lora_merge"
    storage_format: ClassVar[str] = "dense_float"
    learning_rate: ClassVar[float] = 1e-3  # of A and B; part of the edit, so not a parameter
    steps: ClassVar[int] = 4
    rank: int
    alpha: float
    scope: Scope

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "lora_merge", "rank", self.rank, "1 or more")
        fits = 0 < self.alpha < math.inf
        _require(fits, "lora_merge", "alpha", self.alpha, "above 0, finite")

    def shape_problem(self, outputs: int, inputs: int) -> str:
        return _rank_problem(self.rank, outputs, inputs)


@dataclass(frozen=True)
class FineTune(EditSpec):
    """Steps of AdamW on the suite's text, on every matrix of the scope itself."""

    edit_type: ClassVar[str] = "fine_tune"
    storage_format: ClassVar[str] = "dense_float"
    learning_rate: float
    steps: int
    scope: Scope

    def __post_init__(self) -> None:
        rate, steps = self.learning_rate, self.steps
        _require(0 < rate <= 1, "fine_tune", "learning_rate", rate, "above 0, up to 1")
        _require(1 <= steps <= MOST_STEPS, "fine_tune", "steps", steps, f"1 to {MOST_STEPS}")


# Edits whose values come from training, not from arithmetic on a matrix alone.
TrainedEdit = LoraMerge | FineTune
TRAINED = (LoraMerge.edit_type, FineTune.edit_type)


def _rank_problem(rank: int, outputs: int, inputs: int) -> str:
    return (
        f"rank {rank} is larger than its smaller dimension" if rank > min(outputs, inputs) else ""
    )


def _require(holds: bool, edit: str, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(
            f"{name} is out of range", where=edit, expected=expected, found=str(value)
        )


EDITS: dict[str, type[EditSpec]] = {
    kind.edit_type: kind
    for kind in (Noop, QuantRtn, Fp8Quant, MagnitudePrune, LowRankSvd, LoraMerge, FineTune)
}


def parse_edit_spec(text: str) -> EditSpec:
    """The edit that ``text`` asks for, such as ``quant_rtn:4:64:ffn@layer=3``.

    Raises:
        ConfigError: unknown edit, wrong number of parameters, or a value out of range.
    """
    edit_type, *values = text.split(":")
    kind = EDITS.get(edit_type)
    if kind is None:
        near = difflib.get_close_matches(edit_type, EDITS, n=1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(EDITS)
        raise ConfigError(f"{edit_type!r} is not an edit", where=text, hint=hint)
    fields = dataclasses.fields(kind)
    form = ":".join([edit_type, *(f"<{field.name}>" for field in fields)])
    if len(values) != len(fields):
        hint = "resolve tuned parameters first" if "tuned" in values else ""
        found = f"{len(values)} parameters"
        raise ConfigError("not a complete edit", where=text, expected=form, found=found, hint=hint)
    parsed: dict[str, int | float | str | Scope] = {}
    for field, value in zip(fields, values, strict=True):
        parsed[field.name] = _value(str(field.type), value, f"{text}: {field.name}")
    return kind(**parsed)


def _value(type_name: str, text: str, where: str) -> int | float | str | Scope:
    if type_name == "Scope":
        return parse_scope(text, where)
    try:
        if type_name == "int":
            return int(text)
        return float(text) if type_name == "float" else text
    except ValueError:
        expected = "a whole number" if type_name == "int" else "a number"
        raise ConfigError(
            "not a number", where=where, expected=expected, found=repr(text)
        ) from None


def check_shapes(spec: EditSpec, targets: list[tuple[TensorInfo, bool]]) -> None:
    """Refuse an edit that does not fit one of its targets; the flag says stored transposed.

    Raises:
        ConfigError: names the tensor, its shape and the parameter.
    """
    problems = []
    for info, transposed in targets:
        first, second = info.shape[-2:]
        problem = spec.shape_problem(*((second, first) if transposed else (first, second)))
        if problem:
            problems.append(f"tensor {info.name} of shape {list(info.shape)}: {problem}")
    if problems:
        more = f" (and {len(problems) - 1} more tensors)" if len(problems) > 1 else ""
        raise ConfigError(problems[0] + more, where=spec.edit_type)
