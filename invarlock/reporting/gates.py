"""Which validation flags decide whether a report passes."""

from __future__ import annotations

# The validation flags that decide, in the tiers that enforce guards.
GATES = (
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "primary_metric_tail_acceptable",
    "invariants_pass",
    "spectral_stable",
    "rmt_stable",
)
EXPLORING_GATES = ("primary_metric_acceptable", "invariants_pass")  # tier none
MIXTURE_GATE = "moe_identity_ok"  # one more where the model is a mixture of experts
# Published flags of what measuring costs: recorded, and never held against a subject.
COST_FLAGS = ("guard_overhead_acceptable",)
# The order in which flags are named, the most basic first: what the files are, what the metric
# says, what the guards say.
NAMED_FIRST = (
    "invariants_pass",
    "primary_metric_acceptable",
    "preview_final_drift_acceptable",
    "primary_metric_tail_acceptable",
    "spectral_stable",
    "rmt_stable",
    MIXTURE_GATE,
)


def in_order(flags: set[str]) -> tuple[str, ...]:
    """Flags in the order in which they are named; ones of other versions come last, by name."""
    known = [flag for flag in NAMED_FIRST if flag in flags]
    return (*known, *sorted(flags.difference(known)))
