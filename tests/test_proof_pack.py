"""``proof-pack verify``: older packs of every generation, and ways to tamper with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pack_factory as packs
import proof_pack_factory as proofs
import pytest
from proof_pack_factory import Keyring, Signer, command, manifest_of, verify

from invarlock.contracts import validate
from invarlock.evidence.published import gpg
from invarlock.evidence.result import PackResult

CLEAN = f"reports/{proofs.MODEL}/quant_8bit_clean/run_1/evaluation.report.json"
DAMAGE = f"reports/{proofs.MODEL}/errors/nan_injection/run_1/evaluation.report.json"
CERTIFICATE = f"certs/{proofs.MODEL}/quant_8bit_clean/run_1/evaluation.cert.json"
LENIENT = "INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE"


@pytest.fixture
def first(ring: Keyring, publisher: str, tmp_path: Path) -> Path:
    """A pack of the first generation."""
    return proofs.make(tmp_path / "pack", "first", Signer(ring, (publisher,)))


@pytest.fixture
def ed25519(tmp_path: Path) -> Path:
    """A pack of the third generation; its key lies beside it."""
    key = packs.new_key(tmp_path / "old.pem")
    return proofs.make(tmp_path / "third", "ed25519", Signer(key=key))


# --- good packs -----------------------------------------------------------------------------


def test_an_openpgp_pack_verifies(
    openpgp: Path, public: Path, publisher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signature covers everything; reports are checked, the verdict is believed, and said."""
    out = openpgp.parent / "result.json"
    pin = f"{publisher[:20]} {publisher[20:].lower()}"  # as gpg shows it
    options = ["--strict", "--public-key", public, "--expected-fingerprint", pin]
    assert command(openpgp, *options, "--json", "--json-out", out) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    validate(document, "evidence-pack-verify", "result")
    validate(document["verify"], "verify-v1", "result")
    assert document["format_version"] == "proof-pack-verify-v1"
    assert (document["signer_fingerprint"], document["authenticity"]) == (publisher, "pinned")
    assert document["verdict"] == {"recorded": "PASS", "recomputed": None, "outcome": None}
    assert document["verify"]["evaluation_report"]["count"] == 1
    assert document["verify"]["expected_failures"]["reports"] == [DAMAGE]
    assert any("verdict" in claim for claim in document["believed"])


def test_a_binary_key_file_and_several_files_are_taken(
    openpgp: Path, ring: Keyring, publisher: str, tmp_path: Path
) -> None:
    """Public keys come armored or binary, one file or many."""
    binary = ring.export(tmp_path / "key.gpg", publisher, armor=False)
    other = ring.export(tmp_path / "other.asc", ring.key("somebody"))
    assert verify(openpgp, other, binary).exit_code == 0


def test_an_ed25519_pack_verifies(ed25519: Path) -> None:
    """The third generation needs no gpg; its fingerprint is pinned as that of evidence packs."""
    result = verify(ed25519, strict=True)
    assert (result.exit_code, result.authenticity) == (0, "unpinned")
    assert result.signer
    assert command(ed25519, "--expected-fingerprint", result.signer) == 0
    assert command(ed25519, "--expected-fingerprint", "sha256:" + "0" * 64) == 5


def test_the_signature_of_the_first_generation_covers_nothing(
    first: Path, public: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as not signed: refused, or where that is allowed taken with a warning."""
    assert command(first, "--public-key", public) == 5
    assert "none of the contents" in capsys.readouterr().out
    monkeypatch.setenv(LENIENT, "1")
    assert command(first, "--public-key", public, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "evidence-pack-verify", "result")
    assert document["authenticity"] == "unsigned"
    assert "signer_fingerprint" not in document
    assert "none of the contents" in document["warnings"][0]
    assert any(CERTIFICATE in claim for claim in document["believed"])  # an older schema
    assert command(first, "--public-key", public, "--strict") == 5
    pin = gpg.check_signature(*signed(first), [public])[0][0]
    assert command(first, "--public-key", public, "--expected-fingerprint", pin) == 5


def signed(pack: Path) -> tuple[bytes, bytes]:
    """The manifest and its OpenPGP signature."""
    return (pack / "manifest.json").read_bytes(), (pack / gpg.NAME).read_bytes()


def test_the_first_generation_can_be_forged(first: Path, public: Path) -> None:
    """Why: with the checksums rewritten, changed contents look like the genuine ones."""
    genuine = verify(first, public, allow_unsigned=True)
    forged_text = (first / CERTIFICATE).read_text().replace("11.0", "66.6")
    (first / CERTIFICATE).write_text(forged_text)
    assert verify(first, public, allow_unsigned=True).exit_code == 6
    proofs.write_checksums(first)
    forged = verify(first, public, allow_unsigned=True)
    assert forged.to_json() == genuine.to_json()
    assert verify(first, public).exit_code == 5


def test_checksums_over_a_list_of_names_cover_nothing(first: Path, public: Path) -> None:
    """The very first packs hashed the names of their files; that is one line about ``-``."""
    (first / "checksums.sha256").write_text("0" * 64 + "  -\n")
    assert verify(first, public, allow_unsigned=True).exit_code == 6


# --- tampering, without the key -------------------------------------------------------------

Damage = Callable[[Path], object]
TAMPERED: dict[str, tuple[int, Damage]] = {
    "no manifest": (3, lambda p: (p / "manifest.json").unlink()),
    "no checksums": (3, lambda p: (p / "checksums.sha256").unlink()),
    "no signature": (5, lambda p: (p / gpg.NAME).unlink()),
    "signature is a link": (5, lambda p: link(p / gpg.NAME)),
    "signature is empty": (5, lambda p: (p / gpg.NAME).write_bytes(b"")),
    "signature is no signature": (5, lambda p: (p / gpg.NAME).write_bytes(gpg.ARMOUR + b"\nA\n")),
    "signature is cut": (5, lambda p: cut(p / gpg.NAME)),
    "signature is huge": (6, lambda p: (p / gpg.NAME).write_bytes(b"-" * 100_000)),
    "two kinds of signature": (5, lambda p: (p / "manifest.signature.json").write_text("{}")),
    "a byte of white space": (5, lambda p: append(p / "manifest.json", b"\n")),
    "not JSON": (4, lambda p: append(p / "manifest.json", b"{")),
    "another format": (4, lambda p: manifest_of(p, format="evidence-pack-v1")),
    "unknown format": (4, lambda p: manifest_of(p, format="proof-pack-v2")),
    "digest removed": (5, lambda p: manifest_of(p, checksums_sha256_digest=None)),
    "content": (6, lambda p: append(p / CLEAN, b" ")),
    "content and checksums": (6, lambda p: (append(p / CLEAN, b" "), relist(p))),
    "file removed": (6, lambda p: (p / "README.md").unlink()),
    "link": (6, lambda p: (p / "x").symlink_to("README.md")),
    "forged mirror": (6, lambda p: mirror(p, "checksums.sha256")),
}


def link(path: Path) -> None:
    """Replace a file by a link to a copy of it."""
    path.rename(path.parent.with_suffix(".moved"))
    path.symlink_to(path.parent.with_suffix(".moved"))


def cut(path: Path) -> None:
    """Remove the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def append(path: Path, data: bytes) -> None:
    """Add bytes to a file."""
    path.write_bytes(path.read_bytes() + data)


def relist(pack: Path) -> None:
    """Rewrite the checksums."""
    proofs.write_checksums(pack, *proofs.CONTROL)


def mirror(pack: Path, name: str) -> None:
    """A copy of a control file that is none."""
    (pack / "metadata").mkdir()
    (pack / "metadata" / name).write_text("x")


@pytest.mark.parametrize("row", TAMPERED)
def test_tampering_is_caught(row: str, openpgp: Path, public: Path) -> None:
    """Each row ends with its documented code and at least one finding."""
    expected, damage = TAMPERED[row]
    damage(openpgp)
    result = verify(openpgp, public)
    assert (result.exit_code, bool(result.errors)) == (expected, True)


def test_an_unlisted_file_is_a_warning_or_fails_in_strict(openpgp: Path, public: Path) -> None:
    """No name is exempt."""
    (openpgp / ".DS_Store").write_text("x")
    assert verify(openpgp, public).warnings == [".DS_Store: is not listed in checksums.sha256"]
    assert verify(openpgp, public, strict=True).exit_code == 6


def test_a_pack_that_is_not_signed(openpgp: Path, ring: Keyring, public: Path) -> None:
    """Refused, unless that is allowed and nothing names a signer."""
    (openpgp / gpg.NAME).unlink()
    assert verify(openpgp).exit_code == 5
    assert verify(openpgp, allow_unsigned=True).exit_code == 5  # its manifest names a signer
    proofs.finish(openpgp, "openpgp", Signer())
    assert verify(openpgp, allow_unsigned=True).exit_code == 0
    assert verify(openpgp, public, allow_unsigned=True).exit_code == 5
    assert verify(openpgp, allow_unsigned=True, strict=True).exit_code == 5


# --- reports --------------------------------------------------------------------------------


def resigned(pack: Path, ring: Keyring, publisher: str, public: Path) -> PackResult:
    """The result after the publisher signed the changed contents."""
    return verify(proofs.finish(pack, "openpgp", Signer(ring, (publisher,))), public)


def test_reports_are_verified(openpgp: Path, ring: Keyring, publisher: str, public: Path) -> None:
    """A report that contradicts itself fails; so does a damage that passes, and no report."""
    clean, damage = openpgp / CLEAN, openpgp / DAMAGE
    data, bad = clean.read_bytes(), damage.read_bytes()

    def code() -> int:
        return resigned(openpgp, ring, publisher, public).exit_code

    packs.edit_json(clean, lambda r: r["primary_metric"].update(ratio_vs_baseline=1.0))
    assert code() == 7
    assert verify(openpgp, public, skip_verify=True).exit_code == 0
    clean.write_bytes(data)
    assert code() == 0
    damage.write_bytes(data)  # published: ignored
    assert code() == 7
    damage.write_text("{}")
    assert code() == 7
    damage.write_bytes(bad)
    clean.unlink()
    assert code() == 7


def test_references_and_json_are_checked(ed25519: Path) -> None:
    """What a publisher signed has to fit together, too: a wrong digest, a key twice."""
    signer = Signer(key=ed25519.parent / "old.pem")
    subject = {"name": "final_verdict", "path": "results/final_verdict.json"}
    proofs.finish(ed25519, "ed25519", signer, subject=subject | {"digest": "sha256:" + "0" * 64})
    assert verify(ed25519).exit_code == 6
    proofs.finish(ed25519, "ed25519", signer)
    assert verify(ed25519).exit_code == 0
    (ed25519 / "state" / "with a blank.json").write_text('{"a": 1, "a": 2}')
    proofs.finish(ed25519, "ed25519", signer)
    assert verify(ed25519).exit_code == 6


def test_an_ed25519_signature_names_its_format(ed25519: Path) -> None:
    """That of an evidence pack is another one."""
    path = ed25519 / "manifest.signature.json"
    packs.edit_json(path, lambda bundle: bundle.update(format="evidence-pack-signature-v1"))
    assert verify(ed25519).exit_code == 5


def test_commands_name_each_other(
    openpgp: Path, ed25519: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 4 for a pack of the other format, and the command that verifies it."""
    assert packs.verify(ed25519) == 4
    assert "invarlock advanced proof-pack verify" in capsys.readouterr().out
    manifest_of(openpgp, format="evidence-pack-v1")
    assert command(openpgp) == 4
    assert "invarlock advanced evidence-pack verify" in capsys.readouterr().out
    assert command(tmp_path / "nothing") == 3
    assert command(ed25519, "--json-out", ed25519 / "x.json") == 2
