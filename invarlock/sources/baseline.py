"""Place a pinned model as the suite's baseline folder, every byte checked on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from invarlock import contracts
from invarlock.checkpoints import Checkpoint
from invarlock.errors import ConfigError
from invarlock.files import atomic_directory, leftovers, remove_leftovers, slug, write_json
from invarlock.folders import refuse_broken_files
from invarlock.shipped_files import names_in
from invarlock.sources import gguf_model, packages
from invarlock.sources.disk import download_bytes, placed_bytes, require_room
from invarlock.sources.hub_cache import cache_folder
from invarlock.sources.hub_model import Hub
from invarlock.sources.pickle_weights import convert_pickles, pickle_files, require_allowed
from invarlock.sources.pins import FileDigest, Pin, copy_hashed, require_digest
from invarlock.sources.preflight import link_place
from invarlock.sources.spec import ModelSource

SCHEMA = "invarlock/baseline-v1"
SMALL_FILES_BYTES = 16 << 20  # bytes set aside for tokenizer and configuration of a conversion
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
    kind, name = pin.source["kind"], pin.source["name"]
    if given is None:
        if kind == "local":
            raise ConfigError(
                "a local model's folder is not recorded in the pin",
                where=model_id,
                hint=f"give it again: --model '{model_id}=local:FOLDER'",
            )
        return ModelSource("package" if kind == "package" else "hub", name, pin.revision)
    own = Path(given.name).resolve().name if given.kind == "local" else given.name
    if (given.kind, own) != (kind, name) or given.revision not in (None, pin.revision):
        at = f"@{pin.revision}" if pin.revision else ""
        raise ConfigError(
            "not the source that was pinned",
            where=model_id,
            expected=f"{kind}:{name}{at}",
            found=str(given),
            hint="pin again",
        )
    return ModelSource(given.kind, given.name, pin.revision)


def place_baseline(placement: Placement, hub: Hub, out: Path) -> dict[str, Any]:
    """Build the folder ``out`` and return its record (``baseline.json``).

    Raises:
        InputError: a file missing or not as pinned, too little disk, a checkpoint that is damaged.
        ConfigError: ``out`` is, holds or lies in the source folder, or is not a model folder.
    """
    refuse_foreign_folder(placement.source, out)
    _preflight(placement, hub, out)
    with atomic_directory(out) as stage:
        if placement.source.kind == "package":
            files = _convert(placement, stage)
        else:
            files = _snapshot(placement, _locator(placement, hub), stage)
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
    if source.kind == "local":
        there, here = Path(source.name).resolve(), out.resolve()
        if there == here or there in here.parents or here in there.parents:
            raise ConfigError("--out overlaps the source folder", where=str(out))
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
    if source.kind == "package":
        gguf = gguf_model.Gguf(packages.model_file(source.name))
        size = gguf_model.converted_bytes(gguf) + SMALL_FILES_BYTES
    download = download_bytes(source, pin, size) if hub.net else 0
    copy = placed_bytes(source, pin, placement.storage, size)
    remove_leftovers(leftovers(out.parent, out.name))
    require_room([(out, copy), (cache_folder(), download)], placement.min_free_gb)


def _convert(placement: Placement, stage: Path) -> dict[str, FileDigest]:
    path = packages.model_file(placement.source.name)
    pinned = placement.pin.file(path.name, placement.model_id)
    require_digest(FileDigest.of_file(path), pinned, f"{placement.source}/{path.name}", "pin again")
    gguf_model.convert(path, stage)
    return _digests(stage)


def _locator(placement: Placement, hub: Hub) -> Callable[[str], Path]:
    source, pin = placement.source, placement.pin
    if source.kind == "local":
        folder = Path(source.name)
        refuse_broken_files(folder)
        return lambda name: folder / name
    return lambda name: hub.fetch(source.name, str(pin.revision), name, "model")


def _snapshot(
    placement: Placement, locate: Callable[[str], Path], stage: Path
) -> dict[str, FileDigest]:
    pickles = pickle_files(placement.pin.files)
    if pickles:
        require_allowed(placement.allow_pickle, placement.model_id)
    hint = "restore the file or pin again"
    if placement.source.kind == "hub":
        hint = "delete the file from the hub cache and repeat with the network on"
    files: dict[str, FileDigest] = {}
    for name, pinned in sorted(placement.pin.files.items()):
        path, target = locate(name), stage / name
        target.parent.mkdir(exist_ok=True)
        if name in pickles:  # checked here, rewritten below
            files[name] = FileDigest.of_file(path)
        elif placement.storage == "snapshot_copy":
            files[name] = copy_hashed(path, target)
        else:
            files[name] = FileDigest.of_file(path)
            target.symlink_to(path.resolve())
        require_digest(files[name], pinned, str(path), hint)
    if pickles:
        convert_pickles({name: locate(name) for name in pickles}, stage)
        files = _digests(stage)
    return files


def _digests(stage: Path) -> dict[str, FileDigest]:
    return {name: FileDigest.of_file(stage / name) for name in sorted(names_in(stage))}


def _record(placement: Placement, stage: Path, files: dict[str, FileDigest]) -> dict[str, Any]:
    checkpoint, source = Checkpoint.open(stage), placement.source
    note = packages.MODEL_NOTE if source.kind == "package" else None
    if pickle_files(placement.pin.files):
        note = "weights are rewritten from the source's pickle files as safetensors"
    record = {
        "schema": SCHEMA,
        "model_id": placement.model_id,
        "slug": slug(placement.model_id),
        "source": placement.pin.source,
        "revision": placement.pin.revision,
        "license": placement.pin.license,
        "files": {name: digest.to_json() for name, digest in files.items()},
        "total_bytes": sum(digest.size for digest in files.values()),
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
