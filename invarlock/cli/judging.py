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
    if asked.tail_mode:
        overrides = (*overrides, Override("tail.mode", asked.tail_mode, "config"))
    return resolve_policy(asked.tier, overrides), digest
