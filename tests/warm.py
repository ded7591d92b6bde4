"""Commands by a process that has imported everything: one load for all tests that start some.

Importing torch and transformers takes longer than most of what tests let a command do. A process
is forked for each command from one that has, with folder, environment, files and exit code of the
one that asked, so whatever is said of a process holds for it; but its command line and its parent
are those of the server. What is about those, about imports or signals to a group takes
``sys.executable``. Whatever a fork would not do the same is done by a process of its own: see
``served_by`` in warm_client.py.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Variables that Python or a library reads once, when it starts or is imported.
OF_THE_HUB = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE")
AT_IMPORT = ("PYTHON", "LD_", *OF_THE_HUB, "LANG", "LC_")
_given: list[str] = []


def use(python: str) -> None:
    """Take the ``python`` of another process of the same tests."""
    _given.append(python)


@functools.cache
def python() -> str:
    """The path of a ``python`` whose commands are forks; the same in all of this process.

    On other systems than Linux it is the usual one: their libraries do not all survive a fork.
    """
    if _given:
        return _given[0]
    if sys.platform != "linux":
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="invarlock-warm-"))
    same = {k: v for k, v in os.environ.items() if k.startswith(AT_IMPORT)}
    if same.get("PYTHONPATH") == str(ROOT):
        del same["PYTHONPATH"]  # ours are found without it, too
    settings = (sys.executable, str(folder), str(ROOT), AT_IMPORT, OF_THE_HUB, same)
    client = (ROOT / "tests/warm_client.py").read_text().replace("__SETTINGS__", repr(settings))
    path = folder / "python"
    path.write_text(f"#!{sys.executable} -IS\n{client}")
    path.chmod(0o755)
    log = folder / "log"  # warnings of libraries
    with log.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, ROOT / "tests/warm_server.py", folder],
            cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
        )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None

    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    assert server.stdout.readline() == "ready\n", log.read_text()
    return str(path)
