"""Writing a changed copy of a checkpoint, shard by shard, never holding more than a matrix.

Shards stay what they are: tensors keep their file and order, a shard without a change is
hard-linked (copied where the file system cannot link), and so is every other file. The index
and the configuration come last, and the folder is renamed into place when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.checkpoints import (
    INDEX_NAME,
    Checkpoint,
    TensorInfo,
    checkpoint_digest,
    checkpoint_parts,
    file_parts,
)
from invarlock.edits.blocks import Loss
from invarlock.errors import ConfigError, InputError
from invarlock.files import (
    atomic_directory,
    free_bytes,
    pretty_json,
    read_json_object,
    sha256_file,
)
from invarlock.shards import DTYPES, ShardEntry, write_shard
from invarlock.shipped_files import names_in

if TYPE_CHECKING:
    import torch

Chunks = Iterable[bytes | bytearray | memoryview]
Kernel = Callable[["torch.Tensor"], Loss]  # changes one matrix in place; 2-D, in storage order

_ROWS = 4 << 20  # bytes of the rows that are edited at a time

# Weights in another form would still be the baseline's, so they are not carried over.
_OTHER_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx",
    ".index.json",
)  # fmt: skip


@dataclass(frozen=True)
class NewTensor:
    """A tensor's new content; ``chunks()`` yields its bytes in order."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Chunks]


def rewritten_matrices(
    source: Checkpoint,
    info: TensorInfo,
    kernel: Kernel,
    loss: Loss,
    *,
    only_first: bool = False,
    by_rows: bool = False,
) -> NewTensor:
    """The tensor with ``kernel`` applied to its matrix, or to each matrix of a 3-D stack.

    ``kernel`` gets a view (rows, columns) in storage order, a vector as one row; what it reports
    is added to ``loss`` when the tensor is written. With ``only_first`` the other matrices of a
    stack stay. With ``by_rows`` it gets some rows at a time, which keeps less in memory.
    """

    import torch

    def chunks() -> Iterator[memoryview]:
        itemsize, dtype_name = DTYPES[info.dtype]
        dtype: torch.dtype = getattr(torch, dtype_name)
        rows, columns = (1, *info.shape)[-2:]
        row = max(1, columns * itemsize)
        size = max(1, _ROWS // row) * row if by_rows else max(1, rows * row)
        matrices = source.chunks(info.name, size)
        for number, chunk in enumerate(matrices):
            if only_first and number:
                yield chunk
                continue
            matrix = torch.frombuffer(chunk, dtype=dtype).view(-1, columns)
            try:
                loss.add(kernel(matrix))
            except InputError as error:
                raise InputError(
                    f"tensor {info.name}: {error.what}",
                    where=str(source.folder / info.file),
                    expected=error.expected,
                ) from error
            yield chunk

    return NewTensor(info.dtype, info.shape, chunks)


def tensor_seed(seed: int, name: str) -> int:
    """Seed of one tensor's draws, independent of the order in which tensors are edited."""
    return zlib.crc32(name.encode(), seed % 2**32)  # torch looks at 32 bits of a seed only


@dataclass(frozen=True)
class CheckpointChange:
    """How a subject differs from its baseline.

    ``replaced`` names existing tensors, ``added`` maps a new name to (shard, content), and
    ``config`` is the whole new configuration when it differs. ``files`` gives other files of the
    folder byte for byte, a shard too, which may then end inside the tensors ``cut``; the files
    ``removed`` are left out.
    """

    replaced: Mapping[str, NewTensor] = field(default_factory=dict)
    added: Mapping[str, tuple[str, NewTensor]] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    config: Mapping[str, Any] | None = None
    files: Mapping[str, Callable[[], Chunks]] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()

    def touches(self, info: TensorInfo) -> bool:
        """Whether the tensor is written anew or left out."""
        return info.name in self.replaced or info.name in self.dropped


@dataclass(frozen=True)
class Subject:
    """What was written: content digest, and SHA-256 of the tensors that were written anew."""

    digest: str
    written: dict[str, str]
    differing: tuple[str, ...]  # names whose bytes, or presence, differ from the baseline
    files: dict[str, str]  # SHA-256 of the files that were given byte for byte


def write_subject(
    baseline: Checkpoint, change: CheckpointChange, out: Path, *, allow_identical: bool = False
) -> Subject:
    """Write ``baseline`` with ``change`` to the folder ``out``, whole or not at all.

    Raises:
        ConfigError: ``out`` overlaps the baseline folder, or the result would be identical to
            the baseline and that was not allowed.
        InputError: not enough disk, an unreadable shard or an unwritable target.
    """
    if not baseline.form.dense:
        raise InputError(
            f"the weights to be edited are {baseline.form.name}",
            where=str(baseline.folder),
            expected="dense safetensors, as invarlock baseline places them",
        )
    refuse_same_place(baseline.folder, out)
    baseline.take_recorded()
    plan = {shard: _entries(baseline, change, shard) for shard in baseline.shards}
    rewritten = {shard for shard in plan if _is_changed(baseline, change, shard)}
    _refuse_full_disk(out, sum(e.nbytes for shard in rewritten for e in plan[shard]))
    sums: dict[str, str] = {}
    with atomic_directory(out) as stage:
        for shard, entries in plan.items():
            if shard in change.files:
                continue
            # An untouched shard is the same bytes: a hard link costs neither disk nor time.
            if shard not in rewritten:
                baseline.confirm(shard)
                link_or_copy(baseline.folder / shard, stage / shard)
            elif entries:
                sums |= write_shard(stage / shard, entries, baseline.metadata[shard])
                baseline.confirm(shard)
        for name in _other_files(baseline):
            if name not in change.files and name not in change.removed:
                (stage / name).parent.mkdir(exist_ok=True)
                link_or_copy(baseline.folder / name, stage / name)
        files = {name: _write(stage / name, change.files[name]()) for name in sorted(change.files)}
        _write_index(baseline, change, plan, stage)
        if change.config is None:
            link_or_copy(baseline.folder / "config.json", stage / "config.json")
        else:
            (stage / "config.json").write_bytes(pretty_json(change.config))
        rows = {
            e.name: (e.dtype, e.shape, sums.get(e.name) or baseline.tensor_digest(e.name))
            for entries in plan.values()
            for e in entries
        }
        # A tensor that was rewritten may still have its old bytes (an edit that changes nothing).
        differing = {*change.added, *change.dropped, *change.cut}
        differing |= {n for n in change.replaced if rows[n][2] != baseline.tensor_digest(n)}
        config = baseline.config if change.config is None else change.config
        new = [n for n, sha in files.items() if sha != sha256_file(baseline.folder / n)]
        if not (differing or new or change.removed or config != baseline.config or allow_identical):
            raise ConfigError(
                "the result is byte-identical to the baseline",
                where=str(baseline.folder),
                expected="at least one changed byte",
                hint="choose other parameters or another scope",
            )
        # A shard that was replaced byte for byte may not be readable as a checkpoint any more, so
        # that only the bytes of the files can identify this subject.
        if change.files.keys() & plan.keys():
            digest = checkpoint_digest(file_parts(stage))
        else:
            digest = checkpoint_digest(checkpoint_parts(config, rows, stage))
    written = {name: rows[name][2] for name in sorted({*change.replaced, *change.added})}
    return Subject(digest, written, tuple(sorted(differing)), files)


def _write(path: Path, chunks: Chunks) -> str:
    """Write a file; the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    with open(path, "wb") as handle:
        for chunk in chunks:
            digest.update(chunk)
            handle.write(chunk)
    return digest.hexdigest()


def _entries(baseline: Checkpoint, change: CheckpointChange, shard: str) -> list[ShardEntry]:
    old = [info for info in baseline.tensors.values() if info.file == shard]
    entries = []
    for info in sorted(old, key=lambda info: (info.begin, info.name)):
        if info.name in change.dropped:
            continue
        new = change.replaced.get(info.name)
        if new is None:
            chunks = partial(baseline.chunks, info.name)
            entries.append(ShardEntry(info.name, info.dtype, info.shape, chunks))
        else:
            entries.append(ShardEntry(info.name, new.dtype, new.shape, new.chunks))
    for name, (home, new) in sorted(change.added.items()):
        if home == shard:
            entries.append(ShardEntry(name, new.dtype, new.shape, new.chunks))
    return entries


def _is_changed(baseline: Checkpoint, change: CheckpointChange, shard: str) -> bool:
    if any(home == shard for home, _ in change.added.values()):
        return True
    return any(change.touches(info) for info in baseline.tensors.values() if info.file == shard)


def _other_files(baseline: Checkpoint) -> list[str]:
    """What ships beside the weights, licence and the like: visible files, and those of folders
    that ship."""
    return sorted(
        name
        for name in names_in(baseline.folder)
        if not name.startswith(".")
        and not name.endswith(_OTHER_WEIGHTS)
        and name != "config.json"
        and (baseline.folder / name).is_file()
    )


def _write_index(
    baseline: Checkpoint,
    change: CheckpointChange,
    plan: Mapping[str, list[ShardEntry]],
    stage: Path,
) -> None:
    if not baseline.indexed:
        return
    entries = {entry.name: (shard, entry) for shard in plan for entry in plan[shard]}
    if entries.keys() == baseline.tensors.keys() and all(
        new.shape == baseline.tensors[name].shape for name, new in change.replaced.items()
    ):
        link_or_copy(baseline.folder / INDEX_NAME, stage / INDEX_NAME)
        return
    index = read_json_object(baseline.folder / INDEX_NAME)
    index["metadata"] = {
        **(index.get("metadata") or {}),
        "total_size": sum(entry.nbytes for _, entry in entries.values()),
    }
    index["metadata"].pop("total_parameters", None)  # optional, and no longer true
    index["weight_map"] = {name: shard for name, (shard, _) in sorted(entries.items())}
    (stage / INDEX_NAME).write_bytes(pretty_json(index))


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link ``source`` (the file behind a symbolic link), or copy it where that fails."""
    real = source.resolve()
    with contextlib.suppress(OSError):  # another file system, no permission, too many links
        os.link(real, target)
        return
    shutil.copyfile(real, target)


def refuse_same_place(baseline: Path, out: Path) -> None:
    """Refuse an output folder that overlaps the baseline's, or is a file.

    Raises:
        ConfigError: it does.
    """
    source, target = baseline.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            "the output folder and the baseline folder overlap",
            where=str(out),
            found=f"baseline {baseline}",
            hint="name a folder outside the baseline",
        )
    if out.exists() and not out.is_dir():
        raise ConfigError("the output is an existing file", where=str(out), expected="a folder")


def _refuse_full_disk(out: Path, needed: int) -> None:
    free = free_bytes(out)
    if needed > free:
        raise InputError(
            "not enough disk for the checkpoint",
            where=str(out),
            expected=f"{needed / 1e9:.2f} GB free",
            found=f"{free / 1e9:.2f} GB",
            hint="make space or choose another folder",
        )
