"""The kinds of model source, one file each; :data:`SOURCES` finds them by looking here."""

from __future__ import annotations

from invarlock.registry import kinds_in
from invarlock.sources.kind import ModelSource

SOURCES: dict[str, type[ModelSource]] = kinds_in(__name__, ModelSource, "kind")
