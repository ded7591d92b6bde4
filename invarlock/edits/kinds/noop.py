"""No edit at all: what it shows is the noise of the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from invarlock.edits.kind import EditSpec


@dataclass(frozen=True)
class Noop(EditSpec):
    """Every byte as it was."""

    edit_type: ClassVar[str] = "noop"
    storage_format: ClassVar[str] = "unchanged"
    allows_no_change: ClassVar[bool] = True
    keeps_weights: ClassVar[bool] = True
