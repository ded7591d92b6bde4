"""Run snakemake so that an interrupted run simply goes on.

A snakemake that was killed leaves its lock behind and a later one refuses to start. Here a kernel
lock says whether a run is alive: it belongs to the snakemake processes themselves, also to those
that were started without this file (rules/common.smk), and dies with them. If nobody holds it, what
snakemake left is stale and is removed, and incomplete files are made again.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from pathlib import Path

STATE = Path(".snakemake")
DRY = re.compile(r"-[a-zA-Z]*n[a-zA-Z]*|--dry.*")  # also among other short options: -np


def main() -> int:
    """Take the lock, clear stale ones, become snakemake; a dry run does only the last."""
    if not any(map(DRY.fullmatch, sys.argv[1:])):
        STATE.mkdir(exist_ok=True)
        lock = os.open(STATE / "invarlock.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:  # of this process, so that snakemake may share it with others once it has its own
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("invarlock: another run is going on in this folder; wait for it", file=sys.stderr)
            return 2
        except OSError:
            pass  # some file systems have no locks
        locks = STATE / "locks"
        if locks.is_dir() and any(locks.iterdir()):
            print("An earlier run was interrupted; going on where it stopped.", flush=True)
            # what snakemake --unlock does, once it has read the whole workflow
            shutil.rmtree(locks)
        os.set_inheritable(lock, True)  # held until snakemake ends, however it ends
    command = [sys.executable, "-m", "snakemake", "--rerun-incomplete", *sys.argv[1:]]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    raise SystemExit(main())
