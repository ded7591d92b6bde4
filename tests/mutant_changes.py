"""What mutants of the verifier are made of: places of its source, and changes there."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """One place of the package: ``old`` stands in the file exactly once and becomes ``new``."""

    file: str
    old: str
    new: str


def never(file: str, condition: str) -> Change:
    """A condition that no longer holds."""
    return Change(file, condition, f"{condition.split()[0]} False:")


def gone(file: str, statement: str) -> Change:
    """A statement that is no longer made."""
    return Change(file, statement, "pass")


TREE, SUMS, KEYS = "evidence/tree.py", "evidence/checksums.py", "evidence/keys.py"
MANIFEST, VERIFY, CLI = "evidence/manifest.py", "evidence/verify.py", "cli/evidence_pack.py"
SCENARIOS, CLAIMS = "evidence/scenarios_check.py", "evidence/claims.py"
PROVENANCE, REPORT = "evidence/provenance.py", "evidence/report_verify.py"
IDENTITY = "evidence/identity.py"
PACK, MATRIX, FILES = "evidence/pack_reports.py", "evidence/report_checks.py", "files.py"

EVIDENCE = Change(REPORT, "lines = replay(report, options.tolerance)", "lines = []")
UNREADABLE = Change(
    REPORT,
    'result.findings.append(Finding("E602", "contradiction", text))',
    "del text",
)
RECOMPUTED = Change(
    REPORT,
    "        recompute,\n        lambda: _refused",
    "        lambda: _refused",
)
NO_RATIO = Change(MATRIX, "        _ratio,\n", "")
NO_PAIRING = Change(MATRIX, "        _pairing,\n", "")
NO_INTERVAL = Change(MATRIX, "        _interval,\n", "")
NO_LINTS = Change(MATRIX, "        _lints,\n", "")
NO_SHARED = gone(PACK, "step.findings += _shared(tree, place, report, shared)")
NOT_EXPECTED = Change(
    PACK, '        lines.append(f"not as expected: {escape(why)}")', "        pass"
)
ALL_EVIDENCE = (EVIDENCE, UNREADABLE, RECOMPUTED, NO_RATIO, NO_SHARED)
NO_COMPARE = gone(CLAIMS, "claims.findings += _compare(tree, recorded, claims)")
NO_README = gone(CLAIMS, "claims.findings += _first_line(tree, claims)")
NO_SPOKEN = gone(CLAIMS, 'claims.findings += [f"{path}: {line}" for line in spoken.wrong]')
NO_FOLDER = Change(
    CLAIMS,
    "if place.folder != (wanted := _folder(record)):",
    "if (wanted := _folder(record)) == 0:",
)
NO_MANIFEST = gone(
    VERIFY, "step.findings += identity.check_manifest(tree, manifest, listed, claims.verdict)"
)
ALL_CLAIMS = (NO_COMPARE, NO_README, NO_FOLDER, NO_MANIFEST)
NO_POINT = never(KEYS, "if not crypto_core_ed25519_is_valid_point(public):")
NO_ORDER = never(KEYS, 'if int.from_bytes(public, "little") & (2**255 - 1) >= FIELD_PRIME:')
NO_VERIFY = Change(
    KEYS,
    "    except BadSignatureError:\n        return False",
    "    except BadSignatureError:\n        return True",
)
NO_SIZE = Change(TREE, "(size <= limit, ", "(True, ")
NO_TOTAL = Change(TREE, "(self.total <= MAX_PACK, ", "(True, ")
NO_PARSED = Change(TREE, "(self.parsed <= MAX_PARSED, ", "(True, ")
