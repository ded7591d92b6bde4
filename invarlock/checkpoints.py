"""Checkpoint folders, known by ``config.json`` and the headers of their weights, without torch.

Which files hold the weights, and how, is the business of :mod:`invarlock.formats`.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from invarlock.digests import Seen
from invarlock.errors import InputError
from invarlock.files import (
    digest_json,
    parse_json,
    read_bytes,
    read_json_object,
    sha256_bytes,
    sha256_file,
)
from invarlock.folders import names_of, readable_format, refuse_broken_files
from invarlock.formats.kind import INDEX_NAME, READ_CHUNK, SINGLE_NAME, Format, PackedTensor
from invarlock.formats.kinds import as_configured
from invarlock.formats.packed import QUANTIZED, config_of, refuse_two
from invarlock.roles import Role, role_of
from invarlock.shards import DTYPES, JoinedInfo, TensorInfo, read_header
from invarlock.shipped_files import file_digests

if TYPE_CHECKING:
    import torch


__all__ = [
    "INDEX_NAME",
    "READ_CHUNK",
    "SINGLE_NAME",
    "Checkpoint",
    "Identity",
    "TensorInfo",
    "checkpoint_digest",
    "checkpoint_parts",
    "file_parts",
    "read_header",
    "tokenizer_digest",
]


_contents: dict[str, str] = {}  # of the bytes of a tokenizer, the digest of their content


def tokenizer_digest(folder: Path) -> str | None:
    """SHA-256 of the canonical content of ``tokenizer.json`` (never its path); None without one.

    Every byte is read each time. Bytes that this process has decoded before are not decoded again,
    which takes longer than all else that is asked of a checkpoint's headers; baseline and subject
    mostly have the same.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    data = read_bytes(path)
    sha256 = sha256_bytes(data)
    if sha256 not in _contents:
        _contents[sha256] = digest_json(parse_json(data, str(path)))
    return _contents[sha256]


def checkpoint_parts(
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, tuple[int, ...], str]],
    folder: Path,
) -> dict[str, Any]:
    """Everything that makes a checkpoint what it is, by digests, however it is sharded.

    ``weights_sha256`` covers the weights that a model has: of a head that is stored beside an
    embedding of the same bytes, the second is a copy, and stands in ``copies`` with what it
    copies.

    Args:
        config: the content of ``config.json``.
        tensors: each name with (dtype, shape, SHA-256 of its bytes).
        folder: where the tokenizer and the other shipped files are.
    """
    copies = _copies(config, tensors)
    listed = {
        name: [dtype, list(shape), sha]
        for name, (dtype, shape, sha) in tensors.items()
        if name not in copies
    }
    return {
        "config_sha256": digest_json(config),
        "weights_sha256": digest_json(listed),
        "copies": copies,
        "tokenizer_sha256": tokenizer_digest(folder),
        "files": file_digests(folder),
    }


def _copies(
    config: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...], str]]
) -> dict[str, str]:
    """Token tables whose bytes another one holds already: name of the copy -> of the first."""
    # bytes first: what a tensor is for may take a library to say, and copies are rare
    times = Counter(tensors.values())
    twice = [name for name, row in tensors.items() if times[row] > 1 and len(row[1]) == 2]
    roles = {name: role_of(name, config) for name in twice}
    tables = [name for name in twice if roles[name] in (Role.EMBED, Role.HEAD)]
    # an embedding comes before a head, and the shared one before those of encoder and decoder
    tables.sort(key=lambda name: (roles[name] is Role.HEAD, len(name), name))
    first: dict[tuple[str, tuple[int, ...], str], str] = {}
    owners = {name: first.setdefault(tensors[name], name) for name in tables}
    return {name: owner for name, owner in sorted(owners.items()) if name != owner}


def checkpoint_digest(parts: Mapping[str, Any]) -> str:
    """Content digest of a checkpoint: of :func:`checkpoint_parts` or :func:`file_parts`."""
    return digest_json(parts)


def file_parts(folder: Path) -> dict[str, Any]:
    """What a checkpoint that cannot be read as one is: its files by name and SHA-256."""
    if folder.is_file():
        return {"files": {folder.name: sha256_file(folder)}}
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and _is_content(p.name))
    return {"files": file_digests(folder) | {name: sha256_file(folder / name) for name in names}}


def _is_content(name: str) -> bool:
    files = (INDEX_NAME, "config.json", "tokenizer.json")
    return name.endswith((".safetensors", ".gguf")) or name in files


@dataclass(frozen=True)
class Identity:
    """What a report says of a checkpoint."""

    config: Mapping[str, Any]
    parts: Mapping[str, Any]  # of which the digest is taken
    tokenizer_sha256: str | None
    n_parameters: int | None
    packing: Mapping[str, Any] = field(default_factory=dict)  # how the weights are packed, if so

    @property
    def sha256(self) -> str:
        """The content digest."""
        return checkpoint_digest(self.parts)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json`` and weights of a known format, known by their headers.

    ``tensors`` is sorted by name, ``shards`` lists file names in sorted order. Of a packed model
    the tensors are what its weights stand for, and ``source`` is what was named: a file, or a
    folder that lacks configuration and tokenizer, which are then in ``folder``.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    shards: tuple[str, ...]
    metadata: dict[str, dict[str, str]]  # shard -> its __metadata__
    form: Format
    source: Path
    packed: dict[str, PackedTensor] = field(default_factory=dict, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _seen: dict[str, Seen] = field(default_factory=dict, repr=False, compare=False)
    _recorded: set[str] = field(default_factory=set, repr=False, compare=False)
    _kept: object = field(default=None, repr=False, compare=False)  # what goes with this object

    @classmethod
    def open(
        cls, source: Path | str, beside: Path | None = None, allowed: Collection[str] = ()
    ) -> Checkpoint:
        """Read the configuration and the headers of the weights of a folder, or of a file.

        Args:
            source: what was named.
            beside: the folder of the baseline, from which a subject takes the small files that
                its format does not hold.
            allowed: the permissions that are given, for formats that need one.

        Raises:
            NotACheckpointError: the folder holds something else (:mod:`invarlock.folders`).
            InputError: a file of it is missing or damaged.
        """
        source = Path(source)
        refuse_broken_files(source)
        form = readable_format(source, allowed)
        folder, kept = source, None
        if not form.configured:
            form = form.beside(source, beside)
            kept = TemporaryDirectory(prefix="invarlock-")
            folder = Path(kept.name)
            form.small_files(source, beside, folder)
        config = read_json_object(folder / "config.json")
        refuse_two(config, str(folder))
        form = as_configured(form, config_of(folder))
        # looked at before they are read, so that a change in between is noticed
        seen = {n: Seen.now(source / n) for n in form.files(names_of(source)) if source.is_dir()}
        held = form.inventory(source)
        if not held.tensors:
            raise InputError("the checkpoint holds no tensor", where=str(source))
        seen = {n: seen.get(n) or Seen.now(source / n) for n in held.files if source.is_dir()}
        return cls(
            folder, config, held.tensors, held.files, held.metadata, form, source, held.packed,
            # digests are kept of stored bytes; those of values depend on how they are unpacked
            _seen={} if held.packed or not form.configured else seen, _kept=kept,
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """``config.json`` without what the format reads of it: how the weights are packed."""
        if self.form.dense:
            return self.config
        return {k: v for k, v in self.config.items() if k not in QUANTIZED}

    @cached_property
    def stored(self) -> dict[str, str]:
        """SHA-256 of each file of weights of a packed model, and of those that say how it is."""
        place = self.source if self.source.is_dir() else self.source.parent
        beside = sorted(name for name in self.form.packing_files if (place / name).is_file())
        return {name: sha256_file(place / name) for name in (*self.shards, *beside)}

    @property
    def read_files(self) -> set[str]:
        """Files of weights, what lists them, and what says how they are packed."""
        return {*self.shards} | self.form.lists | self.form.packing_files

    @property
    def indexed(self) -> bool:
        """Whether the shards are listed by an index file."""
        return (self.folder / INDEX_NAME).is_file()

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def n_parameters(self) -> int:
        """Number of stored elements (a tied matrix that is stored once counts once)."""
        return sum(info.numel for info in self.tensors.values())

    def info(self, name: str) -> TensorInfo:
        """The entry of tensor ``name``.

        Raises:
            InputError: the checkpoint has no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise InputError(
                f"no tensor {name} in the checkpoint", where=str(self.folder)
            ) from None

    def chunks(self, name: str, size: int = READ_CHUNK) -> Iterator[memoryview]:
        """The tensor's bytes in order, ``size`` at a time (the last chunk, or that of a part, may
        be shorter).

        A chunk may be written to, and dies with the next but one: two buffers serve all. The
        digest of the bytes as read is taken on the way, for :meth:`tensor_digest`.
        """
        info = self.info(name)
        digest = None if name in self._digests else hashlib.sha256()
        for part in info.parts if isinstance(info, JoinedInfo) else (info,):
            for chunk in self.form.chunks(self.source, part, size):
                if digest is not None:
                    digest.update(chunk)
                yield chunk
        if digest is not None:
            self._digests[name] = digest.hexdigest()

    def read(self, name: str) -> bytes:
        """All bytes of tensor ``name``."""
        return b"".join(bytes(chunk) for chunk in self.chunks(name))

    def load(self, name: str) -> torch.Tensor:
        """Tensor ``name`` as a CPU tensor of its stored dtype and shape.

        The bytes are mapped privately: nothing is copied until written to, and the file is
        never changed. Unaligned tensors are copied.
        """
        import torch

        info = self.info(name)
        dtype: torch.dtype = getattr(torch, DTYPES[info.dtype][1])
        if info.numel == 0:
            return torch.empty(info.shape, dtype=dtype)
        apart = isinstance(info, JoinedInfo) or info.begin % DTYPES[info.dtype][0]
        if not self.form.dense or apart:
            held, done = bytearray(info.nbytes), 0
            for chunk in self.chunks(name):
                held[done : done + len(chunk)] = chunk
                done += len(chunk)
            return torch.frombuffer(held, dtype=dtype).reshape(info.shape)
        page = info.begin - info.begin % mmap.ALLOCATIONGRANULARITY
        path = self.folder / info.file
        try:
            with open(path, "rb") as handle:
                mapped = mmap.mmap(
                    handle.fileno(), info.end - page, access=mmap.ACCESS_COPY, offset=page
                )
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be mapped: {error}", where=str(path)) from error
        flat = torch.frombuffer(mapped, dtype=dtype, count=info.numel, offset=info.begin - page)
        return flat.reshape(info.shape)

    def tensor_digest(self, name: str) -> str:
        """SHA-256 of the tensor's raw bytes (kept after the first time)."""
        if name not in self._digests:
            for _ in self.chunks(name):
                pass
        return self._digests[name]

    def parts(self) -> dict[str, Any]:
        """:func:`checkpoint_parts` of this checkpoint."""
        self.take_recorded()
        rows = {n: (i.dtype, i.shape, self.tensor_digest(n)) for n, i in self.tensors.items()}
        for shard, seen in self._seen.items():
            self._record(seen, shard)
        parts = checkpoint_parts(self.config, rows, self.folder)
        return parts | {"packed_files": self.stored} if self.packed else parts

    def digest(self) -> str:
        """:func:`checkpoint_digest` of this checkpoint."""
        return checkpoint_digest(self.parts())

    def changed_tensors(self, baseline: Checkpoint) -> list[str] | None:
        """The tensors that are not the baseline's; None where names, types or shapes differ."""
        before, now = (
            {name: (info.dtype, info.shape) for name, info in side.tensors.items()}
            for side in (baseline, self)
        )
        if before != now:
            return None
        return [n for n in now if baseline.tensor_digest(n) != self.tensor_digest(n)]

    def take_recorded(self) -> None:
        """Take over the digests that stand recorded for unchanged files, where any is unknown.

        What is read after that is not hashed; who writes something of it asks :meth:`confirm`.
        """
        for shard, seen in self._seen.items():
            names = self._names_in(shard)
            if not names <= self._digests.keys():
                recorded = seen.recorded()
                if recorded.keys() == names:
                    self._digests.update(recorded)
                    self._recorded.add(shard)

    def confirm(self, shard: str) -> None:
        """Make sure that a file is still what its recorded digests are of.

        A file whose state changed is hashed again: a hard link that somebody made changes it too.

        Raises:
            InputError: it holds something else now.
        """
        if shard not in self._recorded or self._seen[shard].unchanged():
            return
        recorded = {name: self._digests.pop(name) for name in self._names_in(shard)}
        if any(self.tensor_digest(name) != digest for name, digest in recorded.items()):
            raise InputError(
                "the weights were changed while they were read",
                where=str(self.folder / shard),
                hint="run it again when nothing writes to that file",
            )

    def _record(self, seen: Seen, shard: str) -> None:
        """Record the digests of a file, once all of them are known."""
        names = self._names_in(shard)
        if shard not in self._recorded and names <= self._digests.keys():
            seen.record({name: self._digests[name] for name in sorted(names)})
            self._recorded.add(shard)

    def _names_in(self, shard: str) -> set[str]:
        return {name for name, info in self.tensors.items() if info.file == shard}

    def identity(self) -> Identity:
        """What a report says of this checkpoint."""
        parts = self.parts()
        sha256 = parts["tokenizer_sha256"]
        return Identity(self.config, parts, sha256, self.n_parameters, self.packing())

    def packing(self) -> dict[str, Any]:
        """How the weights are packed, as reports state it; empty where they are dense.

        ``schemes``: of each way to pack a tensor, how many there are, their elements and the bytes
        that they take.
        """
        if self.form.dense:
            return {}
        schemes: dict[str, dict[str, Any]] = {}
        for tensor in self.packed.values():
            row = schemes.setdefault(
                tensor.scheme, {"bits": tensor.bits, "tensors": 0, "elements": 0, "bytes": 0}
            )
            row["tensors"] += 1
            row["elements"] += math.prod(tensor.shape)
            row["bytes"] += tensor.stored_bytes
        place = self.source if self.source.is_dir() else self.source.parent
        return {
            "format": self.form.name,
            "title": self.form.title,
            "schemes": dict(sorted(schemes.items())),
            "bytes_packed": sum((place / name).stat().st_size for name in self.shards),
            "bytes_dense": sum(2 * info.numel for info in self.tensors.values()),
        }
