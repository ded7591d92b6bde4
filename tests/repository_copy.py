"""The repository as a working folder of its own, so that no test touches a developer's runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import warm

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "Snakefile", "config", "contracts", "invarlock", "profiles", "rules", "scenarios", "tools",
    "ci", "container", "cpu", "gpu", "release", "slurm",
)  # fmt: skip
SPEAKING = ("PACK_", "MODEL_", "INVARLOCK_", "MIN_FREE_DISK_GB", "SNAKEMAKE_", "CONTAINER",
            "OUTPUT_DIR")  # fmt: skip


def link_repository(folder: Path) -> Path:
    """A new ``folder`` of links to what the workflow needs; ``.snakemake`` is its own."""
    folder.mkdir()
    for name in PARTS:
        (folder / name).symlink_to(ROOT / name)
    return folder


def quiet_environment() -> dict[str, str]:
    """The environment without any variable that changes the configuration."""
    return {k: v for k, v in os.environ.items() if not k.startswith(SPEAKING)}


def in_a_new_python(lines: str) -> None:
    """Run a program that raises where something does not hold; it has imported nothing."""
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def invarlock(*words: object, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A command of the package, forked unless something stands before it."""
    python = sys.executable if prefix else warm.python()
    return subprocess.run(
        [*prefix, python, "-m", "invarlock", *map(str, words)],
        cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def snakemake(
    folder: Path,
    *words: str,
    config: Sequence[str] = (),
    timeout: float | None = 400,
    python: str = "",
    **spoken: str,
) -> subprocess.CompletedProcess[str]:
    """Run snakemake in ``folder``; of the variables we read, only ``spoken`` ones are set.

    It is a fork, and so are its jobs, which take the Python of their snakemake: see ``warm``.
    """
    said = ["--config", *config] if config else []
    return subprocess.run(
        [python or warm.python(), "-m", "snakemake", *words, *said],
        cwd=folder, env=quiet_environment() | spoken, capture_output=True, text=True,
        check=False, timeout=timeout,
    )  # fmt: skip


def engine_of_a_version(folder: Path) -> Path:
    """``bin/apptainer`` in ``folder``: says its version, which is all that a plan asks of one."""
    engine = folder / "bin/apptainer"
    engine.parent.mkdir(exist_ok=True)
    engine.write_text("#!/bin/sh\necho apptainer version 1.3.4\n")
    engine.chmod(0o755)
    return engine


def program(path: str) -> ModuleType:
    """A file below ``tools`` or ``benchmarks`` as a module; it finds those beside it, as a program
    does that is called by its path."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / path).parent))
        spec.loader.exec_module(module)
    return module
