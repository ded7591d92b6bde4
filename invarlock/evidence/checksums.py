"""``checksums.sha256``: one line a file, ``<64 hex>  <relative path>``, as ``sha256sum`` writes.

Tolerated in packs we read: a ``./`` before the path, ``*`` as second separator, upper-case hex,
blank lines, no final LF. Everything else that is not canonical is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from invarlock.evidence import escape
from invarlock.evidence.tree import Tree

MANIFEST = "manifest.json"
SIGNATURE = "manifest.signature.json"
CHECKSUMS = "checksums.sha256"
CONTROL_FILES = (MANIFEST, SIGNATURE, CHECKSUMS)
MIRRORS = {f"metadata/{name}": name for name in CONTROL_FILES}
Names = tuple[str, ...]
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def render(digests: Mapping[str, str]) -> bytes:
    """The checksum file of ``{path: sha256}``, sorted by path."""
    return "".join(f"{digests[path]}  {path}\n" for path in sorted(digests)).encode()


def is_canonical(path: str) -> bool:
    """Whether a relative path has one spelling only (no ``.``, ``..``, ``//``, back-slash)."""
    return "\\" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def parse(data: bytes, control: Names = CONTROL_FILES) -> tuple[dict[str, str], list[str]]:
    """``{path: lower-case sha256}`` and the findings about lines that are refused.

    ``control``: the files at the root that must not be listed.
    """
    digests: dict[str, str] = {}
    findings: list[str] = []
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        return {}, [f"{CHECKSUMS}: not UTF-8 at byte {error.start}"]
    for number, line in enumerate(lines, 1):
        if not line.strip(" "):
            continue
        match = _LINE.fullmatch(line)
        path = match[2].removeprefix("./") if match else ""
        if not match or not is_canonical(path):
            # check: checksums.line
            findings.append(f"{CHECKSUMS}: line {number} is not a digest and a canonical path")
        elif path in digests:  # check: checksums.twice
            findings.append(f"{CHECKSUMS}: line {number} lists {escape(path)} a second time")
        elif path in control:  # check: checksums.control
            findings.append(f"{CHECKSUMS}: line {number} lists the control file {path}")
        else:
            digests[path] = match[1].lower()
    return digests, findings


def compare(
    tree: Tree, digests: Mapping[str, str], control: Names = CONTROL_FILES
) -> tuple[list[str], list[str]]:
    """Findings about changed or missing files and mirrors, and the files that are not listed."""
    findings = []
    for path in sorted(digests):
        found = tree.files.get(path)
        if found is None:
            findings.append(f"{escape(path)}: is listed and missing")  # check: checksums.missing
        elif found.sha256 != digests[path]:  # check: checksums.changed
            findings.append(
                f"{escape(path)}: has been changed; expected sha256 {digests[path]}; "
                f"found {found.sha256}"
            )
    mirrors = {f"metadata/{name}": name for name in control}
    for mirror, original in mirrors.items():
        if mirror in tree.files and (  # check: checksums.mirror
            original not in tree.files or tree.files[mirror].sha256 != tree.files[original].sha256
        ):
            findings.append(f"{mirror}: is not a copy of {original}")
    known = {*digests, *control, *mirrors}
    extra = sorted(path for path in tree.files if path not in known)
    return findings, extra
