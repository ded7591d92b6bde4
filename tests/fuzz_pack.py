"""Small good packs whose files can be replaced and re-signed, and what must hold of any pack.

Used by ``tests/test_fuzz.py`` and ``benchmarks/fuzz.py``.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pack_factory as packs
import proof_pack_factory as proofs
from pack_factory import MODEL
from test_pack_presets import PRESET, STATS, judged_by

from invarlock.cli import main as cli
from invarlock.evidence import checksums, keys, manifest
from invarlock.files import sha256_bytes

PACK_CODES = {0, 2, 3, 4, 5, 6, 7}
CODES = {0, 1, 2, 3}  # of gate, verify, report, runtime-verify
REPORT = "evaluation.report.json"
RUNTIME = "runtime.manifest.json"


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def run(*words: object) -> Outcome:
    """One command of ours with an output that takes UTF-8 and nothing else; errors escape."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = cli([str(word) for word in words])
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return Outcome(code, *texts)


@dataclass
class FuzzPack:
    """A pack that verifies: its files, and the key that signed it."""

    folder: Path
    command: str  # evidence-pack or proof-pack
    key: keys.SigningKey
    files: dict[str, bytes]
    dirty: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path, command: str, key: Path) -> FuzzPack:
        """The pack in a folder."""
        return cls(folder, command, keys.load_signing_key(key), packs.snapshot(folder))

    def place(self, changes: Mapping[str, bytes], *, resign: bool) -> None:
        """Put changed or added files in place; ``resign`` makes everything else fit them."""
        files = self.files | changes
        if resign:
            files |= _bound(files, set(changes), self.key)
        self.restore()
        for path, data in files.items():
            if data != self.files.get(path):
                self.dirty.add(path)
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / path).write_bytes(data)

    def restore(self) -> None:
        """Undo every change."""
        for path in self.dirty:
            if path in self.files:
                (self.folder / path).write_bytes(self.files[path])
                continue
            (self.folder / path).unlink()
            for folder in (self.folder / path).parents:  # those that were made for it
                if folder == self.folder or any(folder.iterdir()):
                    break
                folder.rmdir()
        self.dirty.clear()

    def reports(self) -> list[str]:
        """The evaluation reports."""
        return [path for path in self.files if path.endswith(REPORT)]


def make_packs(folder: Path) -> list[FuzzPack]:
    """One judged by a preset, one with deliberate damage, one of the older format."""
    key = packs.new_key(folder / "key.pem")
    suites = {"preset": ("quant_8bit_clean", "prune_50pct_stress"),
              "damage": ("quant_8bit_clean", "nan_injection", "rank1_projection")}  # fmt: skip
    made = []
    for name, ids in suites.items():
        change = judged_by({}) if name == "preset" else None
        out = packs.write_suite(folder / f"{name}.out", ids, change)
        if name == "preset":
            presets = out / MODEL / "presets"
            packs.write_json(presets / f"calibrated_preset_{MODEL}.json", PRESET.document)
            packs.write_json(presets / "calibration_stats.json", STATS)
        assert packs.build(out, folder / name, key=key) == 0
        made.append(FuzzPack.of(folder / name, "evidence-pack", key))
    old = proofs.make(folder / "old", "ed25519", proofs.Signer(key=key))
    return [*made, FuzzPack.of(old, "proof-pack", key)]


# --- re-signing -----------------------------------------------------------------------------


def _bound(files: Mapping[str, bytes], changed: set[str], key: keys.SigningKey) -> dict[str, bytes]:
    """Runtime manifests, checksums, manifest and signature that fit the files, as far as these
    are not what was changed."""
    fitting = dict(files)
    for path in files:
        beside = path.removesuffix(REPORT) + RUNTIME
        if path.endswith(REPORT) and beside in files and beside not in changed:
            document = json.loads(files[beside])
            document["report"]["sha256"] = sha256_bytes(files[path])
            fitting[beside] = json.dumps(document).encode()
    if checksums.CHECKSUMS not in changed:
        digests = {
            path: sha256_bytes(data)
            for path, data in fitting.items()
            if path not in checksums.CONTROL_FILES
        }
        fitting[checksums.CHECKSUMS] = checksums.render(digests)
    signed = _manifest(fitting)
    fitting[checksums.MANIFEST] = signed
    if checksums.SIGNATURE not in changed:
        bundle = json.loads(manifest.sign(signed, key))
        bundle["format"] = json.loads(files[checksums.SIGNATURE])["format"]
        fitting[checksums.SIGNATURE] = json.dumps(bundle).encode()
    return fitting


def _manifest(files: Mapping[str, bytes]) -> bytes:
    """The manifest with the digests of the files, where it has a place for them."""
    data = files[checksums.MANIFEST]
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(document, dict) or "checksums_sha256_digest" not in document:
        return data
    document["checksums_sha256_digest"] = sha256_bytes(files[checksums.CHECKSUMS])
    places: list[Any] = [document.get("subject"), document.get("environment")]
    places += document["materials"] if isinstance(document.get("materials"), list) else []
    for place in places:
        if isinstance(place, dict) and isinstance(place.get("path"), str):
            found = files.get(place["path"])
            if found is not None:
                place["digest"] = "sha256:" + sha256_bytes(found)
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):
        return data


# --- what must hold -------------------------------------------------------------------------


def check_pack(pack: FuzzPack) -> int:
    """No exception, a documented code, printable ASCII, one truth; the exit code."""
    plain = _verify(pack)
    assert ("NOT VERIFIED" in plain.out) == (plain.code != 0)
    check_json(pack)
    return plain.code


def check_json(pack: FuzzPack) -> None:
    """The same of ``--json``, strictly."""
    result = _verify(pack, "--json", "--strict", "--profile", "ci")
    document = json.loads(result.out)
    assert document["ok"] is (result.code == 0)
    assert document["exit_code"] == result.code
    assert bool(document["errors"]) is (result.code != 0)


def _verify(pack: FuzzPack, *options: str) -> Outcome:
    outcome = run("advanced", pack.command, "verify", pack.folder, *options)
    assert outcome.code in PACK_CODES, outcome
    assert _printable(outcome.out + outcome.err), outcome
    return outcome


def check_others(pack: FuzzPack) -> None:
    """The commands beside ``verify``: documented codes, and output that can be written."""
    if pack.command == "evidence-pack":
        inspected = run("advanced", "evidence-pack", "inspect", pack.folder)
        assert inspected.code in PACK_CODES
        assert _printable(inspected.out + inspected.err)
        judged = run("gate", pack.folder)
        assert judged.code in {*PACK_CODES, 1}  # 1: it verifies and says FAIL
        assert _printable(judged.out + judged.err)
    for path in pack.reports():
        check_report(pack.folder / path)


def check_report(path: Path) -> None:
    """``verify``, ``gate``, ``report`` and ``runtime-verify`` of one report."""
    plain = run("verify", path)
    result = run("verify", path, "--json", "--profile", "release", "--runtime-provenance", "host")
    for outcome in (plain, result):
        assert outcome.code in CODES, outcome
        assert _printable(outcome.out + outcome.err)
    if result.out:
        document = json.loads(result.out)
        assert document["summary"]["ok"] is (result.code == 0)
        assert bool(document["results"][0]["errors"]) is (result.code != 0)
    beside = path.with_name(RUNTIME)
    check = run("advanced", "runtime-verify", "--report", path, "--manifest", beside)
    assert check.code in (0, 1)
    assert _printable(check.out + check.err)
    judged = run("gate", path)
    assert judged.code in (*CODES, 7)  # 7: it holds no evidence to recompute a PASS from
    assert _printable(judged.out + judged.err)
    for words in (("html",), ("explain",), ("--format", "markdown")):
        assert run("report", *words, "--report", path).code in CODES


def _printable(text: str) -> bool:
    return all(" " <= c <= "~" or c == "\n" for c in text)
