"""Packs of the older format in every generation, made with real ``gpg`` and ``sha256sum``.

first    certs/, a manifest without a digest, README -> manifest -> signature -> checksums
openpgp  reports/, the manifest binds the checksums, checksums -> manifest -> signature
ed25519  the same, signed with an Ed25519 key

python tests/proof_pack_factory.py GENERATION FOLDER     (the gpg key goes to FOLDER.asc)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report_factory as factory

from invarlock.cli import main as cli
from invarlock.evidence import keys, manifest
from invarlock.evidence.published.proof_pack import verify_proof_pack
from invarlock.evidence.result import PackResult, VerifyOptions
from invarlock.files import canonical_json

GENERATIONS = ("first", "openpgp", "ed25519")
MODEL = "acme__tiny"
CONTROL = ("manifest.json", "manifest.json.asc", "manifest.signature.json", "checksums.sha256")
# As a certificate of the first generation looked: another schema.
CERTIFICATE = {
    "schema_version": "v1",
    "run_id": "20250101",
    "ppl": {"preview": 11.0, "final": 11.0, "ratio_vs_baseline": 1.0},
    "validation": {"invariants_pass": True},
}
Document = dict[str, Any]


@dataclass
class Keyring:
    """A gpg home of its own; ``close`` stops its agent and removes it."""

    home: Path

    @classmethod
    def new(cls) -> Keyring:
        """An empty one, in a folder with a short name: sockets lie in it."""
        return cls(Path(tempfile.mkdtemp(prefix="gpg-")))

    def run(self, *words: str, stdin: bytes | None = None) -> bytes:
        """One gpg command; its standard output."""
        command = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--yes", *words]
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout

    def key(self, name: str, *options: str, expires: str = "never") -> str:
        """Make an Ed25519 key without a passphrase; its fingerprint."""
        uid = f"{name} <{name}@example.invalid>"
        make = ["--passphrase", "", "--quick-generate-key", uid, "ed25519", "sign", expires]
        self.run(*options, *make)
        listed = self.run("--with-colons", "--list-keys", f"={uid}").decode()
        return next(x.split(":")[9] for x in listed.splitlines() if x.startswith("fpr:"))

    def sign(self, data: bytes, *signers: str, options: tuple[str, ...] = ()) -> bytes:
        """The armored detached signature of ``data`` by all signers."""
        named = [word for signer in signers for word in ("--local-user", signer)]
        return self.run(*options, *named, "--armor", "--detach-sign", "--output", "-", stdin=data)

    def export(self, to: Path, *signers: str, armor: bool = True) -> Path:
        """Write public keys to a file."""
        to.write_bytes(self.run(*(["--armor"] if armor else []), "--export", *signers))
        return to

    def close(self) -> None:
        """Stop the agent that gpg started, and remove the keys."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False)
        shutil.rmtree(self.home, ignore_errors=True)


def write_contents(pack: Path, generation: str) -> Path:
    """The files of a pack but the control files: a clean report and a deliberate damage."""
    first = generation == "first"
    top, name = (
        ("certs", "evaluation.cert.json") if first else ("reports", "evaluation.report.json")
    )
    clean = factory.make_report("quant_8bit_clean", 1.004)
    damage = factory.make_report("prune_50pct_stress", 1.6)
    for folder, report in (("quant_8bit_clean", clean), ("errors/nan_injection", damage)):
        run = pack / top / MODEL / folder / "run_1"
        run.mkdir(parents=True)
        (run / name).write_bytes(
            json.dumps(CERTIFICATE).encode() if first else canonical_json(report)
        )
        (run / "evaluation.html").write_text("<p>report</p>\n")
    (pack / "results").mkdir()
    (pack / "results" / "final_verdict.json").write_text('{"verdict": "PASS"}\n')
    (pack / "results" / "final_verdict.txt").write_text("PASS\n")
    (pack / "state").mkdir()
    (pack / "state" / "with a blank.json").write_text("{}\n")
    (pack / "README.md").write_text("# Proof pack\n")
    return pack


def _files(pack: Path, *without: str) -> list[str]:
    found = (p.relative_to(pack).as_posix() for p in pack.rglob("*") if p.is_file())
    return sorted(f"./{path}" for path in found if path not in without)


def write_checksums(pack: Path, *without: str) -> str:
    """``checksums.sha256`` as sha256sum writes it over the sorted files; its digest."""
    skip = ("checksums.sha256", *without)
    listing = subprocess.run(
        ["sha256sum", *_files(pack, *skip)], cwd=pack, capture_output=True, check=True
    ).stdout
    (pack / "checksums.sha256").write_bytes(listing)
    return hashlib.sha256(listing).hexdigest()


def write_manifest(pack: Path, generation: str, **more: object) -> bytes:
    """``manifest.json``: indented, sorted, with a final line feed; its bytes."""
    document: Document = {
        "format": "proof-pack-v1",
        "generated_at": "2025-06-01T12:00:00Z",
        "suite": "subset",
        "network_mode": "offline",
        "determinism": "strict",
        "repeats": 0,
        "determinism_repeats": None,
        "run_dir": "runs/subset",
        "invarlock_version": "0.3.7" if generation == "first" else "0.5.0",
        "model_list": ["acme/tiny"],
        "models": [{"model_id": "acme/tiny", "revision": "0" * 40}],
        "artifacts": [path.removeprefix("./") for path in _files(pack, *CONTROL)],
        "checksums_sha256": "checksums.sha256",
    }
    data = (json.dumps(document | more, indent=2, sort_keys=True) + "\n").encode()
    (pack / "manifest.json").write_bytes(data)
    return data


@dataclass(frozen=True)
class Signer:
    """Who signs: fingerprints in a keyring, or the file of an Ed25519 key."""

    ring: Keyring | None = None
    ids: tuple[str, ...] = ()
    key: Path | None = None
    options: tuple[str, ...] = ()


def finish(pack: Path, generation: str, signer: Signer, **more: object) -> Path:
    """Write, or write again, the control files in the order of the generation."""
    if generation == "first":
        data = write_manifest(pack, generation, **more)
    else:
        bound = {"checksums_sha256_digest": write_checksums(pack, *CONTROL)}
        data = write_manifest(pack, generation, **bound, **more)
    if signer.ring:
        signature = signer.ring.sign(data, *signer.ids, options=signer.options)
        (pack / "manifest.json.asc").write_bytes(signature)
    if signer.key:
        bundle = json.loads(manifest.sign(data, keys.load_signing_key(signer.key)))
        bundle["format"] = "proof-pack-signature-v1"
        (pack / "manifest.signature.json").write_text(json.dumps(bundle))
    if generation == "first":
        write_checksums(pack)
    return pack


def make(pack: Path, generation: str, signer: Signer, **more: object) -> Path:
    """A whole pack."""
    return finish(write_contents(pack, generation), generation, signer, **more)


# --- for the tests ---------------------------------------------------------------------------


def manifest_of(pack: Path, **changes: object) -> None:
    """Change or remove members of the manifest."""
    document = json.loads((pack / "manifest.json").read_text()) | changes
    kept = {key: value for key, value in document.items() if value is not None}
    (pack / "manifest.json").write_text(json.dumps(kept))


def verify(pack: Path, *public: Path, **options: object) -> PackResult:
    """The result of a verification with these public keys."""
    return verify_proof_pack(pack, VerifyOptions(public_keys=public, **options))  # type: ignore[arg-type]


def command(pack: Path, *options: object) -> int:
    """``proof-pack verify``; the exit code."""
    return cli(["advanced", "proof-pack", "verify", str(pack), *map(str, options)])


def main(generation: str, target: str) -> None:
    """Make one pack, with a new key, for looking at."""
    pack = Path(target)
    if generation == "ed25519":
        key = pack.with_name(pack.name + ".pem")
        keys.generate(key, keys.default_public_path(key))
        make(pack, generation, Signer(key=key))
        return
    ring = Keyring.new()
    try:
        signer = ring.key("publisher")
        make(pack, generation, Signer(ring, (signer,)), signing_key_fingerprint=signer)
        ring.export(pack.with_name(pack.name + ".asc"), signer)
    finally:
        ring.close()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in GENERATIONS:
        sys.exit(f"usage: {os.path.basename(__file__)} {'|'.join(GENERATIONS)} FOLDER")
    main(sys.argv[1], sys.argv[2])
