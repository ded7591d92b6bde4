"""The kinds of damage; :data:`DAMAGES` finds them by looking into this folder."""

from __future__ import annotations

from invarlock.damage.kind import Damage
from invarlock.registry import kinds_in

DAMAGES: dict[str, type[Damage]] = kinds_in(__name__, Damage, "error_type")
