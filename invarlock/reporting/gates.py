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
    "guard_overhead_acceptable",
)
EXPLORING_GATES = ("primary_metric_acceptable", "invariants_pass")  # tier none
MIXTURE_GATE = "moe_identity_ok"  # one more where the model is a mixture of experts
