"""Ed25519 keys: the two fixed PEM forms, fingerprints, signing and verifying with PyNaCl.

PKCS#8 and SubjectPublicKeyInfo of an Ed25519 key are constant DER prefixes (RFC 8410) and 32
bytes, so they are compared, not parsed. Private keys are never logged or copied.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from invarlock.errors import ConfigError
from invarlock.evidence import Code, PackError
from invarlock.files import (
    fsync_directory,
    open_without_waiting,
    parse_json,
    read_bytes,
    sha256_bytes,
    temporary_sibling,
    unwritable,
)

PKCS8_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_KEY_FILE = 4096  # bytes; a private key file has 119
MAX_TRUST_STORE = 1 << 20  # bytes
FIELD_PRIME = 2**255 - 19
FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_PEM = re.compile(
    r"-----BEGIN ([A-Z ]{1,40})-----\r?\n([A-Za-z0-9+/=\r\n]{1,200})-----END \1-----\s*"
)


class SigningKey(NamedTuple):
    """A private key: its 32-byte seed and the 32-byte public key."""

    seed: bytes
    public: bytes

    def __repr__(self) -> str:
        return f"SigningKey({fingerprint(self.public)})"  # never the seed

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``message``."""
        from nacl.signing import SigningKey as Nacl

        return bytes(Nacl(self.seed).sign(message).signature)


def fingerprint(public: bytes) -> str:
    """``sha256:`` and lower-case hex of SHA-256 over the 32 raw public-key bytes."""
    return "sha256:" + sha256_bytes(public)


def normal_fingerprint(text: object, where: str) -> str:
    """Trim and lower-case a fingerprint.

    Raises:
        ConfigError: not ``sha256:`` and 64 hex digits.
    """
    value = text.strip().lower() if isinstance(text, str) else ""
    if not FINGERPRINT.fullmatch(value):  # check: keys.fingerprint
        raise ConfigError(
            "not a key fingerprint",
            where=where,
            expected="sha256: and 64 hex digits",
            found=repr(text)[:80],
        )
    return value


# --- PEM -----------------------------------------------------------------------------------


def _armour(kind: str, der: bytes) -> str:
    return f"-----BEGIN {kind}-----\n{base64.b64encode(der).decode()}\n-----END {kind}-----\n"


def _der(kind: str, text: str, prefix: bytes) -> bytes:
    """The 32 bytes after ``prefix`` in a PEM block; ValueError for anything else."""
    match, problem = _PEM.match(text), f"not one PEM block of type {kind}"
    if not match:
        raise ValueError(problem)
    if match[1] != kind or match.end() < len(text):  # check: keys.pem
        raise ValueError(problem)
    body = re.sub(r"[\r\n]", "", match[2])
    try:
        der = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"damaged base64 ({error})") from error
    if base64.b64encode(der).decode() != body:  # check: keys.stray
        raise ValueError("base64 with stray bits")
    if not der.startswith(prefix) or len(der) != len(prefix) + KEY_BYTES:  # check: keys.prefix
        raise ValueError("not an Ed25519 key in its standard encoding")
    return der[-KEY_BYTES:]


def public_pem(public: bytes) -> str:
    """SubjectPublicKeyInfo PEM of a 32-byte public key."""
    return _armour("PUBLIC KEY", SPKI_PREFIX + public)


def parse_public_pem(text: str) -> bytes:
    """The 32 bytes of a public key, refused when it could make signatures ambiguous.

    Raises:
        ValueError: not strict SPKI PEM of Ed25519, a non-canonical encoding, a point that is
            not on the curve, of small order, or outside the prime-order subgroup.
    """
    from nacl.bindings import crypto_core_ed25519_is_valid_point

    public = _der("PUBLIC KEY", text, SPKI_PREFIX)
    # check: keys.canonical
    if int.from_bytes(public, "little") & (2**255 - 1) >= FIELD_PRIME:
        raise ValueError("the public key is encoded non-canonically")
    if not crypto_core_ed25519_is_valid_point(public):  # check: keys.point
        raise ValueError("the public key is of small order or not a valid curve point")
    return public


def verify_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` (64 bytes) is the signature of ``message`` by ``public`` (32 bytes).

    Raises:
        ValueError: either has another length.
    """
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        VerifyKey(public).verify(message, signature)
    except BadSignatureError:
        return False
    return True


# --- key files -----------------------------------------------------------------------------


def load_signing_key(path: Path) -> SigningKey:
    """Read a private key that nobody else can read.

    Raises:
        ConfigError: group or others may read or write the file (exit 2).
        PackError: missing, not a regular file or not an unencrypted Ed25519 PKCS#8 PEM (exit 4).
    """
    from nacl.signing import SigningKey as Nacl

    try:
        with open(path, "rb", opener=open_without_waiting) as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PackError(Code.MANIFEST, "the signing key is no file", where=str(path))
            if status.st_mode & 0o077:
                raise ConfigError(
                    "the signing key can be read by others",
                    where=str(path),
                    expected="mode 0600",
                    found=f"mode {stat.S_IMODE(status.st_mode):04o}",
                    hint=f"chmod 600 {path}, and replace the key if others may have copied it",
                )
            data = handle.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise PackError(
            Code.MANIFEST,
            f"the signing key cannot be read: {error.strerror}",
            where=str(path),
            hint="make one with: invarlock advanced evidence-pack keygen --out FILE",
        ) from error
    try:
        seed = _der("PRIVATE KEY", data.decode("ascii"), PKCS8_PREFIX)
    except ValueError as error:
        what = "a character that is not ASCII" if isinstance(error, UnicodeError) else str(error)
        raise PackError(
            Code.MANIFEST,
            f"not an unencrypted Ed25519 private key (PKCS#8 PEM): {what}",
            where=str(path),
        ) from error
    return SigningKey(seed, bytes(Nacl(seed).verify_key))


def default_public_path(private: Path) -> Path:
    """``<stem>.pub.pem`` beside the private key."""
    return private.with_name(private.stem + ".pub.pem")


def generate(private: Path, public: Path) -> str:
    """Make a key pair and return its fingerprint; existing files are never replaced.

    The private key has mode 0600 from its first byte and appears under its name only when it is
    whole.

    Raises:
        ConfigError: one of the two files exists.
        InputError: they cannot be written.
    """
    from nacl.signing import SigningKey as Nacl

    for path in (private, public):
        if os.path.lexists(path):
            raise ConfigError(
                "the file exists and keys are never overwritten",
                where=str(path),
                hint="name another file, or --if-missing to keep this key",
            )
    key = Nacl.generate()
    try:
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        public.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(private, error) from error
    _create(private, _armour("PRIVATE KEY", PKCS8_PREFIX + bytes(key)).encode(), 0o600)
    try:
        write_public(public, bytes(key.verify_key))
    except BaseException:
        private.unlink()
        raise
    return fingerprint(bytes(key.verify_key))


def write_public(path: Path, public: bytes) -> None:
    """Write a public key PEM; an existing file is never replaced (ConfigError)."""
    _create(path, public_pem(public).encode(), 0o644)


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file whole or not at all, with its mode from the first byte."""
    temporary = temporary_sibling(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.link(temporary, path)  # fails where the name is taken; a rename would replace it
        fsync_directory(path.parent)
    except FileExistsError as error:
        raise ConfigError("the file exists and is not overwritten", where=str(path)) from error
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# --- trust ---------------------------------------------------------------------------------


def default_trust_store() -> Path:
    """``~/.config/invarlock/trusted-signers.json``."""
    return Path.home() / ".config" / "invarlock" / "trusted-signers.json"


def read_trust_store(path: Path) -> frozenset[str]:
    """The fingerprints of a trust store: a JSON list, or an object with ``trusted_signers``
    (else ``fingerprints``), of strings or objects with ``fingerprint``.

    Raises:
        ConfigError: missing, unusable, empty, or any bad entry (exit 2).
        InputError: not strict JSON or unreadable (the caller exits 2).
    """
    data = read_bytes(
        path,
        MAX_TRUST_STORE,  # check: store.size
    )
    document = parse_json(data, str(path))
    if isinstance(document, dict):
        document = document.get("trusted_signers", document.get("fingerprints"))
    if not isinstance(document, list) or not document:  # check: store.empty
        raise ConfigError(
            "the trust store names no signer",
            where=str(path),
            expected="a list of fingerprints, or an object with trusted_signers",
        )
    return frozenset(
        normal_fingerprint(
            entry.get("fingerprint") if isinstance(entry, dict) else entry, f"{path}: /{index}"
        )
        for index, entry in enumerate(document)
    )
