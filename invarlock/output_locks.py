"""One process at a time makes an output; another one that wants to make it waits.

A workflow that was killed may leave jobs behind, on this machine or on a cluster, and its successor
starts the same rules again. A command therefore claims its output: a file ``.NAME.claim`` beside it
holds a kernel lock (``flock``) and says who its owner is. The lock ends with the process, however
that ends. Where the file system gives none, or gives it to every node of a cluster for itself, the
owner is asked for: a process of this machine in ``/proc``, a job of SLURM with ``squeue``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from invarlock.errors import InputError
from invarlock.files import machine, started

PAUSE = 1.0  # seconds between two looks at a lock
ASK_AGAIN = 30.0  # seconds between two questions to SLURM
VANISHED = 50  # times that a folder may be gone before the place itself is to blame
SETTLE = 1.0  # seconds after which, without locks, the last of two writers has won
# States of a job whose processes are there; in all others they are not, or not yet again.
LIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}

_mine: set[Path] = set()  # claims of this process


@dataclass(frozen=True)
class Owner:
    """The process that makes an output."""

    host: str
    machine: str  # the host and the space of its process numbers
    pid: int
    started: str  # ticks since the machine did; tells a process from a later one of its number
    job: str  # of SLURM, or empty
    restart: str  # how often SLURM has started the job again

    @classmethod
    def of_this_process(cls) -> Owner:
        """Ours."""
        pid, variables = os.getpid(), os.environ
        job, restart = variables.get("SLURM_JOB_ID", ""), variables.get("SLURM_RESTART_COUNT", "0")
        return cls(os.uname().nodename, machine(), pid, started(pid) or "", job, restart)

    @classmethod
    def read(cls, descriptor: int) -> Owner | None:
        """The one that a claim names; None where it names none."""
        try:
            document = json.loads(os.pread(descriptor, 4096, 0))
            return cls(**document)
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} of {self.host}{job}"

    def lives(self, locks: bool) -> bool:
        """Whether it goes on, although nobody else holds the lock.

        Args:
            locks: the file system has locks; those of this machine hold at least among its own
                processes.
        """
        if self.machine == machine():
            return not locks and started(self.pid) in ("", self.started)
        if not self.job:
            return not locks
        if self.job == os.environ.get("SLURM_JOB_ID"):  # an earlier start of our own job
            return False
        state = slurm_state(self.job)
        return not locks if state is None else state in LIVE


def slurm_state(job: str) -> str | None:
    """State of a SLURM job, empty for one that SLURM has forgotten; None: it cannot be asked."""
    import shutil

    if shutil.which("squeue") is None:
        return None
    import subprocess

    command = ["squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return None
    return done.stdout.strip()


@contextlib.contextmanager
def claimed(name: str, outputs: Iterable[Path]) -> Iterator[None]:
    """Hold the claims on these outputs; wait, saying so, while others hold them.

    Where no claim can be written, nothing is claimed: the command will say what it cannot write.

    Args:
        name: of the command, for the line that says that it waits.
        outputs: files and folders that the command makes.

    Raises:
        InputError: the output is claimed by a process of which nobody can say whether it lives.
    """
    with contextlib.ExitStack() as stack:
        # in one order, so that two commands never wait for each other
        for output in sorted({path.parent.resolve() / path.name for path in outputs}):
            stack.enter_context(_claim(name, output))
        yield


@contextlib.contextmanager
def _claim(name: str, output: Path) -> Iterator[None]:
    path = output.with_name(f".{output.name}.claim")
    special = output.exists() and not (output.is_file() or output.is_dir())
    if special or path in _mine:
        yield
        return
    made = _missing_folders(path.parent)
    descriptor = None
    with contextlib.suppress(OSError):  # read-only, full, or a name too long
        descriptor = _wait(name, output, path)
    _mine.add(path)
    try:
        yield
    finally:
        _mine.discard(path)
        if descriptor is not None:
            with contextlib.suppress(OSError):
                if _is(path, descriptor):
                    path.unlink()
            os.close(descriptor)
        for folder in made:
            with contextlib.suppress(OSError):  # it holds what was made, as it should
                folder.rmdir()


def _missing_folders(folder: Path) -> list[Path]:
    """Make a folder; those that were missing, the innermost first."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _wait(name: str, output: Path, path: Path) -> int:
    """The descriptor of the claim, once it is ours."""
    told, gone = False, 0
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # an owner removed the folder that it had made for its claim
            gone += 1
            if gone > VANISHED:  # /proc has folders in which no file can be made, and says this too
                raise
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            try:
                holder, seconds = _take(path, descriptor)
            except OSError:  # a full disk: nothing of the claim stays
                with contextlib.suppress(OSError):
                    if os.fstat(descriptor).st_size == 0 and _is(path, descriptor):
                        path.unlink()
                raise
            if holder is None:
                stack.pop_all()
                return descriptor
        if not told and holder:
            print(
                f"invarlock {name}: waiting for {output}: {holder} is making it",
                file=sys.stderr,
                flush=True,
            )
            told = True
        time.sleep(seconds)


def _take(path: Path, descriptor: int) -> tuple[str | None, float]:
    """Who holds a claim, and how many seconds to wait for it; None: nobody but us.

    An owner that has not yet said who it is, or has just let go, has no name.
    """
    locks = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return str(Owner.read(descriptor) or ""), PAUSE
    except OSError:
        locks = False
    if not _is(path, descriptor):  # its owner removed it, and another may have a new one
        return "", 0
    me, owner = Owner.of_this_process(), Owner.read(descriptor)
    if owner is not None and owner != me and owner.lives(locks):
        if owner.machine != me.machine and not owner.job:
            raise InputError(
                "is being made by another process",
                where=str(path.with_name(path.name[1:].removesuffix(".claim"))),
                found=str(owner),
                hint=f"wait for it; if it has ended, remove {path}",
            )
        return str(owner), ASK_AGAIN if owner.job else PAUSE
    text = json.dumps(asdict(me)).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    os.fsync(descriptor)
    if not locks:
        time.sleep(SETTLE)
        winner = Owner.read(descriptor)
        if winner != me:
            return str(winner or ""), PAUSE
    return None, 0


def _is(path: Path, descriptor: int) -> bool:
    """Whether a path still names the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
