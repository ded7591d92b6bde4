"""``runtime.manifest.json``: where one report was made, bound to the report's bytes.

Checked beyond the published verifier: the date is a date, an image reference that is pinned
names the recorded digest, and the manifest and the report agree about the execution mode and
about what the run took, which follows from the phases' times.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from invarlock.contracts import violations
from invarlock.differences import is_number
from invarlock.errors import InputError
from invarlock.evidence.findings import UNREADABLE, Finding, Kind, dig, first_text
from invarlock.files import parse_json
from invarlock.metrics import ARMS
from invarlock.metrics.cost import cost, costs_of
from invarlock.reporting.runtime_manifest import NAME

UNKNOWN = "unknown"
PROVENANCE_MODES = ("declared", "container", "host")
_PINNED = re.compile(r"@(sha256:[0-9a-f]{64})\Z")


class Provenance(Struct):
    """The outcome of checking one report's runtime manifest.

    ``mode`` is what the caller demands: ``container`` - a container run; ``host`` - nothing
    (published: not verified); ``declared`` - whatever the report declares, honestly recorded.
    """

    mode: str
    declared: str
    execution_mode: str | None = None  # of the manifest, when it is readable
    issues: list[tuple[str, str]] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """A container run whose manifest is in order."""
        return not self.issues and self.mode != "host" and self.execution_mode == "container"

    def findings(self) -> list[Finding]:
        """The issues as findings of the report."""
        found = []
        for code, message in self.issues:
            absent = code == "manifest_missing"
            wrong = code in ("verifier_failed", "manifest_invalid")
            kind: Kind = "missing" if absent else "contradiction" if wrong else "policy"
            found.append(Finding("PROVENANCE", kind, message))
        return found

    def to_json(self) -> dict[str, Any]:
        """The ``runtime_provenance`` block of the verify-v1 envelope."""
        skipped = not self.verified and not self.issues
        return {
            "declared_mode": self.declared,
            "status": "failed" if self.issues else "skipped" if skipped else "verified",
            "verified": self.verified,
            "skipped": skipped,
            "strict_blocking": not self.verified,
            "issues": [{"code": c, "message": m, "details": {}} for c, m in self.issues],
        }


def declared_mode(report: Mapping[str, Any]) -> str:
    """The execution mode a report declares, in the published order of places."""
    return (
        first_text(
            dig(report, "context", "runtime", "execution_mode"),
            dig(report, "context", "runtime", "runtime_provenance_declared"),
            dig(report, "context", "execution_mode"),
            dig(report, "provenance", "runtime", "execution_mode"),
            dig(report, "provenance", "execution_mode"),
            dig(report, "meta", "execution_mode"),
        )
        or UNKNOWN
    )


def check(
    report: Mapping[str, Any], report_sha256: str, manifest: bytes | None, mode: str
) -> Provenance:
    """Check the manifest that lies beside a report (None: there is none)."""
    result = Provenance(mode, declared_mode(report))
    if manifest is None:
        if mode != "host":
            # check: runtime.missing
            result.issues.append(("manifest_missing", f"there is no {NAME} beside the report"))
        return result
    try:
        document = parse_json(manifest, NAME)
    except InputError as error:
        result.issues.append(("manifest_invalid", str(error)))
        return result
    wrong = violations(document, "runtime-manifest")
    if wrong:  # check: runtime.contract
        result.issues += [("verifier_failed", f"{NAME}: {line}") for line in wrong]
        return result
    result.execution_mode = document["execution_mode"]
    if result.declared == UNKNOWN:  # by the report; then the manifest alone declares it
        result.declared = document["execution_mode"]
    # check: runtime.container
    if mode == "container" and document["execution_mode"] != "container":
        result.issues.append(
            (
                "execution_mode_invalid",
                f"{NAME}: /execution_mode is {document['execution_mode']}; expected container; "
                "a host run can be verified with --runtime-provenance host",
            )
        )
    # check: runtime.rules
    result.issues += [("verifier_failed", f"{NAME}: {line}") for line in _rules(document)]
    if document["report"]["sha256"] != report_sha256:  # check: runtime.digest
        result.issues.append(
            (
                "verifier_failed",
                f"{NAME}: /report/sha256 is {document['report']['sha256']}; "
                f"the report's digest is {report_sha256} (mismatch)",
            )
        )
    if result.declared != document["execution_mode"]:  # check: runtime.mode
        result.issues.append(
            (
                "verifier_failed",
                f"{NAME}: /execution_mode is {document['execution_mode']}; "
                f"the report declares {result.declared[:40]!r} (mismatch)",
            )
        )
    # check: runtime.telemetry
    result.issues += [
        ("verifier_failed", f"{NAME}: {line}") for line in _telemetry(report, document)
    ]
    return result


def _telemetry(report: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """What the run took is what its times give, and what the report says where it says it."""
    context = document.get("context", {})
    told = costs_of(stated) if isinstance(stated := report.get("telemetry"), Mapping) else {}
    shown = context.get("telemetry")
    if shown is None:  # of a version that did not state it
        return ["/context/telemetry is missing, and the report states it"] if told else []
    found = []
    if told and told != shown:
        found.append("/context/telemetry is not what the report states in /telemetry")
    seconds, memory = (context.get(name, {}) for name in ("timings_seconds", "memory_mb"))
    counts = [
        rows
        for arm in ARMS
        if isinstance(rows := dig(report, "evaluation_windows", arm, "token_counts"), list)
        and all(map(is_number, rows))
    ]
    if context.get("command") == "report" and not seconds and not memory:
        return found  # of two finished runs: what they took was measured where they ran
    if all(map(is_number, [*seconds.values(), *memory.values()])):
        try:
            given = cost(seconds, memory, int(sum(map(sum, counts))))
        except UNREADABLE:  # beyond what a number holds
            given = {}
        if given != shown:
            found.append("/context/telemetry does not follow from the times and the windows")
    return found


def _rules(document: Mapping[str, Any]) -> list[str]:
    """What the schema cannot say."""
    found = []
    runtime, container = document["runtime"], document["execution_mode"] == "container"
    if not _is_date_time(document["generated_at_utc"]):
        found.append("/generated_at_utc is no date-time with an offset")
    if runtime["container_execution"] is not container:
        found.append("/runtime/container_execution contradicts /execution_mode")
    if container and runtime["image_digest"] is None:
        found.append("/runtime/image_digest is missing for a container run")
    pinned = _PINNED.search(runtime["image_ref"])
    if pinned and pinned[1] != runtime["image_digest"]:
        found.append("/runtime/image_ref is pinned to another digest than /runtime/image_digest")
    config = document["config"]
    if (config["source"] == "missing") != (config["sha256"] is None):
        found.append("/config/sha256 contradicts /config/source")
    return found


def _is_date_time(text: str) -> bool:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return "T" in text and moment.tzinfo is not None
