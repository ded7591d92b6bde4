"""Reading and writing files so that nothing is half-written and nothing is misread.

Writes go to a temporary name beside the target, are flushed to disk and renamed; a kill at
any moment leaves the old file or the new one. JSON is read strictly (RFC 8259 without the
latitude of ``json.loads``): UTF-8 without BOM, no duplicate keys, no NaN or infinity,
bounded nesting and digits.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from invarlock.errors import ConfigError, InputError

if TYPE_CHECKING:
    from datetime import datetime

MAX_JSON_BYTES = 256 * 1024 * 1024  # bytes; the largest document we write is tens of MB
MAX_JSON_DEPTH = 64  # nested arrays and objects; our own documents stay below 12
MAX_JSON_DIGITS = 32  # digits of one integer; 2**64 has 20
HASH_CHUNK = 1 << 20  # bytes
FEW_BYTES = 1 << 20  # that are hashed without OpenSSL, where it is not loaded yet


# --- digests -------------------------------------------------------------------------------


def sha256_bytes(data: bytes) -> str:
    """Lower-case hex SHA-256 of ``data``.

    A process that has not loaded OpenSSL, whose hashes take 3.5 MB, does not load it for a few
    bytes: libsodium, which checks the signature of a pack, hashes at a quarter of the speed.
    """
    if len(data) <= FEW_BYTES and "hashlib" not in sys.modules:
        from nacl.bindings import crypto_hash_sha256

        return crypto_hash_sha256(data).hex()
    import hashlib

    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    import hashlib

    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def canonical_json(value: object) -> bytes:
    """Compact, sorted, ASCII JSON without NaN: the form that digests are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_json(value: object) -> str:
    """SHA-256 of :func:`canonical_json`."""
    return sha256_bytes(canonical_json(value))


def fingerprint(value: object) -> str:
    """A digest that is equal exactly where :func:`digest_json` is, taken over MessagePack.

    It is never written: numbers take a tenth of the time, and other versions may encode otherwise.
    """
    try:
        return sha256_bytes(_MESSAGE_PACK.encode(value))
    except (TypeError, ValueError, OverflowError):  # an integer beyond 64 bits
        return digest_json(value)


_MESSAGE_PACK = msgspec.msgpack.Encoder(order="sorted")


def contract_hash(contract: Mapping[str, Any]) -> str:
    """First 16 hex of SHA-256 over a measurement contract as spaced, sorted JSON, as published."""
    return sha256_bytes(json.dumps(contract, sort_keys=True).encode())[:16]


# --- strict JSON ---------------------------------------------------------------------------


FLOAT_TAG = "__float__"  # {"__float__": "Infinity"}


def parse_json(data: bytes, where: str, unbounded: bool = False) -> Any:
    """Decode one JSON document strictly.

    With ``unbounded`` an infinity becomes what transformers 5 writes for one (``FLOAT_TAG``).

    Raises:
        InputError: not UTF-8, a BOM, a duplicate key, NaN or infinity, an over-long integer, half
            a surrogate pair, nesting deeper than ``MAX_JSON_DEPTH`` or a syntax error.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):  # check: json.duplicate
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise InputError(f"duplicate key {key!r}", where=where)
                seen.add(key)
        return result

    def constant(name: str) -> dict[str, str]:
        if not unbounded or name == "NaN":
            raise InputError(f"{name} is not a JSON number", where=where)  # check: json.constant
        return {FLOAT_TAG: name}

    def finite(text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):  # check: json.overflow
            raise InputError(f"{text[:40]} overflows a double", where=where)
        return value

    def bounded(text: str) -> int:
        if len(text) > MAX_JSON_DIGITS:  # check: json.digits
            raise InputError(f"an integer of {len(text)} digits", where=where)
        return int(text)

    if data.startswith(b"\xef\xbb\xbf"):
        raise InputError("begins with a byte order mark", where=where, expected="plain UTF-8")
    bare = _without_strings(data)
    _refuse_depth(bare, where)  # check: json.depth
    # Looking at every number from Python takes longer than all the rest: only if one may be bad.
    shape = bare.translate(_DIGITS, b"+")
    suspect = _LONG in shape or _LARGE in shape
    if not suspect:
        value = _decoded(data)
        if value is not _DOUBTED:
            return value
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=no_duplicates,
            parse_constant=constant,
            parse_float=finite if suspect else None,
            parse_int=bounded if suspect else None,
        )
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", where=where) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg} at line {error.lineno} column {error.colno}", where=where
        ) from error
    # perhaps half of a pair, which is no character
    if b"\\ud" in data or b"\\uD" in data:  # check: json.surrogate
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError("a string with half a surrogate pair", where=where) from error
    return value


def _decoded(data: bytes) -> Any:
    """JSON in which no key stands twice, by the quicker decoder; ``_DOUBTED`` where there may be
    anything to refuse, which the slower one then finds words for.

    What is decoded has one colon for each key, and those of its strings. A pair that a later one
    replaced is missing from it; so are no others, unless the text spells colons otherwise.
    """
    try:
        value = msgspec.json.decode(data)
        colons = msgspec.json.encode(value).count(b":")
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return _DOUBTED
    return _DOUBTED if b"\\u003" in data or colons != data.count(b":") else value


_DOUBTED = object()
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LONG = b"0" * MAX_JSON_DIGITS  # a sign counts as well
_LARGE = b"e000"  # 1e100 or more
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = [1 if byte in b"[{" else -1 for byte in range(256)]


def _without_strings(data: bytes) -> bytes:
    """The bytes outside strings, up to the first one that is wrong there."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b'"'.join(data.split(b'"')[::2])


def _refuse_depth(bare: bytes, where: str) -> None:
    """Count brackets outside strings, so that deep input never reaches the recursive parser."""
    brackets = left = bare.translate(None, _NOT_BRACKETS)
    # A round takes away what is innermost, at most one level of each kind: counting them one by
    # one takes as long as decoding, and is left to what is not empty by then.
    for _ in range(MAX_JSON_DEPTH // 2):
        left = left.replace(b"[]", b"").replace(b"{}", b"")
        if not left:
            return
    if any(
        depth > MAX_JSON_DEPTH for depth in itertools.accumulate(map(_STEP.__getitem__, brackets))
    ):
        raise InputError(f"nested deeper than {MAX_JSON_DEPTH} levels", where=where)


def source_date() -> datetime | None:
    """The time that ``SOURCE_DATE_EPOCH`` fixes, in UTC; None where it is not set.

    Raises:
        ConfigError: it is no number of seconds.
    """
    from datetime import UTC, datetime

    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return None
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            "not a time",
            where="SOURCE_DATE_EPOCH",
            expected="seconds since 1970",
            found=repr(epoch)[:40],
        ) from error


def open_without_waiting(path: str, flags: int) -> int:
    """Open for reading; a pipe would make us wait for a writer."""
    flags |= os.O_NONBLOCK  # check: store.pipe
    return os.open(path, flags | os.O_CLOEXEC)


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a whole regular file of at most ``limit`` bytes.

    Raises:
        InputError: missing, unreadable, not a regular file or too large.
    """
    try:
        with open(path, "rb", opener=open_without_waiting) as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # check: store.pipe
                raise InputError("is not a regular file", where=str(path))
            data = handle.read(limit + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > limit:
        raise InputError("file is too large", where=str(path), expected=f"at most {limit} bytes")
    return data


def read_json(path: Path) -> Any:
    """Read and strictly decode a JSON file (see :func:`parse_json`).

    Configurations of models may hold infinities: limits that are none, as Python's own writer
    spells them.
    """
    return parse_json(read_bytes(path), str(path), unbounded=path.name == "config.json")


def read_json_object(path: Path) -> dict[str, Any]:
    """Like :func:`read_json`, and the document must be an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=str(path), found=type(value).__name__)
    return value


# --- atomic writes -------------------------------------------------------------------------


def fsync_directory(path: Path) -> None:
    """Flush a directory entry to disk (a rename is durable only after this)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_sibling(path: Path) -> Path:
    """A hidden, unused name beside ``path``; two writers never share one.

    What a killed process of this machine left under such a name is removed.
    """
    remove_leftovers(leftovers(path.parent, path.name))
    pid = os.getpid()
    end = f"{machine()}.{pid}-{started(pid)}.{os.urandom(4).hex()}"
    return path.parent / f".{path.name}.tmp.{end}"


def leftovers(folder: Path, name: str = "") -> Iterator[Path]:
    """What processes of this machine that have ended left half-written: of one name, or of all."""
    if not folder.is_dir():
        return
    for left in folder.glob(f".{glob.escape(name) or '*'}.tmp.{machine()}.*.*"):
        owner, _, start = left.name.split(".")[-2].partition("-")
        if owner.isdigit() and started(int(owner)) not in ("", start):
            yield left


def remove_leftovers(found: Iterable[Path]) -> None:
    """Remove what :func:`leftovers` found."""
    import shutil

    for left in found:
        with contextlib.suppress(OSError):  # another process may remove it as well
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def machine() -> str:
    """The machine and the space of its process numbers: containers may share a host's name."""
    space = "/proc/self/ns/pid"
    numbers = os.readlink(space) if os.path.exists(space) else ""
    return sha256_bytes(f"{os.uname().nodename} {numbers}".encode())[:8]


def started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None if there is none or it has ended.

    The number of a process alone says too little: it stays taken until the parent of the ended
    process asks for its exit code, and then goes to another one. Where ``/proc`` does not tell,
    the answer is empty as long as the number is taken.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            state, *fields = handle.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return "" if _taken(pid) else None
    return None if state in b"ZX" else fields[18].decode()  # proc(5): fields 3 and 22


def _taken(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


@contextlib.contextmanager
def atomic_file(path: Path, size: int = 0) -> Iterator[Path]:
    """Yield a temporary path; on success flush it and rename it to ``path``.

    ``size``: bytes that will be written, if known, for the line that a full disk gives.

    Raises:
        InputError: the target cannot be written (disk full, no permission), or is a device or
            the like, which a rename would replace.
    """
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError("cannot be written: is not a regular file", where=str(path))
    temporary = temporary_sibling(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            fsync_directory(path.parent)
        finally:  # before the free space is told
            with contextlib.suppress(OSError):  # the error that matters is already on its way
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error, size) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: the old content or the new, never a part."""
    with atomic_file(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with LF line ends atomically."""
    write_bytes(path, text.encode())


def pretty_json(value: object) -> bytes:
    """Indented, sorted JSON with a final LF, for files that people open."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Write :func:`pretty_json` atomically."""
    write_bytes(path, pretty_json(value))


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty hidden sibling folder; on success flush it and put it in place of ``path``.

    An older folder at ``path`` is moved aside first and removed afterwards.

    Raises:
        InputError: the target cannot be written.
    """
    import shutil  # with every compression that it knows, which readers of files do without

    stage = temporary_sibling(path)
    try:
        stage.mkdir(parents=True)
        yield stage
        for folder, _, names in os.walk(stage):
            for name in names:
                with open(Path(folder) / name, "rb") as handle:
                    os.fsync(handle.fileno())
            fsync_directory(Path(folder))
        if path.exists():
            aside = temporary_sibling(path)
            os.rename(path, aside)
            os.rename(stage, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(stage, path)
        fsync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


# --- the lines users see -------------------------------------------------------------------


def unreadable(path: Path | str, error: OSError) -> InputError:
    """The line for a file or folder that cannot be read."""
    return InputError(f"cannot be read: {error.strerror or error}", where=str(path))


def unwritable(path: Path | str, error: OSError, size: int = 0) -> InputError:
    """The line for a file that cannot be written; a full disk says what is left, and needed."""
    hint = ""
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        hint = f"{free_bytes(Path(path)) / 1e6:.2f} MB are free; make space and repeat the command"
        if size:
            hint = f"at least {size / 1e6:.2f} MB are needed, {hint}"
    return InputError(f"cannot be written: {error.strerror or error}", where=str(path), hint=hint)


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that holds ``path`` (or its nearest existing parent)."""
    import shutil

    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def slug(model_id: str) -> str:
    """Folder name of a model: lower case, ``/`` as ``__``, others outside ``[a-z0-9._-]`` as ``-``.

    Raises:
        ConfigError: nothing is left of the id.
    """
    name = re.sub(r"[^a-z0-9._-]", "-", model_id.strip().lower().replace("/", "__")).strip(".")
    if not name:
        raise ConfigError("a model id without a usable character", found=repr(model_id))
    return name
