"""A verifier process that forks: each request is one real command line in a process of its own.

Reads one JSON request a line from standard input and answers each with one JSON line: how the
command ended, its processor seconds, wall seconds and peak memory. The fork saves the half
second that imports would take for every one of hundreds of rows.

Before the fork the process gives up what root has over modes, so that unreadable files are
unreadable when tests run as root.
"""

# ruff: noqa: E402 - what is imported is imported with fewer powers
from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from typing import Any

DROPPED = "--without-powers"
if os.geteuid() == 0 and DROPPED not in sys.argv:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP, from the next exec on
    os.execv(sys.executable, [sys.executable, __file__, DROPPED])

import nacl.public  # noqa: F401
import numpy.random  # noqa: F401

import invarlock.cli.evidence_pack
import invarlock.documents
import invarlock.evidence
import invarlock.reporting
import invarlock.verdict
from invarlock.cli import main

# Imported here and not by the command, so that every row starts from the same memory.
for package in (
    invarlock.documents, invarlock.evidence, invarlock.reporting, invarlock.verdict,
):  # fmt: skip
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)

TIMEOUT = 30  # wall seconds: something hangs
ADDRESS_SPACE = 4 << 30  # bytes: protects the machine; the bound of the test is far below it


def meddle(race: dict[str, Any]) -> None:
    """Let an attacker act at the very moment before a file is opened: ``{"open": name of the
    file, "do": [[function of os, arguments], ...]}``; and note every file that is opened."""
    waiting = [race["do"]]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[0] == race["open"] and waiting:
            for function, *words in waiting.pop():
                getattr(os, function)(*words)

    sys.addaudithook(hook)


def child(request: dict[str, Any]) -> None:
    """Run the command line with its output in files, and end."""
    for stream, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, stream)
    os.environ.update(request.get("environment", {}))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    signal.alarm(TIMEOUT)
    if request.get("race"):
        meddle(request["race"])
    code: object = 1
    try:
        code = main(request["words"])
    except SystemExit as error:  # argparse
        code = error.code
    except BaseException:  # noqa: BLE001 - a crash is what the tests look for
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


gc.freeze()  # children share what is there
for line in sys.stdin:
    asked = json.loads(line)
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(asked)
    _, status, used = os.wait4(pid, 0)
    answer = {
        "code": os.waitstatus_to_exitcode(status),
        "cpu": used.ru_utime + used.ru_stime,
        "wall": time.monotonic() - start,
        "memory": used.ru_maxrss * 1024,
    }
    print(json.dumps(answer), flush=True)
