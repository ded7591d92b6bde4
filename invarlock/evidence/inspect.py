"""``evidence-pack inspect``: what a pack is, its integrity and its signature, without replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invarlock.evidence import checksums as sums
from invarlock.evidence import escape
from invarlock.evidence.checksums import MIRRORS
from invarlock.evidence.layout import expects_pass, places, read_scenarios
from invarlock.evidence.manifest import FORMAT as PACK_FORMAT
from invarlock.evidence.result import MAX_LISTED, PackResult, VerifyOptions
from invarlock.evidence.tree import Tree
from invarlock.evidence.verify import verify_pack

FORMAT = "evidence-pack-inspect-v1"


def inspect_pack(root: Path) -> tuple[PackResult, dict[str, Any]]:
    """The verification without its last step, and the ``evidence-pack-inspect-v1`` document."""
    result = verify_pack(root, VerifyOptions(skip_verify=True, allow_unsigned=True))
    steps = {step.name: not step.findings for step in result.steps}
    tree = result.tree or Tree()
    scenarios, _ = read_scenarios(tree)
    found = places(tree)
    clean = sum(expects_pass(place, scenarios) for place in found)
    listing = tree.files.get(sums.CHECKSUMS)
    digests = sums.parse(listing.data or b"")[0] if listing else {}
    wrong, extra = sums.compare(tree, digests)
    mirrors = not any(line.startswith(tuple(MIRRORS)) for line in wrong)
    listed = [f for step in result.steps if step.name == "checksums" for f in step.findings]
    signed = sums.SIGNATURE in tree.files
    ok = result.exit_code == 0
    level = result.recomputed.evidence_level
    return result, {
        "format_version": FORMAT,
        "pack": result.pack,
        "ok": ok,
        "exit_code": result.exit_code,
        "manifest": {
            "valid": steps.get("manifest", False),
            "format": PACK_FORMAT if steps.get("manifest") else None,
            "evidence_level": level,
        },
        "signature": {
            "present": signed,
            "valid": signed and result.signer is not None and steps.get("signature", False),
            "signer_fingerprint": result.signer,
        },
        "reports": {"total": len(found), "clean": clean, "errors": len(found) - clean},
        "artifacts": {
            "files": len(tree.files),
            "hashed": len(tree.files) - len(extra) - sum(n in tree.files for n in CONTROL),
        },
        "integrity": {
            "checksums_bound": not any(line.startswith(sums.CHECKSUMS + ": has") for line in listed)
            and "checksums" in steps,
            "checksums_ok": steps.get("checksums", False),
            "control_file_mirrors_ok": mirrors,
            "manifest_provenance_ok": steps.get("references", False),
            "extra_files": [escape(path) for path in extra[:MAX_LISTED]],
        },
        "issues": result.errors + result.warnings,
        "strict_ready": ok and result.signer is not None and not extra,
        "evidence_level": level,
        "verdict": result.verdict,
        "outcome": (result.recomputed.verdict or {}).get("outcome"),
    }


CONTROL = (*sums.CONTROL_FILES, *MIRRORS)
