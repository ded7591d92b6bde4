"""A fork is to whoever asks for it what a process of its own would be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from repository_copy import quiet_environment

# What a process can see of itself, and how it may end.
SEEN = """
import os, resource, signal, sys
print([str(signal.getsignal(number)) for number in (1, 2, 15)])
print(os.getcwd(), sys.argv[1:], sys.path[0], os.environ["GIVEN"], oct(os.umask(0)))
print(sys.stdin.read(), os.isatty(1), sys.stdout.encoding, resource.getrlimit(resource.RLIMIT_CORE))
print(os.read(int(os.environ["FILE"]), 100), sorted(set(os.environ) - {"LC_CTYPE"}))
print("an error", file=sys.stderr)
"""
ENDS = {
    "code": "os._exit(5)",
    "signal": "os.kill(os.getpid(), 9)",
    "abort": "os.abort()",
    "exception": "import atexit; atexit.register(print, 'last'); raise SystemExit('a word')",
}
WAIT = "import time; print(os.getpid(), flush=True); time.sleep(600)"


def handle() -> None:
    """As a shell that starts programs in the background: one signal is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def start(folder: Path, code: str, python: str, **more: str) -> subprocess.Popen[str]:
    """Start ``code`` where snakemake looks for its configuration: in its process."""
    (folder / "Snakefile").write_text(f"import os\n{code}\n")
    return subprocess.Popen(
        [python, "-m", "snakemake", "-n", "--quiet"],
        cwd=folder, env=quiet_environment() | more, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        pass_fds=[int(more["FILE"])] if "FILE" in more else (),
        preexec_fn=handle,  # noqa: PLW1509
    )  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_a_fork_sees_and_ends_as_a_process_of_its_own(tmp_path: Path, name: str) -> None:
    """Folder, words, variables, files, limits; exit code or signal, and what is printed."""
    found = []
    for python in (warm.python(), sys.executable):
        ours, theirs = os.pipe()
        os.write(theirs, b"through a file")
        os.close(theirs)
        running = start(tmp_path, SEEN + ENDS[name], python, GIVEN="a value", FILE=str(ours))
        found.append((*running.communicate("through a pipe"), running.returncode))
        os.close(ours)
    assert found[0] == found[1]
    assert "through a pipe" in found[0][0] or name in ("code", "signal", "abort")
    assert found[0][2] == {"code": 5, "signal": -9, "abort": -6, "exception": 1}[name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_fork_ends_with_whoever_asked(tmp_path: Path, number: int) -> None:
    """A signal reaches it, and what kills the one that asked kills it."""
    running = start(tmp_path, WAIT, warm.python())
    assert running.stdout
    fork = int(running.stdout.readline())
    assert fork != running.pid
    running.send_signal(number)
    running.communicate(timeout=300)
    assert running.returncode != 0
    end = time.monotonic() + 60
    while Path(f"/proc/{fork}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("said", [b"", bytes(4), (9).to_bytes(8, "little") + b"half"])
def test_who_is_killed_while_it_asks_leaves_the_others_alone(tmp_path: Path, said: bytes) -> None:
    """The process that forks goes on, and answers the next one."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(Path(warm.python()).parent / "all"))
        asking.sendall(said)
    running = start(tmp_path, "print('here'); os._exit(3)", warm.python())
    said_then, _ = running.communicate(timeout=300)
    assert (running.returncode, said_then) == (3, "here\n")


@pytest.mark.parametrize("variables", [{"HF_HOME": "another"}, {"HF_ENDPOINT": "http://none"}])
def test_a_fork_reads_anew_where_the_hub_is(tmp_path: Path, variables: dict[str, str]) -> None:
    """Of a process that has not imported what reads it."""
    told = "from huggingface_hub import constants; print(os.getpid(), constants.HF_HOME, "
    told += "constants.ENDPOINT); raise SystemExit"
    found = []
    for python in (warm.python(), sys.executable):
        running = start(tmp_path, told, python, **variables)
        number, *said = running.communicate()[0].split()
        found.append(said)
        assert (int(number) == running.pid) == (python == sys.executable)
    assert found[0] == found[1]
    assert set(variables.values()) < set(found[0])


@pytest.mark.parametrize("why", ["variable", "sources", "program"])
def test_what_a_fork_would_not_do_the_same_is_not_forked(tmp_path: Path, why: str) -> None:
    """A setting that is read at the start, other sources, a program: a process of its own."""
    more, words = {}, ["-m", "invarlock"]
    told = "import os; print(os.getpid())"
    if why == "variable":
        (tmp_path / "sitecustomize.py").write_text(told)
        more, words = {"PYTHONPATH": str(tmp_path)}, ["-m", "invarlock", "--version"]
    elif why == "sources":
        (tmp_path / "invarlock").mkdir()
        (tmp_path / "invarlock/__init__.py").touch()
        (tmp_path / "invarlock/__main__.py").write_text(told)
    else:
        words = ["-c", told]
    running = subprocess.Popen(
        [warm.python(), *words], cwd=tmp_path, env=quiet_environment() | more, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    said, _ = running.communicate()
    assert said.split()[0] == str(running.pid)
