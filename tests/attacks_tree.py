"""Attacks on the folder: entries, names, sizes, numbers, races, and the list of checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
from collections.abc import Callable

from attacks import NOTHING, REPORT, SIGNATURE, STRICT, VERDICT, Attack, Lab, write
from pack_factory import CLEAN

NAMED = {
    "newline": "a\nb",
    "escape": "\x1b]0;owned\x07",
    "delete": "a\x7f",
    "C1 control": "a\x9b2J",
    "line separator": "a\u2028b",
    "right-to-left": "a\u202etxt.exe",
    "zero width": "READ\u200bME.md",
    "back-slash": "a\\b",
}
FOLDED = {
    "upper case": ("x", "X"),
    "eszett": ("stra\u00dfe", "STRASSE"),
    "normal form": ("caf\u00e9", "cafe\u0301"),
    "folder case": ("metadata", "METADATA"),
}


def at(path: str, make: Callable[[str], object]) -> Callable[[Lab], object]:
    """Make something at a path of the pack."""
    return lambda lab: make(str(lab.pack / path))


def link(path: str, target: str) -> Callable[[Lab], object]:
    """A link at a path of the pack; ``{pack}`` in the target is the pack's folder."""
    return lambda lab: (lab.pack / path).symlink_to(target.format(pack=lab.pack))


def moved(path: str) -> Callable[[Lab], object]:
    """Put a link to the same bytes outside in place of a file."""

    def damage(lab: Lab) -> None:
        target = (lab.pack / path).rename(lab.scratch / "elsewhere")
        (lab.pack / path).symlink_to(target)

    return damage


def piped(path: str) -> Callable[[Lab], object]:
    """Put a pipe in place of a file: opening it plainly would hang."""

    def damage(lab: Lab) -> None:
        (lab.pack / path).unlink()
        os.mkfifo(lab.pack / path)

    return damage


def bound_socket(lab: Lab) -> None:
    """Leave a socket in the pack."""
    # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(lab.pack):
        made.bind("socket")


def device(lab: Lab) -> None:
    """A device that never ends, where the tests may make one; else a pipe."""
    try:
        os.mknod(lab.pack / "zero", stat.S_IFCHR | 0o644, os.makedev(1, 5))
    except OSError:
        os.mkfifo(lab.pack / "zero")


def locked(path: str, *, folder: bool = False) -> Callable[[Lab], object]:
    """An extra file or folder that cannot be read."""

    def damage(lab: Lab) -> None:
        target = lab.pack / path
        target.mkdir() if folder else target.write_text("x")
        target.chmod(0)

    return damage


def deep(lab: Lab) -> None:
    """5,000 folders in each other."""
    here = os.open(lab.pack, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def many(folder: str, number: int, name: str = "{}") -> Callable[[Lab], object]:
    """Many empty files."""

    def damage(lab: Lab) -> None:
        for index in range(number):
            path = lab.pack / folder / name.format(index)
            if index == 0 or "/" in name:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return damage


def sparse(path: str, size: int, number: int = 1) -> Callable[[Lab], object]:
    """Files without contents and of a great size."""

    def damage(lab: Lab) -> None:
        for index in range(number):
            target = lab.pack / path.format(index)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as handle:
                handle.truncate(size)

    return damage


def before_open(name: str, *do: tuple[object, ...]) -> Callable[[Lab], object]:
    """Act between the look at a file and its opening; the words may name {pack} and {beside}."""

    def damage(lab: Lab) -> None:
        places = {"pack": lab.pack, "beside": lab.scratch}
        acts = [[w.format(**places) if isinstance(w, str) else w for w in act] for act in do]
        lab.race = {"open": name, "do": acts}

    return damage


def listing(change: Callable[[bytes], bytes]) -> Callable[[Lab], object]:
    """Publish another list of checksums: the manifest is made to fit it."""

    def damage(lab: Lab) -> None:
        import pack_factory as packs

        path = lab.pack / "checksums.sha256"
        path.write_bytes(change(path.read_bytes()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        packs.sign_manifest(lab.pack, lab.key, lambda m: m.update(checksums_sha256_digest=digest))

    return damage


def line(text: str | bytes) -> Callable[[Lab], object]:
    """Add one line to the list of checksums."""
    return listing(lambda data: data + (text if isinstance(text, bytes) else text.encode()) + b"\n")


def first_line(data: bytes) -> bytes:
    """The first line of the list."""
    return data.split(b"\n", 1)[0]


ZERO = "0" * 64
RENAMED = ("rename", "{pack}/" + VERDICT, "{beside}/moved")

OPEN = [
    Attack("no manifest", "open", "open.control", lambda b: (b.pack / "manifest.json").unlink()),
    Attack("no list", "open", "open.control", lambda b: (b.pack / "checksums.sha256").unlink()),
    Attack("manifest is a folder", "open", "open.control", lambda b: (
        (b.pack / "manifest.json").unlink(), (b.pack / "manifest.json").mkdir())),
    Attack("pack is a file", "open", "open.folder", lambda b: (
        b.pack.rename(b.scratch / "p"), b.pack.write_text("x"))),
    Attack("no pack", "open", "open.folder", lambda b: b.pack.rename(b.scratch / "p")),
    Attack("result inside the pack", "options", "options.inside", lambda b: None,
           options=("--json-out", "{scratch}/../pack/reports/../v.json")),
]  # fmt: skip

KINDS = [
    ("link to a file", link("x", "{pack}/README.md")),
    ("link to a file outside", link("x.json", "/etc/hostname")),
    ("dangling link", link("x", "nowhere")),
    ("link to itself", link("x", "x")),
    ("link to a folder", link("x", "/")),
    ("link to the pack", link("reports/x", "{pack}")),
    ("link to a parent", link("reports/x", "..")),
    ("link under a hidden name", link(".DS_Store", "/etc/hostname")),
    ("pipe", at("evaluation.report.json", os.mkfifo)),
    ("socket", bound_socket),
    ("device", device),
]
KINDS_OF_LISTED = [
    ("report is a link", moved(REPORT)),
    ("verdict is a link", moved(VERDICT)),
    ("manifest is a link", moved("manifest.json")),
    ("list is a link", moved("checksums.sha256")),
    ("manifest is a pipe", piped("manifest.json")),
    ("report is a pipe", piped(REPORT)),
]

TREE = [
    *(Attack(name, "tree", "tree.kind", damage) for name, damage in KINDS),
    *(Attack(name, "tree", "tree.kind", damage) for name, damage in KINDS_OF_LISTED),
    Attack("signature is a link", "signature", "signature.usable", moved(SIGNATURE)),
    Attack("file without permission", "tree", "tree.open", locked("x")),
    Attack("folder without permission", "tree", "tree.open", locked("x", folder=True)),
    Attack("report without permission", "tree", "tree.open",
           lambda b: (b.pack / REPORT).chmod(0)),
    *(Attack(f"name: {k}", "tree", "tree.hidden", write(v)) for k, v in NAMED.items()),
    Attack("name: not UTF-8", "tree", "tree.utf8",
           lambda b: open(os.fsencode(b.pack) + b"/\xff", "w").close()),
    *(Attack(f"names fold: {k}", "tree", "tree.folded",
             lambda b, v=v: [(b.pack / n).mkdir(exist_ok=True) for n in v])
      for k, v in FOLDED.items()),
    Attack("name of 255 bytes", "checksums", "checksums.extra", write("n" * 255), options=STRICT),
    Attack("markup in a name", "checksums", "checksums.extra",
           write("<img src=x onerror=alert(1)>"), options=STRICT),
    Attack("path of 2,000 bytes", "tree", "tree.path", write("/".join(["n" * 250] * 8))),
    Attack("13 levels", "tree", "tree.depth", write("d/" * 13 + "x")),
    Attack("5,000 levels", "tree", "tree.depth", deep),
    Attack("100,000 files", "tree", "tree.entries", many("x", 100_000)),
    Attack("5,000 unlisted files", "checksums", "checksums.extra",
           many("x", 5_000, "n" * 240 + "{}"), options=STRICT),
    Attack("2,001 reports", "tree", "tree.reports",
           many("reports/x", 2001, "{}/evaluation.report.json")),
    Attack("10 GB sparse file", "tree", "tree.file_size", sparse("x.html", 10**10)),
    Attack("1 GiB of JSON", "tree", "tree.file_size", sparse("metadata/x.json", 1 << 30)),
    Attack("1 GiB of JSON in files", "tree", "tree.parsed",
           sparse("metadata/{}.json", 15 << 20, 70)),
    Attack("10 GB in files", "tree", "tree.pack_size", sparse("x{}", 100 << 20, 100)),
    Attack("huge signature", "tree", "tree.file_size", write(SIGNATURE, b" " * 10**7)),
    Attack("huge manifest", "tree", "tree.file_size", write("manifest.json", b" " * 10**7)),
    Attack("millions of values", "tree", "tree.values",
           write("metadata/x.json", b"[" + b"[]," * 5_000_000 + b"1]"), "publisher"),
    Attack("file becomes a link when it is opened", "tree", "tree.follow",
           before_open("final_verdict.json", RENAMED,
                       ("symlink", "{beside}/moved", "{pack}/" + VERDICT))),
    Attack("file becomes a pipe when it is opened", "tree", "tree.opened",
           before_open("final_verdict.json", RENAMED, ("mkfifo", "{pack}/" + VERDICT))),
]  # fmt: skip

EXTRA = (".hidden", "__MACOSX/._README.md", ".DS_Store", f"{CLEAN}/extra.html",
         "metadata/.DS_Store", "checksums.sha256.bak", "reports/__MACOSX/x")  # fmt: skip
LISTED = {
    "absolute path": "/etc/hostname",
    "path out of the pack": "../elsewhere",
    "path with ..": "results/../README.md",
    "path with .": "results/./final_verdict.json",
    "path with //": "results//final_verdict.json",
    "path with back-slashes": "results\\final_verdict.json",
    "path of a folder": "results/",
}
NOT_LINES = {
    "comment": f"# {ZERO}  x",
    "one separator": f"{ZERO} x",
    "TAB": f"{ZERO}\tx",
    "leading blank": f" {ZERO}  x",
    "BSD tag": f"SHA256 (x) = {ZERO}",
    "sha1": "0" * 40 + "  README.md",
    "md5": "0" * 32 + "  README.md",
    "sha512": "0" * 128 + "  README.md",
}

CHECKSUMS = [
    *(Attack(f"extra: {path}", "checksums", "checksums.extra", write(path), options=STRICT)
      for path in EXTRA),
    Attack("extra: empty file", "checksums", "checksums.extra", write("metadata/empty", b""),
           options=STRICT),
    Attack("extra: hard link to a listed file", "checksums", "checksums.extra",
           lambda b: os.link(b.pack / "README.md", b.pack / "x"), options=STRICT),
    Attack("forged mirror", "checksums", "checksums.mirror", write("metadata/manifest.json", "{}")),
    *(Attack(f"lists: {k}", "checksums", "checksums.line", line(f"{ZERO}  {path}"))
      for k, path in LISTED.items()),
    *(Attack(f"line: {k}", "checksums", "checksums.line", line(v)) for k, v in NOT_LINES.items()),
    Attack("lists: NUL", "checksums", "checksums.missing", line(f"{ZERO}  a\0b")),
    Attack("lists: overlong path", "checksums", "checksums.missing",
           line(f"{ZERO}  {'n' * 10**6}")),
    Attack("lists: other case", "checksums", "checksums.missing",
           listing(lambda d: d.replace(b"README.md", b"readme.md"))),
    Attack("lists: a missing file", "checksums", "checksums.missing", line(f"{ZERO}  x")),
    Attack("lists: a control file", "checksums", "checksums.control",
           line(f"{ZERO}  manifest.json")),
    Attack("lists a file twice", "checksums", "checksums.twice",
           listing(lambda d: d + first_line(d) + b"\n")),
    Attack("lists a file twice with ./", "checksums", "checksums.twice",
           listing(lambda d: d + first_line(d).replace(b"  ", b"  ./") + b"\n")),
    Attack("list with CRLF", "checksums", "checksums.missing",
           listing(lambda d: d.replace(b"\n", b"\r\n"))),
    Attack("list with a BOM", "checksums", "checksums.line",
           listing(lambda d: b"\xef\xbb\xbf" + d)),
    Attack("list in UTF-16", "checksums", NOTHING,
           listing(lambda d: d.decode().encode("utf-16"))),
    Attack("a million bad lines", "checksums", "checksums.line",
           listing(lambda d: d + b"x\n" * 10**6)),
]  # fmt: skip


def flip(lab: Lab, path: str) -> None:
    """One bit of a file; in the manifest one that leaves it a manifest."""
    data = (lab.pack / path).read_bytes()
    at = data.find(b'"smoke"') + 1 if path == "manifest.json" else len(data) // 2
    (lab.pack / path).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def truncate(lab: Lab, path: str) -> None:
    """The second half of a file."""
    os.truncate(lab.pack / path, (lab.pack / path).stat().st_size // 2)


def swap(lab: Lab, path: str) -> None:
    """A file and another one in each other's place."""
    other = VERDICT if path != VERDICT else "README.md"
    (lab.pack / path).rename(lab.scratch / "x")
    (lab.pack / other).rename(lab.pack / path)
    (lab.scratch / "x").rename(lab.pack / other)


def every_way(path: str) -> list[Attack]:
    """A file deleted, truncated, one bit of it flipped, and swapped with another."""
    ways = {
        "deleted": lambda lab, path: (lab.pack / path).unlink(),
        "truncated": truncate,
        "flipped": flip,
        "swapped": swap,
    }
    control = {"manifest.json": {"deleted": "open", "flipped": "signature", "": "manifest"},
               "checksums.sha256": {"deleted": "open", "": "checksums"},
               SIGNATURE: {"": "signature"}}  # fmt: skip
    steps = control.get(path, {"": "checksums"})
    return [
        Attack(
            f"{way}: {path}",
            steps.get(way, steps[""]),
            "checksums.missing" if way == "deleted" else "checksums.changed",
            lambda lab, act=act: act(lab, path),
        )
        for way, act in ways.items()
    ]


# What looks odd and is in order.
HARMLESS = [
    Attack("hard link in place of a file", "", "", lambda b: (
        os.link(b.pack / "README.md", b.scratch / "x"), (b.pack / "README.md").unlink(),
        os.link(b.scratch / "x", b.pack / "README.md")), options=STRICT),
    Attack("file is rewritten after it was read", "", "", lambda b: (
        (b.scratch / "new").write_text("{}"),
        before_open("model_revisions.json",
                    ("rename", "{beside}/new", "{pack}/README.md"))(b),), options=STRICT),
    Attack("list with upper-case digests, ./ and *", "", "", listing(
        lambda d: b"\n".join(row[:64].upper() + b" *./" + row[66:] for row in d.splitlines())),
        options=STRICT),
    Attack("identical mirrors", "", "", lambda b: [
        (b.pack / "metadata" / n).write_bytes((b.pack / n).read_bytes())
        for n in ("manifest.json", SIGNATURE, "checksums.sha256")], options=STRICT),
    Attack("unlisted file without --strict", "", "", write(".DS_Store")),
]  # fmt: skip
ROWS = [*OPEN, *TREE, *CHECKSUMS, *every_way(f"{CLEAN}/evaluation.html")[:3]]
