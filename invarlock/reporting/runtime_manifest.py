"""``runtime.manifest.json``: how and where a report was made, bound to its digest.

The one artefact that may differ between two runs of the same inputs: it holds the time, the
timings and the memory. Whether the run was inside a container is found out by
:mod:`invarlock.run.container`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from invarlock.files import sha256_file, source_date, write_json
from invarlock.run.container import Execution

NAME = "runtime.manifest.json"
CONTRACT_VERSION = "runtime-manifest-v1"


class Circumstances(Struct, frozen=True):
    """Under which a report was made: what the process was allowed, and where it ran."""

    network: bool
    remote_code: bool
    third_party_plugins: bool = False
    execution: Execution = field(default_factory=Execution)
    config: Path | None = None  # the effective configuration


def now_utc() -> str:
    """The time as ``SOURCE_DATE_EPOCH`` says, or the clock's: ``2026-01-02T03:04:05+00:00``."""
    moment = source_date() or datetime.now(UTC)
    return moment.replace(microsecond=0).isoformat()


def write_runtime_manifest(
    report: Path, circumstances: Circumstances, context: Mapping[str, Any]
) -> None:
    """Write the manifest beside ``report``, bound to its bytes."""
    execution, config = circumstances.execution, circumstances.config
    document = {
        "manifest_version": 1,
        "verifier_contract_version": CONTRACT_VERSION,
        "generated_at_utc": now_utc(),
        "execution_mode": execution.mode,
        "report": {
            "path": report.name,
            "filename": report.name,
            "sha256": sha256_file(report),
        },
        "config": {
            "path": config.name if config else None,
            "sha256": sha256_file(config) if config else None,
            "source": "file" if config else "missing",
        },
        "runtime": {
            "image_ref": execution.image_ref,
            "image_digest": execution.image_digest or None,
            "container_execution": execution.mode == "container",
            "allow_network": circumstances.network,
            "allow_remote_code": circumstances.remote_code,
            "allow_third_party_plugins": circumstances.third_party_plugins,
        },
        "context": {"execution_mode": execution.mode, **context},
    }
    write_json(report.parent / NAME, document)
