"""How far a measurement is, for whoever waits for it.

A process that measures adds a line after each batch to the file that ``INVARLOCK_PROGRESS`` names,
where it names one: windows done of all it knows of so far, then the same in tokens, by which time
goes. ``invarlock compare`` reads it for its bar; so can whatever starts several measurements.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

FILE = "INVARLOCK_PROGRESS"
LINE = 256  # bytes at the end of the file that hold the last line


class Progress(NamedTuple):
    """How far one process is."""

    windows: int = 0
    of_windows: int = 0
    tokens: int = 0
    of_tokens: int = 0

    @classmethod
    def read(cls, path: Path) -> Progress:
        """What the process that writes to this file has said last; nothing, where it has not."""
        with contextlib.suppress(OSError, ValueError):
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LINE))
                # what follows the last line is still being written
                lines = file.read().decode().rpartition("\n")[0]
            numbers = [int(word) for word in lines.rpartition("\n")[2].split()]
            if len(numbers) == len(cls._fields):
                return cls(*numbers)
        return cls()


_told = Progress()


def expect(windows: int, tokens: int) -> None:
    """These are going to be measured, beside those that are known of."""
    _tell(_told._replace(of_windows=_told.of_windows + windows, of_tokens=_told.of_tokens + tokens))


def done(windows: int, tokens: int) -> None:
    """These have been measured."""
    _tell(_told._replace(windows=_told.windows + windows, tokens=_told.tokens + tokens))


def _tell(progress: Progress) -> None:
    global _told
    _told = progress
    if path := os.environ.get(FILE):
        with contextlib.suppress(OSError), open(path, "a") as file:  # a full disk ends no measuring
            file.write(" ".join(map(str, progress)) + "\n")
