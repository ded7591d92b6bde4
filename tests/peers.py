"""The released verifiers as black boxes: each in an environment of its own, made once.

They need Python 3.12. Only the command that they install is run; nothing of them is read.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("0.10.0", "0.12.1")
CACHE = ROOT / ".peers"
UNVERIFIED = {"INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE": "1"}
PACK = ("advanced", "evidence-pack")
SECONDS = 900  # of many commands, which take a tenth of a second each on an idle machine
INSTALL_SECONDS = 900


def python_312() -> str | None:
    """A Python 3.12 that really runs: the one on PATH may be a stub of a version manager."""
    found = [shutil.which("python3.12"), sys.executable]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += sorted(str(path) for path in pyenv.glob("versions/3.12*/bin/python3.12"))
    for python in filter(None, found):
        said = subprocess.run(
            [python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        if said.stdout.strip() == "3 12":
            return python
    return None


@functools.cache
def python_of(version: str) -> Path:
    """The Python of a released version; skips the test where no Python 3.12 is at hand."""
    folder = CACHE / version
    done, program = folder / "complete", folder / "bin" / "python"
    if done.exists():
        return program
    python = python_312()
    if python is None:
        pytest.skip("the released verifiers need Python 3.12, and there is none")
    shutil.rmtree(folder, ignore_errors=True)
    steps: tuple[Sequence[str | Path], ...] = (
        [python, "-m", "venv", folder],
        [folder / "bin" / "pip", "install", "-q", f"invarlock=={version}"],
    )
    for step in steps:
        made = subprocess.run(
            step, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        if made.returncode:
            reason = f"invarlock {version} cannot be installed: {made.stderr.strip()[-300:]}"
            if os.environ.get("CI") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
    done.touch()
    return program


# Runs in a peer's own Python: starts the command that is installed there once for every line of
# the input, each in a process of its own that is forked when everything is loaded. Nine tenths of
# a call are jsonschema's, which checks the command's schemas each time: one that it has found right
# in an earlier fork is not checked again.
STARTER = """
import gc, hashlib, importlib.metadata, json, os, sys
(entry,) = importlib.metadata.entry_points(group="console_scripts", name="invarlock")
main = entry.load()
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.dup2(1, 2)

def run(words):
    sys.argv = ["invarlock", *words]
    try:
        sys.exit(main())
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        return 1

run(["verify", "absent"])
from jsonschema import validators
right, found = set(), []

def check_once(kind):
    check = kind.check_schema
    def check_schema(schema, *more, **named):
        known = hashlib.sha256(repr((kind.__name__, schema)).encode()).hexdigest()
        if known not in right:
            check(schema, *more, **named)
            found.append(known)
    kind.check_schema = check_schema

for kind in {kind for kind in vars(validators).values() if hasattr(kind, "check_schema")}:
    check_once(kind)
gc.freeze()
for line in sys.stdin:
    words, env = json.loads(line)
    told, telling = os.pipe()
    child = os.fork()
    if not child:
        os.environ.update(env)
        code = run(words)
        os.write(telling, " ".join(found).encode())
        os._exit(code)
    os.close(telling)
    with open(told) as said:
        right.update(said.read().split())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, file=answers, flush=True)
"""
Call = tuple[Sequence[str | Path], Mapping[str, str]]  # words, additions to the environment


def codes(version: str, calls: Sequence[Call]) -> list[int]:
    """The exit codes of a released command, away from the user's configuration."""
    lines = [json.dumps([[str(word) for word in words], dict(env)]) for words, env in calls]
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [python_of(version), "-P", "-c", STARTER], input="\n".join(lines),
            capture_output=True, text=True, timeout=SECONDS, check=True,
            env={"PATH": os.environ["PATH"], "HOME": home},
        )  # fmt: skip
    return [int(line) for line in done.stdout.split()]


def all_codes(calls: Sequence[Call]) -> list[tuple[int, ...]]:
    """For every call the exit codes of all versions, which run side by side."""
    for version in VERSIONS:
        python_of(version)  # skips here, not in a thread
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        return list(zip(*pool.map(lambda version: codes(version, calls), VERSIONS), strict=True))
