"""``proof-pack verify``: packs of the older format ``proof-pack-v1``, in three generations.

The steps, their exit codes and the code behind them are those of evidence packs, without
scenarios and claims; what differs is the signature.

    first    manifest.json.asc, OpenPGP; the manifest holds no digest of the checksums, so the
             signature covers none of the contents: such a pack counts as not signed
    OpenPGP  manifest.json.asc, and the manifest binds checksums.sha256
    Ed25519  manifest.signature.json, as in evidence packs

Reports of the first generation (``evaluation.cert.json``) follow a schema of their own; those
that do not follow the schema of today are believed, and that is said. The verdict is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invarlock.contracts import violations
from invarlock.counts import counted
from invarlock.errors import InputError
from invarlock.evidence import Code, escape
from invarlock.evidence import checksums as sums
from invarlock.evidence import manifest as manifests
from invarlock.evidence.findings import first_text
from invarlock.evidence.layout import check_json
from invarlock.evidence.published import gpg
from invarlock.evidence.published.report_checks import report_passes
from invarlock.evidence.report_verify import (
    ReportOptions,
    ReportResult,
    envelope,
    verify_report,
)
from invarlock.evidence.result import PackResult, Step, VerifyOptions
from invarlock.evidence.tree import REPORT_NAME, Tree
from invarlock.evidence.verify import (
    check_listed,
    check_references,
    expect_signer,
    open_pack,
    read_manifest,
    unsigned,
)
from invarlock.files import parse_json
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST

FORMAT = "proof-pack-verify-v1"
CERTIFICATE = "evaluation.cert.json"
FOLDERS = ("reports/", "certs/")


def verify_proof_pack(root: Path, options: VerifyOptions) -> PackResult:
    """Verify the older pack in folder ``root``; every problem of the pack is in the result.

    Raises:
        ConfigError: a file of public keys cannot be used (exit 2).
    """
    result = PackResult(escape(root), options, format=FORMAT)
    _take_steps(root, result)
    return result.bounded()


def _take_steps(root: Path, result: PackResult) -> None:
    tree = open_pack(root, result)
    if tree is None:
        return
    manifest = read_manifest(tree, result, manifests.OLD_FORMAT)
    if manifest is None or not _signature(tree, manifest, result):
        return
    listed = check_listed(tree, manifest, result, _control(tree, manifest))
    check_references(tree, manifest, listed, result)
    _json(tree, result)
    if not result.errors:
        _reports(tree, result)


def _is_first(manifest: Mapping[str, Any]) -> bool:
    return "checksums_sha256_digest" not in manifest


def _control(tree: Tree, manifest: Mapping[str, Any]) -> sums.Names:
    """The files that the checksums do not list.

    In the first generation that is only the file of checksums itself; since then it is also the
    manifest, which holds the digest of the checksums, and the manifest's signature.
    """
    if _is_first(manifest):
        return (sums.CHECKSUMS,)
    return (sums.MANIFEST, gpg.NAME if gpg.NAME in tree.files else sums.SIGNATURE, sums.CHECKSUMS)


def _signature(tree: Tree, manifest: Mapping[str, Any], result: PackResult) -> bool:
    """Step 3; whether the manifest may be used."""
    step = Step(3, "signature", Code.SIGNATURE)
    result.steps.append(step)
    found = [n for n in (gpg.NAME, sums.SIGNATURE) if n in tree.files or n in tree.refused]
    if not found:
        problem = f"neither {gpg.NAME} nor {sums.SIGNATURE} is there; the pack is not signed"
        return unsigned(problem, manifest, result)
    file, signed = tree.files.get(found[0]), tree.files[sums.MANIFEST].data
    if len(found) > 1:
        step.findings.append(f"{gpg.NAME} and {sums.SIGNATURE} are both there; expected one")
    elif file is None or file.data is None or signed is None:
        step.findings.append(f"{found[0]}: is no usable file")
    elif found[0] == gpg.NAME:
        signers, step.findings = gpg.check_signature(signed, file.data, result.options.public_keys)
    elif result.options.public_keys:
        step.findings.append(
            f"{found[0]}: is an Ed25519 signature; name its key with --expected-fingerprint, "
            "not with --public-key"
        )
    else:
        signer, step.findings = manifests.read_signature(
            signed, file.data, manifests.OLD_SIGNATURE_FORMAT
        )
        signers = [signer]
    named = manifest.get("signing_key_fingerprint")
    if not step.findings and named and named not in signers:
        step.findings.append(
            f"{sums.MANIFEST}: /signing_key_fingerprint is {escape(named)}; signed by {signers[0]}"
        )
    if step.findings:
        return False
    if _is_first(manifest):
        return _uncovered(signers[0], result)
    return expect_signer(signers, result)


def _uncovered(signer: str, result: PackResult) -> bool:
    """A good signature that covers no content."""
    problem = (
        f"the signature by {signer} covers {sums.MANIFEST} and none of the contents: anyone can "
        f"change them and rewrite {sums.CHECKSUMS}; the pack counts as not signed"
    )
    wanted = result.options
    if wanted.strict or wanted.pinned or not wanted.allow_unsigned:
        result.steps[-1].findings.append(problem)
    else:
        result.warnings.append(problem)
        result.steps[-1].note = f"of {sums.MANIFEST} only"
    result.authenticity = "unsigned"
    return not result.steps[-1].findings


def _json(tree: Tree, result: PackResult) -> None:
    """Step 6; also reads the recorded verdict, which nothing recomputes."""
    step = Step(6, "json", Code.INTEGRITY, check_json(tree))
    result.steps.append(step)
    path = next((path for path in manifests.VERDICTS if path in tree.files), None)
    if path is not None and not step.findings:
        try:
            result.recomputed.recorded = first_text(tree.json_object(path).get("verdict"))
        except InputError as error:
            step.findings.append(escape(error))
    step.note = f"verdict {escape(result.verdict)} not re-checked"
    result.believed.append(f"the verdict ({escape(path or 'which is not there')})")


# --- step 7: reports ------------------------------------------------------------------------


def _reports(tree: Tree, result: PackResult) -> None:
    step = Step(7, "reports", Code.REPORTS)
    result.steps.append(step)
    if result.options.skip_verify:
        step.note = "skipped"
        return
    names = (f"/{REPORT_NAME}", f"/{CERTIFICATE}")
    paths = [p for p in sorted(tree.files) if p.startswith(FOLDERS) and p.endswith(names)]
    clean = [path for path in paths if "errors" not in path.split("/")]
    if not clean:
        step.findings.append("no report has to pass, so nothing shows that any can")
    results: dict[str, ReportResult] = {}
    for path in paths:
        old = _older_schema(tree, path)
        if old:
            result.believed.append(f"{escape(path)}: all of it, since {old}")
            continue
        found = results[path] = _verify_one(tree, path, result.options)
        shown = f"{escape(path)}: "
        result.believed += [shown + claim for claim in found.believed]
        lines = [f"{shown}{f.code} {escape(f.message)}" for f in found.findings]
        if path in clean or found.report is None:
            step.findings += lines
        elif found.ok and report_passes(found.report):
            step.findings.append(f"{shown}passed, but has to fail")
    profile = result.options.profile
    result.envelope = envelope([results[p] for p in clean if p in results], profile)
    failures = [path for path in paths if path in results and path not in clean]
    if failures:
        result.envelope["expected_failures"] = {
            "verify": [envelope([results[path]], profile) for path in failures],
            "reports": [escape(path) for path in failures],
        }
    step.note = (
        f"{counted(len(paths), 'report')}, {len(results)} verified; {len(clean)} have to pass"
    )


def _older_schema(tree: Tree, path: str) -> str:
    """Why a certificate of the first generation cannot be verified here, empty when it can."""
    if not path.endswith(CERTIFICATE):
        return ""
    wrong = violations(parse_json(tree.data(path), path), "evaluation-report")  # step 6 read it
    return f"it follows an older schema ({escape(wrong[0])})" if wrong else ""


def _verify_one(tree: Tree, path: str, options: VerifyOptions) -> ReportResult:
    """Verify one report; most older packs hold no runtime manifests, so none is demanded."""
    beside = tree.files.get(path.rpartition("/")[0] + "/" + RUNTIME_MANIFEST)
    provenance = "host" if beside is None else "declared"
    return verify_report(
        tree.files[path].data or b"",
        beside.data if beside else None,
        escape(path),
        ReportOptions(profile=options.profile, provenance=provenance),
    )
