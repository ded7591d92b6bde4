"""Verify a pack of the older format proof-pack-v1 (OpenPGP or Ed25519 signature)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invarlock.cli.evidence_pack import (
    add_verification,
    allows_unverified,
    refused_pack,
    verify_and_print,
)
from invarlock.errors import ConfigError
from invarlock.evidence import keys
from invarlock.policy import PROFILES

# An OpenPGP fingerprint of version 4 or 5; a shorter key id can be forged.
_OPENPGP = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command and its options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = commands.add_parser("verify", help="verify a pack")
    add_verification(verify)
    add = verify.add_argument
    add(
        "--public-key",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="OpenPGP public keys that may have signed it; no other key counts",
    )
    add("--expected-fingerprint", metavar="F", help="the signer: 40 hex digits, or sha256:...")
    add("--profile", choices=PROFILES, default="dev", help="profile of the reports' check")


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit codes are those of ``evidence-pack verify``."""
    from invarlock.evidence.published.proof_pack import verify_proof_pack
    from invarlock.evidence.result import VerifyOptions

    options = VerifyOptions(
        strict=args.strict,
        skip_verify=args.skip_verify,
        profile=args.profile,
        pinned=_pin(args.expected_fingerprint),
        public_keys=tuple(args.public_key),
        allow_unsigned=allows_unverified(),
    )
    return verify_and_print(args, lambda: verify_proof_pack(args.pack, options))


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
