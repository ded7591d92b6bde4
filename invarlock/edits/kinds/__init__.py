"""The kinds of edit, one file each; :data:`EDITS` finds them by looking into this folder."""

from __future__ import annotations

from invarlock.edits.kind import EditSpec
from invarlock.registry import kinds_in

EDITS: dict[str, type[EditSpec]] = kinds_in(__name__, EditSpec, "edit_type")
