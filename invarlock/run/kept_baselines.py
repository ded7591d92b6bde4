"""What a comparison measured of a baseline, kept for the next subject.

Everything that no subject has a part in - a converted model, windows, the baseline's run, null
edits - is kept in ``$XDG_CACHE_HOME/invarlock/compare`` (``~/.cache``), under the digest of all it
depends on: what was pinned, the settings, the code, the libraries and the machine. Each file is
held against its own digest when it is taken. The least recently used go when there are more than
``MOST_BYTES``. Like a run's own folder it is trusted by whoever measures, never by a verifier.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from invarlock.errors import InputError
from invarlock.files import (
    atomic_directory,
    digest_json,
    leftovers,
    read_json_object,
    remove_leftovers,
    sha256_file,
    write_json,
)

MOST_BYTES = 4_000_000_000
LISTING = "digests.json"


def default_folder() -> Path | None:
    """Where they are kept; None where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "invarlock" / "compare" if os.path.isabs(base) else None


def key_of(what: str, depends_on: Mapping[str, object]) -> str:
    """The name that something is kept under."""
    return f"{what}-{digest_json(depends_on)[:40]}"


@dataclass(frozen=True)
class KeptBaselines:
    """A folder of what is kept."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def place(self, key: str) -> Path:
        """The folder of one of them."""
        return self.folder / key

    def take(self, key: str, into: Path) -> bool:
        """Put what is kept into a folder; False where nothing is, or somebody changed it."""
        place, listed = self.place(key), dict[str, object]()
        try:
            listed = read_json_object(place / LISTING)
            if any(sha256_file(place / name) != digest for name, digest in listed.items()):
                shutil.rmtree(place, ignore_errors=True)
                return False
            for name in listed:
                _link(place / name, into / name)
            os.utime(place)
        except (InputError, OSError):  # none, or another comparison has just made room
            for name in listed:
                (into / name).unlink(missing_ok=True)
            return False
        return True

    def keep(self, key: str, of: Path, paths: Sequence[str]) -> None:
        """Keep these files and folders below ``of``.

        Raises:
            InputError: the folder cannot be written.
        """
        names = sorted(name for path in paths for name in _files(of, path))
        with atomic_directory(self.place(key)) as stage:
            for name in names:
                _link(of / name, stage / name)
            write_json(stage / LISTING, {name: sha256_file(of / name) for name in names})
        self._make_room(key)

    def _make_room(self, latest: str) -> None:
        """Remove the least recently used, and what killed processes left."""
        remove_leftovers(leftovers(self.folder))
        found: list[tuple[float, Path, int]] = []
        for place in self.folder.iterdir():
            with contextlib.suppress(OSError):  # it may be going this moment
                if (place / LISTING).is_file():
                    size = sum((place / n).stat().st_size for n in _files(place, ""))
                    found.append((place.stat().st_mtime, place, size))
        total = sum(size for _, _, size in found)
        for _, place, size in sorted(found):
            if total <= self.most_bytes:
                return
            if place.name != latest:
                shutil.rmtree(place, ignore_errors=True)
                total -= size


def _files(folder: Path, path: str) -> Iterator[str]:
    """The files at a path below a folder, by their names below it; a link is no file of its own."""
    there = folder / path
    if there.is_file():
        yield path
        return
    for file in sorted(there.rglob("*")):
        if file.is_file() and not file.is_symlink():
            yield file.relative_to(folder).as_posix()


def _link(source: Path, target: Path) -> None:
    """One more name of a file, since all writers write beside and rename; else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
