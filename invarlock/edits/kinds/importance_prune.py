"""Pruning by importance: |W| times the size of its input (Wanda; Sun et al., arXiv 2306.11695).

The importance of W[i, j] is |W[i, j]| * norm(X[:, j]), X the inputs of the map on a text, token by
token. Each output loses the same share of its weights, so that none is left without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar

from invarlock.edits.blocks import Loss, finite_norm, row_blocks, squared_norm
from invarlock.edits.kind import Limits, TextEdit, rows_of_outputs
from invarlock.edits.scope import Scope

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImportancePrune(TextEdit):
    """The floor(inputs * sparsity) weights of least |W| times input norm of each row set to zero.

    The norms are those of the inputs on windows of the suite's text (Wanda).
    """

    edit_type: ClassVar[str] = "importance_prune"
    storage_format: ClassVar[str] = "dense_float_with_zeros"
    sparsity: Annotated[float, Limits("fraction of each row set to zero", above=0, high=1)]
    scope: Scope

    def count(self, inputs: int) -> int:
        """floor(inputs * sparsity) of the decimal number that was written, not of its double."""
        return math.floor(inputs * Fraction(repr(self.sparsity)))

    def prune(self, stored: torch.Tensor, transposed: bool, inputs: torch.Tensor) -> Loss:
        """Prune one matrix in place; of equal importance goes what comes first in its row.

        Args:
            stored: (rows, columns) as the checkpoint keeps it.
            transposed: whether its rows are inputs, not outputs.
            inputs: L2 norm of each input over the tokens.

        Raises:
            InputError: a value is not finite.
        """
        weight = rows_of_outputs(stored, transposed)
        count = self.count(weight.shape[1])
        loss = Loss()
        for rows in row_blocks(weight):
            work = rows.float()
            loss.norm += finite_norm(work)
            if count == 0:
                continue
            importance = work.abs() * inputs
            least = importance.kthvalue(count, dim=1, keepdim=True).values
            chosen, equal = importance < least, importance == least
            left = count - chosen.sum(dim=1, keepdim=True)
            chosen |= equal & (equal.cumsum(dim=1) <= left)
            loss.error += squared_norm(work * chosen)
            loss.zeros += int(chosen.sum())
            rows.masked_fill_(chosen, 0.0)
        return loss

    def details(self, loss: Loss, n_edited: int) -> dict[str, float]:
        return {"target_sparsity": self.sparsity, "actual_sparsity": loss.zeros / n_edited}
