"""What a measurement took, a token: time and memory under the names that users know.

``latency_ms_per_tok``: milliseconds of the forward pass per predicted token, over all windows;
``throughput_tok_per_s``: its inverse; ``memory_mb_peak``: the peak of the process, guards
included, in MiB. They differ every time, so that a report holds them only where they were asked
for; ``runtime.manifest.json`` always does.
"""

from collections.abc import Mapping
from typing import Any

LATENCY, THROUGHPUT, MEMORY = "latency_ms_per_tok", "throughput_tok_per_s", "memory_mb_peak"
COSTS = (LATENCY, THROUGHPUT, MEMORY)
DIGITS = 9  # that are recorded


def cost(
    seconds: Mapping[str, float], memory_mb: Mapping[str, float], tokens: int
) -> dict[str, float]:
    """The costs of a run; empty where nothing ran, or no time was measured.

    Args:
        seconds: by phase, of the runtime manifest.
        memory_mb: peaks, in units of 10^6 bytes.
        tokens: predicted tokens of both arms.
    """
    forward = seconds.get("forward", 0.0)
    if not (forward > 0 and tokens > 0):
        return {}
    return {
        LATENCY: _rounded(1000 * forward / tokens),
        THROUGHPUT: _rounded(tokens / forward),
        **({MEMORY: _rounded(max(memory_mb.values()) * 1e6 / 2**20)} if memory_mb else {}),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def costs_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a block of a report or of a run states."""
    return {name: block[name] for name in COSTS if name in block}
