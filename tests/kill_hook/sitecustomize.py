"""Read by every Python of a run that has this folder on its path: kills the run inside one command.

KILL_COMMAND is searched in the command line. At the audit event KILL_AT (a rename: the temporary
file is whole, the output is not there), which may go on with a word of its arguments, the process
group is killed, once: KILL_MARK is removed.
"""

import os
import re
import signal
import sys


def _watch(event: str, arguments: object) -> None:
    wanted, _, word = os.environ["KILL_AT"].partition(" ")
    if event == wanted and word in str(arguments) and os.path.exists(os.environ["KILL_MARK"]):
        os.unlink(os.environ["KILL_MARK"])
        os.killpg(0, signal.SIGKILL)


if re.search(os.environ.get("KILL_COMMAND") or "(?!)", " ".join(sys.orig_argv)):
    sys.addaudithook(_watch)
