"""Finished evaluations, kept while others of their job of a cluster are not.

A job of a cluster that holds several evaluations is started again as a whole where it is stopped,
and the workflow removes what all of them have written. What was finished is kept beside the run's
outputs until the run ends, under a digest of all that it depends on: the job as its options say
it, names, sizes and times of the files that it reads, the libraries and the code.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from invarlock.files import atomic_directory, digest_json, read_bytes, write_bytes
from invarlock.run.forkserver import state_of_code
from invarlock.run.surroundings import libraries


def place(folder: Path, job: Mapping[str, object], read: Iterable[Path]) -> Path:
    """Where the results of a job are kept.

    Args:
        folder: of the run.
        job: what it is asked to do.
        read: the files and folders that it reads.
    """
    depends_on = {
        "job": dict(job),
        "read": [_state(path) for path in sorted(read)],
        "libraries": libraries(),
        "code": state_of_code(),
    }
    return folder / digest_json(depends_on)


def _state(path: Path) -> list[list[object]]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        [str(file), (stat := file.stat()).st_size, stat.st_mtime_ns]
        for file in files
        if file.is_file() and not file.name.startswith(".")  # the workflow's own marks
    ]


def publish(place: Path, out: Path) -> bool:
    """Write what is kept as results; whether something is."""
    if not place.is_dir():
        return False
    out.mkdir(parents=True, exist_ok=True)
    for name in sorted(os.listdir(place)):
        write_bytes(out / name, read_bytes(place / name))
    return True


def keep(place: Path, out: Path, names: Collection[str]) -> None:
    """Keep the results of these names, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(place) as stage:
        for name in names:
            if (out / name).is_file():
                write_bytes(stage / name, read_bytes(out / name))
