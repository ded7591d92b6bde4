"""Digests of tensors that stand recorded for files which have not changed since.

A baseline is hashed by every job that measures against it or edits it. What a job found is kept
for the next one, by the file's resolved path, in ``$XDG_CACHE_HOME/invarlock/digests``
(``~/.cache``). It holds as long as the file is the same: size, times of content and of inode, inode
and device. A file that is written over gets a new inode time, which no program can set back. A file
that changed within ``SETTLED`` seconds before it was read is not recorded: the clock of its file
system may be too coarse to show the next change.

Only what measures and what edits reads this, for the user who does; an edit looks at the state of a
file again when it has read it. A verifier sees no checkpoint and never asks.
``INVARLOCK_DIGESTS=none`` turns it off, and strict assurance does where something is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from invarlock.errors import InputError
from invarlock.files import read_json_object, sha256_bytes, write_json

SWITCH = "INVARLOCK_DIGESTS"
SETTLED = 2.0  # seconds; FAT's clock ticks every two, those of other file systems more often
SCHEMA = "invarlock/recorded-digests-v1"


@dataclass(frozen=True)
class FileState:
    """What the system says of a file; equal states are taken for equal content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """The state now; None where the file cannot be looked at."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    def settled(self, seen_ns: int) -> bool:
        """Whether the file had rested when it was seen."""
        return max(self.mtime_ns, self.ctime_ns) + int(SETTLED * 1e9) < seen_ns


@dataclass(frozen=True)
class Seen:
    """A file as it was when a process first looked at it."""

    path: Path
    state: FileState | None
    at_ns: int

    @classmethod
    def now(cls, path: Path) -> Seen:
        """The file as it is."""
        return cls(path, FileState.of(path), time.time_ns())

    def unchanged(self) -> bool:
        """Whether the file is still what it was."""
        return self.state is not None and FileState.of(self.path) == self.state

    def recorded(self) -> dict[str, str]:
        """SHA-256 of each tensor of the file, where they stand recorded for its state."""
        place = self._place()
        if place is None or self.state is None or not place.is_file():
            return {}
        if not self.unchanged():
            return {}
        try:
            document = read_json_object(place)
        except InputError:
            return {}
        tensors = document.get("tensors")
        fits = document.get("schema") == SCHEMA and document.get("state") == asdict(self.state)
        if not fits or not isinstance(tensors, dict):
            return {}
        return {str(name): str(digest) for name, digest in tensors.items()}

    def record(self, tensors: Mapping[str, str]) -> None:
        """Keep what was found in the file since it was seen, if it is still the same file.

        Where nothing can be kept, nothing is: the next process hashes again.
        """
        place, state = self._place(), self.state
        if place is None or state is None or not state.settled(self.at_ns):
            return
        if FileState.of(self.path) != state:
            return
        document = {"schema": SCHEMA, "state": asdict(state), "tensors": dict(tensors)}
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(place, document)
        except (InputError, OSError):
            return

    def _place(self) -> Path | None:
        if os.environ.get(SWITCH) == "none":
            return None
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if not os.path.isabs(base):  # no home
            return None
        name = sha256_bytes(os.fsencode(self.path.resolve()))
        return Path(base) / "invarlock" / "digests" / f"{name}.json"
