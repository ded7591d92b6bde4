"""Attacks on manifest, signature, keys, trust stores and references."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable

import pack_factory as packs
from attacks import NOTHING, SIGNATURE, VERDICT, Attack, Lab, claim, edit, member, write
from attacks_json import TRUSTED, store
from nacl import bindings as sodium
from pack_factory import Document, edit_json

from invarlock.evidence import keys

L = 2**252 + 27742317777372353535851937790883648493  # order of the prime-order subgroup
OTHER = "sha256:" + "0" * 64
# Points of small order (RFC 8032 encoding): order 1, 2, 4, 8, and the first with its sign set.
SMALL_ORDER = {
    "order 1": "01" + "00" * 31,
    "order 2": "ec" + "ff" * 30 + "7f",
    "order 4": "00" * 32,
    "order 8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
}
NON_CANONICAL = {
    "p": "ed" + "ff" * 30 + "7f",
    "p + 1": "ee" + "ff" * 30 + "7f",
    "p + 1 with its sign": "ee" + "ff" * 31,
}
TORSION = bytes.fromhex(SMALL_ORDER["order 8"])
# SubjectPublicKeyInfo prefixes of what is no Ed25519 key, before 32 bytes.
ALGORITHMS = {
    "X25519": "302a300506032b656e032100",
    "Ed448": "302a300506032b6571032100",
    "X448": "302a300506032b656f032100",
    "P-256": "3039301306072a8648ce3d020106082a8648ce3d030107032200",
    "RSA": "3022300d06092a864886f70d0101010500032100",
    "Ed25519 with parameters": "302c300706032b65700500032100",
    "Ed25519 in a long form": "30812a300506032b6570032100",
}


def key(value: str | Callable[[str], str]) -> Callable[[Lab], object]:
    """Another text as the public key, with the fingerprint that belongs to it if it is a key."""

    def change(document: Document) -> None:
        old = document["public_key"]["value"]
        document["public_key"]["value"] = value if isinstance(value, str) else value(old)

    return edit(SIGNATURE, change)


def raw(hexadecimal: str) -> Callable[[Lab], object]:
    """Other 32 bytes as the public key, with their fingerprint."""
    public = bytes.fromhex(hexadecimal)

    def change(document: Document) -> None:
        document["public_key"]["value"] = keys.public_pem(public)
        document["signing_key_fingerprint"] = keys.fingerprint(public)

    def damage(lab: Lab) -> None:
        packs.sign_manifest(lab.pack, lab.key, member("signing_key_fingerprint", None))
        edit_json(lab.pack / SIGNATURE, change)

    return damage


def armoured(der: bytes, kind: str = "PUBLIC KEY") -> str:
    """A PEM block."""
    return f"-----BEGIN {kind}-----\n{base64.b64encode(der).decode()}\n-----END {kind}-----\n"


def of(prefix: str) -> Callable[[str], str]:
    """The key's own 32 bytes under the prefix of another algorithm."""
    return lambda pem: armoured(bytes.fromhex(prefix) + keys.parse_public_pem(pem))


def stray(pem: str) -> str:
    """The same key with bits of the last base64 digit that decode to nothing."""
    head, _, tail = pem.rpartition("=")
    return head[:-1] + chr(ord(head[-1]) + 1) + "=" + tail


def unreduced(document: Document) -> None:
    """S + L in place of S: the same signature in other bytes."""
    data = base64.b64decode(document["signature"]["value"])
    scalar = int.from_bytes(data[32:], "little") + L
    document["signature"]["value"] = base64.b64encode(
        data[:32] + scalar.to_bytes(32, "little")
    ).decode()


def outside_subgroup(lab: Lab) -> None:
    """A valid signature by a key with a small-order part, which other verifiers may refuse."""
    secret = bytes([8]) + bytes(30) + bytes([64])
    public = sodium.crypto_core_ed25519_add(
        sodium.crypto_scalarmult_ed25519_base_noclamp(secret), TORSION
    )
    packs.sign_manifest(lab.pack, lab.key, member("signing_key_fingerprint", None))
    message = (lab.pack / "manifest.json").read_bytes()
    for nonce in range(1, 10_000):
        scalar = nonce.to_bytes(32, "little")
        point = sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)
        challenge = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little") % L
        if challenge % 8 == 0:  # the small-order part falls out of the equation
            answer = (nonce + challenge * int.from_bytes(secret, "little")) % L
            signature = base64.b64encode(point + answer.to_bytes(32, "little")).decode()
            break
    raw_key = keys.public_pem(public)

    def change(document: Document) -> None:
        document["public_key"]["value"] = raw_key
        document["signing_key_fingerprint"] = keys.fingerprint(public)
        document["signature"]["value"] = signature

    edit_json(lab.pack / SIGNATURE, change)


def stripped(lab: Lab) -> None:
    """No signature, and a manifest that does not name a signer."""
    (lab.pack / SIGNATURE).unlink()
    edit_json(lab.pack / "manifest.json", lambda m: m.pop("signing_key_fingerprint"))


def other_signer(lab: Lab) -> None:
    """Everything signed again by somebody else, where only the publisher is trusted."""
    store(lab)
    packs.resign(lab.pack, packs.new_key(lab.scratch / "other.pem"))


def untrusted(lab: Lab) -> None:
    """A store that names somebody else."""
    packs.write_json(lab.scratch / "store.json", [OTHER])


def stored(text: str) -> Callable[[Lab], object]:
    """A trust store of this text."""
    return lambda lab: (lab.scratch / "store.json").write_text(text)


def no_signature(lab: Lab) -> None:
    """No signature beside a manifest that names a signer."""
    (lab.pack / SIGNATURE).unlink()


def other_subject(lab: Lab) -> None:
    """The manifest's subject is a listed file, with its digest, and no verdict."""
    digest = hashlib.sha256((lab.pack / "README.md").read_bytes()).hexdigest()
    subject = {"name": "final_verdict", "path": "README.md", "digest": f"sha256:{digest}"}
    claim(member("subject", subject))(lab)


ALLOWED = (("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE", "1"),)
PIN = ("--expected-fingerprint", OTHER)

SIGNATURES = [
    Attack("no signature", "signature", "signature.missing", no_signature),
    Attack("signature stripped", "signature", "signature.missing", stripped),
    Attack("stripped, where unsigned packs are admitted", "signature", "signature.named",
           no_signature, environment=ALLOWED),
    Attack("stripped, admitted, strict", "signature", "signature.missing", stripped,
           options=("--strict",), environment=ALLOWED),
    Attack("stripped, admitted, pinned", "signature", "signature.missing", stripped,
           options=PIN, environment=ALLOWED),
    Attack("signature file is an empty object", "signature", "signature.contract",
           write(SIGNATURE, "{}")),
    Attack("algorithm none", "signature", "signature.contract",
           edit(SIGNATURE, member("algorithm", "none"))),
    Attack("unknown signature format", "signature", "signature.contract",
           edit(SIGNATURE, member("format", "evidence-pack-signature-v2"))),
    Attack("empty signature", "signature", "signature.base64",
           edit(SIGNATURE, member("signature/value", ""))),
    Attack("signature with a line feed", "signature", "signature.base64",
           edit(SIGNATURE, lambda d: d["signature"].update(value=d["signature"]["value"] + "\n"))),
    Attack("signature of other bytes", "signature", "signature.verify",
           lambda b: edit_json(b.pack / "manifest.json", member("suite", "other"))),
    Attack("white space in the manifest", "signature", "signature.verify",
           lambda b: (b.pack / "manifest.json").write_bytes(
               (b.pack / "manifest.json").read_bytes() + b"\n")),
    Attack("signature by no key", "signature", "signature.verify",
           edit(SIGNATURE, member("signature/value", base64.b64encode(bytes(64)).decode()))),
    Attack("S + L", "signature", "signature.verify", edit(SIGNATURE, unreduced)),
    Attack("bundle names another signer", "signature", "signature.bundle",
           edit(SIGNATURE, member("signing_key_fingerprint", OTHER))),
    Attack("manifest names another signer", "signature", "signature.manifest",
           claim(member("signing_key_fingerprint", OTHER))),
    *(Attack(f"key of {k}", "signature", "keys.point", raw(v)) for k, v in SMALL_ORDER.items()),
    *(Attack(f"key encoded as {k}", "signature", "keys.canonical", raw(v))
      for k, v in NON_CANONICAL.items()),
    Attack("key that is no point", "signature", "keys.point", raw("02" + "00" * 31)),
    Attack("key outside the subgroup", "signature", "keys.point", outside_subgroup),
    *(Attack(f"key of algorithm {k}", "signature", "keys.prefix", key(of(v)))
      for k, v in ALGORITHMS.items()),
    Attack("key with stray bits", "signature", "keys.stray", key(stray)),
    Attack("two keys in the PEM", "signature", "keys.pem", key(lambda pem: pem + pem)),
    Attack("private key in the PEM", "signature", "keys.pem",
           key(lambda pem: pem.replace("PUBLIC", "PRIVATE"))),
    Attack("certificate in the PEM", "signature", "keys.pem",
           key(lambda pem: pem.replace("PUBLIC KEY", "CERTIFICATE"))),
    Attack("no key in the PEM", "signature", "keys.prefix", key(armoured(b""))),
    Attack("another signer, pinned", "signature", "signer.pin", other_signer, options=PIN),
    Attack("another signer, with a store", "signature", "signer.store", other_signer,
           options=TRUSTED),
    Attack("pin and store disagree", "signature", "signer.store", untrusted, options=(
        *TRUSTED, "--expected-fingerprint", "{signer}")),
    Attack("store and pin disagree", "signature", "signer.pin", store, options=(*TRUSTED, *PIN)),
]  # fmt: skip

STORES = {
    "empty list": ("store.empty", "[]"),
    "empty object": ("store.empty", "{}"),
    "number": ("store.empty", '{"fingerprints": 3}'),
    "short fingerprint": ("keys.fingerprint", '["sha256:12"]'),
    "number for a fingerprint": ("keys.fingerprint", "[1]"),
    "one bad among good": ("keys.fingerprint", f'["{OTHER}", "sha256:{"g" * 64}"]'),
    "more than 1 MiB": ("store.size", "[" + f'"{OTHER}",' * 20_000 + f'"{OTHER}"]'),
}
OPTIONS = [
    *(Attack(f"trust store: {k}", "options", check, stored(text), options=TRUSTED)
      for k, (check, text) in STORES.items()),
    Attack("trust store: missing", "options", NOTHING, lambda b: None, options=TRUSTED),
    Attack("trust store: a pipe", "options", "store.pipe",
           lambda lab: os.mkfifo(lab.scratch / "store.json"), options=TRUSTED),
    Attack("malformed pin", "options", "keys.fingerprint", lambda b: None,
           options=("--expected-fingerprint", "sha256:12")),
]  # fmt: skip

MANIFESTS = [
    Attack("older format", "manifest", "manifest.old", claim(member("format", "proof-pack-v1"))),
    Attack("unknown format", "manifest", "manifest.contract",
           claim(member("format", "evidence-pack-v2"))),
    Attack("no format", "manifest", "manifest.contract", claim(member("format", None))),
    Attack("unknown level", "manifest", "manifest.contract",
           claim(member("evidence_level", "supreme"))),
    Attack("other checksum file", "manifest", "manifest.contract",
           claim(member("checksums_sha256", "README.md"))),
    Attack("digest of checksums in capitals", "manifest", "manifest.contract",
           claim(member("checksums_sha256_digest", "A" * 64))),
    Attack("a hundred thousand wrong members", "manifest", "manifest.contract",
           claim(member("model_list", [1] * 100_000))),
    Attack("path without digest", "manifest", "manifest.half",
           claim(member("materials/0/digest", None))),
    Attack("digest of other checksums", "checksums", "checksums.bound",
           claim(member("checksums_sha256_digest", "0" * 64))),
    Attack("reference out of the pack", "references", "references.path",
           claim(member("subject/path", "../elsewhere"))),
    Attack("absolute reference", "references", "references.path",
           claim(member("subject/path", "/etc/hostname"))),
    Attack("reference with back-slashes", "references", "references.path",
           claim(member("subject/path", VERDICT.replace("/", "\\")))),
    Attack("reference with NUL", "references", "references.listed",
           claim(member("subject/path", VERDICT + "\0"))),
    Attack("reference to the manifest", "references", "references.path",
           claim(member("materials/0/path", "manifest.json"))),
    Attack("reference to nothing", "references", "references.listed",
           claim(member("materials/0/path", "metadata/none.json"))),
    Attack("reference by another digest", "references", "references.digest",
           claim(member("subject/digest", OTHER))),
    Attack("level overclaimed", "claims", "claims.level", claim(member("evidence_level", "high"))),
    Attack("level of another subject", "claims", "claims.subject", other_subject),
]  # fmt: skip
ROWS = [*SIGNATURES, *OPTIONS, *MANIFESTS]
HARMLESS = [
    Attack("a lower level is claimed", "", "", claim(member("evidence_level", "low"))),
    Attack("store and pin agree", "", "", store,
           options=(*TRUSTED, "--expected-fingerprint", "{signer}")),
    Attack("unsigned where that is admitted", "", "", stripped, environment=ALLOWED),
]  # fmt: skip
