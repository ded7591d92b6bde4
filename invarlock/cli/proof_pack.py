"""Verify a pack of the older format proof-pack-v1 (OpenPGP or Ed25519 signature)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.cli.evidence_pack import (
    VerificationOptions,
    allows_unverified,
    refused_pack,
    verify_and_print,
)
from invarlock.cli.options import option
from invarlock.errors import ConfigError
from invarlock.evidence import keys
from invarlock.policy import PROFILES

# An OpenPGP fingerprint of version 4 or 5; a shorter key id can be forged.
_OPENPGP = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")


@dataclass(frozen=True, kw_only=True)
class ProofPackOptions(VerificationOptions):
    """Options of ``invarlock advanced proof-pack verify``."""

    public_key: tuple[Path, ...] = option(
        (),
        metavar="FILE",
        help="OpenPGP public keys that may have signed it; no other key counts",
    )
    expected_fingerprint: str | None = option(
        None, metavar="F", help="the signer: 40 hex digits, or sha256:..."
    )
    profile: str = option("dev", choices=PROFILES, help="profile of the reports' check")


def _verify(options: ProofPackOptions) -> int:
    """Run the command; the exit codes are those of ``evidence-pack verify``."""
    from invarlock.evidence.published.proof_pack import verify_proof_pack
    from invarlock.evidence.result import VerifyOptions

    demands = VerifyOptions(
        strict=options.strict,
        skip_verify=options.skip_verify,
        profile=options.profile,
        pinned=_pin(options.expected_fingerprint),
        public_keys=options.public_key,
        allow_unsigned=allows_unverified(),
    )
    return verify_and_print(options, lambda: verify_proof_pack(options.pack, demands))


def refused(words: Sequence[str], line: str, code: int) -> dict[str, Any]:
    """The result of a verification whose options or whose pack could not be used."""
    from invarlock.evidence.published.proof_pack import FORMAT

    return refused_pack(words, line, code, FORMAT)


def _pin(text: str | None) -> str | None:
    if text is None or text.strip().lower().startswith("sha256:"):
        return text and keys.normal_fingerprint(text, "--expected-fingerprint")
    value = text.replace(" ", "").upper()
    if not _OPENPGP.fullmatch(value):
        raise ConfigError(
            "not a key fingerprint",
            where="--expected-fingerprint",
            expected="40 hex digits of an OpenPGP key, or sha256: and 64 hex digits",
            found=repr(text)[:80],
        )
    return value


ACTIONS = {"verify": (ProofPackOptions, _verify, "verify a pack")}
