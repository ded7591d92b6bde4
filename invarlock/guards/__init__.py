"""Guards: what can be wrong with a checkpoint although its perplexity looks right.

Order of a run: invariants, spectral, rmt, variance, invariants (once more, on what was loaded).
Every guard compares the subject with statistics recorded from the baseline. A guard is one class
in one module here; this registry is where it is listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invarlock.guards.guard import Guard
from invarlock.guards.invariants_decision import Invariants
from invarlock.guards.moe import Moe
from invarlock.guards.overhead import Overhead
from invarlock.guards.representation import Representation
from invarlock.guards.rmt import Rmt
from invarlock.guards.spectral import Spectral
from invarlock.guards.variance import Variance

# In the order of a run and of the pages.
GUARDS: tuple[Guard, ...] = (
    Invariants(),
    Spectral(),
    Rmt(),
    Representation(),
    Variance(),
    Overhead(),
    Moe(),
)
BY_NAME: Mapping[str, Guard] = {guard.name: guard for guard in GUARDS}
CORE = tuple(guard.name for guard in GUARDS if guard.core)
CHAIN = (*CORE, Invariants.name)  # of a run: files are looked at once more, as they were loaded
# How each guard measures: two runs can be compared only if they agree on it.
CONTRACTS: Mapping[str, Mapping[str, Any]] = {
    guard.name: guard.contract for guard in GUARDS if guard.contract is not None
}


def contract_fields(guard: str) -> dict[str, Any]:
    """The measurement contract of a guard and its hash, as both kinds of report state them."""
    return BY_NAME[guard].contract_fields()
