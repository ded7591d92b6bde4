"""Two processes that have imported what commands need, and fork for each: `warm.py` starts them.

    python tests/warm_server.py FOLDER

One has imported everything, and listens at FOLDER/all. The other, which it was forked from, has
imported nothing that reads where the hub is and whether it may be asked; it listens at FOLDER/most.
They end when their standard input does, and their forks with them.
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
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import kill_hook

# Beside our own modules, what they import in functions, and what those import on use.
LIBRARIES = (
    "safetensors.torch", "scipy.optimize", "tokenizers", "torch", "torch._dynamo",
    "rich.progress", "nacl.public", "nacl.signing", "numpy.random",
    # and what each start of snakemake imports, whatever it is to do
    "snakemake.cli", "snakemake.executors.local", "snakemake.dag", "snakemake.assets",
    "snakemake.profiles", "snakemake.report.html_reporter", "snakemake.storage",
    "pygments.formatters.html",
)  # fmt: skip
OF_THE_HUB = (
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip
APART = 200  # no file of a command has a number as high


def load() -> None:
    """Import all but what reads the hub's variables, with the environment that a command sets
    before it does."""
    from invarlock.run import determinism

    determinism.set_environment("strict", 1, False)
    import invarlock
    from invarlock.code_digest import code_digest

    for found in pkgutil.walk_packages(invarlock.__path__, "invarlock."):
        if found.name != "invarlock.__main__":
            with suppress(ImportError):  # of what is not installed
                importlib.import_module(found.name)
            code_digest(found.name)  # every start of a workflow reads all of our files for it
    load_libraries(LIBRARIES)
    assert "huggingface_hub" not in sys.modules
    first = determinism.set_environment

    def set_environment(*given: Any) -> None:
        """As in a process that has not imported torch: its environment is the same by then."""
        torch = sys.modules.pop("torch")
        try:
            first(*given)
        finally:
            sys.modules["torch"] = torch

    determinism.set_environment = set_environment
    os.execv = execv


def load_libraries(names: tuple[str, ...]) -> None:
    """Import them, and have the collector leave alone, and so shared, what is there."""
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)
    for last in list(weakref.finalize._registry):
        last.atexit = False  # it would take apart in each fork what torch has registered
    sys.path_importer_cache.clear()  # a fork looks for itself, as a new process does
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
    try:  # so that who ends all of a group ends this, too
        os.setpgid(0, request["group"])
    except PermissionError:  # of another session
        os.setpgid(0, 0)
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
    sys.path[0] = request["folder"]
    told(request["words"])
    kill_hook.watch(request["parent"])


class Exec(BaseException):
    """This process goes on as another program, which is a module that is imported here, too."""


def execv(path: str, words: list[str]) -> NoReturn:
    """Keep number, locks and files, as a process does that becomes another."""
    assert (path, words[1]) == (sys.executable, "-m"), words
    raise Exec(*words[1:])


def told(words: Sequence[str]) -> None:
    """The words of this process, as an interpreter has them."""
    sys.orig_argv = [sys.executable, *words]
    sys.argv = list(words[words[0] == "-m" :])


def written(number: int, errors: str) -> io.TextIOWrapper:
    """A standard stream as an interpreter opens it."""
    at_once = "PYTHONUNBUFFERED" in os.environ
    stream = open(number, "wb", 0 if at_once else -1, closefd=False)  # noqa: SIM115
    by_line = number == 2 or stream.isatty()
    return io.TextIOWrapper(stream, "utf-8", errors, "\n", by_line, at_once)


def receive(asking: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request, none of one that was killed while it asked; and the files that came with it."""
    first, given, _, _ = socket.recv_fds(asking, 8, 64)
    size, text = int.from_bytes(first, "little"), b""
    while len(text) < size and (part := asking.recv(size - len(text))):
        text += part
    return marshal.loads(text) if text and len(text) == size else None, given


def serve(listening: socket.socket) -> list[str] | None:
    """Fork for whoever asks, and tell how it ended. In a fork, the words of what it is to run."""
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
                number = os.fork() if request else None
                if request and number == 0:
                    become(request, given)
                    return list(request["words"])
                for place in given:
                    os.close(place)
                if number is None:
                    continue
                with suppress(OSError):  # gone by now: what is read below says so
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


def listen(name: str) -> socket.socket:
    """A socket of this name in the folder."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.join(sys.argv[1], name))
    listening.listen(64)
    return listening


def main() -> None:
    """Listen, say so, load, serve; a fork runs its module."""
    everything, most = listen("all"), listen("most")  # whoever asks before all is loaded waits
    print("ready", flush=True)
    load()
    if child := os.fork():
        everything.close()
        words = serve(most)
        if words is None:
            os.waitpid(child, 0)
    else:
        most.close()
        load_libraries(OF_THE_HUB)
        words = serve(everything)
    if words is not None:
        end(ended(words))


def ended(words: Sequence[str]) -> int:
    """Run what the words say; its exit code, as an interpreter takes it."""
    try:
        if words[0] == "-m":
            if "." in words[1]:
                sys.modules.pop(words[1], None)  # a program that others import, too
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except Exec as next_one:
        told(next_one.args)
        return ended(next_one.args)
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
