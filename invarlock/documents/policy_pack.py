"""A named overlay of a tier's values, signed by whoever answers for it."""

from typing import Annotated, Literal

from msgspec import Meta

from invarlock.documents.fields import Closed, Digest, Text, about, matches

TITLE = "policy_pack.json"


class PolicyPack(Closed):
    """A named overlay of a tier's values. The signature is over the line
    ``invarlock/policy-pack-v1`` and the canonical JSON of ``schema``, ``name``, ``tier`` and
    ``values``.
    """

    schema: Annotated[Literal["invarlock/policy-pack-v1"], about("format")]
    name: Annotated[str, matches("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), about("what it is called")]
    tier: Annotated[Text, about("the tier that it lies over")]
    values: Annotated[
        dict[str, float | str],
        Meta(min_length=1, max_length=64),
        about("threshold by its path, such as rmt.epsilon.ffn, within the tier's bounds"),
    ]
    signing_key_fingerprint: Annotated[Digest, about("of the public key")]
    public_key: Annotated[Text, about("Ed25519 key, SubjectPublicKeyInfo PEM")]
    signature: Annotated[Text, about("base64 of the 64 bytes")]


DOCUMENT = PolicyPack
