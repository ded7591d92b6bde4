"""Kills a run in the middle of a command, once for each: every fork of `warm_server.py` asks here.

KILL_MARKS is a folder with a file for each rule: the expression that its command line matches, that
of the process that started it before it, and in a second line the audit event (a rename: the
temporary file is whole, the output is not there), which may go on with a word of its arguments. At
the first such event the file is removed and the process group is killed, whose number is written
into the file ``killed`` beside that folder.
"""

import os
import re
import signal
import sys
from pathlib import Path

# The folder; the words of the fork that started this one: those that the system knows are of the
# process that it was forked from.
MARKS, STARTED_BY = "KILL_MARKS", "KILL_STARTED_BY"


def watch(parent: int) -> None:
    """Watch this process, which ``parent`` started, where the variable is set."""
    if MARKS not in os.environ:
        return
    started = Path(f"/proc/{parent}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    words = " ".join(sys.orig_argv)
    both = f"{os.environ.get(STARTED_BY)} {started} {words}"
    os.environ[STARTED_BY] = words
    for mark in Path(os.environ[MARKS]).iterdir():
        command, event = mark.read_text().splitlines()
        if re.search(command, both):
            _watch_for(mark, *event.partition(" ")[::2])


def _watch_for(mark: Path, wanted: str, word: str) -> None:
    def seen(event: str, arguments: object) -> None:
        if event == wanted and word in str(arguments) and mark.exists():
            mark.unlink()
            (mark.parents[1] / "killed").write_text(str(os.getpgrp()))
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(seen)
