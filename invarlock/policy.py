"""The tier table of ``invarlock/data/tiers.yaml`` as typed values."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.errors import ConfigError
from invarlock.files import digest_json

TIERS_FILE = Path(__file__).with_name("data") / "tiers.yaml"


@dataclass(frozen=True)
class Degeneracy:
    """Subject/baseline ratios below which a weight matrix counts as (nearly) collapsed."""

    stable_rank_warn: float
    stable_rank_fatal: float
    norm_warn: float
    norm_fatal: float


@dataclass(frozen=True)
class SpectralPolicy:
    """Thresholds of the spectral guard (method: ``docs/method.md``)."""

    deadband: float
    max_caps: int
    family_caps: Mapping[str, float]
    method: str
    alpha: float
    degeneracy: Degeneracy

    def kappa(self, family: str) -> float:
        """The |z| beyond which a module of ``family`` is a candidate for a cap."""
        return self.family_caps.get(family, self.family_caps["other"])


@dataclass(frozen=True)
class Policy:
    """Everything that decides, for one tier."""

    tier: str
    ratio_limit: float
    hysteresis: float
    min_tokens: int
    min_preview: int
    min_final: int
    min_replicates: int
    max_alpha: float  # two-sided error of the interval
    drift_min: float
    drift_max: float
    spectral: SpectralPolicy
    resolved: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """First 16 hex of SHA-256 over the canonical JSON of the resolved tier."""
        return digest_json({"tier": self.tier, "resolved": dict(self.resolved)})[:16]


@functools.cache
def _table() -> dict[str, Any]:
    import yaml

    loaded = yaml.safe_load(TIERS_FILE.read_text())
    assert isinstance(loaded, dict)  # our own packaged file
    return loaded


def tier_names() -> list[str]:
    """The tiers that exist, in the order of the file."""
    return list(_table())


@functools.cache
def load_policy(tier: str) -> Policy:
    """The policy of a tier.

    Raises:
        ConfigError: no such tier.
    """
    table = _table()
    if tier not in table:
        near = difflib.get_close_matches(tier, table, n=1)
        raise ConfigError(
            f"{tier!r} is not a tier",
            expected="one of " + ", ".join(table),
            hint=f"did you mean {near[0]}?" if near else "",
        )
    row = table[tier]
    pm, floors, drift, spectral = row["pm_ratio"], row["coverage"], row["drift"], row["spectral"]
    limits = spectral["degeneracy"]
    return Policy(
        tier=tier,
        ratio_limit=float(pm["ratio_limit_base"]),
        hysteresis=float(pm["hysteresis_ratio"]),
        min_tokens=int(pm["min_tokens"]),
        min_preview=int(floors["preview"]),
        min_final=int(floors["final"]),
        min_replicates=int(floors["replicates"]),
        max_alpha=float(floors["alpha"]),
        drift_min=float(drift["min"]),
        drift_max=float(drift["max"]),
        spectral=SpectralPolicy(
            deadband=float(spectral["deadband"]),
            max_caps=int(spectral["max_caps"]),
            family_caps={name: float(value) for name, value in spectral["family_caps"].items()},
            method=str(spectral["multiple_testing"]["method"]),
            alpha=float(spectral["multiple_testing"]["alpha"]),
            degeneracy=Degeneracy(
                stable_rank_warn=float(limits["stable_rank"]["warn_ratio"]),
                stable_rank_fatal=float(limits["stable_rank"]["fatal_ratio"]),
                norm_warn=float(limits["norm_collapse"]["warn_ratio"]),
                norm_fatal=float(limits["norm_collapse"]["fatal_ratio"]),
            ),
        ),
        resolved=row,
    )
