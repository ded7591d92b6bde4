"""Guard probes: small damage, aimed at one guard, that the perplexity should survive.

Which matrices are hit is a seeded draw among those of a family, of some layers and projections;
how, a seeded draw per matrix. Of a stack of experts only the first matrix is hit, so that one
parameter is one matrix however the experts are stored.
"""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.counts import counted
from invarlock.damage.kind import Damage, Value, matrices_changed
from invarlock.damage.targets import (
    block_matrices,
    ffn_output,
    is_named,
    layer_count,
    required_architecture,
)
from invarlock.edits.blocks import refuse_non_finite, row_blocks
from invarlock.edits.kind import rows_of_outputs
from invarlock.edits.stream import CheckpointChange
from invarlock.errors import ConfigError
from invarlock.roles import Role, is_transposed, layer_of, role_of
from invarlock.shards import FLOAT_DTYPES

if TYPE_CHECKING:
    import torch

FAMILIES = ("attn", "ffn", "mlp")  # ffn and mlp are two published names of one family
_ROLES = {"attn": (Role.ATTN,), "ffn": (Role.FFN, Role.EXPERT), "mlp": (Role.FFN, Role.EXPERT)}
# The linear projection into a gated block, and the one out of it.
_INVERSE = {"up_proj": "down_proj", "w3": "w2", "wi_1": "wo"}


@dataclass(frozen=True)
class _Probe(Damage):
    """Base of the probes: some tensors of some layers, drawn by a seed."""

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"seed": (0, 2**32)}
    layers: str = ""
    max_params: int = 0
    seed: int = 42

    def candidates(self, baseline: Checkpoint) -> list[TensorInfo]:
        """What the probe may hit in any layer, in model order."""
        raise NotImplementedError

    def apply(self, stored: torch.Tensor, name: str, transposed: bool) -> None:
        """Change one matrix in place; draws depend on the seed and the tensor's name only."""
        raise NotImplementedError

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        replaced = {}
        for info in self._drawn(baseline):
            turned = is_transposed(info.name, baseline.config)
            kernel = partial(self.apply, name=info.name, transposed=turned)
            replaced[info.name] = matrices_changed(baseline, info, kernel)
        return CheckpointChange(replaced)

    def _drawn(self, baseline: Checkpoint) -> list[TensorInfo]:
        """At most ``max_params`` of the candidates in the layers that are meant."""
        count = layer_count(baseline)
        layers = layers_of(self.layers, count)
        found = [i for i in self.candidates(baseline) if layer_of(i.name) in layers]
        if not found:
            raise ConfigError(
                f"{self.error_type} finds no target in layers {self.layers}",
                where=str(baseline.folder),
                hint=f"the checkpoint has {counted(count, 'layer')}, counted from 0",
            )
        random.Random(self.seed).shuffle(found)
        return found[: self.max_params]


@dataclass(frozen=True)
class RmtNormNoise(_Probe):
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
        **_Probe.bounds,
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
    family: str = "attn"
    params: str = ""
    preserve_row_norms: bool = True
    jitter: float = 0.01
    rows: str = "first"
    noise: float = 0.05
    row_factor: float = 1.6

    def check(self, baseline: Checkpoint) -> Self:
        defaults = self.mode_defaults[self.mode]
        return dataclasses.replace(
            self,
            row_frac=self.row_frac or float(defaults["row_frac"]),
            max_params=self.max_params or int(defaults["max_params"]),
            layers=self.layers or str(defaults["layers"]),
        )

    def candidates(self, baseline: Checkpoint) -> list[TensorInfo]:
        if self.mode != "norm_noise":
            return _matrices(baseline, self.family, _listed(self.params))
        return [
            info
            for name, info in baseline.tensors.items()
            if role_of(name, baseline.config) is Role.NORM
            and name.endswith("weight")
            and len(info.shape) == 1
            and info.dtype in FLOAT_DTYPES
        ]

    def apply(self, stored: torch.Tensor, name: str, transposed: bool) -> None:
        import torch

        generator = torch.Generator().manual_seed(self.seed + zlib.crc32(name.encode()))
        if self.mode == "norm_noise":
            noisy_(stored, self.noise, generator)
            return
        matrix = rows_of_outputs(stored, transposed)
        total = matrix.shape[0]
        # Of one row alone there is nothing to align.
        count = min(total, self.max_rows, max(2, int(self.row_frac * total)))
        rows = choose_rows(matrix, self.rows, count, generator)
        if self.mode == "row_scale":
            matrix[rows] *= self.row_factor
            return
        align_rows_(
            matrix,
            rows,
            self.blend,
            self.jitter,
            keep_norms=self.preserve_row_norms,
            generator=generator,
        )


@dataclass(frozen=True)
class _Scaled(_Probe):
    """Base of the probes that multiply matrices by a factor."""

    factor: float = 1.0

    def apply(self, stored: torch.Tensor, name: str, transposed: bool) -> None:
        stored.mul_(self.factor)


@dataclass(frozen=True)
class SpectralModerateScale(_Scaled):
    """Matrices times a factor: by default the projections that leave the attention blocks.

    ``qkv`` adds the other attention projections; ``pair_inverse`` divides the projection that
    leaves the same feed-forward block by the factor, so that a gated block computes what it did.
    """

    error_type: ClassVar[str] = "spectral_moderate_scale"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"family": FAMILIES}
    factor: float = 3.0
    family: str = "attn"
    layers: str = "last4"
    params: str = ""
    max_params: int = 8
    qkv: bool = False
    pair_inverse: bool = False

    def candidates(self, baseline: Checkpoint) -> list[TensorInfo]:
        named = _listed(self.params)
        if self.family == "attn":
            outputs = required_architecture(baseline).attn_outputs
            named = () if self.qkv else named or outputs
        return _matrices(baseline, self.family, named)

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        scaled = super().change(baseline, seed)
        if not self.pair_inverse:
            return scaled
        partners = [_partner(baseline, name) for name in scaled.replaced]
        inverse = 1 / self.factor
        undone = {
            p.name: matrices_changed(baseline, p, lambda matrix: matrix.mul_(inverse))
            for p in partners
        }
        return CheckpointChange({**scaled.replaced, **undone})


@dataclass(frozen=True)
class VeMlpScaleSkew(_Scaled):
    """Projections that leave the feed-forward block times a factor."""

    error_type: ClassVar[str] = "ve_mlp_scale_skew"
    factor: float = 0.90
    layers: str = "last4"
    max_params: int = 1

    def candidates(self, baseline: Checkpoint) -> list[TensorInfo]:
        return _matrices(baseline, "mlp", (ffn_output(baseline),))


def layers_of(text: str, count: int) -> frozenset[int]:
    """The layers of a model of ``count`` that ``all``, ``31``, ``0-3``, ``last4`` or ``-1`` names.

    A range ends at the last layer; a single layer that is not there names none.
    """
    if text == "all":
        return frozenset(range(count))
    if text.startswith("last"):
        return frozenset(range(max(0, count - int(text[4:])), count))
    first, dash, last = text.partition("-")
    if not first:
        return frozenset({count - int(last)} & set(range(count)))
    return frozenset(range(int(first), min(count, int(last if dash else first) + 1)))


def _listed(params: str) -> tuple[str, ...]:
    return tuple(params.split(",")) if params else ()


def _matrices(baseline: Checkpoint, family: str, projections: tuple[str, ...]) -> list[TensorInfo]:
    found = block_matrices(baseline, *_ROLES[family])
    return [i for i in found if not projections or any(is_named(i.name, p) for p in projections)]


def _partner(baseline: Checkpoint, name: str) -> TensorInfo:
    """The projection that leaves the gated block which ``name`` enters."""
    stem, dot, last = name.removesuffix(".weight").rpartition(".")
    partner = f"{stem}{dot}{_INVERSE.get(last, '?')}.weight"
    if partner not in baseline.tensors:
        raise ConfigError(
            f"no projection undoes a scale of {name}",
            where=str(baseline.folder),
            expected="params of " + ", ".join(_INVERSE),
        )
    return baseline.tensors[partner]


def choose_rows(
    matrix: torch.Tensor, how: str, count: int, generator: torch.Generator
) -> torch.Tensor:
    """``count`` row numbers: first, last, random, random_block (consecutive) or top_norm."""
    import torch

    total = matrix.shape[0]
    if how == "random":
        return torch.randperm(total, generator=generator)[:count]
    if how == "top_norm":
        norms = [
            torch.linalg.vector_norm(r, dim=1, dtype=torch.float32) for r in row_blocks(matrix)
        ]
        return torch.cat(norms).argsort(descending=True, stable=True)[:count]
    start = {"first": 0, "last": total - count}.get(how)
    if start is None:
        start = int(torch.randint(total - count + 1, (1,), generator=generator))
    return torch.arange(start, start + count)


def align_rows_(
    matrix: torch.Tensor,
    rows: torch.Tensor,
    blend: float,
    jitter: float,
    *,
    keep_norms: bool,
    generator: torch.Generator,
) -> None:
    """Move ``rows`` towards the first of them; then add noise of ``jitter`` times their deviation.

    Raises:
        InputError: a row is not finite.
    """
    import torch

    old = matrix[rows].to(torch.float32)
    refuse_non_finite(old)
    new = (1 - blend) * old + blend * old[:1]
    if keep_norms:
        norms = [torch.linalg.vector_norm(m, dim=1, keepdim=True) for m in (old, new)]
        new *= norms[0] / norms[1].clamp_min(torch.finfo(torch.float32).tiny)
    new += jitter * old.std() * torch.randn(new.shape, generator=generator)
    matrix[rows] = new.to(matrix.dtype)


def noisy_(weights: torch.Tensor, noise: float, generator: torch.Generator) -> None:
    """Multiply every element by ``1 + noise * N(0, 1)``, kept within 0.5 to 1.5."""
    import torch

    draws = torch.randn(weights.shape, generator=generator)
    weights.copy_(weights.to(torch.float32) * (1 + noise * draws).clamp_(0.5, 1.5))
