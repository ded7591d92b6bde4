"""Reading a pack's folder safely: what is hashed is what is parsed, and nothing else is touched.

Every folder is opened relative to its parent without following links, every regular file once;
its bytes are hashed while they are read and, for the kinds of file that are parsed, kept. Links,
pipes, sockets, devices and unusable names become findings. All limits are constants.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invarlock.errors import InputError
from invarlock.evidence import Code, PackError, escape
from invarlock.files import parse_json

MAX_FILES = 20_000  # files; the largest published suite makes about 4,000
MAX_FOLDERS = 20_000  # folders
MAX_DEPTH = 12  # folders below the root
MAX_NAME = 255  # bytes of one name in UTF-8
MAX_FILE = 512 << 20  # bytes of any one file
MAX_PARSED_FILE = 64 << 20  # bytes of one file that is parsed
MAX_PARSED = 1 << 30  # bytes of all files that are parsed: they are held in memory
MAX_PACK = 16 << 30  # bytes of the whole pack
CHUNK = 1 << 20  # bytes
PARSED_SUFFIXES = (".json", ".sha256", ".md", ".txt")


@dataclass(frozen=True)
class PackFile:
    """One regular file: its size in bytes, its SHA-256, and its bytes where it may be parsed."""

    size: int
    sha256: str
    data: bytes | None


@dataclass
class Tree:
    """The regular files of a pack by relative path (``/`` separated), and what was refused."""

    files: dict[str, PackFile] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # entries that exist but are no usable file

    def data(self, path: str) -> bytes:
        """The bytes of a file that is parsed; InputError when it is not there or too large."""
        found = self.files.get(path)
        if found is None:
            raise InputError("is missing", where=path)
        if found.data is None:
            raise InputError(
                "is too large to be parsed", where=path, expected=f"at most {MAX_PARSED_FILE} bytes"
            )
        return found.data

    def json_object(self, path: str) -> dict[str, Any]:
        """The strictly decoded JSON object in a file; InputError for anything else."""
        value = parse_json(self.data(path), path)
        if not isinstance(value, dict):
            raise InputError("is not a JSON object", where=path, found=type(value).__name__)
        return value


@dataclass
class _Walk:
    tree: Tree
    folders: int = 0
    total: int = 0
    parsed: int = 0
    folded: dict[str, str] = field(default_factory=dict)

    def folder(self, descriptor: int, prefix: str, depth: int) -> None:
        """Visit the entries of an open folder in byte order."""
        self.folders += 1
        if self.folders > MAX_FOLDERS or depth > MAX_DEPTH:
            raise PackError(
                Code.INTEGRITY,
                f"more than {MAX_FOLDERS} folders or deeper than {MAX_DEPTH} levels",
                where=escape(prefix or "."),
            )
        entries = []
        with os.scandir(descriptor) as scan:
            for entry in scan:
                entries.append(entry.name)
                if len(entries) + len(self.tree.files) > MAX_FILES + MAX_FOLDERS:
                    raise PackError(Code.INTEGRITY, f"more than {MAX_FILES} files")
        for name in sorted(entries):
            path = prefix + name
            problem = self._name_problem(name, path)
            if problem:
                self._refuse(path, problem)
            else:
                self._entry(descriptor, name, path, depth)

    def _refuse(self, path: str, problem: str) -> None:
        self.tree.refused.add(path)
        self.tree.findings.append(f"{escape(path)}: {problem}")

    def _name_problem(self, name: str, path: str) -> str:
        try:
            size = len(name.encode("utf-8"))
        except UnicodeEncodeError:
            return "the name is not UTF-8"
        if size > MAX_NAME:
            return f"the name is longer than {MAX_NAME} bytes"
        if "\\" in name or any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
            return "the name holds a back-slash or a control character"
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        other = self.folded.setdefault(key, path)
        if other != path:
            return f"the name equals {escape(other)} when case or normal form is folded"
        return ""

    def _entry(self, parent: int, name: str, path: str, depth: int) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            kind = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                self._refuse(path, f"is a {_kind(kind)}; only files and folders are allowed")
                return  # opening a device or a pipe could have effects
            descriptor = os.open(name, flags, dir_fd=parent)
        except OSError as error:
            self._refuse(path, f"cannot be read: {error.strerror}")
            return
        try:
            kind = os.fstat(descriptor).st_mode  # of what is open, not of what was there before
            if stat.S_ISDIR(kind):
                self.folder(descriptor, path + "/", depth + 1)
            elif stat.S_ISREG(kind):
                self._file(descriptor, path)
            else:
                self._refuse(path, f"is a {_kind(kind)}; only files and folders are allowed")
        except OSError as error:
            self._refuse(path, f"cannot be read: {error.strerror}")
        finally:
            os.close(descriptor)

    def _file(self, descriptor: int, path: str) -> None:
        if len(self.tree.files) >= MAX_FILES:
            raise PackError(Code.INTEGRITY, f"more than {MAX_FILES} files")
        keep: list[bytes] | None = [] if path.endswith(PARSED_SUFFIXES) else None
        digest, size = hashlib.sha256(), 0
        while chunk := os.read(descriptor, CHUNK):
            size += len(chunk)
            self.total += len(chunk)
            if size > MAX_FILE or self.total > MAX_PACK:
                limit = MAX_FILE if size > MAX_FILE else MAX_PACK
                raise PackError(Code.INTEGRITY, f"more than {limit} bytes", where=escape(path))
            digest.update(chunk)
            if keep is not None:
                self.parsed += len(chunk)
                if self.parsed > MAX_PARSED:
                    raise PackError(
                        Code.INTEGRITY, f"more than {MAX_PARSED} bytes of JSON", where=escape(path)
                    )
                keep.append(chunk)
                if size > MAX_PARSED_FILE:
                    keep = None
        data = b"".join(keep) if keep is not None else None
        self.tree.files[path] = PackFile(size, digest.hexdigest(), data)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def read_tree(root: Path) -> Tree:
    """Read every regular file below ``root`` once.

    Raises:
        PackError: a limit is exceeded (exit 6) or ``root`` cannot be opened (exit 3).
    """
    walk = _Walk(Tree())
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PackError(
            Code.INCOMPLETE, f"cannot be opened: {error.strerror}", where=escape(root)
        ) from error
    try:
        walk.folder(descriptor, "", 0)
    finally:
        os.close(descriptor)
    return walk.tree


def read_source(path: Path, limit: int = MAX_FILE) -> bytes:
    """Read one named input of a build: a regular file, no link, of at most ``limit`` bytes.

    Raises:
        PackError: anything else (exit 4).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as handle:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PackError(Code.MANIFEST, "is not a regular file", where=str(path))
            data = handle.read(limit + 1)
    except OSError as error:
        raise PackError(
            Code.MANIFEST, f"cannot be read: {error.strerror}", where=str(path)
        ) from error
    if len(data) > limit:
        raise PackError(Code.MANIFEST, f"is larger than {limit} bytes", where=str(path))
    return data
