"""What tests have a child of the fork server do, and a process of its own: ``main``."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

# by readline, without Python noticing; by the shell; and what a child is not told
UNSAID = {"LINES", "COLUMNS", "_", "INVARLOCK_ONE_LOAD"}


def state() -> dict[str, object]:
    """What a process takes over when it starts, and what is to be as in a new one."""
    import torch

    from invarlock.run import forkserver

    forkserver._load(forkserver.AUTO)
    mask = os.umask(0)
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGPIPE, signal.SIGCHLD
    return {
        "words": sys.argv[1:],
        "folder": os.getcwd(),
        "variables": {k: v for k, v in os.environ.items() if k not in UNSAID},
        "mask": mask,
        "signals": [str(signal.getsignal(number)) for number in numbers],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "threads": torch.get_num_threads(),
        "running": len(os.listdir("/proc/self/task")),
        "cuda": torch.cuda.is_initialized(),
        "drawn": torch.rand(3).tolist(),
        "files": sorted(os.listdir("/proc/self/fd"))[:3],
        "read": sys.stdin.read(),
    }


def main() -> int:
    """By the first word: tell the state, burn a second, or become a shell that runs a script."""
    if sys.argv[1:2] == ["state"]:
        print(json.dumps(state()))
        return 7
    if sys.argv[1:2] == ["burn"]:
        while resource.getrusage(resource.RUSAGE_SELF).ru_utime < 1:
            pass
        return 0
    script = Path(os.environ["FORKED_SCRIPT"])
    os.execv("/bin/sh", ["sh", str(script)])  # the time limit and the streams go along


if __name__ == "__main__":
    raise SystemExit(main())
