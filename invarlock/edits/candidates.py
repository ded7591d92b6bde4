"""What a search for tuned parameters tries: the published parameters first, then milder ones."""

from __future__ import annotations

from collections.abc import Mapping

from invarlock.checkpoints import Checkpoint
from invarlock.roles import layer_of

# Edit type -> its parameters as in a spec string, from the most to the least that is changed.
# {middle}: number of the layer in the middle.
CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "quant_rtn": ("4:32:ffn", "4:32:attn", "4:32:ffn@layer={middle}", "8:32:ffn"),
    "fp8_quant": ("e5m2:ffn", "e5m2:attn", "e5m2:ffn@layer={middle}", "e4m3:ffn"),
    "magnitude_prune": ("0.12:ffn", "0.1:ffn", "0.08:ffn", "0.05:ffn", "0.02:ffn"),
    "lowrank_svd": (
        "32:ffn@layer={middle}",
        "256:ffn@layer={middle}",
        "384:ffn@layer={middle}",
        "512:ffn@layer={middle}",
        "1024:ffn@layer={middle}",
    ),
    "lora_merge": ("4:8:attn", "4:4:attn", "4:2:attn", "4:1:attn"),
    "fine_tune": ("0.0001:1:ffn", "0.00005:1:ffn", "0.00002:1:ffn", "0.00001:1:ffn"),
}


def candidates(edit_type: str, baseline: Checkpoint) -> list[str]:
    """The spec strings to try on one model, in order."""
    layers = {layer_of(name) for name in baseline.tensors} - {None}
    middle = (len(layers) - 1) // 2 if layers else 0
    return [f"{edit_type}:{values.format(middle=middle)}" for values in CANDIDATES[edit_type]]
