"""``runtime.manifest.json``: how and where a report was made, bound to its digest.

The one artefact that may differ between two runs of the same inputs: it holds the time, the
timings and the memory. Whether the run was inside a container is read from the marks that the
engines leave in the file system; no variable can claim it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from invarlock.files import sha256_file, write_json

NAME = "runtime.manifest.json"
CONTRACT_VERSION = "runtime-manifest-v1"
# Docker, Podman, Apptainer/Singularity.
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/.singularity.d")


@dataclass(frozen=True)
class Allowances:
    """The safety switches that were in force."""

    network: bool
    remote_code: bool
    third_party_plugins: bool = False


@dataclass(frozen=True)
class Image:
    """The container image as the caller resolved it outside the container."""

    reference: str = ""
    digest: str = ""  # sha256:<hex>


def in_container() -> bool:
    """Whether an engine's mark is there."""
    return any(Path(mark).exists() for mark in CONTAINER_MARKS)


def now_utc() -> str:
    """The time as ``SOURCE_DATE_EPOCH`` says, or the clock's: ``2026-01-02T03:04:05+00:00``."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.replace(microsecond=0).isoformat()


def write_runtime_manifest(
    report: Path, allowances: Allowances, image: Image, context: Mapping[str, Any]
) -> None:
    """Write the manifest beside ``report``, bound to its bytes.

    A container counts as one only with the digest of its image: without, the run is recorded
    as ``host-bypass``, which claims less.
    """
    container = in_container() and bool(image.digest)
    document = {
        "manifest_version": 1,
        "verifier_contract_version": CONTRACT_VERSION,
        "generated_at_utc": now_utc(),
        "execution_mode": "container" if container else "host-bypass",
        "report": {
            "path": report.name,
            "filename": report.name,
            "sha256": sha256_file(report),
        },
        "config": {"path": None, "sha256": None, "source": "missing"},
        "runtime": {
            "image_ref": image.reference or "host",
            "image_digest": image.digest or None if container else None,
            "container_execution": container,
            "allow_network": allowances.network,
            "allow_remote_code": allowances.remote_code,
            "allow_third_party_plugins": allowances.third_party_plugins,
        },
        "context": dict(context),
    }
    write_json(report.parent / NAME, document)
