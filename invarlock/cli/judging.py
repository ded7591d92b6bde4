"""By which thresholds an evaluation is judged: the tier's, a preset's, and what the user asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.policy import Override, Policy, resolve_policy
from invarlock.preset import read_preset


@dataclass(frozen=True)
class Thresholds:
    """What was asked for on the command line."""

    tier: str
    preset: str  # a file, or empty: the tier's own values
    tail_mode: str  # fail, or empty: the tier's
    kl_mean_max: float = 0.0  # nats; 0: no limit
    flip_fraction_max: float = 0.0  # 0: no limit


def resolve(asked: Thresholds, baseline_sha256: str | None) -> tuple[Policy, str | None]:
    """The policy, and the digest of the preset's content.

    Args:
        asked: tier, preset and mode of the tail.
        baseline_sha256: digest of the baseline checkpoint; None: not compared with the preset's.

    Raises:
        ConfigError: an unknown tier, or a value that the tier does not allow.
        InputError: the preset is unreadable or of another baseline or tier.
    """
    overrides: tuple[Override, ...] = ()
    digest = None
    if asked.preset:
        preset = read_preset(Path(asked.preset))
        if baseline_sha256 is not None:
            preset.require_for(baseline_sha256, asked.tier)
        overrides, digest = preset.overrides, preset.sha256
    settings: dict[str, float | str] = {
        "tail.mode": asked.tail_mode,
        "distribution.kl_mean_max": asked.kl_mean_max,
        "distribution.flip_fraction_max": asked.flip_fraction_max,
    }
    overrides += tuple(Override(path, value, "config") for path, value in settings.items() if value)
    return resolve_policy(asked.tier, overrides), digest
