"""`python -m MODULE` by a fork of the process that listens, or by a Python of its own.

`warm.py` writes this with its settings into a folder; it imports little, being started for every
command.
"""

import marshal
import os
import resource
import signal
import socket
import sys

PYTHON, FOLDER, ROOT, AT_IMPORT, OF_THE_HUB, SAME = __SETTINGS__  # noqa: F821
LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def served_by(words: list[str]) -> str:
    """The process whose fork would do the same, or none: for our modules and the file that starts
    workflows, of these sources, with the settings that the libraries were imported with; with
    others of the hub, or its network, that which has not imported what reads them."""
    package = words[1].split(".")[0] if words[:1] == ["-m"] else ""
    if package not in ("invarlock", "snakemake") and words[:1] != ["tools/workflow.py"]:
        return ""
    if os.path.exists("invarlock") and not is_ours("."):
        return ""
    found = at_import()
    asks = package == "invarlock" and {"--net", "--allow-network"} & set(words)
    if found == SAME and not asks:
        return "all"
    given, same = ({k: v for k, v in both.items() if k not in OF_THE_HUB} for both in (found, SAME))
    return "most" if given == same else ""


def is_ours(folder: str) -> bool:
    """Whether the package in a folder, or behind a link there, is that which was imported."""
    return os.path.realpath(os.path.join(folder, "invarlock")) == os.path.join(ROOT, "invarlock")


def at_import() -> dict[str, str]:
    """Variables that Python or a library reads once; where our package is found changes nothing."""
    found = {name: value for name, value in os.environ.items() if name.startswith(AT_IMPORT)}
    others = [path for path in found.pop("PYTHONPATH", "").split(":") if path and not is_ours(path)]
    return found | ({"PYTHONPATH": ":".join(others)} if others else {})


def ask(name: str, words: list[str]) -> int:
    """Have the command done by a fork of this process; how it ended, as ``os.wait`` says it."""
    files = [number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)]
    umask = os.umask(0)
    os.umask(umask)
    text = marshal.dumps(
        {
            "words": words,
            "files": files,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "umask": umask,
            "limits": [(kind, resource.getrlimit(kind)) for kind in LIMITS],
            "ignored": [int(n) for n in FORWARDED if signal.getsignal(n) == signal.SIG_IGN],
            "python": sys.argv[0],
            "parent": os.getppid(),
            "group": os.getpgrp(),
        }
    )
    asking = socket.socket(socket.AF_UNIX)
    asking.connect(os.path.join(FOLDER, name))
    socket.send_fds(asking, [len(text).to_bytes(8, "little")], files)
    asking.sendall(text)
    number = int.from_bytes(asking.recv(8), "little")
    if number == 0:
        sys.exit(f"the process that forks has ended: see {FOLDER}/log")
    for which in FORWARDED:
        if signal.getsignal(which) != signal.SIG_IGN:
            signal.signal(which, lambda which, _: os.kill(number, which))
    return int.from_bytes(asking.recv(8), "little")


def is_open(number: int) -> bool:
    """Whether a file is this process's: the one that listed them is closed."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def main() -> None:
    """End as the fork did."""
    words = sys.argv[1:]
    name = served_by(words)
    if not name:
        os.execv(PYTHON, [PYTHON, *words])
    status = ask(name, words)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in FORWARDED:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


main()
