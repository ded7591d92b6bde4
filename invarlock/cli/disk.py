"""Wait until an edited checkpoint fits on the disk, in a run whose subjects take turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.sources.disk import await_room


@dataclass(frozen=True, kw_only=True)
class DiskOptions:
    """Options of ``invarlock advanced disk``."""

    subject: Path = option(metavar="DIR", help="the folder to be written")
    wait_minutes: float = option(0, metavar="M", help="give up after (default: 0)")


OPTIONS = DiskOptions


def main(options: DiskOptions) -> int:
    """Return when there is room."""
    await_room(options.subject, options.wait_minutes)
    return 0
