"""``manifest.json`` and ``manifest.signature.json``: what they say, and how they are checked.

The signature is over the raw bytes of ``manifest.json``; the manifest holds the digest of
``checksums.sha256``; the checksums hold the digest of every other file.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from invarlock.contracts import violations
from invarlock.errors import InputError
from invarlock.evidence import escape
from invarlock.evidence.checksums import CHECKSUMS, CONTROL_FILES, MANIFEST, SIGNATURE, is_canonical
from invarlock.evidence.keys import (
    SIGNATURE_BYTES,
    SigningKey,
    fingerprint,
    parse_public_pem,
    verify_signature,
)
from invarlock.evidence.keys import public_pem as pem_of
from invarlock.evidence.tree import Tree
from invarlock.files import parse_json

FORMAT = "evidence-pack-v1"
SIGNATURE_FORMAT = "evidence-pack-signature-v1"
OLD_FORMAT = "proof-pack-v1"
OLD_SIGNATURE_FORMAT = "proof-pack-signature-v1"
COMMANDS = {FORMAT: "evidence-pack", OLD_FORMAT: "proof-pack"}
LEVELS = ("low", "medium", "high")
VERDICT = "results/final_verdict.json"
VERDICTS = (VERDICT, "results/verdicts/final_verdict.json")  # ours, the published harness'
SOURCE_REPO = "metadata/source_repo.json"
ENVIRONMENT = "metadata/environment.json"


@dataclass(frozen=True)
class LevelEvidence:
    """What the evidence level is computed from."""

    has_subject: bool  # the manifest names the verdict with its digest
    bound: bool  # the manifest holds the digest of the checksums
    clean_reports: int  # reports that are expected to pass
    failed_reports: int  # of those, the ones that do not
    has_source: bool  # source_repo.json is referenced with its digest
    has_environment: bool  # environment.json is referenced with its digest
    all_container: bool  # every report was made inside the recorded container


def evidence_level(evidence: LevelEvidence) -> str:
    """``low``, ``medium`` or ``high``; a pack of host runs is at most ``medium``."""
    if not (evidence.has_subject and evidence.bound and evidence.clean_reports > 0):
        return "low"
    # The digests of source and environment say what ran; without the container nobody can run the
    # same again, hence no "high" for runs on a host.
    complete = evidence.has_source and evidence.has_environment and evidence.all_container
    return "high" if complete and evidence.failed_reports == 0 else "medium"


def render(document: Mapping[str, object]) -> bytes:
    """The bytes of a manifest or signature file: sorted keys, ASCII, LF."""
    return (json.dumps(document, sort_keys=True, allow_nan=False) + "\n").encode()


def sign(manifest: bytes, key: SigningKey) -> bytes:
    """The bytes of ``manifest.signature.json`` for the manifest's bytes."""
    return render(
        {
            "format": SIGNATURE_FORMAT,
            "algorithm": "ed25519",
            "public_key": {"encoding": "pem", "value": pem_of(key.public)},
            "signature": {
                "encoding": "base64",
                "value": base64.b64encode(key.sign(manifest)).decode(),
            },
            "signing_key_fingerprint": fingerprint(key.public),
        }
    )


# --- reading -------------------------------------------------------------------------------


def read_manifest(data: bytes, wanted: str = FORMAT) -> tuple[dict[str, Any], list[str]]:
    """The manifest and every reason to refuse it (exit 4); strict JSON, contract, code rules.

    The older format (``wanted``) has the same members under another name, and its first
    generation lacks the digest of the checksums.
    """
    try:
        document = parse_json(data, MANIFEST)
    except InputError as error:
        return {}, [escape(error)]
    if not isinstance(document, dict):  # check: manifest.object
        return {}, [f"{MANIFEST}: is not a JSON object"]
    found = document.get("format")
    # check: manifest.old
    if found != wanted and isinstance(found, str) and found in COMMANDS:
        return {}, [
            f"{MANIFEST}: the format is {found}; expected {wanted}; "
            f"verify it with: invarlock advanced {COMMANDS[found]} verify"
        ]
    checked = document
    if found == wanted == OLD_FORMAT:
        checked = {"checksums_sha256_digest": "0" * 64} | document | {"format": FORMAT}
    findings: list[str] = []
    findings += [
        f"{MANIFEST}: {escape(line)}" for line in violations(checked, "evidence-pack-manifest")
    ]  # check: manifest.contract
    if not findings:
        for where, reference in references(document):
            if ("path" in reference) != ("digest" in reference):  # check: manifest.half
                findings.append(f"{MANIFEST}: {where} has only one of path and digest")
    return document, findings


def references(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """``(JSON pointer, reference)`` of everything a valid manifest may refer to by digest."""
    found = [
        ("/subject", document.get("subject")),
        ("/environment", document.get("environment")),
        ("/invocation/config_source", (document.get("invocation") or {}).get("config_source")),
    ]
    found += [
        (f"/materials/{index}", material)
        for index, material in enumerate(document.get("materials") or [])
    ]
    return [(where, reference) for where, reference in found if isinstance(reference, dict)]


def check_references(
    document: Mapping[str, Any], tree: Tree, listed: Mapping[str, str]
) -> list[str]:
    """Findings about referenced files: canonical path, listed in the checksums, digest equal."""
    findings = []
    for where, reference in references(document):
        path, digest = reference.get("path"), reference.get("digest")
        if path is None:
            continue
        shown = f"{MANIFEST}: {where} names {escape(path)}"
        if not is_canonical(path) or path in CONTROL_FILES:
            # check: references.path
            findings.append(f"{shown}, which is no path of a file of the pack")
        elif path not in tree.files or path not in listed:
            # check: references.listed
            findings.append(f"{shown}, which is missing or not in {CHECKSUMS}")
        elif digest != "sha256:" + tree.files[path].sha256:  # check: references.digest
            findings.append(
                f"{shown} with {escape(digest)}; found sha256:{tree.files[path].sha256}"
            )
    return findings


def referenced(document: Mapping[str, Any], where: str, paths: Collection[str] = ()) -> bool:
    """Whether the reference at a JSON pointer has a digest, and a path (one of ``paths``)."""
    return any(
        pointer == where
        and reference.get("digest")
        and (reference.get("path") in paths if paths else reference.get("path"))
        for pointer, reference in references(document)
    )


def read_signature(
    manifest: bytes, data: bytes, wanted: str = SIGNATURE_FORMAT
) -> tuple[str, list[str]]:
    """The signer's fingerprint and every reason to refuse the signature (exit 5)."""
    try:
        bundle = parse_json(data, SIGNATURE)
    except InputError as error:
        return "", [escape(error)]
    checked = bundle
    if isinstance(bundle, dict) and bundle.get("format") == wanted:
        checked = bundle | {"format": SIGNATURE_FORMAT}
    elif wanted != SIGNATURE_FORMAT:
        return "", [f"{SIGNATURE}: /format is not {wanted}"]
    findings: list[str] = []
    findings += [
        f"{SIGNATURE}: {escape(line)}" for line in violations(checked, "evidence-pack-signature")
    ]  # check: signature.contract
    if findings:
        return "", findings
    try:
        public = parse_public_pem(bundle["public_key"]["value"])
    except ValueError as error:
        return "", [f"{SIGNATURE}: /public_key: {escape(error)}"]
    signer = fingerprint(public)
    if bundle["signing_key_fingerprint"] != signer:  # check: signature.bundle
        findings.append(
            f"{SIGNATURE}: /signing_key_fingerprint is not that of the public key; "
            f"expected {signer}"
        )
    text = bundle["signature"]["value"]
    try:
        signature = base64.b64decode(text, validate=True)
        strict = base64.b64encode(signature).decode() == text
    except (binascii.Error, ValueError):
        signature, strict = b"", False
    if not strict or len(signature) != SIGNATURE_BYTES:  # check: signature.base64
        findings.append(f"{SIGNATURE}: /signature is not the strict base64 of 64 bytes")
    elif not verify_signature(public, manifest, signature):  # check: signature.verify
        findings.append(f"{SIGNATURE}: the signature is not one of {MANIFEST} by this key")
    return signer, findings
