"""Inputs of products, rounded as kernels round them that multiply numbers of few bits.

Dense kernels multiply what the weights stand for, and leave the inputs as they are. Where those
that will serve round them, they are rounded here too, before each product, and the product itself
is of the dtype of the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from invarlock.counts import counted
from invarlock.formats.kind import Tensors
from invarlock.formats.numbers import EXPONENT, FP4, MANTISSA, nearest_float
from invarlock.formats.packed import (
    CACHES,
    Packed,
    by_module,
    cache_notes,
    config_of,
    input_faults,
    module_of,
)

if TYPE_CHECKING:
    import torch

LARGEST = 448.0  # of E4M3
SCALE, BEFORE = "input_scale", "pre_quant_scale"  # buffers of a module whose inputs are rounded
ROUNDING = "rounded_inputs"  # the attribute that says how
LEFT = "inputs_left"  # of a model: how many are not rounded, since several run as one module
STATIC = "FP8 E4M3, one scale, static"  # what people call :func:`to_fp8`
INT8 = (-128, 127)
NVFP4_GROUP, MX_GROUP = 16, 32
EXPERT = re.compile(r"\.experts\.\d+\.")


class Rounding(Protocol):
    """Numbers as a kernel multiplies them: float32 in, float32 out."""

    def __call__(self, numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """``scale`` is the one that the files hold, where they hold any."""


class Inputs(NamedTuple):
    """How the inputs of a matrix are rounded."""

    rounding: Rounding
    words: str  # what people call it
    stored: bool  # whether by a scale that the files hold


class RoundsInputs(Packed):
    """Base of formats that run dense here, and whose kernels round the inputs of products."""

    scale: ClassVar[str] = ".input_scale"  # how the names of scales of inputs end
    before: ClassVar[tuple[str, ...]] = ()  # and those by which columns are multiplied first
    caches: ClassVar[tuple[str, ...]] = CACHES

    def inputs(self, weight: str, config: Mapping[str, Any]) -> Inputs | None:
        """How the inputs of a packed matrix are rounded; None where they stay as they are."""
        raise NotImplementedError

    def _asked(self, source: Path) -> dict[str, Inputs]:
        config = config_of(source)
        asked = {name: self.inputs(name, config) for name in self.inventory(source).packed}
        return {name: how for name, how in asked.items() if how is not None}

    def loaded(self, model: Any, source: Path) -> Any:
        """The model with inputs rounded as the kernels round them."""
        modules = [
            (module_of(n), how.rounding, how.words) for n, how in self._asked(source).items()
        ]
        scales, before = by_module(source, (self.scale,)), by_module(source, self.before)
        round_inputs(model, modules, scales, before)
        return model

    def detail(self, model: Any) -> Mapping[str, str]:
        return {"activations": words_for(model) or "as they are"}

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        yield from super().faults(source, baseline)
        static = [name for name, how in self._asked(source).items() if how.stored]
        yield from input_faults(static, by_module(source, (self.scale,)))

    def notes(self, source: Path, baseline: Path) -> Iterator[str]:
        yield from cache_notes(source, self.caches)
        left = [name for name in self._asked(source) if EXPERT.search(name)]
        if left:
            yield (
                f"the inputs of {counted(len(left), 'matrix', 'matrices')} of experts are not"
                " rounded here as kernels round them: transformers runs the experts of a layer as"
                " one module, and what rounding them costs is not judged"
            )


def round_inputs(
    model: Any,
    modules: Iterable[tuple[str, Rounding, str]],
    scales: dict[str, torch.Tensor],
    before: dict[str, torch.Tensor] | None = None,
) -> None:
    """Round the inputs of linear layers of a model from now on.

    Args:
        model: a torch module.
        modules: names, how, and what people call it; what is no linear layer is left alone, and
            counted.
        scales: by names of modules.
        before: by what kernels multiply the columns of the inputs first; the weights of the model
            hold it already.
    """
    known, left = dict(model.named_modules()), 0
    for name, rounding, words in modules:
        module = known.get(name)
        if module is None or not hasattr(module, "in_features"):
            left += 1
            continue
        for buffer, values in ((SCALE, scales), (BEFORE, before or {})):
            # moves with the module, and is no weight of it
            module.register_buffer(buffer, values.get(name), persistent=False)
        setattr(module, ROUNDING, (rounding, words))
        module.register_forward_pre_hook(_rounded)
    setattr(model, LEFT, left)


def words_for(model: Any) -> str | None:
    """What reports say of the inputs of a model's products; None where none is rounded."""
    found: dict[str, int] = {}
    for module in model.modules():
        how = getattr(module, ROUNDING, None)
        if how is not None:
            found[how[1]] = found.get(how[1], 0) + 1
    if not found:
        return None
    dtype = str(model.dtype).removeprefix("torch.")
    kinds = "; ".join(f"{words}: {counted(count, 'product')}" for words, count in found.items())
    left = getattr(model, LEFT, 0)
    others = f"; as they are in {counted(left, 'other')}" if left else ""
    return f"rounded before each product, which is of {dtype} ({kinds}){others}"


def _rounded(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    first, *others = inputs
    rounding: Rounding = getattr(module, ROUNDING)[0]
    before = getattr(module, BEFORE)
    numbers = first.float()
    if before is not None:
        numbers = numbers * before
    numbers = rounding(numbers, getattr(module, SCALE))
    if before is not None:
        numbers = numbers / _or_one(before)
    return numbers.to(first.dtype), *others


def to_fp8(numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """E4M3 with one scale that the files hold: what is beyond the largest is cut."""
    shared = 1.0 if scale is None else scale
    return nearest_e4m3(numbers / shared) * shared


def to_fp8_by_token(numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """E4M3 with a scale for each token, taken from its largest number."""
    return to_fp8(numbers, _or_one(numbers.abs().amax(-1, keepdim=True) / LARGEST))


def to_int8(numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Whole numbers of 8 bits with one scale that the files hold."""
    shared = 1.0 if scale is None else scale
    return (numbers / shared).round().clamp(*INT8) * shared


def to_nvfp4(numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """FP4 in groups of 16 with E4M3 scales of their own, below one that the files hold."""
    shared = 1.0 if scale is None else scale
    groups = _groups(numbers, NVFP4_GROUP)
    own = nearest_e4m3(groups.abs().amax(-1, keepdim=True) / FP4[-1] / shared) * shared
    return (nearest_fp4(groups / _or_one(own)) * own).flatten(-2)


def to_mxfp8(numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """E4M3 in groups of 32 with powers of two."""
    groups = _groups(numbers, MX_GROUP)
    return to_fp8(groups, _power_over(groups, LARGEST)).flatten(-2)


def to_mxfp4(numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """FP4 in groups of 32 with powers of two."""
    groups = _groups(numbers, MX_GROUP)
    power = _power_over(groups, FP4[-1])
    return (nearest_fp4(groups / power) * power).flatten(-2)


def to_even_mx(mantissa: int, least: int, largest: float) -> Rounding:
    """A format of the OCP's microscaling in groups of 32, as AMD's kernels round to it: the power
    of two is that of the group's largest number, itself rounded to the format's mantissa.

    Args:
        mantissa: bits of it.
        least: exponent of the smallest normal number.
        largest: the largest number.
    """
    most = math.floor(math.log2(largest))

    def rounded(numbers: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        import torch

        groups = _groups(numbers, MX_GROUP)
        bits = groups.abs().amax(-1, keepdim=True).view(torch.int32)
        bits = (bits + (1 << MANTISSA - mantissa - 1)) & EXPONENT
        power = (bits.view(torch.float32) / 2.0**most).clamp(min=2.0**-127)
        return (nearest_float(groups / power, mantissa, least, largest) * power).flatten(-2)

    return rounded


def nearest_fp4(numbers: torch.Tensor) -> torch.Tensor:
    """The nearest number of FP4; the largest for what is beyond it."""
    return nearest_float(numbers, 1, 0, FP4[-1])


def nearest_e4m3(numbers: torch.Tensor) -> torch.Tensor:
    """The nearest number of E4M3; the largest for what is beyond it."""
    return nearest_float(numbers, 3, -6, LARGEST)


def _groups(numbers: torch.Tensor, size: int) -> torch.Tensor:
    return numbers.reshape(*numbers.shape[:-1], -1, size)


def _power_over(groups: torch.Tensor, largest: float) -> torch.Tensor:
    """The least power of two by which no number of a group is beyond the largest."""
    own = _or_one(groups.abs().amax(-1, keepdim=True) / largest)
    return own.log2().ceil().clamp(min=-127.0).exp2()


def _or_one(scales: torch.Tensor) -> torch.Tensor:
    """The scales, but one in place of none: what it divides is zero."""
    return scales.masked_fill(scales == 0, 1.0)
