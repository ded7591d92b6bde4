"""Commands by a process that has imported everything: one load for all tests that start some.

Importing torch and transformers takes longer than most of what tests let a command do. A process
is forked for each command from one that has, with folder, environment, files and exit code of the
one that asked, so whatever is said of a process holds for it; but its command line and its parent
are those of the server. What is about those, about imports or signals to a group takes
``sys.executable``. Whatever a fork would not do the same is done by a process of its own: see
``is_served`` in warm_client.py.
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
AT_IMPORT = ("PYTHON", "LD_", "HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "LANG", "LC_")


@functools.cache
def python() -> str:
    """The path of a ``python`` whose commands are forks; the same in all of this process.

    On other systems than Linux it is the usual one: their libraries do not all survive a fork.
    """
    if sys.platform != "linux":
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="invarlock-warm-"))
    listening = folder / "socket"
    same = {k: v for k, v in os.environ.items() if k.startswith(AT_IMPORT)}
    if same.get("PYTHONPATH") == str(ROOT):
        del same["PYTHONPATH"]  # ours are found without it, too
    settings = (sys.executable, str(listening), str(ROOT), AT_IMPORT, same)
    client = (ROOT / "tests/warm_client.py").read_text().replace("__SETTINGS__", repr(settings))
    path = folder / "python"
    path.write_text(f"#!{sys.executable} -IS\n{client}")
    path.chmod(0o755)
    log = folder / "log"  # warnings of libraries
    with log.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, ROOT / "tests/warm_server.py", listening],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
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
