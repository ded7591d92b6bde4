"""What a command took, in the form of Snakemake's benchmark files.

Snakemake's own would look at the processes below a job's, where a child of the fork server is not,
and at times only. The file that ``INVARLOCK_USAGE`` names gets wall time, largest memory of one
process, and CPU time of all of them, as the kernel counted them.
"""

from __future__ import annotations

import resource
from datetime import timedelta
from pathlib import Path

from invarlock.files import write_text

FILE = "INVARLOCK_USAGE"
_elsewhere: list[tuple[float, float]] = []  # CPU seconds and MB of processes that are no child


def add(seconds: float, megabytes: float) -> None:
    """A process has ended that worked for this command, and is none of its children."""
    _elsewhere.append((seconds, megabytes))


def write(path: Path, wall: float) -> None:
    """Write the file, at the end of a command that took so many seconds."""
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    used = [resource.getrusage(who) for who in whose]
    cpu = sum(found.ru_utime + found.ru_stime for found in used)
    memory = [found.ru_maxrss / 1024 for found in used]
    cpu += sum(seconds for seconds, _ in _elsewhere)
    memory += [megabytes for _, megabytes in _elsewhere]
    row = {
        "s": f"{wall:.4f}",
        "h:m:s": str(timedelta(seconds=int(wall))),
        "max_rss": f"{max(memory):.2f}",
        "cpu_time": f"{cpu:.2f}",
    }
    write_text(path, "\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
