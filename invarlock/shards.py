"""The safetensors format, one file at a time: strict headers in, streamed shards out.

A shard is ``8 bytes little-endian header length | JSON header | tensor bytes``. The header
maps each name to ``{dtype, shape, data_offsets}``; the offsets tile the rest of the file
without holes. Everything is checked against the real file size before a byte is trusted.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from invarlock.errors import InputError
from invarlock.files import parse_json, unreadable

Chunk = bytes | bytearray | memoryview

LENGTH_BYTES = 8  # bytes of the little-endian header length that a shard begins with
_PIECE = 1 << 19  # bytes hashed and written in turn
MAX_HEADER_BYTES = 100_000_000  # bytes; the limit of the safetensors library itself

# Bytes of one element and name of the torch dtype, by safetensors dtype code.
DTYPES: dict[str, tuple[int, str]] = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E8M0": (1, "float8_e8m0fnu"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
    "F64": (8, "float64"),
    "C64": (8, "complex64"),
}
FLOAT_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a shard; ``begin`` and ``end`` are absolute byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.end - self.begin

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class JoinedInfo(TensorInfo):
    """A tensor whose bytes are those of others, one after the other; it has no place of its own."""

    parts: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class ShardHeader:
    """What one shard declares: its tensors in file order and its free-text metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one shard, by name, in the order of their bytes.

    Raises:
        InputError: the file is missing, truncated, longer than its header says, or garbage.
    """
    return read_shard_header(path).tensors


def read_shard_header(path: Path) -> ShardHeader:
    """Like :func:`read_header`, with the shard's ``__metadata__``."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            prefix = handle.read(LENGTH_BYTES)
            if len(prefix) < LENGTH_BYTES:
                raise InputError(
                    "the shard is truncated inside its header length",
                    where=str(path),
                    expected=f"at least {LENGTH_BYTES} bytes",
                    found=f"{size} bytes",
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise InputError(
                    "not a safetensors file: it declares an impossible header length",
                    where=str(path),
                    found=f"a header of {length} bytes in a file of {size}",
                    expected=f"at most {MAX_HEADER_BYTES} bytes",
                )
            if LENGTH_BYTES + length > size:
                raise InputError(
                    "the shard is truncated inside its header",
                    where=str(path),
                    expected=f"at least {LENGTH_BYTES + length} bytes",
                    found=f"{size} bytes",
                    hint="copy or download the file again",
                )
            raw = handle.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    document = parse_json(raw, f"{path}: safetensors header")
    if not isinstance(document, dict):
        raise InputError("its header is not a JSON object", where=str(path))
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError("its __metadata__ is not a map of strings", where=str(path))
    entries = [_entry(path, name, value, LENGTH_BYTES + length) for name, value in document.items()]
    entries.sort(key=lambda info: (info.begin, info.end, info.name))
    _refuse_gaps(path, entries, LENGTH_BYTES + length, size)
    return ShardHeader({info.name: info for info in entries}, metadata)


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorInfo:
    def wrong(what: str) -> InputError:
        return InputError(f"tensor {name} has {what} in the header", where=str(path))

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise wrong("other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong(f"the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape):
        raise wrong(f"the impossible shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise wrong(f"the impossible data_offsets {offsets!r}")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype][0]
    if end - begin != needed:
        raise InputError(
            f"tensor {name} of shape {shape} and dtype {dtype} does not fill its data_offsets",
            where=str(path),
            expected=f"{needed} bytes",
            found=f"{end - begin} bytes",
        )
    return TensorInfo(name, dtype, tuple(shape), path.name, data_start + begin, data_start + end)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _refuse_gaps(path: Path, entries: list[TensorInfo], start: int, size: int) -> None:
    position = start
    for info in entries:
        if info.begin != position:
            kind = "overlaps" if info.begin < position else "leaves a hole after"
            raise InputError(f"tensor {info.name} {kind} the tensor before it", where=str(path))
        position = info.end
    if position > size:
        raise InputError(
            "the shard is truncated",
            where=str(path),
            expected=f"{position} bytes",
            found=f"{size} bytes",
            hint="copy or download the file again",
        )
    if position < size:
        raise InputError(
            "the shard is longer than its header says",
            where=str(path),
            expected=f"{position} bytes",
            found=f"{size} bytes",
        )


@dataclass(frozen=True)
class ShardEntry:
    """One tensor to write: ``chunks()`` yields its bytes in order, whatever the chunk sizes.

    A chunk has to stay as it is until the next but one is asked for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Chunk]]

    @property
    def nbytes(self) -> int:
        """Bytes that the shape and dtype ask for."""
        return math.prod(self.shape) * DTYPES[self.dtype][0]


def write_shard(
    path: Path, entries: Sequence[ShardEntry], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Write one shard, tensor by tensor in the given order; holds two chunks at most.

    Returns the SHA-256 of every tensor's bytes, by name.

    Raises:
        ValueError: a producer yields another number of bytes than its shape asks for.
        OSError: the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for entry in entries:
        offsets = [position, position + entry.nbytes]
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
        position = offsets[1]
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % LENGTH_BYTES)  # keeps the tensors aligned
    digests: dict[str, str] = {}
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", len(raw)) + raw)
        sums = [hashlib.sha256() for _ in entries]
        written = [0] * len(entries)
        pairs = ((n, chunk) for n, entry in enumerate(entries) for chunk in entry.chunks())
        for number, chunk in _one_ahead(pairs):
            # A piece at a time, which is still in the cache when it is written.
            for start in range(0, len(chunk), _PIECE):
                piece = memoryview(chunk)[start : start + _PIECE]
                sums[number].update(piece)
                written[number] += handle.write(piece)
    for entry, size, digest in zip(entries, written, sums, strict=True):
        if size != entry.nbytes:
            raise ValueError(f"{entry.name}: {size} bytes for {entry.nbytes}")
        digests[entry.name] = digest.hexdigest()
    return digests


def _one_ahead(items: Iterator[tuple[int, Chunk]]) -> Iterator[tuple[int, Chunk]]:
    """The items; while one is used, a thread makes the next (hashing and arithmetic let it run)."""
    with ThreadPoolExecutor(1) as worker:
        following = worker.submit(next, items, None)
        while (item := following.result()) is not None:
            following = worker.submit(next, items, None)
            yield item
