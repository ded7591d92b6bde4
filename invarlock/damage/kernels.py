"""The damage done to one matrix, in place; every function takes (rows, columns)."""

from __future__ import annotations

import torch

from invarlock.edits.blocks import (
    Loss,
    refuse_non_finite,
    row_blocks,
    squared_norm,
    transform_rows,
)
from invarlock.errors import InputError


def poke_(matrix: torch.Tensor, value: float) -> Loss:
    """Set element [0, 0]."""
    matrix[0, 0] = value
    return Loss()


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def flip_bit_(matrix: torch.Tensor, row: int, column: int, bit: int) -> Loss:
    """Flip one bit of one element; bits count from the lowest."""
    matrix.view(_INTEGERS[matrix.element_size()])[row, column] ^= 1 << bit
    return Loss()


def scale_(matrix: torch.Tensor, factor: float) -> Loss:
    """Multiply every element."""
    matrix.mul_(factor)
    return Loss()


def zero_(matrix: torch.Tensor) -> Loss:
    """Set every element to zero."""
    matrix.zero_()
    return Loss()


def exchange_rows_(matrix: torch.Tensor, rows: torch.Tensor) -> Loss:
    """Each of ``rows`` gets what stood in the one before it, the first what stood in the last."""
    matrix[rows] = matrix[rows.roll(1)]
    return Loss()


def two_bits_(matrix: torch.Tensor) -> Loss:
    """Levels -2 to 1 of scale max|w| / 2: the positive maximum is cut to half."""
    largest = max(float(rows.abs().amax()) for rows in row_blocks(matrix))
    scale = largest / 2 or 1.0
    return transform_rows(matrix, lambda work: (work / scale).round_().clamp_(-2, 1).mul_(scale))


def outer_of_first_(matrix: torch.Tensor) -> Loss:
    """First column times first row, rescaled to the Frobenius norm that the matrix had.

    Raises:
        InputError: the first column or row is zero or not finite.
    """
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
    return Loss()


def choose_rows(
    matrix: torch.Tensor, how: str, count: int, generator: torch.Generator
) -> torch.Tensor:
    """``count`` row numbers: first, last, random, random_block (consecutive) or top_norm."""
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
) -> Loss:
    """Move ``rows`` towards the first of them; then add noise of ``jitter`` times their deviation.

    Raises:
        InputError: a row is not finite.
    """
    old = matrix[rows].to(torch.float32)
    refuse_non_finite(old)
    new = (1 - blend) * old + blend * old[:1]
    if keep_norms:
        norms = [torch.linalg.vector_norm(m, dim=1, keepdim=True) for m in (old, new)]
        new *= norms[0] / norms[1].clamp_min(torch.finfo(torch.float32).tiny)
    new += jitter * old.std() * torch.randn(new.shape, generator=generator)
    matrix[rows] = new.to(matrix.dtype)
    return Loss()


def scale_rows_(matrix: torch.Tensor, rows: torch.Tensor, factor: float) -> Loss:
    """Multiply some rows."""
    matrix[rows] *= factor
    return Loss()


def noisy_(weights: torch.Tensor, noise: float, generator: torch.Generator) -> Loss:
    """Multiply every element by ``1 + noise * N(0, 1)``, kept within 0.5 to 1.5."""
    draws = torch.randn(weights.shape, generator=generator)
    weights.copy_(weights.to(torch.float32) * (1 + noise * draws).clamp_(0.5, 1.5))
    return Loss()
