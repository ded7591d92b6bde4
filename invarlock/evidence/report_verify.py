"""Verification of one evaluation report, and the ``verify-v1`` envelope over several.

Steps: strict JSON and schema; the check matrix of the profile; the runtime manifest beside the
report; strict assurance where it is demanded or claimed; the point recomputed from the windows;
and the replay of every decision from the recorded evidence of both runs. All findings of all
steps are reported; a report that is malformed is not looked at further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from invarlock.contracts import violations
from invarlock.errors import InputError
from invarlock.evidence import assurance, coherence, provenance, report_checks
from invarlock.evidence.findings import Finding, dig, number, numbers
from invarlock.files import parse_json, sha256_bytes

FORMAT = "verify-v1"
REPORT_NAME = "evaluation.report.json"
MAX_REPLICATES = 100_000  # bootstrap replicates that a replay may be asked for
MAX_DRAWS = 20_000_000  # replicates x windows of a replay: about 1 GB of working memory
TYPED_ERRORS = ("E002", "E003", "E004", "E006", "E602")
REPLAYED = "ratio, interval, decision, drift, guard decisions and flags"


@dataclass(frozen=True)
class ReportOptions:
    """How strictly a report is verified.

    ``profile``: dev | ci | release; ``assurance``: off | report | strict; ``provenance``:
    declared | container | host; ``tolerance``: relative and absolute, of recomputed numbers;
    ``require_replay``: evidence that is missing is a finding.
    """

    profile: str = "dev"
    assurance: str = "report"
    provenance: str = "declared"
    tolerance: float = 1e-9
    fail_on_warnings: bool = False
    require_replay: bool = False


@dataclass
class ReportResult:
    """What verification found in one report; ``report`` is None when it is malformed."""

    ident: str
    report: Mapping[str, Any] | None = None
    findings: list[Finding] = field(default_factory=list)
    provenance: provenance.Provenance | None = None
    recompute: dict[str, Any] | None = None
    replayed: bool = False
    believed: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No finding."""
        return not self.findings

    @property
    def reason(self) -> str:
        """``ok``, ``policy_fail`` or ``malformed``."""
        if self.ok:
            return "ok"
        malformed = any(finding.kind == "malformed" for finding in self.findings)
        return "malformed" if malformed else "policy_fail"

    @property
    def sound(self) -> bool:
        """Whether what the report says is true, good or not: no contradiction in it."""
        return not any(f.kind in ("malformed", "contradiction") for f in self.findings)

    def exit_code(self, profile: str) -> int:
        """0 ok, 1 policy, 2 malformed, 3 typed error in profiles ci and release."""
        if self.ok:
            return 0
        if self.reason == "malformed":
            return 2
        typed = any(finding.code in TYPED_ERRORS for finding in self.findings)
        return 3 if typed and profile != "dev" else 1

    def to_json(self) -> dict[str, Any]:
        """One entry of ``results`` in the envelope."""
        report = self.report or {}
        metric = report.get("primary_metric", {})
        shown = self.provenance or provenance.Provenance("host", "unknown")
        warnings = _warnings(report)
        return {
            "id": self.ident,
            "schema_version": "v1",
            "kind": metric.get("kind"),
            "ok": self.ok,
            "reason": self.reason,
            "ratio_vs_baseline": number(metric.get("ratio_vs_baseline")),
            "ci": numbers(metric.get("display_ci")),
            "recompute": self.recompute,
            "replayed": self.replayed,
            "believed": self.believed,
            "guard_warnings_present": warnings > 0,
            "warning_count": warnings,
            "verification": {"runtime_provenance": shown.to_json()},
            "errors": [finding._asdict() for finding in self.findings],
        }


def _warnings(report: Mapping[str, Any]) -> int:
    count = dig(report, "guard_warnings", "warning_count")
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 0


def verify_report(
    data: bytes,
    manifest: bytes | None,
    ident: str,
    options: ReportOptions,
    baseline: Mapping[str, Any] | None = None,
) -> ReportResult:
    """Verify one report.

    Args:
        data: the bytes of ``evaluation.report.json``.
        manifest: the bytes of the runtime manifest beside it, None where there is none.
        ident: how the report is named in results.
        options: how strictly.
        baseline: the baseline's run report, for the parity checks.
    """
    result = ReportResult(ident)
    try:
        report = parse_json(data, ident)
    except InputError as error:
        result.findings.append(Finding("E601", "malformed", str(error)))
        return result
    wrong = violations(report, "evaluation-report")
    if wrong:
        result.findings += [Finding("E601", "malformed", line) for line in wrong]
        return result
    result.report = report
    result.findings += report_checks.check(report, options.profile)
    if baseline is not None:
        result.findings += report_checks.parity(report, baseline)
    result.provenance = provenance.check(report, sha256_bytes(data), manifest, options.provenance)
    result.findings += result.provenance.findings()
    result.findings += assurance.check(report, options.assurance, result.provenance.verified)
    result.recompute, found = report_checks.recompute(report, options.profile, options.tolerance)
    result.findings += found
    if options.fail_on_warnings and _warnings(report):
        text = f"/guard_warnings/warning_count is {_warnings(report)}"
        result.findings.append(Finding("POLICY", "policy", text))
    _replay(result, report, options)
    return result


def _replay(result: ReportResult, report: Mapping[str, Any], options: ReportOptions) -> None:
    """Recompute what the evidence in the report allows, or say that it was only believed."""
    if not _has_evidence(report):
        result.believed.append(REPLAYED)
        if options.require_replay:
            text = "the report does not hold both runs' evidence, so nothing can be replayed"
            result.findings.append(Finding("E004", "missing", text))
        return
    too_much = _too_much(report)
    if too_much:
        result.findings.append(Finding("E602", "contradiction", too_much))
        return
    from invarlock.evidence import derived
    from invarlock.reporting.replay import replay

    result.replayed = True
    try:
        replayed = replay(report, options.tolerance)
        lines = [*replayed, *coherence.check(report), *derived.check(report)]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # A report may follow its schema and still hold evidence of an impossible shape.
        lines = [f"the evidence cannot be replayed ({type(error).__name__}: {str(error)[:120]})"]
    result.findings += [Finding("E602", "contradiction", f"replay: {line}") for line in lines]


def _has_evidence(report: Mapping[str, Any]) -> bool:
    """Whether both runs' sums of both arms are recorded (lists, empty for a rejected subject)."""
    arms = [dig(report, "evaluation_windows", arm, "baseline_nll_sum") for arm in coherence.ARMS]
    return all(isinstance(arm, list) for arm in arms)


def _too_much(report: Mapping[str, Any]) -> str:
    """Why a replay would take unreasonable memory or time; empty when it would not."""
    replicates = number(dig(report, "context", "bootstrap", "replicates"))
    if replicates is None:
        return ""  # the replay itself says what is missing
    windows = max(
        len(report["evaluation_windows"][arm]["baseline_nll_sum"]) for arm in coherence.ARMS
    )
    if not 0 < replicates <= MAX_REPLICATES or replicates * windows > MAX_DRAWS:
        return (
            f"/context/bootstrap/replicates is {replicates:g} over {windows} windows; "
            f"expected 1 to {MAX_REPLICATES} and at most {MAX_DRAWS} draws"
        )
    return ""


def envelope(results: Sequence[ReportResult], profile: str) -> dict[str, Any]:
    """The ``verify-v1`` envelope: every report with its own result and all its findings."""
    reasons = {result.reason for result in results}
    worst = next((r for r in ("malformed", "policy_fail") if r in reasons), "ok")
    document: dict[str, Any] = {
        "format_version": FORMAT,
        "summary": {"ok": worst == "ok", "reason": worst},
        "evaluation_report": {"count": len(results)},
        "results": [result.to_json() for result in results],
        "component": "cli",
    }
    for result in results:
        typed = [
            f
            for f in result.findings
            if f.kind == "malformed" or (profile != "dev" and f.code in TYPED_ERRORS)
        ]
        if typed and "error" not in document:
            document["error"] = {
                "code": typed[0].code,
                "category": typed[0].kind,
                "recoverable": False,
                "context": {"id": result.ident},
            }
    return document


def exit_code(results: Sequence[ReportResult], profile: str) -> int:
    """Of all reports: 2 if one is malformed, else 3 if one has a typed error, else 1 or 0."""
    codes = {result.exit_code(profile) for result in results}
    return next((code for code in (2, 3, 1) if code in codes), 0)
