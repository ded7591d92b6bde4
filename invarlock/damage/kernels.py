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


def scale_(matrix: torch.Tensor, factor: float) -> Loss:
    """Multiply every element."""
    matrix.mul_(factor)
    return Loss()


def zero_(matrix: torch.Tensor) -> Loss:
    """Set every element to zero."""
    matrix.zero_()
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
