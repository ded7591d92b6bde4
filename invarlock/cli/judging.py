"""By which thresholds an evaluation is judged: the tier's, a preset's, and what the user asks."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from invarlock.errors import ConfigError
from invarlock.policy import Override, Policy, resolve_policy
from invarlock.preset import read_preset


@dataclass(frozen=True)
class Thresholds:
    """What was asked for on the command line."""

    tier: str
    preset: str  # a file, or empty: the tier's own values
    tail_mode: str  # fail, or empty: the tier's
    kl_mean_max: float = 0.0  # nats; 0: the tier's
    flip_fraction_max: float = 0.0  # 0: the tier's, which is none


def add_judging_options(parser: argparse.ArgumentParser) -> None:
    """By what ``evaluate`` and ``advanced tune`` judge; the tier is a measuring option."""
    add = parser.add_argument
    add("--preset", type=Path, metavar="FILE", help="thresholds of this model (default: tier's)")
    add("--tail-mode", default="", choices=["", "fail"], help="fail: a heavy tail is a failure")
    add("--kl-mean-max", type=float, default=0, metavar="NATS", help="0: the tier's (default)")
    add("--flip-fraction-max", type=float, default=0, metavar="F", help="0: no limit (default)")
    add("--replicates", type=int, default=2000, metavar="N", help="bootstrap (default: 2000)")
    add("--alpha", type=float, default=0.05, help="two-sided error of the interval")


def check_judging_options(args: argparse.Namespace) -> None:
    """What is misspelt or cannot be must not cost a measurement.

    Raises:
        ConfigError: an unknown tier, or a value that cannot be.
        InputError: an unreadable preset.
    """
    limits = args.kl_mean_max, args.flip_fraction_max
    resolve(Thresholds(args.tier, str(args.preset or ""), args.tail_mode, *limits), None)
    if not 0 < args.alpha < 1:
        raise ConfigError("--alpha is not a probability", found=str(args.alpha))


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
