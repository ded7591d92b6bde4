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
from typing import Final

from msgspec import UNSET, to_builtins

from invarlock import contracts
from invarlock.documents.fields import File
from invarlock.documents.model_revisions import ModelRevisions, PinnedModel, PinnedText
from invarlock.errors import InputError
from invarlock.files import (
    HASH_CHUNK,
    read_json_object,
    sha256_bytes,
    source_date,
    unreadable,
    write_json,
)

SCHEMA: Final = "invarlock/model-revisions-v1"


@dataclass(frozen=True)
class Allow:
    """Safety switches of a model: Python code of its own, pickle weights. Both off by default."""

    remote_code: bool = False
    pickle: bool = False


def digest_of(data: bytes) -> File:
    """Size and digest of bytes in memory."""
    return File(len(data), sha256_bytes(data))


def file_digest(path: Path) -> File:
    """Size and digest of a file, counted while it is read.

    Raises:
        InputError: the file cannot be read.
    """
    return copy_hashed(path, None)


def copy_hashed(path: Path, target: Path | None) -> File:
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
    return File(size, digest.hexdigest())


def require_digest(found: File, pinned: File, where: str, hint: str) -> None:
    """Refuse bytes that are not the pinned ones.

    Raises:
        InputError: another size or another SHA-256.
    """
    if found.bytes != pinned.bytes:
        raise InputError(
            "not the pinned file: another size",
            where=where,
            expected=f"{pinned.bytes} bytes",
            found=f"{found.bytes} bytes",
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


def write_revisions(
    path: Path, suite: str, models: Mapping[str, PinnedModel], datasets: Mapping[str, PinnedText]
) -> None:
    """Write ``model_revisions.json``; a time is written only where SOURCE_DATE_EPOCH fixes it."""
    moment = source_date()
    pinned = ModelRevisions(
        schema=SCHEMA,
        generated_at=moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else UNSET,
        suite=suite,
        model_list=list(models),
        models=dict(models),
        datasets=dict(datasets),
    )
    document = to_builtins(pinned)
    contracts.validate(document, "model-revisions", str(path))
    write_json(path, document)


def read_revisions(path: Path) -> ModelRevisions:
    """Read and check ``model_revisions.json``; its models come in the order of the suite.

    Raises:
        InputError: missing, unreadable, against its contract, or it names a gated or private model.
    """
    pinned = contracts.decoded(read_json_object(path), ModelRevisions, str(path))
    if sorted(pinned.models) != sorted(pinned.model_list):
        raise InputError("/model_list and /models name different models", where=str(path))
    for name, pin in pinned.models.items():
        if pin.gated or pin.private:
            raise InputError(f"model {name} is gated or private", where=str(path))
    pinned.models = {name: pinned.models[name] for name in pinned.model_list}
    return pinned
