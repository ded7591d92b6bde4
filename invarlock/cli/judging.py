"""Options that commands which judge a subject share."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.cli.options import option
from invarlock.cli.purpose import Purpose
from invarlock.errors import ConfigError
from invarlock.policy import Override, Policy, check_profile, resolve_policy
from invarlock.preset import read_preset

if TYPE_CHECKING:
    from invarlock.evidence.policy_pack import PolicyPack


@dataclass(frozen=True, kw_only=True)
class Judging(Purpose):
    """Options that set the thresholds for judging a subject; the tier is an option of measuring."""

    preset: Path | None = option(
        None, metavar="FILE", help="thresholds of this model (default: tier's)"
    )
    policy_pack: Path | None = option(
        None,
        metavar="FILE",
        help="signed overlay of the tier's values (invarlock policy create)",
        setting="policy_pack",
    )
    tail_mode: str = option(
        "", choices=["", "fail"], help="fail: a heavy tail is a failure", setting="tail_mode"
    )
    kl_mean_max: float = option(
        0.0, metavar="NATS", help="0: the tier's (default)", setting="distribution.kl_mean_max"
    )
    flip_fraction_max: float = option(
        0.0, metavar="F", help="0: no limit (default)", setting="distribution.flip_fraction_max"
    )
    replicates: int = option(
        2000, metavar="N", help="bootstrap (default: 2000)", setting="bootstrap.replicates"
    )
    alpha: float = option(0.05, help="two-sided error of the interval", setting="bootstrap.alpha")

    def check_judging(self) -> None:
        """What is misspelt or cannot be must not cost a measurement.

        Raises:
            ConfigError: an unknown profile or tier, or a value that cannot be.
            InputError: an unreadable preset.
        """
        check_profile(self.profile)
        self.policy(None)
        if not 0 < self.alpha < 1:
            raise ConfigError("--alpha is not a probability", found=str(self.alpha))

    def overlay(self) -> PolicyPack | None:
        """The policy pack, whose signature and bounds hold.

        Raises:
            ConfigError: it is for another tier.
            InputError: it is unreadable, or its signature does not hold.
        """
        if not self.policy_pack:
            return None
        # by name: how signatures are verified is no part of what is measured (``code_digest``)
        signed = import_module("invarlock.evidence.policy_pack")
        found: PolicyPack = signed.read_policy_pack(self.policy_pack)
        found.require_tier(self.tier)
        return found

    def policy(self, baseline_sha256: str | None) -> tuple[Policy, str | None]:
        """The policy, and the digest of the preset's content.

        Args:
            baseline_sha256: digest of the baseline checkpoint; None: not compared with the
                preset's.

        Raises:
            ConfigError: an unknown tier, or a value that the tier does not allow.
            InputError: the preset is unreadable or of another baseline or tier.
        """
        overrides: tuple[Override, ...] = ()
        digest = None
        if self.preset:
            preset = read_preset(self.preset)
            if baseline_sha256 is not None:
                preset.require_for(baseline_sha256, self.tier)
            overrides, digest = preset.overrides, preset.sha256
        if overlay := self.overlay():
            overrides = overlay.over(overrides)
        asked: dict[str, float | str] = {
            "tail.mode": self.tail_mode,
            "distribution.kl_mean_max": self.kl_mean_max,
            "distribution.flip_fraction_max": self.flip_fraction_max,
        }
        overrides += tuple(Override(path, v, "config") for path, v in asked.items() if v)
        return resolve_policy(self.tier, overrides), digest
