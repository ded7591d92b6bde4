"""Make and verify policy packs: signed, named overlays of a tier's values."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.evidence_pack import SignerOptions, signers
from invarlock.cli.options import option
from invarlock.errors import ConfigError, ContractError
from invarlock.evidence import keys
from invarlock.evidence.policy_pack import PolicyPack, create, read_policy_pack
from invarlock.files import write_json


@dataclass(frozen=True, kw_only=True)
class CreateOptions:
    """Options of ``invarlock policy create``."""

    name: str = option(metavar="NAME", help="what reports call it")
    tier: str = option("balanced", metavar="TIER", help="the tier it lies over")
    set: tuple[str, ...] = option(
        (),
        repeated=True,
        metavar="PATH=VALUE",
        help="a threshold, such as rmt.epsilon.ffn=0.15, within the tier's bounds",
    )
    proposal: Path | None = option(
        None,
        metavar="FILE",
        help="take the values of a proposal (advanced calibrate null-sweep), JSON or YAML",
    )
    signing_key: Path = option(metavar="FILE", help="Ed25519 private key (keygen)")
    out: Path = option(metavar="FILE", help="policy pack to write", writes=True)
    json: bool = option(False, help="print one JSON object")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(SignerOptions):
    """Options of ``invarlock policy verify``."""

    pack: Path = option(positional=True, metavar="FILE", help="policy pack")
    json: bool = option(False, help="print one JSON object")


def _create(options: CreateOptions) -> int:
    """Sign the values."""
    values = _proposed(options)
    for text in options.set:
        path, separator, value = text.partition("=")
        if not separator or not path or path in values:
            raise ConfigError(
                "not a threshold", where="--set", expected="PATH=VALUE, each path once", found=text
            )
        values[path] = _value(value)
    made = create(options.name, options.tier, values, keys.load_signing_key(options.signing_key))
    write_json(options.out, dict(made.document))
    _tell(made, str(options.out), options.json)
    return 0


def _proposed(options: CreateOptions) -> dict[str, float | str]:
    """The values of a proposal for the same tier."""
    if options.proposal is None:
        return {}
    from invarlock.sweep import read_proposal

    found, where = read_proposal(options.proposal), str(options.proposal)
    if found["tier"] != options.tier:
        raise ConfigError(
            "the proposal is for another tier", where=where, expected=f"--tier {found['tier']}",
            found=options.tier,
        )  # fmt: skip
    if not found["values"]:
        raise ConfigError("the proposal has no values", where=where, hint="its limits say why")
    return dict(found["values"])


def _value(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text  # no limit, and refused as one


def _verify(options: VerifyOptions) -> int:
    """The signature, the bounds, and the signer where one is demanded."""
    pinned, trusted, _ = signers(options)
    found = read_policy_pack(options.pack)
    signer = found.named["signer"]
    if (pinned and signer != pinned) or (trusted is not None and signer not in trusted):
        raise ContractError(
            "the signer is not one that is trusted", where=str(options.pack), found=signer,
            expected=pinned or "a fingerprint of the trust store",
        )  # fmt: skip
    _tell(found, str(options.pack), options.json)
    return 0


def _tell(found: PolicyPack, where: str, as_json: bool) -> None:
    named, document = found.named, found.document
    if as_json:
        print(json.dumps({**named, "tier": document["tier"], "values": document["values"]}))
        return
    print(
        f"{where}: policy pack {named['name']} over tier {document['tier']}, "
        f"{len(document['values'])} values, sha256:{named['sha256']}, signed by {named['signer']}"
    )


ACTIONS = {
    "create": (CreateOptions, _create, "sign values that lie over a tier"),
    "verify": (VerifyOptions, _verify, "check signature, bounds and signer"),
}
