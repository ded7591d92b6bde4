"""GPUs for one job: devices of this machine that no other job of the user holds.

Snakemake counts GPUs but gives out none: two local jobs of one GPU each would both run on the
first device.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from invarlock.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_DEVICE = ("-1", "NoDevFiles")  # how CUDA's users, and SLURM, say that there is none
PAUSE = 0.2  # seconds between two looks at devices that are all in use


def lease(device: str, count: int) -> tuple[int, ...]:
    """Wait until ``count`` GPUs are free (one at least) and make only these visible.

    To be called before CUDA is started, which reads once what is visible; importing torch does not
    start it. A lease is a kernel lock on a file: it ends with the
    process and with every child that was given its descriptors, also by ``kill -9``. Nothing is
    leased on other devices than ``auto`` and ``cuda``, and where no GPU is seen. Inside a SLURM
    job leases hold among the processes to which it gives the same GPUs.

    Returns:
        The descriptors of the locks.

    Raises:
        ConfigError: fewer GPUs are visible than the job needs.
    """
    family, _, index = device.partition(":")
    pool = visible(os.environ) if family in ("auto", "cuda") else []
    if not pool:
        return ()
    wanted = 1 if index else max(1, count)
    if index:  # this very device
        pool = pool[int(index) : int(index) + 1] if index.isdecimal() else []
    if len(pool) < wanted:
        raise ConfigError(
            f"too few GPUs for --device {device} --gpus {wanted}",
            found=f"{len(visible(os.environ))} visible",
            hint=f"{VISIBLE} says which a process sees",
        )
    scope = _slurm_scope(os.environ)
    given = bool(scope) and len(pool) == wanted
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():  # pragma: no cover - not a user's error
        raise RuntimeError("a GPU has to be leased before CUDA is started")
    held = _wait(_folder(), f"{scope}gpu-", pool, wanted)
    print(f"GPU {', '.join(held)}, {'given by SLURM' if given else 'leased'}", flush=True)
    if not index:
        os.environ[VISIBLE] = ",".join(held)
    return tuple(held.values())


def _slurm_scope(environment: Mapping[str, str]) -> str:
    """What the names of devices belong to: nothing, or the job and the GPUs that SLURM gave.

    Every job, and every step with GPUs of its own, may see them numbered from 0. Steps that share
    the job's GPUs see the same ones.
    """
    job = environment.get("SLURM_JOB_ID")
    given = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS", "")
    return f"slurm-{job}-{given}-" if job else ""


def visible(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that CUDA may use, without asking a driver."""
    named = environment.get(VISIBLE)
    if named is None:
        return [str(n) for n, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    devices = [name.strip() for name in named.split(",") if name.strip()]
    hidden = [n for n, name in enumerate(devices) if name in NO_DEVICE]
    return devices[: hidden[0]] if hidden else devices  # CUDA, too, reads up to there


def _folder() -> Path:
    """Where the user's locks are; nobody else may put files there."""
    folder = Path(tempfile.gettempdir()) / f"invarlock-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError("the folder of GPU locks belongs to somebody else", where=str(folder))
    return folder


def _wait(folder: Path, prefix: str, pool: Sequence[str], wanted: int) -> dict[str, int]:
    """The first free devices and the descriptors of their locks, as soon as there are enough."""
    files = {name: folder / (prefix + name).replace("/", "_") for name in pool}
    held = _take(folder, files, wanted)
    if not held:
        print(f"waiting for {wanted} of GPU {', '.join(pool)}: in use", flush=True)
    while not held:
        time.sleep(PAUSE)
        held = _take(folder, files, wanted)
    return held


def _take(folder: Path, files: Mapping[str, Path], wanted: int) -> dict[str, int]:
    """All that is wanted, or nothing: a job that holds one device never waits for another."""
    held: dict[str, int] = {}
    taking = _lock(folder / "taking", fcntl.LOCK_EX)  # one at a time, for an instant
    assert taking is not None
    try:
        for path in folder.glob("slurm-*"):  # one a job; of those that ended nothing shall stay
            descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if descriptor is not None:
                path.unlink()
                os.close(descriptor)
        for name, path in files.items():
            descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if descriptor is not None:
                held[name] = descriptor
            if len(held) == wanted:
                return held
        for descriptor in held.values():
            os.close(descriptor)
        return {}
    finally:
        os.close(taking)


def _lock(path: Path, how: int) -> int | None:
    """A descriptor that holds the lock on a file; None while another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
