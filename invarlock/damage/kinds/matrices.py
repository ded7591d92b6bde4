"""Damage to the arithmetic of matrices, up to a single bit of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.damage.kind import MatrixDamage
from invarlock.damage.targets import (
    all_matrices,
    block_matrices,
    feed_forward_or_any,
    ffn_output,
    layer_count,
    projection_matrix,
)
from invarlock.edits.blocks import (
    refuse_non_finite,
    row_blocks,
    squared_norm,
    transform_rows,
)
from invarlock.edits.kinds.lowrank_svd import low_rank_
from invarlock.errors import ConfigError, InputError
from invarlock.roles import Role

if TYPE_CHECKING:
    import torch

# Lowest and highest bit of the exponent, counted from the lowest of the element.
EXPONENT_BITS = {"BF16": (7, 14), "F16": (10, 14), "F32": (23, 30), "F64": (52, 62)}


@dataclass(frozen=True)
class NanInjection(MatrixDamage):
    """Element [0, 0] of the first weight matrix of block 0 becomes NaN."""

    error_type: ClassVar[str] = "nan_injection"

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        return block_matrices(baseline)[:1]

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        matrix[0, 0] = float("nan")


@dataclass(frozen=True)
class InfInjection(MatrixDamage):
    """Element [0, 0] of the first attention matrix becomes positive infinity."""

    error_type: ClassVar[str] = "inf_injection"

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        return block_matrices(baseline, Role.ATTN)[:1]

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        matrix[0, 0] = float("inf")


@dataclass(frozen=True)
class ExtremeQuant(MatrixDamage):
    """Every weight matrix to 2 bits: scale max|w| / 2, levels -2 to 1."""

    error_type: ClassVar[str] = "extreme_quant"
    whole_stacks: ClassVar[bool] = True

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        return all_matrices(baseline)

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        two_bits_(matrix)


def two_bits_(matrix: torch.Tensor) -> None:
    """Levels -2 to 1 of scale max|w| / 2: the positive maximum is cut to half."""
    largest = max(float(rows.abs().amax()) for rows in row_blocks(matrix))
    scale = largest / 2 or 1.0
    transform_rows(matrix, lambda work, _: (work / scale).round_().clamp_(-2, 1).mul_(scale))


@dataclass(frozen=True)
class ScaleExplosion(MatrixDamage):
    """The first feed-forward matrix times a factor."""

    error_type: ClassVar[str] = "scale_explosion"
    factor: float = 100.0

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        return feed_forward_or_any(baseline)[:1]

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        matrix.mul_(self.factor)


@dataclass(frozen=True)
class RankCollapse(MatrixDamage):
    """The first attention matrices become first column times first row, of the old norm."""

    error_type: ClassVar[str] = "rank_collapse"
    matrices: int = 8

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        return block_matrices(baseline, Role.ATTN)[: self.matrices]

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        outer_of_first_(matrix)


def outer_of_first_(matrix: torch.Tensor) -> None:
    """First column times first row, rescaled to the Frobenius norm that the matrix had.

    Raises:
        InputError: the first column or row is zero or not finite.
    """
    import torch

    column = matrix[:, :1].to(torch.float32, copy=True)
    row = matrix[:1].to(torch.float32, copy=True)
    refuse_non_finite(column)
    refuse_non_finite(row)
    norm = sum(squared_norm(rows.to(torch.float32)) for rows in row_blocks(matrix)) ** 0.5
    product = (squared_norm(column) * squared_norm(row)) ** 0.5
    if not product:
        raise InputError("its first column or row is zero", expected="a nonzero outer product")
    column *= norm / product
    start = 0
    for rows in row_blocks(matrix):
        rows.copy_(column[start : start + rows.shape[0]] * row)
        start += rows.shape[0]


@dataclass(frozen=True)
class NormCollapse(MatrixDamage):
    """The first attention matrices become zero."""

    error_type: ClassVar[str] = "norm_collapse"
    matrices: int = 32

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        return block_matrices(baseline, Role.ATTN)[: self.matrices]

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        matrix.zero_()


@dataclass(frozen=True)
class _OneProjection(MatrixDamage):
    """Base of damage to one projection of one layer; the middle layer where none is named."""

    projection: str = ""
    layer: int = -1

    def check(self, baseline: Checkpoint) -> Self:
        return dataclasses.replace(
            self,
            projection=self.projection or ffn_output(baseline),
            layer=layer_count(baseline) // 2 if self.layer < 0 else self.layer,
        )

    def targets(self, baseline: Checkpoint) -> list[TensorInfo]:
        return [projection_matrix(baseline, self.projection, self.layer)]


@dataclass(frozen=True)
class Rank1Projection(_OneProjection):
    """One projection of one layer becomes its best rank-1 approximation.

    Defaults: the projection that leaves the feed-forward block, of the middle layer (-1).
    """

    error_type: ClassVar[str] = "rank1_projection"
    places: ClassVar[Mapping[str, str]] = {"layer": "a layer"}

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        low_rank_(matrix, 1, seed)


@dataclass(frozen=True)
class BitFlip(_OneProjection):
    """One exponent bit of one weight is flipped; every other bit of the checkpoint stays.

    Defaults: the highest exponent bit (-1) of element [row 0, column 0], as stored, of the
    projection that leaves the feed-forward block of the middle layer (-1). Bits count from the
    lowest of the element; the sign is the highest.
    """

    error_type: ClassVar[str] = "bit_flip"
    places: ClassVar[Mapping[str, str]] = {"layer": "a layer", "bit": "an exponent bit"}
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"row": (0, 2**31), "column": (0, 2**31)}
    row: int = 0
    column: int = 0
    bit: int = -1

    def check(self, baseline: Checkpoint) -> Self:
        placed = super().check(baseline)
        return dataclasses.replace(placed, bit=placed._exponent_bit(baseline))

    def _exponent_bit(self, baseline: Checkpoint) -> int:
        """The bit to flip, once the element and the bit are known to be there."""
        info = projection_matrix(baseline, self.projection, self.layer)
        for name, size in zip(("row", "column"), info.shape[-2:], strict=True):
            if getattr(self, name) >= size:
                raise ConfigError(
                    f"no {name} {getattr(self, name)} in {info.name}",
                    where=str(baseline.folder),
                    expected=f"0 to {size - 1}",
                )
        low, high = EXPONENT_BITS[info.dtype]
        if self.bit >= 0 and not low <= self.bit <= high:
            raise ConfigError(
                f"bit {self.bit} is no exponent bit of {info.name}, of type {info.dtype}",
                where=str(baseline.folder),
                expected=f"{low} to {high}",
            )
        return high if self.bit < 0 else self.bit

    def apply(self, matrix: torch.Tensor, seed: int) -> None:
        import torch

        integer: torch.dtype = getattr(torch, f"int{8 * matrix.element_size()}")
        matrix.view(integer)[self.row, self.column] ^= 1 << self.bit
