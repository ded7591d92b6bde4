"""A process that has imported what commands need, and forks for each: `warm.py` starts it.

    python tests/warm_server.py SOCKET

It ends when its standard input does, and its forks with it.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import io
import marshal
import os
import pkgutil
import resource
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

# Beside our own modules, what they import in functions, and what those import on use.
LIBRARIES = (
    "safetensors.torch", "scipy.optimize", "tokenizers", "torch", "torch._dynamo",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "snakemake.cli", "snakemake.executors.local", "snakemake.dag",
)  # fmt: skip
APART = 200  # no file of a command has a number as high


def load() -> None:
    """Import everything, with the environment that a command sets before it does."""
    from invarlock.run import determinism

    determinism.set_environment("strict", 1, False)
    import invarlock

    for found in pkgutil.walk_packages(invarlock.__path__, "invarlock."):
        if found.name != "invarlock.__main__":
            with suppress(ImportError):  # of what is not installed
                importlib.import_module(found.name)
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    first = determinism.set_environment

    def set_environment(*given: Any) -> None:
        """As in a process that has not imported torch: its environment is the same by then."""
        torch = sys.modules.pop("torch")
        try:
            first(*given)
        finally:
            sys.modules["torch"] = torch

    determinism.set_environment = set_environment
    gc.collect()
    gc.freeze()


def become(request: dict[str, Any], given: list[int]) -> None:
    """Take folder, environment, files and limits of the process that asked."""
    apart = [fcntl.fcntl(number, fcntl.F_DUPFD, APART) for number in given]
    os.closerange(0, APART)
    for number, place in zip(apart, request["files"], strict=True):
        os.dup2(number, place)
        os.close(number)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.pop("INVARLOCK_ONE_LOAD", None)  # asks for what is here already
    time.tzset()
    for kind, limits in request["limits"]:
        resource.setrlimit(kind, limits)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = written(1, "strict")
    sys.stderr = sys.__stderr__ = written(2, "backslashreplace")
    sys.executable = request["python"]
    sys.orig_argv = [request["python"], *request["words"]]
    sys.argv = request["words"][1:]
    sys.path[0] = request["folder"]
    importlib.invalidate_caches()


def written(number: int, errors: str) -> io.TextIOWrapper:
    """A standard stream as an interpreter opens it."""
    at_once = "PYTHONUNBUFFERED" in os.environ
    stream = open(number, "wb", 0 if at_once else -1, closefd=False)  # noqa: SIM115
    by_line = number == 2 or stream.isatty()
    return io.TextIOWrapper(stream, "utf-8", errors, "\n", by_line, at_once)


def receive(asking: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the files that came with it."""
    first, given, _, _ = socket.recv_fds(asking, 8, 64)
    size, text = int.from_bytes(first, "little"), b""
    while len(text) < size:
        part = asking.recv(size - len(text))
        text += part
    return marshal.loads(text), given


def serve(listening: socket.socket) -> str | None:
    """Fork for whoever asks, and tell how it ended. In a fork, the module that it is to run."""
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for those who asked
    asking: dict[int, socket.socket] = {}
    waiting = selectors.DefaultSelector()
    for place in (listening, sys.stdin, woken):
        waiting.register(place, selectors.EVENT_READ)
    alone = False
    while asking or not alone:
        for key, _ in waiting.select():
            if key.fileobj is listening:
                connection, _ = listening.accept()
                request, given = receive(connection)
                number = os.fork()
                if number == 0:
                    become(request, given)
                    return str(request["words"][1])
                for place in given:
                    os.close(place)
                connection.sendall(number.to_bytes(8, "little"))
                asking[number] = connection
                waiting.register(connection, selectors.EVENT_READ, number)
            elif key.fileobj is sys.stdin:
                alone = True
                waiting.unregister(sys.stdin)
                for number in asking:
                    os.kill(number, signal.SIGKILL)
            elif key.fileobj == woken:
                os.read(woken, 4096)
            else:  # whoever asked has gone, as it has nothing more to say
                waiting.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
        for number in list(asking):
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                connection = asking.pop(number)
                with suppress(OSError):
                    connection.sendall(status.to_bytes(8, "little"))
                with suppress(KeyError):
                    waiting.unregister(connection)
                connection.close()
    return None


def main() -> None:
    """Load, listen, say so, serve; a fork runs its module."""
    load()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen(64)
    print("ready", flush=True)
    module = serve(listening)
    if module is not None:
        if "." in module:
            sys.modules.pop(module, None)  # a program that others import, too
        end(ended(module))


def ended(module: str) -> int:
    """Run the module; its exit code, as an interpreter takes it."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - as an interpreter does
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(code: int) -> NoReturn:
    """What an interpreter does at its end, but for taking every module apart: the memory is
    shared until something writes to it."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
