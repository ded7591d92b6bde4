"""How a pack is verified, and what was found: options, steps, result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from invarlock.evidence import Code
from invarlock.evidence.consistency import Recomputed
from invarlock.evidence.tree import Tree
from invarlock.shown import shortened

FORMAT = "evidence-pack-verify-v1"
MAX_LISTED = 1000  # findings of one step, and warnings, that are listed
MAX_LINE = 500  # characters of one of them


class VerifyOptions(Struct, frozen=True):
    """How strictly a pack is verified.

    ``pinned``: the signer must be this fingerprint; ``trusted``: and one of these, where a trust
    store is used, named in ``trust_store``; ``public_keys``: OpenPGP keys, one of which must have
    signed an older pack. ``baseline``: the run report that every report has to be of, instead of
    the one in the pack. ``allow_unsigned``: a missing signature is a warning
    (never with ``strict``). ``pack_whatever_is_true``: for ``build`` - a pack that truthfully
    says that controls failed, or holds none that has to pass, is in order.
    """

    strict: bool = False
    replay: bool = False
    skip_verify: bool = False
    profile: str = "dev"
    report_assurance: str = "report"
    pinned: str | None = None
    trusted: frozenset[str] | None = None
    trust_store: str | None = None
    public_keys: tuple[Path, ...] = ()
    allow_unsigned: bool = False
    baseline: dict[str, Any] | None = None
    pack_whatever_is_true: bool = False


class Step(Struct):
    """One step: ``note`` says what was in order, or why it was not taken."""

    number: int
    name: str
    code: Code
    findings: list[str] = field(default_factory=list)
    note: str = ""


class PackResult(Struct):
    """Everything a verification found."""

    pack: str
    options: VerifyOptions
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    authenticity: str = "unverified"
    signer: str | None = None
    recomputed: Recomputed = field(default_factory=Recomputed)
    envelope: dict[str, Any] | None = None
    replayed: list[str] = field(default_factory=list)
    believed: list[str] = field(default_factory=list)
    tree: Tree | None = None
    format: str = FORMAT

    def bounded(self) -> PackResult:
        """The same with no more and no longer findings than are listed."""
        for step in self.steps:
            step.findings = _bounded(step.findings)
        self.warnings = _bounded(self.warnings)
        return self

    @property
    def exit_code(self) -> int:
        """The smallest code of the failed steps, 0 when none failed."""
        return min((int(step.code) for step in self.steps if step.findings), default=0)

    @property
    def errors(self) -> list[str]:
        """All findings of all steps."""
        return [finding for step in self.steps for finding in step.findings]

    @property
    def verdict(self) -> str | None:
        """The recomputed verdict, else the recorded one."""
        recomputed = (self.recomputed.verdict or {}).get("verdict")
        return str(recomputed) if recomputed else self.recomputed.recorded

    @property
    def word(self) -> str | None:
        """PASS, FAIL or INCONCLUSIVE."""
        from invarlock.verdict.text import word_of

        return (
            word_of(self.recomputed.verdict)
            if self.recomputed.verdict
            else self.recomputed.recorded
        )

    def to_json(self) -> dict[str, Any]:
        """The document of ``contracts/evidence-pack-verify.schema.json``."""
        options = self.options
        document: dict[str, Any] = {
            "format_version": self.format,
            "pack": self.pack,
            "ok": self.exit_code == 0,
            "exit_code": self.exit_code,
            "strict": options.strict,
            "skip_verify": options.skip_verify,
            "replay": options.replay,
            "profile": options.profile,
            "report_assurance": options.report_assurance,
            "warnings": self.warnings,
            "errors": self.errors,
            "steps": [
                {
                    "number": step.number,
                    "name": step.name,
                    "ok": not step.findings,
                    "note": step.note,
                    "findings": step.findings,
                }
                for step in self.steps
            ],
            "evidence_level": self.recomputed.evidence_level,
            "authenticity": self.authenticity,
            "verdict": {
                "recorded": self.recomputed.recorded,
                "recomputed": (self.recomputed.verdict or {}).get("verdict"),
                "outcome": (self.recomputed.verdict or {}).get("outcome"),
            },
            "replayed": self.replayed,
            "believed": self.believed,
        }
        if options.trust_store:
            document["trust_store"] = options.trust_store
        if self.signer:
            document["signer_fingerprint"] = self.signer
        if self.envelope is not None:
            document["verify"] = self.envelope
        return document


def _bounded(lines: Sequence[str]) -> list[str]:
    """Findings as they are listed: a hostile pack cannot make the output endless."""
    kept = [shortened(line, MAX_LINE) for line in lines[:MAX_LISTED]]
    more = len(lines) - len(kept)
    return [*kept, f"and {more} more"] if more else kept
