"""Place a pinned model as the suite's baseline folder, every byte checked on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msgspec import to_builtins

from invarlock import contracts
from invarlock.checkpoints import Checkpoint
from invarlock.documents.fields import File
from invarlock.documents.model_revisions import Pin
from invarlock.errors import ConfigError
from invarlock.files import atomic_directory, leftovers, remove_leftovers, slug, write_json
from invarlock.formats.kinds import format_of
from invarlock.shipped_files import names_in
from invarlock.sources.disk import placed_bytes, require_room
from invarlock.sources.hub_cache import cache_folder
from invarlock.sources.hub_model import Hub
from invarlock.sources.kind import ModelSource
from invarlock.sources.kinds import SOURCES
from invarlock.sources.local_model import require_format
from invarlock.sources.pins import Allow, copy_hashed, file_digest, require_digest
from invarlock.sources.preflight import link_place

SCHEMA = "invarlock/baseline-v1"
Storage = Literal["snapshot_copy", "snapshot_symlink"]


@dataclass(frozen=True)
class Placement:
    """What to place, from where, and how."""

    model_id: str
    pin: Pin
    source: ModelSource
    storage: Storage
    min_free_gb: float
    allow_pickle: bool = False


def source_of(pin: Pin, given: ModelSource | None, model_id: str) -> ModelSource:
    """The source to read from: the one given, which must be the pinned one, or the pinned one.

    Raises:
        ConfigError: another source than the pinned one; a local source that was not given again.
    """
    kind, name = pin.source.kind, pin.source.name
    if given is None:
        return SOURCES[kind].pinned(pin, model_id)
    if (given.kind, given.recorded_name) != (kind, name) or given.revision not in (
        None,
        pin.revision,
    ):
        at = f"@{pin.revision}" if pin.revision else ""
        raise ConfigError(
            "not the source that was pinned",
            where=model_id,
            expected=f"{kind}:{name}{at}",
            found=str(given),
            hint="pin again",
        )
    return given.at(pin)


def place_baseline(placement: Placement, hub: Hub, out: Path) -> dict[str, Any]:
    """Build the folder ``out`` and return its record (``baseline.json``).

    Raises:
        InputError: a file missing or not as pinned, too little disk, a checkpoint that is damaged.
        ConfigError: ``out`` is, holds or lies in the source folder, or is not a model folder.
    """
    refuse_foreign_folder(placement.source, out)
    _preflight(placement, hub, out)
    placement.source.prepare()
    with atomic_directory(out) as stage:
        files = _place(placement, hub, stage)
        record = _record(placement, stage, files)
    return record


def write_baseline(path: Path, record: dict[str, Any]) -> None:
    """Check the record against its contract and write it."""
    contracts.validate(record, "baseline", str(path))
    write_json(path, record)


def refuse_foreign_folder(source: ModelSource, out: Path) -> None:
    """Never replace a folder that a user may still need.

    Raises:
        ConfigError: see :func:`place_baseline`.
    """
    source.refuse_overlap(out)
    if out.exists() and (not out.is_dir() or not (out / "config.json").is_file()):
        content = [] if not out.is_dir() else [n for n in os.listdir(out) if n[0] != "."]
        if content or not out.is_dir():
            raise ConfigError(
                "exists and is not a model folder; it is not replaced",
                where=str(out),
                hint="remove it or name another folder",
            )


def _preflight(placement: Placement, hub: Hub, out: Path) -> None:
    """Compare free disk with the bytes about to be written, per file system."""
    pin, source, size = placement.pin, placement.source, placement.pin.total_bytes
    form = format_of(pin.files)
    if form is not None and form.packed:
        paths = {n: _locate(placement, n, hub) for n in form.files(pin.files)}
        size = form.converted_bytes(paths, size)
    download = source.download_bytes(pin, size) if hub.net else 0
    copy = placed_bytes(pin, placement.storage, size)
    remove_leftovers(leftovers(out.parent, out.name))
    require_room([(out, copy), (cache_folder(), download)], placement.min_free_gb)


def _locate(placement: Placement, name: str, hub: Hub) -> Path:
    return placement.source.locate(placement.pin, name, hub, placement.model_id)


def _place(placement: Placement, hub: Hub, stage: Path) -> dict[str, File]:
    """Copy, link or rewrite every pinned file, its digest checked; those of the result."""
    pin, source = placement.pin, placement.source
    form = format_of(pin.files)
    weights: dict[str, Path] = {}  # that are rewritten
    if form is not None and not form.dense:
        require_format(form, Allow(pickle=placement.allow_pickle), placement.model_id)
        weights = {n: _locate(placement, n, hub) for n in sorted(form.files(pin.files))}
    files: dict[str, File] = {}
    for name, pinned in sorted(pin.files.items()):
        path, target = _locate(placement, name, hub), stage / name
        target.parent.mkdir(exist_ok=True)
        if name in weights:  # checked here, rewritten below
            files[name] = file_digest(path)
        elif placement.storage == "snapshot_copy":
            files[name] = copy_hashed(path, target)
        else:
            files[name] = file_digest(path)
            target.symlink_to(path.resolve())
        require_digest(files[name], pinned, source.label(path), source.mend)
    if form is None or not weights:
        return files
    form.convert(weights, stage)
    return _digests(stage)


def _digests(stage: Path) -> dict[str, File]:
    return {name: file_digest(stage / name) for name in sorted(names_in(stage))}


def _record(placement: Placement, stage: Path, files: dict[str, File]) -> dict[str, Any]:
    checkpoint, source = Checkpoint.open(stage), placement.source
    form = format_of(placement.pin.files)
    note = source.note or (form.note if form else None)
    record = {
        "schema": SCHEMA,
        "model_id": placement.model_id,
        "slug": slug(placement.model_id),
        "source": to_builtins(placement.pin.source),
        "revision": placement.pin.revision,
        "license": placement.pin.license,
        "files": to_builtins(files),
        "total_bytes": sum(file.bytes for file in files.values()),
        "weight_bytes": checkpoint.weight_bytes,
        "n_parameters": checkpoint.n_parameters,
        "checkpoint_sha256": checkpoint.digest(),
        "tensors": {
            name: {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "sha256": checkpoint.tensor_digest(name),
            }
            for name, info in checkpoint.tensors.items()
        },
        "note": note,
    }
    links = {name: place for name in files if (place := link_place(stage / name, source))}
    return record | ({"links": links} if links else {})
