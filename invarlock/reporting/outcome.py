"""The third outcome: too little evidence is not a bad model.

``pass`` where every gate holds; ``fail`` where something was measured and found bad;
``inconclusive`` where nothing was, but evidence is lacking: fewer windows, tokens or replicates
than the tier asks for, an interval that reaches across the limit, or a subject that this machine
had not the memory or the time to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import UNSET

from invarlock.documents.fields import EvidenceNeeded, Outcome
from invarlock.guards.guard import NO_WEIGHTS
from invarlock.pages.reading import NOT_TRIED, Report, block
from invarlock.reporting import signals

PASS: Final = "pass"
FAIL: Final = "fail"
INCONCLUSIVE: Final = "inconclusive"
WORDS = {
    "tokens": "tokens",
    "preview_windows": "preview windows",
    "final_windows": "final windows",
    "final_windows_to_decide": "final windows to decide",
    "examples": "examples",
    "examples_to_decide": "examples to decide",
    "documents": "documents",
    "replicates": "bootstrap replicates",
    "alpha": "error of the interval (bootstrap.alpha)",
}


class EvidenceNeed(EvidenceNeeded):
    """Evidence that a decision lacks, in words."""

    def __str__(self) -> str:
        words = WORDS.get(self.what, self.what)
        if self.what == "alpha":
            return f"{words} {self.have:g}, at most {self.need:g}"
        of = f" ({self.slice})" if self.slice is not UNSET else ""
        about = "about " if self.what.endswith("_to_decide") else ""
        return f"{self.have:,.0f} of {about}{self.need:,.0f} {words}{of}"


def outcome_of(reasons: Iterable[str]) -> Outcome:
    """The outcome, from all reasons not to pass (``signals.pass_reasons``)."""
    found = list(reasons)
    if not found:
        return PASS
    return INCONCLUSIVE if all(map(signals.lacks_evidence, found)) else FAIL


def outcome(report: Report) -> Outcome:
    """``pass``, ``fail`` or ``inconclusive``."""
    return outcome_of(signals.pass_reasons(report))


def needed(report: Report) -> list[EvidenceNeed]:
    """What an inconclusive report lacks; empty for any other outcome."""
    if outcome(report) != INCONCLUSIVE:
        return []
    listed = block(report, "primary_metric").get("evidence_needed")
    found = [need(row) for row in listed] if isinstance(listed, list) else []
    tail = block(report, "primary_metric_tail")
    least = block(tail, "policy").get("min_windows")
    have = block(tail, "stats").get("n")
    gated = "primary_metric_tail_acceptable" in signals.gates(report)
    named = max((n.need for n in found if n.what == "final_windows"), default=0.0)
    if gated and isinstance(have, int) and isinstance(least, int) and have < least > named:
        found.append(EvidenceNeed("final_windows", have, least))
    return found


def need(row: Mapping[str, Any]) -> EvidenceNeed:
    """A row of ``evidence_needed``."""
    of = str(row["slice"]) if "slice" in row else UNSET
    return EvidenceNeed(str(row["what"]), float(row["have"]), float(row["need"]), of)


def too_little(needs: Sequence[EvidenceNeed], reasons: Sequence[str]) -> str:
    """Why nothing is decided, for people: ``too little evidence (22,680 of 50,000 tokens)``."""
    untried = [reason for reason in reasons if reason in NOT_TRIED]
    if untried:
        return f"the subject was not measured ({untried[0].replace('_', ' ')})"
    if signals.METRIC_ONLY in reasons:
        return f"metric only, {NO_WEIGHTS}"
    words = list(map(str, needs))
    if signals.INCONCLUSIVE in reasons and not any(n.what.endswith("_to_decide") for n in needs):
        words.append("the interval reaches across the limit")
    return f"too little evidence ({', '.join(words) or ', '.join(reasons)})"
