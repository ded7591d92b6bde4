"""OpenPGP signatures of older packs: whose count, which hold, and what gpg may touch."""

from __future__ import annotations

import base64
import bz2
import shutil
import signal
import tempfile
import zlib
from pathlib import Path

import pack_factory as packs
import proof_pack_factory as proofs
import pytest
from proof_pack_factory import Keyring, Signer, command, manifest_of, verify

from invarlock.errors import ConfigError
from invarlock.evidence import tree
from invarlock.evidence.published import gpg
from invarlock.evidence.result import PackResult

# --- signers --------------------------------------------------------------------------------


def finding(result: PackResult) -> str:
    """The only finding, of the signature."""
    assert result.exit_code == 5
    (line,) = result.errors
    return line


def test_only_keys_that_are_named_count(openpgp: Path, ring: Keyring, tmp_path: Path) -> None:
    """No key, or another one, verifies nothing."""
    assert "no --public-key holds" in finding(verify(openpgp))
    other = ring.export(tmp_path / "other.asc", ring.key("other"))
    assert "no --public-key holds" in finding(verify(openpgp, other))
    assert finding(verify(openpgp, other, allow_unsigned=True))


def test_the_manifest_and_the_pin_name_the_signer(
    openpgp: Path, ring: Keyring, publisher: str, tmp_path: Path
) -> None:
    """A pack that another key of the caller signed is not the publisher's."""
    friend = ring.key("friend")
    keys = ring.export(tmp_path / "keys.asc", publisher, friend)
    proofs.finish(openpgp, "openpgp", Signer(ring, (friend,)), signing_key_fingerprint=publisher)
    assert "/signing_key_fingerprint" in finding(verify(openpgp, keys))
    proofs.finish(openpgp, "openpgp", Signer(ring, (friend,)))
    assert verify(openpgp, keys, pinned=friend).exit_code == 0
    result = verify(openpgp, keys, pinned=publisher)
    assert publisher in finding(result)
    assert result.authenticity == "mismatch"


def test_a_signature_of_another_manifest_is_refused(openpgp: Path, public: Path) -> None:
    """Signed by the publisher, over other bytes."""
    old = (openpgp / gpg.NAME).read_bytes()
    manifest_of(openpgp, suite="full")
    (openpgp / gpg.NAME).write_bytes(old)
    assert "is not one of these bytes" in finding(verify(openpgp, public))


@pytest.mark.parametrize("state", ["expired", "revoked"])
def test_keys_that_no_longer_hold_are_refused(
    state: str, openpgp: Path, ring: Keyring, tmp_path: Path
) -> None:
    """gpg calls such a signature valid; we do not."""
    options = ("--faked-system-time", "20200101T000000") if state == "expired" else ()
    key = ring.key(state, *options, expires="1y" if state == "expired" else "never")
    proofs.finish(openpgp, "openpgp", Signer(ring, (key,), options=options))
    if state == "revoked":
        text = (ring.home / "openpgp-revocs.d" / f"{key}.rev").read_text()
        ring.run("--import", stdin=text.replace(":-----BEGIN", "-----BEGIN").encode())
    assert state in finding(verify(openpgp, ring.export(tmp_path / "key.asc", key)))


def test_weak_and_text_signatures_are_refused(
    openpgp: Path, ring: Keyring, publisher: str, public: Path
) -> None:
    """SHA-1, and signatures that do not see every byte."""
    for option in (("--digest-algo", "SHA1", "--allow-weak-digest-algos"), ("--textmode",)):
        proofs.finish(openpgp, "openpgp", Signer(ring, (publisher,), options=option))
        assert "expected class 00" in finding(verify(openpgp, public))


def test_a_signature_that_is_not_armored_is_refused(
    openpgp: Path, ring: Keyring, public: Path
) -> None:
    """Packs hold the text form; gpg itself would take others."""
    path = openpgp / gpg.NAME
    path.write_bytes(ring.run("--dearmor", stdin=path.read_bytes()))
    assert "no armored" in finding(verify(openpgp, public))


GOOD, VALID = "GOODSIG A someone", "VALIDSIG A 1 2 3 4 5 6 8 00 P"


@pytest.mark.parametrize(
    ("code", "lines", "signers"),
    [
        (0, ["NEWSIG", GOOD, VALID], ["P", "A"]),
        (1, ["NEWSIG", GOOD, VALID], []),
        (0, ["NEWSIG", VALID], []),
        (0, ["NEWSIG", GOOD], []),
        (0, ["NEWSIG", GOOD, VALID, "NEWSIG", VALID], []),
        (0, ["NEWSIG", GOOD, VALID, "EXPSIG A someone"], []),
        (0, [GOOD, VALID], []),
        (0, [], []),
    ],
)
def test_only_a_good_and_valid_signature_counts(
    code: int, lines: list[str], signers: list[str]
) -> None:
    """What gpg says, in every combination that an older or newer one could say."""
    status = "".join(f"[GNUPG:] {line}\n" for line in lines).encode()
    found, findings = gpg.read_status(code, status)
    assert (found, bool(findings)) == (signers, not signers)


def test_every_signature_has_to_be_good(
    openpgp: Path, ring: Keyring, publisher: str, public: Path, tmp_path: Path
) -> None:
    """Two signers: both keys are needed, and either may be pinned."""
    second = ring.key("second")
    proofs.finish(openpgp, "openpgp", Signer(ring, (publisher, second)))
    assert "no --public-key holds" in finding(verify(openpgp, public))
    both = ring.export(tmp_path / "both.asc", publisher, second)
    for pinned in (publisher, second):
        result = verify(openpgp, both, pinned=pinned)
        assert (result.exit_code, result.signer) == (0, pinned)


def test_a_subkey_signs_for_its_primary_key(openpgp: Path, ring: Keyring, tmp_path: Path) -> None:
    """The signer is the primary key; manifest and pin may also name the signing subkey."""
    primary = ring.key("owner")
    ring.run("--passphrase", "", "--quick-add-key", primary, "ed25519", "sign", "never")
    listed = ring.run("--with-colons", "--list-keys", primary).decode().splitlines()
    subkey = [line.split(":")[9] for line in listed if line.startswith("fpr:")][1]
    signer = Signer(ring, (subkey + "!",))
    proofs.finish(openpgp, "openpgp", signer, signing_key_fingerprint=subkey)
    key = ring.export(tmp_path / "owner.asc", primary)
    assert verify(openpgp, key).signer == primary
    assert verify(openpgp, key, pinned=primary).exit_code == 0
    assert verify(openpgp, key, pinned=subkey).exit_code == 0


def test_an_ed25519_pack_does_not_answer_for_openpgp_keys(tmp_path: Path, public: Path) -> None:
    """Who names an OpenPGP key wants its signature, not one of another kind."""
    key = packs.new_key(tmp_path / "key.pem")
    ed25519 = proofs.make(tmp_path / "ed25519", "ed25519", Signer(key=key))
    assert "--expected-fingerprint" in finding(verify(ed25519, public))


def test_a_key_file_that_is_none_is_a_usage_error(openpgp: Path, tmp_path: Path) -> None:
    """Missing, no key, too large: exit 2, like any other option."""
    (tmp_path / "no.asc").write_text("no key")
    (tmp_path / "huge.asc").write_bytes(b"x" * (gpg.MAX_KEY_FILE + 1))
    for name in ("missing.asc", "no.asc", "huge.asc"):
        with pytest.raises(ConfigError):
            verify(openpgp, tmp_path / name)
        assert command(openpgp, "--public-key", tmp_path / name) == 2
    assert command(openpgp, "--expected-fingerprint", "0123456789ABCDEF") == 2  # a short id


# --- gpg itself -----------------------------------------------------------------------------


def test_without_gpg_a_signed_pack_is_not_verified(
    openpgp: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear line, and exit 5 whatever is allowed."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "gpg is not installed" in finding(verify(openpgp, public, allow_unsigned=True))


def test_the_users_keyring_is_neither_asked_nor_touched(
    openpgp: Path, public: Path, ring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user knows the signer, and that does not count; nothing is left behind anywhere."""
    home = tmp_path / "home"
    shutil.copytree(ring.home, home / ".gnupg", ignore=shutil.ignore_patterns("S.*", "*.lock"))
    before = packs.snapshot(home)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("HOME", "GNUPGHOME"):
        monkeypatch.setenv(name, str(home if name == "HOME" else home / ".gnupg"))
    assert "no --public-key holds" in finding(verify(openpgp))
    assert verify(openpgp, public).exit_code == 0
    assert packs.snapshot(home) == before
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not [p for p in Path("/proc").glob("[0-9]*") if b"invarlock-gpg-" in command_line(p)]


def command_line(process: Path) -> bytes:
    """How a process was started; an agent names its home."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def test_a_signature_that_unpacks_without_end_is_given_up(openpgp: Path, public: Path) -> None:
    """A few kB of compressed packets hold gigabytes of packets that mean nothing."""
    level = zlib.compressobj(9, wbits=-15)
    segment = level.compress(packet(10, b"PGP") * 1_000_000) + level.flush(zlib.Z_FULL_FLUSH)
    inner = packet(8, b"\1" + segment * 300 + level.flush())
    bomb = packet(8, b"\3" + bz2.compress(inner))
    text = gpg.ARMOUR + b"\n\n" + base64.encodebytes(bomb) + b"-----END PGP SIGNATURE-----\n"
    assert len(text) < tree.SMALL[gpg.NAME]
    (openpgp / gpg.NAME).write_bytes(text)
    assert f"exit -{signal.SIGKILL.value}" in finding(verify(openpgp, public))


def packet(tag: int, body: bytes) -> bytes:
    """One OpenPGP packet with a length of four bytes."""
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body
