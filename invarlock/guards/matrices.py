"""The rule of reports that hold no operators: singular values and ranks of the matrices themselves.

Such reports are in the hands of others and go on being judged by what they were judged by. The rule
is no longer used on new measurements, because these numbers belong to a parametrization of the
function (``docs/decisions/0041-operators.md``): stable rank, row and column norms that fell below
their fatal ratio to the baseline block, and caps on the largest singular value.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from invarlock.guards import rows, weight_stats
from invarlock.guards.caps import Change, decide, fell, log_ratio
from invarlock.guards.operators import Module
from invarlock.policy import SpectralPolicy

CONTRACT = {**weight_stats.CONTRACT, "rows": rows.CONTRACT}
COLLAPSING = ("stable_rank", "row_min", "column_min")


def judge(
    baseline: Sequence[Module],
    subject: Sequence[Module],
    policy: SpectralPolicy,
    row_tables: Sequence[rows.RowTable] = (),
    accepted: Collection[str] = (),
) -> dict[str, Any]:
    """Compare the modules of two runs, both lists of the same names, and the rows of tables.

    Returns:
        the decided part of the report's ``spectral`` block.
    """
    reference = {module.name: module for module in baseline}
    pairs = [(reference[module.name], module) for module in sorted(subject, key=lambda m: m.name)]
    changes = [
        Change(s.name, s.family, log_ratio(mine, base), mine, base)
        for b, s in pairs
        for mine, base in [(s.stats.sigma_max, b.stats.sigma_max)]
    ]
    found = [
        finding
        for b, s in pairs
        for finding in fell(
            s.name,
            s.family,
            [(field, getattr(b.stats, field), getattr(s.stats, field)) for field in COLLAPSING],
            policy,
        )
    ]
    counts = {"modules_checked": len(pairs)}
    return decide(changes, found, policy, row_tables, counts, accepted)
