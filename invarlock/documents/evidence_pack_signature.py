"""Detached Ed25519 signature over the raw bytes of manifest.json. Unknown members are ignored,
as published.
"""

from typing import Annotated, Literal

from msgspec import Meta

from invarlock.documents.fields import Digest, Open, about

TITLE = "manifest.signature.json of an evidence pack"


class PublicKey(Open):
    """The signer's public key."""

    encoding: Annotated[Literal["pem"], about("how value is encoded")]
    value: Annotated[str, Meta(max_length=300), about("SubjectPublicKeyInfo PEM")]


class Signature(Open):
    """The signature."""

    encoding: Annotated[Literal["base64"], about("how value is encoded")]
    value: Annotated[str, Meta(max_length=100), about("strict standard base64 of 64 bytes")]


class EvidencePackSignature(Open):
    """Detached Ed25519 signature over the raw bytes of manifest.json. Unknown members are ignored,
    as published.
    """

    format: Annotated[Literal["evidence-pack-signature-v1"], about("layout version")]
    algorithm: Annotated[Literal["ed25519"], about("signature algorithm")]
    public_key: PublicKey
    signature: Signature
    signing_key_fingerprint: Annotated[
        Digest, about("sha256: and SHA-256 over the 32 raw public-key bytes")
    ]


DOCUMENT = EvidencePackSignature
