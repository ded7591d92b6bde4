"""Which source and which machine a run is made with: what can be published of both."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from invarlock import __version__
from invarlock.code_digest import package_digest

LIBRARIES = ("numpy", "safetensors", "tokenizers", "torch", "transformers")


def source_repo(checkout: Path) -> dict[str, Any]:
    """The commit of a checkout and the digest of the code; no remote address, no user name."""
    status = _first(["git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no"])
    return {
        "schema": "invarlock/source-repo-v1",
        "version": __version__,
        "code": package_digest(),
        "commit": _first(["git", "-C", str(checkout), "rev-parse", "HEAD"]) or None,
        "branch": _first(["git", "-C", str(checkout), "branch", "--show-current"]) or None,
        "describe": _first(["git", "-C", str(checkout), "describe", "--tags", "--always"]) or None,
        "dirty": None if status is None else bool(status),
    }


def environment() -> dict[str, Any]:
    """Platform, libraries, CPU and GPUs of this machine; no host name, no variables."""
    listed = _lines(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]) or []
    return {
        "schema": "invarlock/environment-v1",
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python_version": platform.python_version(),
        "libraries": libraries(),
        "cpu_model": _cpu_model(),
        "gpu_count": len(listed),
        "gpus": listed,
    }


def libraries() -> dict[str, str | None]:
    """Versions of the libraries that numbers come from; None: not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model(listing: Path = Path("/proc/cpuinfo")) -> str | None:
    if not listing.is_file():
        return platform.processor() or None
    lines = listing.read_text(errors="replace").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


def _lines(command: list[str]) -> list[str] | None:
    """What a program prints, a line each; None: it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _first(command: list[str]) -> str | None:
    lines = _lines(command)
    return None if lines is None else next(iter(lines), "")
