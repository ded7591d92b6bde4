"""Guards: what can be wrong with a checkpoint although its perplexity looks right.

Order of a run: invariants, spectral, rmt, variance, invariants (once more, on what was loaded).
Every guard compares the subject with statistics recorded from the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.files import contract_hash
from invarlock.guards import rmt, rows, variance, weight_stats

CHAIN = ("invariants", "spectral", "rmt", "variance", "invariants")
# How each guard measures: two runs can be compared only if they agree on it.
CONTRACTS: Mapping[str, Mapping[str, Any]] = {
    "spectral": {**weight_stats.CONTRACT, "rows": rows.CONTRACT},
    "rmt": rmt.CONTRACT,
    "variance": variance.CONTRACT,
}


def contract_fields(guard: str) -> dict[str, Any]:
    """The measurement contract of a guard and its hash, as both kinds of report state them."""
    contract = CONTRACTS[guard]
    return {"measurement_contract": contract, "measurement_contract_hash": contract_hash(contract)}
