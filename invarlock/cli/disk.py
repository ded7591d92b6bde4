"""Wait until an edited checkpoint fits on the disk, in a run whose subjects take turns."""

from __future__ import annotations

import argparse
from pathlib import Path

from invarlock.sources.disk import await_room


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock advanced disk``."""
    add = parser.add_argument
    add("--subject", type=Path, required=True, metavar="DIR", help="the folder to be written")
    add("--wait-minutes", type=float, default=0, metavar="M", help="give up after (default: 0)")


def main(args: argparse.Namespace) -> int:
    """Return when there is room."""
    await_room(args.subject, args.wait_minutes)
    return 0
