"""Small tamperings of a signed pack, and which exit code each verifier gives.

The publisher's key signs again where ``sign`` says so: what the signature cannot catch. Where the
codes differ, ``why`` is a sentence of ``docs/compatibility.md``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pack_factory as packs
from pack_factory import MODEL, edit_json

Document = dict[str, Any]
Change = Callable[[Path], object]
IDS = ("noop_clean", "quant_8bit_clean", "nan_injection")
STRICT = ("--strict", "--report-assurance", "strict", "--profile", "release")
QUANT = f"reports/{MODEL}/quant_8bit_clean/run_1"
NAN = f"reports/{MODEL}/errors/nan_injection/run_1"
REPORT, RUNTIME = QUANT + "/evaluation.report.json", QUANT + "/runtime.manifest.json"
VERDICT, SCENARIOS = "results/final_verdict.json", "metadata/scenarios.json"
DETECTORS = f"scenarios/{IDS.index('nan_injection')}/requirements/detectors_any_of"
NOT_HIT = {"kind": "validation_flag", "flag": "spectral_stable", "expected": True}

SPELLING = "A path has one spelling and stands once in `checksums.sha256`, which is UTF-8 with LF."
EXTRA = "No name is exempt from the checksums: `.DS_Store` and `__MACOSX` are extra files."
NAMES = "Names hold no control characters, and differ also when case or normal form is folded."
REASON = "A report that has to fail must fail for the reason that its scenario names."
KINDS = "Only regular files and folders may be in a pack: links of any kind are refused."
JSON = "JSON has one reading: no duplicate keys, no NaN or infinity, in any file."
CLAIMS = "Verdict, summaries, README and evidence level must follow from the reports."
SCENARIO = "`metadata/scenarios.json` that is there and unusable is refused, not ignored."
REPLAY = "What the evidence in a report gives must be what the report says."
RUNTIME_RULES = "A runtime manifest holds real date-times and one image digest."
GARBAGE = "An expected failure has to be a report, and true."
MIRROR = "0.10.0 lets the copies of control files under `metadata/` hold anything; 0.12.1 does not."
HOST = "An honest host run verifies without a switch, and strict assurance still refuses it."


@dataclass(frozen=True)
class Tampering:
    """What is done to a pack, and the exit codes: of 0.10.0, of 0.12.1, and here."""

    name: str
    change: Change
    there: tuple[int, int]
    here: int
    why: str = ""
    sign: Callable[[Path, Path], object] | None = None
    options: tuple[str, ...] = STRICT


def row(
    name: str, change: Change, codes: tuple[int, int, int], why: str = "", **more: Any
) -> Tampering:
    """A row without a new signature."""
    return Tampering(name, change, codes[:2], codes[2], why, **more)


def signed(
    name: str, change: Change, codes: tuple[int, int, int], why: str = "", **more: Any
) -> Tampering:
    """A row that the publisher signs again, checksums and runtime manifests included."""
    return Tampering(name, change, codes[:2], codes[2], why, packs.resign, **more)


def listed(name: str, change: Change, codes: tuple[int, int, int], why: str = "") -> Tampering:
    """A row whose ``checksums.sha256`` is signed as it is."""

    def sign(pack: Path, key: Path) -> None:
        import hashlib

        digest = hashlib.sha256((pack / "checksums.sha256").read_bytes()).hexdigest()
        packs.sign_manifest(pack, key, lambda m: m.update(checksums_sha256_digest=digest))

    return Tampering(name, change, codes[:2], codes[2], why, sign)


def nothing(pack: Path) -> None:
    """Leave the pack alone."""


def write(path: str, text: str) -> Change:
    """Write a file."""

    def change(pack: Path) -> None:
        (pack / path).parent.mkdir(parents=True, exist_ok=True)
        (pack / path).write_text(text)

    return change


def text(path: str, old: str, new: str) -> Change:
    """Replace text in a file; it has to be there."""

    def change(pack: Path) -> None:
        before = (pack / path).read_text()
        assert old in before, old
        (pack / path).write_bytes(before.replace(old, new, 1).encode())

    return change


def lines(spell: Callable[[str], str]) -> Change:
    """Spell every line of checksums.sha256 in another way."""

    def change(pack: Path) -> None:
        path = pack / "checksums.sha256"
        path.write_bytes("".join(map(spell, path.read_text().splitlines(True))).encode())

    return change


def at(path: str, pointer: str, value: object) -> Change:
    """Set one member of a JSON file."""

    def change(document: Document) -> None:
        *parents, last = pointer.split("/")
        inner: Any = document
        for part in parents:
            inner = inner[int(part) if isinstance(inner, list) else part]
        inner[int(last) if isinstance(inner, list) else last] = value

    return lambda pack: edit_json(pack / path, change)


def remove(path: str) -> Change:
    """Remove a file."""
    return lambda pack: (pack / path).unlink()


def manifest(pointer: str, value: object) -> Any:
    """A signature after one member of the manifest was set."""

    def sign(pack: Path, key: Path) -> None:
        at("manifest.json", pointer, value)(pack)
        packs.sign_bytes(pack, key)

    return sign


def manifest_text(old: str, new: str) -> Any:
    """A signature after text of the manifest was replaced."""

    def sign(pack: Path, key: Path) -> None:
        text("manifest.json", old, new)(pack)
        packs.sign_bytes(pack, key)

    return sign


def narrower(pack: Path) -> None:
    """An interval that is narrower than the windows give, consistent in itself."""

    def change(report: Document) -> None:
        metric = report["primary_metric"]
        ratio, point = metric["ratio_vs_baseline"], metric["delta_nats"]
        metric["ci"], metric["display_ci"] = [point, point], [ratio, ratio]

    edit_json(pack / REPORT, change)


def foreign_key(pack: Path, key: Path) -> None:
    """The manifest names the publisher and another key has signed it."""
    packs.sign_bytes(pack, packs.new_key(key.with_name(pack.parent.name + ".pem")))


TAMPERINGS = (
    row("nothing", nothing, (0, 0, 0)),
    # --- what is on disk
    row("no manifest", remove("manifest.json"), (3, 3, 3)),
    row("no checksums", remove("checksums.sha256"), (3, 3, 3)),
    row("no signature", remove("manifest.signature.json"), (5, 5, 5)),
    row("no folder", shutil.rmtree, (3, 3, 3)),
    row("a changed file", text("README.md", "e", "E"), (6, 6, 6)),
    row("a missing file", remove("README.md"), (6, 6, 6)),
    row("an extra file", write("metadata/note.json", "{}"), (6, 6, 6)),
    row("an extra file, not strict", write("metadata/note.json", "{}"), (0, 0, 0), options=()),
    row(".DS_Store", write("reports/.DS_Store", "x"), (0, 0, 6), EXTRA),
    row("__MACOSX", write("__MACOSX/note.txt", "x"), (0, 0, 6), EXTRA),
    row("a link within", lambda p: (p / "link.md").symlink_to("README.md"), (6, 6, 6)),
    row("a dangling link", lambda p: (p / "link.md").symlink_to("none"), (0, 0, 6), KINDS),
    row("a pipe", lambda p: os.mkfifo(p / "pipe"), (0, 0, 6), KINDS),
    signed("a name in another case", write("readme.md", "x"), (0, 0, 6), NAMES),
    row("a copy of the manifest", write("metadata/manifest.json", "{}"), (0, 6, 6), MIRROR),
    # --- manifest and signature
    row("a byte after the manifest", text("manifest.json", "}\n", "}\n\n"), (5, 5, 5)),
    row("no JSON", write("manifest.json", "no"), (4, 4, 4)),
    row("a signature of nothing", write("manifest.signature.json", "{}"), (5, 5, 5)),
    Tampering("another key", nothing, (5, 5), 5, sign=foreign_key),
    Tampering("an older format", nothing, (4, 4), 4, sign=manifest("format", "proof-pack-v1")),
    Tampering("an unknown level", nothing, (4, 4), 4, sign=manifest("evidence_level", "best")),
    Tampering("half a reference", nothing, (4, 4), 4, sign=manifest("subject", {"name": "v"})),
    Tampering("an unknown member", nothing, (0, 0), 0, sign=manifest("x_note", {"a": [1]})),
    Tampering(
        "a wrong reference", nothing, (6, 6), 6,
        sign=manifest("subject/digest", "sha256:" + "0" * 64),
    ),
    Tampering("a level too high", nothing, (0, 0), 6, CLAIMS, manifest("evidence_level", "high")),
    Tampering(
        "a key twice", nothing, (0, 0), 4, JSON, manifest_text("{", '{"suite": "x", ')
    ),
    Tampering(
        "NaN in the manifest", nothing, (0, 0), 4, JSON, manifest_text("{", '{"x_note": NaN, ')
    ),
    row("a malformed pin", nothing, (2, 2, 2), options=("--expected-fingerprint", "sha256:1")),
    row(
        "another pin", nothing, (5, 5, 5), options=("--expected-fingerprint", "sha256:" + "1" * 64)
    ),
    # --- checksums
    listed("upper case", lines(lambda s: s[:64].upper() + s[64:]), (0, 0, 0)),
    listed("binary marks", lines(lambda s: s[:65] + "*" + s[66:]), (0, 0, 0)),
    listed("./ paths", lines(lambda s: s[:66] + "./" + s[66:]), (0, 0, 0)),
    listed("blank lines", lines(lambda s: s + "\n"), (0, 0, 0)),
    listed("CRLF", lines(lambda s: s[:-1] + "\r\n"), (0, 0, 6), SPELLING),
    listed("twice", lines(lambda s: s + s), (0, 0, 6), SPELLING),
    listed("a detour", lines(lambda s: s[:66] + "results/../" + s[66:]), (6, 6, 6)),
    listed("a TAB", lines(lambda s: s[:64] + "\t" + s[66:]), (6, 6, 6)),
    listed("one blank", lines(lambda s: s[:65] + s[66:]), (6, 6, 6)),
    listed("a comment", lines(lambda s: "# x\n" + s), (6, 6, 6)),
    # --- contents
    signed("another verdict", at(VERDICT, "verdict", "FAIL"), (0, 0, 6), CLAIMS),
    signed("another README", text("README.md", "PASS", "FAIL"), (0, 0, 6), CLAIMS),
    signed("scenarios of no list", write(SCENARIOS, '{"scenarios": 1}'), (0, 0, 6), SCENARIO),
    signed("another reason", at(SCENARIOS, DETECTORS, [NOT_HIT]), (0, 0, 6), REASON),
    signed("a ratio", at(REPORT, "primary_metric/ratio_vs_baseline", 1.0), (7, 7, 6), CLAIMS),
    signed("an interval", narrower, (0, 0, 6), CLAIMS),
    signed("a guard's number", at(REPORT, "rmt/max_edge_ratio", 1.5), (0, 0, 7), REPLAY),
    signed("a loss", at(REPORT, "evaluation_windows/final/logloss/0", 1.0), (7, 7, 7)),
    signed("an overlap", at(REPORT, "dataset/windows/stats/window_overlap_fraction", 0.5),
           (7, 7, 7)),
    signed("another contract", at(REPORT, "spectral/measurement_contract_hash", "0" * 16),
           (7, 7, 7)),
    signed("a key twice in a report", text(REPORT, "{", '{"run_id": "x", '), (0, 0, 6), JSON),
    signed("garbage for a failure", write(NAN + "/evaluation.report.json", "{}"), (0, 0, 6),
           GARBAGE),
    # --- provenance
    row("of another report", text(RUNTIME, '"sha256"', '"sha256 "'), (6, 6, 6)),
    Tampering("a manifest of another report", at(RUNTIME, "report/sha256", "0" * 64), (7, 7), 7,
              sign=packs.relist),
    signed("no date", at(RUNTIME, "generated_at_utc", "once upon a time, long ago"), (0, 0, 7),
           RUNTIME_RULES),
    signed("another image", at(RUNTIME, "runtime/image_digest", "sha256:" + "b" * 64), (0, 0, 7),
           RUNTIME_RULES),
    signed("an unknown member in it", at(RUNTIME, "note", 1), (7, 7, 7)),
    signed("a host run", at(RUNTIME, "execution_mode", "host-bypass"), (7, 7, 7)),
)  # fmt: skip


def honest_host(document: Document) -> None:
    """The runtime manifest of a host run."""
    document["execution_mode"] = "host-bypass"
    document["runtime"].update(image_ref="host", image_digest=None, container_execution=False)


def on_host(pack: Path) -> None:
    """Every report made on a host."""
    for path in pack.rglob("runtime.manifest.json"):
        edit_json(path, honest_host)


HOST_ROWS = (
    signed("host, strict assurance", on_host, (7, 7, 7)),
    signed("host, no switch", on_host, (7, 7, 0), HOST, options=("--report-assurance", "off")),
)
