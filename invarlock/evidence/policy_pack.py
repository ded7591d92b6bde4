"""Policy packs: a named overlay of a tier's values, signed like an evidence pack.

The values are overrides within the tier's bounds, so that a pack makes no threshold looser than
the tier admits. A report names the pack by name, digest and signer; a copy lies beside the report
(``policy_pack.json``), and verification applies it again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from invarlock.contracts import check
from invarlock.errors import ConfigError, ContractError
from invarlock.evidence.keys import (
    SIGNATURE_BYTES,
    SigningKey,
    fingerprint,
    parse_public_pem,
    public_pem,
    verify_signature,
)
from invarlock.files import canonical_json, digest_json, read_json_object
from invarlock.policy import Override, resolve_policy, source_of

SCHEMA = "invarlock/policy-pack-v1"
SIGNED = ("schema", "name", "tier", "values")


class PolicyPack(NamedTuple):
    """A policy pack whose signature and bounds hold."""

    document: Mapping[str, Any]
    overrides: tuple[Override, ...]

    @property
    def sha256(self) -> str:
        """Digest of what is signed."""
        return digest_json(_content(self.document))

    @property
    def named(self) -> dict[str, str]:
        """How a report names it."""
        signer = str(self.document["signing_key_fingerprint"])
        return {"name": str(self.document["name"]), "sha256": self.sha256, "signer": signer}

    def over(self, preset: Iterable[Override]) -> tuple[Override, ...]:
        """The overrides of a preset, with the pack's in the place of those of the same paths."""
        mine = {override.path for override in self.overrides}
        return (*(o for o in preset if o.path not in mine), *self.overrides)

    def require_tier(self, tier: str) -> None:
        """Refuse to lay it over another tier.

        Raises:
            ConfigError: it is for another one.
        """
        if self.document["tier"] != tier:
            raise ConfigError(
                f"policy pack {self.document['name']} is for another tier",
                expected=tier,
                found=str(self.document["tier"]),
            )


def create(name: str, tier: str, values: Mapping[str, float | str], key: SigningKey) -> PolicyPack:
    """Sign a policy pack.

    Raises:
        ConfigError: a name or value that cannot be, or one that the tier does not admit.
    """
    document = {"schema": SCHEMA, "name": name, "tier": tier, "values": dict(values)}
    document |= {
        "signing_key_fingerprint": fingerprint(key.public),
        "public_key": public_pem(key.public),
        "signature": base64.b64encode(key.sign(_message(document))).decode(),
    }
    check(document, "policy-pack", "policy pack", config=True)
    return _resolved(document)


def read_policy_pack(path: Path) -> PolicyPack:
    """A policy pack's file.

    Raises:
        InputError: unreadable, or its signature does not hold.
        ConfigError: the tier does not admit a value.
    """
    return policy_pack_of(read_json_object(path), str(path))


def policy_pack_of(document: Mapping[str, Any], where: str) -> PolicyPack:
    """The same for what was read already."""
    check(document, "policy-pack", where)
    try:
        public = parse_public_pem(document["public_key"])
        signature = base64.b64decode(document["signature"], validate=True)
    except (ValueError, binascii.Error) as error:
        raise ContractError(f"the signature cannot be read: {error}", where=where) from error
    if document["signing_key_fingerprint"] != fingerprint(public):
        raise ContractError(
            "/signing_key_fingerprint is not that of the key", where=where,
            expected=fingerprint(public),
        )  # fmt: skip
    if len(signature) != SIGNATURE_BYTES or not verify_signature(
        public, _message(document), signature
    ):
        raise ContractError("the signature is not one of these values by this key", where=where)
    return _resolved(document)


def _resolved(document: Mapping[str, Any]) -> PolicyPack:
    source = source_of(digest_json(_content(document)))
    values = sorted(document["values"].items())
    overrides = tuple(Override(path, value, source) for path, value in values)
    resolve_policy(document["tier"], overrides)
    return PolicyPack(document, overrides)


def _content(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in SIGNED}


def _message(document: Mapping[str, Any]) -> bytes:
    return SCHEMA.encode() + b"\n" + canonical_json(_content(document))
