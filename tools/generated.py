"""Files that tools make of the code: written by ``make docs``, or compared with ``--check``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write_or_check(made: Iterable[tuple[Path, str]]) -> int:
    """Write the files, or with ``--check`` name those that are stale; 1 where there are any."""
    check, stale = "--check" in sys.argv[1:], 0
    for path, text in made:
        if not check:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            print(f"{path.relative_to(ROOT)} is stale; run: make docs", file=sys.stderr)
            stale = 1
    return stale
