"""Builds in processes of their own that are killed, stopped or race with each other.

    python build_process.py kill|stop|race RUN TARGET KEY

The package is imported once; every build is a fork of that process. Prints one JSON object.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pack_factory as packs

from invarlock.cli import main as cli

# Audit events that come just before a system call; their first argument is the path.
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link"}
BUILDERS = 4
HALFWAY = 60  # changes, of about 150
LIMIT = 120  # seconds until a build says that it waits


class Stop:
    """Sends a signal to its own process before the ``at``-th change below ``folder``."""

    def __init__(self, folder: Path, at: int, number: int) -> None:
        self.folder, self.at, self.number, self.done = str(folder), at, number, 0

    def step(self) -> None:
        """One more change is about to be made."""
        self.done += 1
        if self.done == self.at:
            os.kill(os.getpid(), self.number)

    def watch(self) -> None:
        """Look at every system call that changes something from here on."""
        real_open, step = builtins.open, self.step

        class Halves(io.FileIO):
            """A file whose writes are two, so that a kill can leave half of it."""

            def write(self, data: Any) -> int:
                step()
                half = super().write(bytes(data[: len(data) // 2]))
                step()
                return half + super().write(bytes(data[half:]))

        def seen(event: str, arguments: tuple[Any, ...]) -> None:
            if event in CHANGES and str(arguments[0]).startswith(self.folder):
                step()

        def opened(path: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            if mode == "xb":
                return io.BufferedWriter(Halves(path, "x"))
            return real_open(path, mode, *more, **options)

        sys.addaudithook(seen)
        # a kill loses nothing that was written, so flushing to the disk would only take time
        os.fsync = lambda descriptor: step()
        builtins.open = opened  # type: ignore[assignment]


def fork(action: Callable[[], int], errors: Path | None = None) -> int:
    """Run an action in a child process; its pid."""
    pid = os.fork()
    if pid == 0:
        out = os.open(errors or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(out, 2)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), write_through=True)
        os._exit(action())
    return pid


def ended(pid: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def build(run: Path, target: Path, key: Path, stop: Stop | None = None) -> int:
    """One build, which may be stopped on its way."""
    (stop or Stop(target.parent, 0, 0)).watch()
    return packs.build(run, target, key=key)


def left(target: Path) -> list[str]:
    """What lies beside the target."""
    return sorted(p.name for p in target.parent.iterdir() if p != target)


def kill(run: Path, target: Path, key: Path, pack: Mapping[str, bytes]) -> dict[str, Any]:
    """Kill a build before each of its changes; then look, and build again."""
    found: dict[str, Any] = {"steps": 0, "packs": 0, "stages": 0, "wrong": []}
    while True:
        stop = Stop(target.parent, found["steps"] + 1, signal.SIGKILL)
        code = ended(fork(lambda stop=stop: build(run, target, key, stop)))  # type: ignore[misc]
        if code != -signal.SIGKILL:
            found["code"] = code
            return found
        found["steps"] += 1
        names = left(target)
        found["stages"] += bool(names)
        names = [name for name in names if name != f".{target.name}.claim"]  # whose job is dead
        if len(names) > 1 or not all(name.startswith(".") for name in names):
            found["wrong"].append([found["steps"], "beside it", names])
        if target.exists():
            found["packs"] += 1
            expected = 2  # it is there and stays
        else:
            expected = 0
        again = ended(fork(lambda: build(run, target, key)))
        if again != expected or packs.snapshot(target) != pack or (expected == 0 and left(target)):
            found["wrong"].append([found["steps"], again, left(target)])
        shutil.rmtree(target)


def stop(run: Path, target: Path, key: Path, pack: Mapping[str, bytes]) -> dict[str, Any]:
    """Stop a build half-way, let another one wait for it, and let the first go on."""
    halted = Stop(target.parent, HALFWAY, signal.SIGSTOP)
    errors = [target.parent.parent / f"errors.{n}" for n in range(2)]
    first = fork(lambda: build(run, target, key, halted), errors[0])
    os.waitpid(first, os.WUNTRACED)
    stage = left(target)
    second = fork(lambda: build(run, target, key), errors[1])
    until = time.monotonic() + LIMIT
    while not (errors[1].exists() and errors[1].read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    kept = left(target) == stage
    os.kill(first, signal.SIGCONT)
    codes = [ended(first), ended(second)]
    lines = [path.read_text().splitlines() for path in errors]
    found = {"codes": codes, "kept": kept, "lines": lines, "left": left(target)}
    return found | {"whole": packs.snapshot(target) == pack}


def race(run: Path, target: Path, key: Path, pack: Mapping[str, bytes]) -> dict[str, Any]:
    """Start builds, and makers of one key pair, all at once."""
    found: dict[str, Any] = {}
    pair = target.parent.parent / "pair" / "k.pem"
    keygen = ["advanced", "evidence-pack", "keygen", "--out", str(pair)]
    actions = {"build": lambda: build(run, target, key), "keygen": lambda: cli(keygen)}
    for name, action in actions.items():
        ready, go = os.pipe()
        errors = [target.parent.parent / f"{name}.{i}" for i in range(BUILDERS)]

        def waiting(action: Callable[[], int] = action, ready: int = ready, go: int = go) -> int:
            os.close(go)
            os.read(ready, 1)  # returns for all at once when the other end is closed
            return action()

        pids = [fork(waiting, path) for path in errors]
        os.close(go)
        codes = [ended(pid) for pid in pids]
        lines = [path.read_text().splitlines() for path in errors]
        found[name] = [[code, text] for code, text in zip(codes, lines, strict=True)]
    return found | {"whole": packs.snapshot(target) == pack, "left": left(target)}


if __name__ == "__main__":
    what = {"kill": kill, "stop": stop, "race": race}[sys.argv[1]]
    run_, target_, key_ = map(Path, sys.argv[2:5])
    with contextlib.redirect_stdout(io.StringIO()):
        # imports all that a build needs, and every other pack has to be the same
        codes = packs.build(run_, target_, key=key_), packs.verify(target_, "--strict")
    assert codes == (0, 0)
    pack_ = packs.snapshot(target_)
    shutil.rmtree(target_)
    gc.freeze()  # children share the memory of what is imported
    print(json.dumps(what(run_, target_, key_, pack_)))
