"""Options that measuring and judging share; those who only judge load no model."""

from __future__ import annotations

from dataclasses import dataclass

from invarlock.cli.options import option


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a measurement is for."""

    profile: str = option("dev", help="dev, ci or release (default: dev)", setting="profile")
    tier: str = option("balanced", help="tier of the policy (default: balanced)", setting="tier")
