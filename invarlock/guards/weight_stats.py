"""Statistics of a weight matrix: largest singular value, stable rank, row and column norms.

The largest singular value comes from Golub-Kahan-Lanczos bidiagonalization with full
reorthogonalization (Golub and Van Loan, *Matrix Computations*, 4th ed., section 10.4), from a
start vector that depends on the shape and the seed alone, so that baseline and subject are
measured alike. It stops when the residual of the leading Ritz triplet is at most ``TOLERANCE``
times its value; the value itself is then closer still, as its error is quadratic in the
residual. All arithmetic is float32 (float64 for the small bidiagonal), whatever the storage type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    from invarlock import numpy_on_use as np

TOLERANCE = 1e-3  # residual relative to sigma
CHECK_EVERY = 4  # steps between looks at the residual
MAX_STEPS = 200
SMALL = 64  # up to this many rows or columns all singular values are had for less
HUGE = 1e15  # values beyond it are scaled down before they are squared
SEED = 20_240  # of the start vectors
SIGNIFICANT = 9  # digits kept of a recorded statistic; far below the estimator's error

CONTRACT = {
    "estimator": {
        "type": "golub_kahan_lanczos",
        "reorthogonalization": "full",
        "dtype": "float32",
        "residual_tolerance": TOLERANCE,
        "max_steps": MAX_STEPS,
        "start": "seeded_gaussian",
        "seed": SEED,
    },
    "degeneracy": {"stable_rank": "frobenius^2/sigma^2", "norm_collapse": "min/median"},
}


class WeightStats(NamedTuple):
    """Statistics of one matrix (rows = output features, columns = input features)."""

    sigma_max: float
    stable_rank: float  # ||W||_F^2 / sigma_max^2, between 1 and the rank
    frobenius: float
    row_min: float  # smallest row norm over the median row norm
    column_min: float  # smallest column norm over the median column norm

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the statistics, in table order."""
        return cls._fields


def rounded(value: float) -> float | None:
    """A statistic as it is recorded: ``SIGNIFICANT`` digits; null where it is not finite."""
    return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None


def rounded_column(values: Sequence[float]) -> list[float | None]:
    """:func:`rounded` of each number, without writing out those that have no more digits.

    A decimal number of up to ``SIGNIFICANT`` digits, and so many places that the power of ten is
    exact, is its digits over that power: one correctly rounded division. No other decimal number
    of so few digits is close enough to the same double.
    """
    found = np.array(values, dtype=np.float64)
    with np.errstate(all="ignore"):
        # places behind the point; of 0 one as well
        places = SIGNIFICANT - 1 - np.floor(np.log10(np.abs(np.where(found == 0, 1.0, found))))
        # beyond the exact powers, and for what is not finite, the division does not return it
        powers = np.array(_EXACT_POWERS)[np.fmax(np.fmin(places, 22.0), 0.0).astype(np.int64)]
        digits = np.rint(found * powers)
        same = (digits / powers == found) & (np.abs(digits) < 10.0**SIGNIFICANT)
    if same.all():
        return list(found.tolist())
    return [rounded(value) for value in values]


_EXACT_POWERS = [10.0**places for places in range(23)]  # the next one is no double


def sigma_max(weight: torch.Tensor) -> float:
    """Largest singular value of a float32 matrix (rows, columns), to 1e-3 relative or better.

    0.0 for a zero matrix; the weight must be finite.
    """
    import torch

    rows, columns = weight.shape
    if min(rows, columns) <= SMALL:
        return float(torch.linalg.svdvals(weight)[0])
    if rows < columns:  # the Krylov basis is kept on the shorter side
        weight, rows, columns = weight.T, columns, rows
    generator = torch.Generator().manual_seed(SEED + columns)
    v = torch.randn(columns, generator=generator).to(weight.device)
    v /= v.norm()
    # In exact arithmetic the process ends after as many steps as there are columns.
    limit = min(columns, MAX_STEPS)
    basis = torch.empty(limit + 1, columns, device=weight.device)
    basis[0] = v
    turned = weight.T
    alphas: list[torch.Tensor] = []
    betas: list[torch.Tensor] = []
    u = weight.mv(v)
    sigma = 0.0
    for step in range(1, limit + 1):
        alpha = torch.linalg.vector_norm(u)
        u = u / alpha.clamp_min(1e-30)
        v = turned.mv(u)
        seen = basis[:step]
        # Rounding makes the new vector lose its orthogonality, and the leading value then shows up
        # several times. One pass leaves an error where the vector nearly vanishes; a second one
        # is always enough (Parlett, The Symmetric Eigenvalue Problem, section 6.9).
        for _ in range(2):
            v.addmv_(seen.T, seen.mv(v), alpha=-1)
        beta = torch.linalg.vector_norm(v)
        alphas.append(alpha)
        betas.append(beta)
        if step % CHECK_EVERY == 0 or step == limit:
            # each look waits for the device and decomposes the bidiagonal, hence not every step
            sigma, residual = _ritz(torch.stack(alphas), torch.stack(betas))
            if residual <= TOLERANCE * sigma:
                return sigma
        v = v / beta.clamp_min(1e-30)
        basis[step] = v
        u = weight.mv(v).addcmul_(beta, u, value=-1)
    return sigma


def _ritz(alphas: torch.Tensor, betas: torch.Tensor) -> tuple[float, float]:
    """Largest singular value of the bidiagonal, and the residual of its triplet."""
    a = alphas.double().cpu().numpy()
    b = betas.double().cpu().numpy()
    bidiagonal = np.diag(a) + np.diag(b[:-1], 1)
    left, values, _ = np.linalg.svd(bidiagonal)
    # ||W^T u - sigma v|| = beta_k |last entry of the left vector|: known without another product
    return float(values[0]), float(b[-1] * abs(left[-1, 0]))


def measure(weight: torch.Tensor) -> WeightStats:
    """All statistics of one matrix of any floating type, finite."""
    w = weight.float()
    unit = unit_of(w)
    w = w / unit if unit != 1.0 else w
    squares = w.square()
    rows, columns = squares.sum(dim=1).sqrt(), squares.sum(dim=0).sqrt()
    frobenius = float(rows.double().square().sum().sqrt())
    return described(sigma_max(w), frobenius, rows, columns, unit)


def unit_of(weight: torch.Tensor) -> float:
    """A power of two, which changes no digit, to divide by where squares would overflow; or 1."""
    least, most = weight.aminmax()
    largest = max(-float(least), float(most))
    return 2.0 ** math.floor(math.log2(largest)) if largest > HUGE else 1.0


def described(
    sigma: float,
    frobenius: float,
    rows: torch.Tensor,
    columns: torch.Tensor,
    unit: float = 1.0,
) -> WeightStats:
    """The statistics of a matrix from its norms, all in multiples of ``unit``.

    Args:
        sigma: largest singular value.
        frobenius: Frobenius norm.
        rows: norms (rows,).
        columns: norms (columns,).
        unit: what the matrix was divided by.
    """
    return WeightStats(
        sigma_max=sigma * unit,
        stable_rank=(frobenius / sigma) ** 2 if sigma > 0 else 0.0,
        frobenius=frobenius * unit,
        row_min=_lowest(rows),
        column_min=_lowest(columns),
    )


def _lowest(norms: torch.Tensor) -> float:
    # over the median and not the mean, which one huge row would raise and a dead one lower
    median = float(norms.median())
    return float(norms.min()) / median if median > 0 and math.isfinite(median) else 0.0
