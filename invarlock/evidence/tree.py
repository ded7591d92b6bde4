"""Reading a pack's folder safely: what is hashed is what is parsed, and nothing else is touched.

Every folder is opened relative to its parent without following links, every regular file once;
its bytes are hashed while they are read and, for the kinds of file that are parsed, kept. Links,
pipes, sockets, devices and unusable names become findings. All limits are constants.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from invarlock.errors import InputError
from invarlock.evidence import Code, PackError, escape
from invarlock.files import FEW_BYTES, parse_json, sha256_bytes

MAX_ENTRIES = 20_000  # files and folders; the largest published suite makes about 4,000 files
MAX_REPORTS = 2_000  # files called evaluation.report.json
MAX_DEPTH = 12  # folders below the root
MAX_NAME = 255  # bytes of one name in UTF-8
MAX_PATH = 1024  # bytes of one path in UTF-8
MAX_FILE = 128 << 20  # bytes of any one file
MAX_PACK = 512 << 20  # bytes of the whole pack
MAX_PARSED_FILE = 16 << 20  # bytes of one file that is parsed; a report has about 100 kB
MAX_PARSED = 96 << 20  # bytes of all files that are parsed: they are held in memory
MAX_VALUES = 1_000_000  # commas, colons and brackets of one JSON file, for its values in memory
CHUNK = 1 << 20  # bytes
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
FLAGS |= os.O_NOFOLLOW  # check: tree.follow
REPORT_NAME = "evaluation.report.json"
# Files that are checked against a closed contract, which costs time by their length, in bytes.
SMALL = {
    "manifest.json": 1 << 20,
    "manifest.signature.json": 1 << 18,
    "manifest.json.asc": 1 << 16,
    "outcome.json": 1 << 18,
    "determinism_repeats.json": 1 << 20,
    "verify.json": 1 << 20,
    "runtime.manifest.json": 1 << 18,
}
# And all JSON.
PARSED_NAMES = ("checksums.sha256", "README.md", "results/final_verdict.txt", "manifest.json.asc")
MAX_JUDGED = 1_000_000  # values of all reports and outcomes that a verdict is recomputed from
# Columns of the evidence, lists of files and of modules: a verdict does not look at them.
EVIDENCE = ("evaluation_windows", "modules", "operators", "row_tables", "trial", "histograms")
COLUMNS = (*EVIDENCE, "dataset", "excerpts", "warnings", "epsilon_violations")
CHARACTERS = 16  # of a string that count as one value
MARKS = (b",", b":", b"[", b"{")
HIDDEN = ("Cc", "Cf", "Zl", "Zp")  # categories of characters that do not show as themselves


class PackFile(Struct, frozen=True):
    """One regular file: its size in bytes, its SHA-256, and its bytes where it may be parsed."""

    size: int
    sha256: str
    data: bytes | None


class Tree(Struct):
    """The regular files of a pack by relative path (``/`` separated), and what was refused."""

    files: dict[str, PackFile] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # entries that exist but are no usable file
    strict: set[str] = field(default_factory=set)  # files whose JSON has one reading
    outlines: dict[str, dict[str, Any]] = field(default_factory=dict)
    outlined: int = 0  # values in all outlines that were asked for

    def data(self, path: str) -> bytes:
        """The bytes of a file that is parsed; InputError when it is not there or too large."""
        found = self.files.get(path)
        if found is None:
            raise InputError("is missing", where=path)
        if found.data is None:
            raise InputError("is no file that is parsed", where=path)
        return found.data

    def json(self, path: str, where: str | None = None) -> Any:
        """The strictly decoded JSON in a file; InputError for anything else.

        Its bytes stay the same, so that what was read strictly once is only decoded after that.
        """
        data = self.data(path)
        if path in self.strict:
            return msgspec.json.decode(data)
        value = parse_json(data, path if where is None else where)
        self.strict.add(path)
        return value

    def json_object(self, path: str) -> dict[str, Any]:
        """The strictly decoded JSON object in a file; InputError for anything else."""
        value = self.json(path)
        if not isinstance(value, dict):  # check: json.object
            raise InputError("is not a JSON object", where=path, found=type(value).__name__)
        return value

    def outline(self, path: str) -> dict[str, Any]:
        """A report without its columns: steps before the replay need no more of it.

        Raises:
            InputError: missing, or no strict JSON object.
        """
        if path in self.outlines:
            return self.outlines[path]
        outline = {
            name: {key: value for key, value in block.items() if key not in COLUMNS}
            if isinstance(block, dict)
            else block
            for name, block in self.json_object(path).items()
            if name not in COLUMNS
        }
        self.outlined += size_of(outline)
        if self.outlined <= MAX_JUDGED:
            self.outlines[path] = outline  # so that it is parsed once for all these steps
        return outline


def size_of(value: object) -> int:
    """How many values there are in a document, long strings counted as several."""
    seen, size = [value], 0
    item: Any  # of which only exact types are what JSON has
    for item in seen:  # which grows
        kind = type(item)
        if kind is str:
            size += len(item) // CHARACTERS
        elif kind is dict:
            size += len(item) + sum([len(key) // CHARACTERS for key in item])
            seen += item.values()
        elif kind is list:
            seen += item
    return size + len(seen)


class _Walk(Struct):
    tree: Tree
    entries: int = 0
    reports: int = 0
    total: int = 0
    parsed: int = 0

    def folder(self, descriptor: int, prefix: str, depth: int) -> None:
        """Visit the entries of an open folder in byte order."""
        if depth > MAX_DEPTH:  # check: tree.depth
            raise PackError(Code.INTEGRITY, f"more than {MAX_DEPTH} levels", where=escape(prefix))
        entries = []
        with os.scandir(descriptor) as scan:
            for entry in scan:
                entries.append(entry)
                self.entries += 1
                if self.entries > MAX_ENTRIES:  # check: tree.entries
                    raise PackError(Code.INTEGRITY, f"more than {MAX_ENTRIES} files and folders")
        folded: dict[str, str] = {}
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = prefix + entry.name
            problem = _name_problem(entry.name, path, folded)
            if problem:
                self._refuse(path, problem)
            else:
                self._entry(descriptor, entry, path, depth)

    def _refuse(self, path: str, problem: str) -> None:
        self.tree.refused.add(path)
        self.tree.findings.append(f"{escape(path)}: {problem}")

    def _entry(self, parent: int, entry: os.DirEntry[str], path: str, depth: int) -> None:
        try:
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                kind = os.stat(entry.name, dir_fd=parent, follow_symlinks=False).st_mode
                # check: tree.kind
                self._refuse(path, f"is a {_kind(kind)}; only files and folders are allowed")
                return  # opening a device or a pipe could have effects
            descriptor = os.open(entry.name, FLAGS, dir_fd=parent)
        except OSError as error:
            self._refuse(path, f"cannot be read: {error.strerror}")  # check: tree.open
            return
        try:
            status = os.fstat(descriptor)  # of what is open, not of what was there before
            kind = status.st_mode
            if stat.S_ISDIR(kind):
                self.folder(descriptor, path + "/", depth + 1)
            elif stat.S_ISREG(kind):
                self._file(descriptor, path, status.st_size)
            else:
                # check: tree.opened
                self._refuse(path, f"is a {_kind(kind)}; only files and folders are allowed")
        except OSError as error:
            self._refuse(path, f"cannot be read: {error.strerror}")
        finally:
            os.close(descriptor)

    def _file(self, descriptor: int, path: str, size: int) -> None:
        """Hash an open file once, over the size it had when opened, and keep what is parsed."""
        kept = path in PARSED_NAMES or path.endswith(".json")
        self._account(path, size, kept)
        digest, read, chunks = None, 0, []
        if self.total > FEW_BYTES:  # otherwise without OpenSSL, the file as a whole
            import hashlib

            digest = hashlib.sha256()
        while True:
            wanted = min(CHUNK, size - read + 1)  # a byte more would show that the file grew
            chunk = os.read(descriptor, wanted)
            read += len(chunk)
            if digest:
                digest.update(chunk)
            if kept or not digest:
                chunks.append(chunk)
            if not chunk or read > size or (read == size and len(chunk) < wanted):
                break
        data = b"".join(chunks)
        if read != size:
            self._refuse(path, "was changed while it was read")
        # check: tree.values
        elif kept and path.endswith(".json") and sum(map(data.count, MARKS)) > MAX_VALUES:
            self._refuse(path, f"holds more than {MAX_VALUES} values")
        else:
            sha256 = digest.hexdigest() if digest else sha256_bytes(data)
            self.tree.files[path] = PackFile(size, sha256, data if kept else None)

    def _account(self, path: str, size: int, kept: bool) -> None:
        """Add a file to what is read; PackError where a limit is passed."""
        name = path.rpartition("/")[2]
        self.total += size
        self.parsed += size if kept else 0
        self.reports += name == REPORT_NAME
        limit = SMALL.get(name, MAX_PARSED_FILE) if kept else MAX_FILE
        for holds, what in (
            (
                self.reports <= MAX_REPORTS,
                f"more than {MAX_REPORTS} reports",
            ),  # check: tree.reports
            # check: tree.file_size
            (size <= limit, f"{size} bytes; expected at most {limit} of a file of its kind"),
            # check: tree.pack_size
            (self.total <= MAX_PACK, f"the pack has more than {MAX_PACK} bytes"),
            # check: tree.parsed
            (self.parsed <= MAX_PARSED, f"the pack has more than {MAX_PARSED} bytes of JSON"),
        ):
            if not holds:
                raise PackError(Code.INTEGRITY, what, where=escape(path))


def _name_problem(name: str, path: str, folded: dict[str, str]) -> str:
    """Why a name is refused; empty when it is not.

    Args:
        folded: the names of its folder so far, without case and Unicode spelling: two names that
            differ in these only would be one file on other systems.
    """
    # bytes that are no UTF-8 are half pairs in what the file system gives
    if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):  # check: tree.utf8
        return "the name is not UTF-8"
    size = len(name if name.isascii() else name.encode("utf-8", "surrogateescape"))
    # check: tree.path
    if size > MAX_NAME or len(path.encode("utf-8", "surrogateescape")) > MAX_PATH:
        return f"the name is longer than {MAX_NAME} bytes, or the path than {MAX_PATH}"
    plain = name.isascii() and name.isprintable()
    # check: tree.hidden
    if "\\" in name or not (plain or all(unicodedata.category(c) not in HIDDEN for c in name)):
        return "the name holds a back-slash or a control character"
    key = name.lower()
    if not plain:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    other = folded.setdefault(key, name)
    if other != name:  # check: tree.folded
        return f"the name equals {escape(other)} when case or normal form is folded"
    return ""


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
