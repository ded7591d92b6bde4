"""``model_revisions.json``: what was pinned, by revision and by the SHA-256 of every file.

No path of this host is recorded: a local source is known by its folder or file name, and its
place is named again on the command line by whoever uses it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock import contracts
from invarlock.errors import InputError
from invarlock.files import (
    HASH_CHUNK,
    read_json_object,
    sha256_bytes,
    source_date,
    unreadable,
    write_json,
)

SCHEMA = "invarlock/model-revisions-v1"


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and SHA-256 (lower-case hex) of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileDigest:
        """Digest of bytes in memory."""
        return cls(len(data), sha256_bytes(data))

    @classmethod
    def of_file(cls, path: Path) -> FileDigest:
        """Digest of a file, counted while it is read.

        Raises:
            InputError: the file cannot be read.
        """
        return copy_hashed(path, None)

    def to_json(self) -> dict[str, int | str]:
        """``{bytes, sha256}``."""
        return {"bytes": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Allow:
    """Safety switches of a model: Python code of its own, pickle weights. Both off by default."""

    remote_code: bool = False
    pickle: bool = False


@dataclass(frozen=True)
class Pin:
    """One pinned model or text."""

    source: dict[str, str]  # kind, name and, of a package, version
    revision: str | None
    license: str | None
    files: dict[str, FileDigest]
    gated: bool | None = None  # models only, as private
    private: bool | None = None
    remote_code: bool = False
    config: str | None = None
    split: str | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of all pinned files."""
        return sum(digest.size for digest in self.files.values())

    def file(self, name: str, where: str) -> FileDigest:
        """The pinned digest of ``name``; InputError where it is not in the pin."""
        if name not in self.files:
            raise InputError(f"file {name} is not in the pin", where=where, hint="pin again")
        return self.files[name]


@dataclass(frozen=True)
class Revisions:
    """The whole document: suite, models in order, texts."""

    suite: str
    models: dict[str, Pin]
    datasets: dict[str, Pin]


def copy_hashed(path: Path, target: Path | None) -> FileDigest:
    """Hash ``path`` and, with a ``target``, write the very bytes that were hashed to it.

    Raises:
        InputError: the file cannot be read.
        OSError: the target cannot be written (callers write inside an atomic folder).
    """
    digest, size = hashlib.sha256(), 0
    try:
        source = open(path, "rb")  # noqa: SIM115 - closed below; only its errors are the input's
    except OSError as error:
        raise unreadable(path, error) from error
    with source, open(target or os.devnull, "wb") as out:
        while chunk := source.read(HASH_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    return FileDigest(size, digest.hexdigest())


def require_digest(found: FileDigest, pinned: FileDigest, where: str, hint: str) -> None:
    """Refuse bytes that are not the pinned ones.

    Raises:
        InputError: another size or another SHA-256.
    """
    if found.size != pinned.size:
        raise InputError(
            "not the pinned file: another size",
            where=where,
            expected=f"{pinned.size} bytes",
            found=f"{found.size} bytes",
            hint=hint,
        )
    if found.sha256 != pinned.sha256:
        raise InputError(
            "not the pinned file: another content",
            where=where,
            expected=f"sha256 {pinned.sha256}",
            found=found.sha256,
            hint=hint,
        )


def write_revisions(path: Path, revisions: Revisions) -> None:
    """Write ``model_revisions.json``; a time is written only where SOURCE_DATE_EPOCH fixes it."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "suite": revisions.suite,
        "model_list": list(revisions.models),
        "models": {name: _model_json(pin) for name, pin in revisions.models.items()},
        "datasets": {name: _text_json(pin) for name, pin in revisions.datasets.items()},
    }
    moment = source_date()
    if moment is not None:
        document["generated_at"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    contracts.validate(document, "model-revisions", str(path))
    write_json(path, document)


def _files_json(pin: Pin) -> dict[str, dict[str, int | str]]:
    return {name: digest.to_json() for name, digest in sorted(pin.files.items())}


def _model_json(pin: Pin) -> dict[str, Any]:
    return {
        "source": pin.source,
        "revision": pin.revision,
        "gated": pin.gated,
        "private": pin.private,
        "remote_code": pin.remote_code,
        "license": pin.license,
        "files": _files_json(pin),
    }


def _text_json(pin: Pin) -> dict[str, Any]:
    return {
        "source": pin.source,
        "revision": pin.revision,
        "config": pin.config,
        "split": pin.split,
        "license": pin.license,
        "files": _files_json(pin),
    }


def read_revisions(path: Path) -> Revisions:
    """Read and check ``model_revisions.json``.

    Raises:
        InputError: missing, unreadable, against its contract, or it names a gated or private model.
    """
    document = read_json_object(path)
    contracts.validate(document, "model-revisions", str(path))
    models = {name: _pin(entry) for name, entry in document["models"].items()}
    if sorted(models) != sorted(document["model_list"]):
        raise InputError("/model_list and /models name different models", where=str(path))
    for name, pin in models.items():
        if pin.gated or pin.private:
            raise InputError(f"model {name} is gated or private", where=str(path))
    datasets = {name: _pin(entry) for name, entry in document["datasets"].items()}
    return Revisions(document["suite"], {n: models[n] for n in document["model_list"]}, datasets)


def _pin(entry: Mapping[str, Any]) -> Pin:
    return Pin(
        source=dict(entry["source"]),
        revision=entry["revision"],
        gated=entry.get("gated"),
        private=entry.get("private"),
        license=entry["license"],
        files={name: FileDigest(f["bytes"], f["sha256"]) for name, f in entry["files"].items()},
        remote_code=entry.get("remote_code", False),
        config=entry.get("config"),
        split=entry.get("split"),
    )
