"""The repository as a working folder of its own, so that no test touches a developer's runs."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "Snakefile", "config", "contracts", "invarlock", "profiles", "rules", "scenarios", "tools",
    "ci", "container", "cpu", "gpu", "release", "slurm",
)  # fmt: skip
SPEAKING = ("PACK_", "MODEL_", "INVARLOCK_", "MIN_FREE_DISK_GB", "SNAKEMAKE_", "CONTAINER")


def link_repository(folder: Path) -> Path:
    """A new ``folder`` of links to what the workflow needs; ``.snakemake`` is its own."""
    folder.mkdir()
    for name in PARTS:
        (folder / name).symlink_to(ROOT / name)
    return folder


def quiet_environment() -> dict[str, str]:
    """The environment without any variable that changes the configuration."""
    return {k: v for k, v in os.environ.items() if not k.startswith(SPEAKING)}
