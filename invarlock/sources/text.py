"""Documents of a text source, read from the very bytes whose digest was checked."""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from invarlock.documents.fields import File, Source
from invarlock.documents.model_revisions import Pin, PinnedText
from invarlock.errors import ConfigError, InputError
from invarlock.files import digest_json, read_bytes, unreadable
from invarlock.pictures import MAX_PICTURE_BYTES, read_picture
from invarlock.records import LabelledRecord, parse_record
from invarlock.sources import packages
from invarlock.sources.hub_model import Hub, dataset_files
from invarlock.sources.pins import digest_of, file_digest, require_digest
from invarlock.sources.spec import TEXT_SUFFIXES, TextSource

# The longer mark first: that of UTF-32 begins with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LOOKED_AT = 1 << 20  # bytes of a text that are looked at before a run
MAX_TEXT_BYTES = 4 << 30  # bytes of one file; a file is held in memory while it is parsed
PARQUET_IN_MEMORY = "/text.parquet"  # no name of a user's: it would be read as a pattern
ROWS = 1000  # of a parquet file that are decoded at once
FEW_ROWS = 50  # the same, of rows that may hold pictures
PICTURES = "pictures"  # in a pin, after the name of a file: those that its lines name

T = TypeVar("T")


def pin_text(source: TextSource, hub: Hub) -> PinnedText:
    """Pin a text by the digest of every file of it.

    Raises:
        InputError: missing or unreadable file, package not installed, hub not reachable.
        ConfigError: gated data set, no such configuration or split, unknown file type.
    """
    if source.kind == "package":
        return packages.pin_text(source.name)
    if source.kind == "local":
        path = Path(source.name)
        return PinnedText(
            source=Source("local", path.name),
            revision=None,
            license=None,
            config=None,
            split=None,
            files={path.name: file_digest(path), **_pictures_beside(source)},
        )
    return _pin_hub_text(source, hub)


def _pin_hub_text(source: TextSource, hub: Hub) -> PinnedText:
    info = hub.info(source.name, source.revision, "dataset")
    split = source.split or "test"
    names = dataset_files(source.name, info.revision, source.config, split)
    for name in names:
        if not name.endswith(TEXT_SUFFIXES):
            raise ConfigError(
                "unknown type of data file",
                where=f"{source}/{name}",
                expected=" or ".join(TEXT_SUFFIXES),
            )
    files = {name: hub.pin_file(source.name, info, name, "dataset") for name in names}
    for name, pinned in files.items():  # downloaded now, so that later stages need no network
        path = hub.fetch(source.name, info.revision, name, "dataset")
        require_digest(file_digest(path), pinned, f"{source}/{name}", "repeat the command")
    return PinnedText(
        source=Source("hub", source.name),
        revision=info.revision,
        license=info.license,
        files=files,
        config=source.config,
        split=split,
    )


def documents(source: TextSource, pin: Pin, hub: Hub) -> list[str]:
    """The documents in the order of the sorted file names, each file checked against ``pin``.

    Raises:
        InputError: a byte other than pinned, an unreadable file, no text field, no document.
    """
    parsed = (_parse(name, data, source.field) for name, data in _files(source, pin, hub))
    return _first(itertools.chain.from_iterable(parsed), source)


def labelled_records(source: TextSource, pin: Pin, hub: Hub) -> list[LabelledRecord]:
    """The labelled records of a source of JSON lines, each file checked against ``pin``.

    Raises:
        InputError: as :func:`documents`; a record without prompt or answer.
        ConfigError: a source of another type.
    """
    for name, found in _pictures_beside(source).items():
        hint = "restore the pictures or pin again"
        require_digest(found, pin.file(name, str(source)), f"{source}: {name}", hint)
    return _first(_records(source, pin, hub), source)


def _pictures_beside(source: TextSource) -> dict[str, File]:
    """The pictures that lines of a local file name, as one entry of a pin.

    Thousands of them would stand in every report otherwise.

    Raises:
        InputError: as :func:`labelled_records`.
    """
    path = Path(source.name)
    if source.kind != "local" or source.image is None or path.suffix == ".parquet":
        return {}
    found: dict[str, File] = {}
    name, data = _unpacked(path.name, read_bytes(path, MAX_TEXT_BYTES))
    for number, value in _json_lines(name, data):
        where = f"{name}:{number}"
        place = _picture_path(value, source.image, where)
        found[place] = digest_of(read_picture(path.parent / place, where))
    listed = {place: file.sha256 for place, file in found.items()}
    total = sum(file.bytes for file in found.values())
    return {f"{path.name}: {PICTURES}": File(total, digest_json(listed))}


def _picture_path(value: object, field: str, where: str) -> str:
    """Where a line says its picture is: below the folder of the file, as it is written there."""
    found = value.get(field) if isinstance(value, dict) else None
    if not isinstance(found, str) or not found:
        raise InputError(
            f"a record without a picture in {field}", where=where, expected="a path",
            found=type(found).__name__, hint="give it one, or put it into a file of its own",
        )  # fmt: skip
    path = PurePosixPath(found)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            "a picture outside the folder of its records", where=where,
            expected="a path below that folder", found=found,
        )  # fmt: skip
    return path.as_posix()


@dataclass(frozen=True)
class LocalText:
    """What can be seen of a local text at once: documents (2: two or more), bytes as text."""

    documents: int
    bytes: int | None  # None: packed, so that the file's size says nothing


def look_at_local_text(source: TextSource) -> LocalText:
    """Look at a local text without reading all of it; its first two documents are read.

    Raises:
        InputError: no such file, an empty one, or no text in the first lines.
    """
    path = Path(source.name)
    if path.is_dir():
        raise InputError("is a folder", where=str(path), expected=" or ".join(TEXT_SUFFIXES))
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            start = handle.read(LOOKED_AT)
    except OSError as error:
        raise unreadable(path, error) from error
    if not size:
        raise InputError("the text is empty", where=str(path))
    if source.name.endswith((".gz", ".parquet")):
        return LocalText(2, None)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputError("is a git-lfs pointer, not the text", where=str(path), hint="git lfs pull")
    whole = size <= LOOKED_AT
    if source.name.endswith(".txt"):
        return LocalText(1, size)
    # a line that is not whole is left out, so that all that is read is what is there
    lines = start if whole else start.rpartition(b"\n")[0]
    found = 0
    for number, value in _json_lines(path.name, lines):
        if not source.labelled:
            _text_of(value, source.field, f"{path.name}:{number}")
        found += 1
        if found == min(2, source.max_samples or 2):
            break
    if whole and not found:
        raise InputError("the text holds no document", where=str(source))
    return LocalText(found if whole or found == source.max_samples else 2, size)


def _records(source: TextSource, pin: Pin, hub: Hub) -> Iterator[LabelledRecord]:
    for name, data in _files(source, pin, hub):
        if name.endswith((".jsonl", ".json")):
            for number, value in _json_lines(name, data):
                where = f"{name}:{number}"
                yield parse_record(value, where, number, _picture_of_line(source, value, where))
        elif name.endswith(".parquet"):
            for number, value in enumerate(_rows(name, data)):
                where = f"{name}: row {number}"
                yield parse_record(value, where, number, _picture_of_row(source, value, where))
        else:
            raise ConfigError(
                "labelled records are JSON lines, or rows", where=f"{source}/{name}",
                expected=".jsonl or .parquet",
            )  # fmt: skip


def _picture_of_line(source: TextSource, value: object, where: str) -> bytes | None:
    if source.image is None:
        return None
    if source.kind != "local":  # nothing says which other files of a repository were pinned
        raise InputError(
            "pictures of JSON lines are read of local files only", where=where,
            hint="name a configuration of the data set that is stored as parquet",
        )  # fmt: skip
    place = _picture_path(value, source.image, where)
    return read_picture(Path(source.name).parent / place, where)


def _picture_of_row(source: TextSource, row: dict[str, object], where: str) -> bytes | None:
    """The picture of a row, as data sets store it: its bytes, or an object of bytes and path."""
    if source.image is None:
        return None
    found = row.get(source.image)
    data = found.get("bytes") if isinstance(found, dict) else found
    if not isinstance(data, bytes) or not data:
        raise InputError(
            f"a record without a picture in {source.image}", where=where,
            expected="bytes, or an object of bytes and path",
            found=f"of the columns {', '.join(sorted(row)[:12])}: {type(found).__name__}",
        )  # fmt: skip
    if len(data) > MAX_PICTURE_BYTES:
        raise InputError(
            "the picture is too large", where=where,
            expected=f"at most {MAX_PICTURE_BYTES} bytes", found=str(len(data)),
        )  # fmt: skip
    return data


def _first(found: Iterator[T], source: TextSource) -> list[T]:
    taken = list(itertools.islice(found, source.max_samples))
    if not taken:
        raise InputError("the text holds no document", where=str(source))
    return taken


def _files(source: TextSource, pin: Pin, hub: Hub) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file, as pinned; ``.gz`` is unpacked and gone from the name."""
    if source.revision is not None and source.revision != pin.revision:
        raise InputError(
            "the text was pinned at another revision",
            where=str(source),
            expected=str(pin.revision),
            hint="pin again",
        )
    for name, path in _paths(source, pin, hub):
        data = read_bytes(path, MAX_TEXT_BYTES)
        pinned = pin.file(name, str(source))
        require_digest(digest_of(data), pinned, str(path), "restore the file or pin again")
        yield _unpacked(name, data)


def _unpacked(name: str, data: bytes) -> tuple[str, bytes]:
    if not name.endswith(".gz"):
        return name, data
    name = name.removesuffix(".gz")
    try:
        return name, gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"not a readable gzip file: {error}", where=name) from error


def _paths(source: TextSource, pin: Pin, hub: Hub) -> Iterator[tuple[str, Path]]:
    if source.kind == "local":
        path = Path(source.name)
        yield path.name, path
    elif source.kind == "package":
        paths = packages.text_files(source.name)
        missing = sorted(set(pin.files) - set(paths))
        if missing:
            raise InputError(f"the package lacks the pinned file {missing[0]}", where=str(source))
        yield from paths.items()
    else:
        for name in sorted(pin.files):
            yield name, hub.fetch(source.name, str(pin.revision), name, "dataset")


def _parse(name: str, data: bytes, field: str) -> Iterator[str]:
    """The documents of one file: a whole .txt, a line of .jsonl, a row of .parquet.

    A ``.json.gz`` of a data set holds one object a line.
    """
    if name.endswith(".parquet"):
        yield from _parquet(name, data, field)
    elif name.endswith((".jsonl", ".json")):
        for number, value in _json_lines(name, data):
            yield _text_of(value, field, f"{name}:{number}")
    else:
        # line ends as an editor on another system writes them are no other text
        text = _decoded(name, data).replace("\r\n", "\n").replace("\r", "\n")
        if text.strip():
            yield text


def _json_lines(name: str, data: bytes) -> Iterator[tuple[int, object]]:
    """The objects of JSON lines with their line numbers, blank lines left out.

    Read as other tools read them, unlike evidence: what another field holds (NaN, a key given
    twice) does not change the text.
    """
    for number, line in enumerate(_decoded(name, data).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line, strict=False)
            except (ValueError, RecursionError) as error:
                hint = ""
                if number == 1 and line.strip() in ("[", "{"):
                    hint = "this is one JSON document: write one object a line"
                raise InputError(
                    f"not a line of JSON: {error}", where=f"{name}:{number}", hint=hint
                ) from error


def _decoded(name: str, data: bytes) -> str:
    """Text of UTF-8, with or without a byte order mark, or of UTF-16 or UTF-32 with one."""
    marks = ((mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark))
    mark, encoding = next(marks, (b"", "utf-8"))
    if data == mark:  # a mark and no text says nothing of an encoding
        encoding = "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"not {encoding.removesuffix('-sig').upper()} at byte {error.start}",
            where=name,
            hint="save it as UTF-8",
        ) from error


def _text_of(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        found = ", ".join(sorted(record)[:12]) if isinstance(record, dict) else "no object"
        raise InputError(
            f"no field {field}", where=where, found=found, hint="name it with ?field=NAME"
        )
    value = record[field]
    if value is None:  # as data sets mark a row without a text
        return ""
    if not isinstance(value, str):
        raise InputError(f"field {field} is not text", where=where, found=type(value).__name__)
    # half a surrogate pair, which JSON can spell, is no character: no tokenizer takes it
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parquet(name: str, data: bytes, field: str) -> Iterator[str]:
    for row, value in enumerate(_column(name, data, field)):
        yield _text_of({field: value}, field, f"{name}: row {row}")


def _column(name: str, data: bytes, field: str) -> Iterator[object]:
    """One column of a parquet file."""
    for row in _rows(name, data, field):
        yield row[field]


def _rows(name: str, data: bytes, field: str | None = None) -> Iterator[dict[str, object]]:
    """The rows of a parquet file, or their one column ``field``, read by ``datasets`` batch by
    batch, as they are stored.

    The library opens a path, so the bytes whose digest was checked get one in memory: it cannot
    read other bytes than these. Streaming, it caches nothing but a lock, which goes with a folder
    made for it.

    Raises:
        InputError: not a parquet file, a damaged one, no such column.
    """
    import fsspec
    import pyarrow
    from datasets import load_dataset

    memory = fsspec.filesystem("memory")
    memory.pipe_file(PARQUET_IN_MEMORY, data)
    with tempfile.TemporaryDirectory() as cache:
        load = partial(
            load_dataset,
            "parquet",
            data_files=f"memory:/{PARQUET_IN_MEMORY}",
            split="train",
            streaming=True,
            cache_dir=cache,
            batch_size=ROWS,  # its default, the first row group's length, may be 0
        )
        try:
            columns = load().column_names
            if field is not None and field not in columns:
                _text_of(dict.fromkeys(columns), field, name)
            chosen = load(columns=[field] if field is not None else None)
            for table in chosen.with_format("arrow").iter(ROWS if field is not None else FEW_ROWS):
                yield from table.to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            first = str(error).partition("\n")[0]
            raise InputError(f"not a readable parquet file: {first}", where=name) from error
        finally:
            memory.rm_file(PARQUET_IN_MEMORY)
