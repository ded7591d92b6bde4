"""Verification of one evaluation report, and the ``verify-v1`` envelope over several.

Steps: strict JSON and schema; the check matrix of the profile; the runtime manifest beside the
report; strict assurance where it is demanded or claimed; the point recomputed from the windows;
and the replay of every decision from the recorded evidence of both runs. All findings of all
steps are reported; a report that is malformed is not looked at further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from invarlock.contracts import violations
from invarlock.errors import InputError
from invarlock.evidence import parity
from invarlock.evidence.findings import UNREADABLE, Finding, dig, number, numbers
from invarlock.evidence.published import assurance, provenance, report_checks
from invarlock.files import parse_json, sha256_bytes
from invarlock.metrics import ARMS

FORMAT = "verify-v1"
RUNTIME_PROVENANCE = provenance.PROVENANCE_MODES  # what may be demanded of it
MAX_REPLICATES = 100_000  # bootstrap replicates that a replay may be asked for
MAX_DRAWS = 20_000_000  # replicates x windows of a replay: drawn in parts, about a second
MAX_FINDINGS = 200  # of one report that are listed; a pack has up to 2,000 reports
CONTRADICTIONS = ("malformed", "contradiction", "incomparable")
TYPED_ERRORS = ("E002", "E003", "E004", "E006", "E602")
REPLAYED = "ratio, interval, decision, drift, guard decisions and flags"


class ReportOptions(Struct, frozen=True):
    """How strictly a report is verified.

    ``profile``: dev | ci | release; ``assurance``: off | report | strict; ``provenance``:
    declared | container | host; ``tolerance``: relative and absolute, of recomputed numbers;
    ``require_replay``: evidence that is missing is a finding; ``truth_only``: a report that says
    itself that it does not pass is in order, if that is true.
    """

    profile: str = "dev"
    assurance: str = "report"
    provenance: str = "declared"
    tolerance: float = 1e-9
    fail_on_warnings: bool = False
    require_replay: bool = False
    truth_only: bool = False


class ReportResult(Struct):
    """What verification found in one report; ``report`` is None when it is malformed."""

    ident: str
    report: Mapping[str, Any] | None = None
    findings: list[Finding] = field(default_factory=list)
    provenance: provenance.Provenance | None = None
    recompute: dict[str, Any] | None = None
    replayed: bool = False
    replay_lines: list[str] = field(default_factory=list)  # what a replay found, if it was made
    believed: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No finding."""
        return not self.findings

    @property
    def passes(self) -> bool:
        """Whether the report says of its subject that it passes."""
        return self.report is not None and report_checks.report_passes(self.report)

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
        return not any(f.kind in CONTRADICTIONS for f in self.findings)

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
            "kind": metric.get("kind", ""),
            "ok": self.ok,
            "passes": self.passes,
            "reason": self.reason,
            "ratio_vs_baseline": number(metric.get("ratio_vs_baseline")),
            "ci": numbers(metric.get("display_ci")),
            "recompute": self.recompute,
            "replayed": self.replayed,
            "believed": self.believed,
            "outcome": dig(report, "assurance", "outcome"),
            "guard_warnings_present": warnings > 0,
            "warning_count": warnings,
            "verification": {"runtime_provenance": shown.to_json()},
            "errors": [finding._asdict() for finding in self.findings],
        }


def _warnings(report: Mapping[str, Any]) -> int:
    count = dig(report, "guard_warnings", "warning_count")
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 0


def page_options(profile: str) -> ReportOptions:
    """How ``verify.json`` beside a report was made: as ``verify`` does in that profile, and without
    a demand on where the report was made."""
    return ReportOptions(profile=profile, provenance="host", truth_only=profile == "dev")


def verify_report(
    data: bytes,
    manifest: bytes | None,
    ident: str,
    options: ReportOptions,
    baseline: Mapping[str, Any] | None = None,
    known: ReportResult | None = None,
    *,
    sha256: str = "",
    strict: bool = False,
) -> ReportResult:
    """Verify one report.

    Args:
        data: the bytes of ``evaluation.report.json``.
        manifest: the bytes of the runtime manifest beside it, None where there is none.
        ident: how the report is named in results.
        options: how strictly.
        baseline: the baseline's run report, for the parity checks.
        known: what was found in the same report with other options; what does not depend on them
            is taken from there, since a replay takes most of the time.
        sha256: of ``data``, where it is known.
        strict: whether ``data`` have been read strictly, so that decoding them is enough.
    """
    result = ReportResult(ident)
    if known is not None and known.report is not None:
        report: Any = known.report
    else:
        try:
            report = msgspec.json.decode(data) if strict else parse_json(data, ident)
        except InputError as error:
            # check: report.json
            result.findings.append(Finding("E601", "malformed", str(error)))
            return result
        wrong = violations(report, "evaluation-report")
        if wrong:  # check: report.schema
            result.findings += [Finding("E601", "malformed", line) for line in wrong]
            return result
    result.report = report
    shown = provenance.check(report, sha256 or sha256_bytes(data), manifest, options.provenance)
    result.provenance = shown

    def recompute() -> list[Finding]:
        result.recompute, found = report_checks.recompute(
            report, options.profile, options.tolerance
        )
        return found

    steps: list[Callable[[], list[Finding]]] = [
        lambda: _matrix(report, options),
        lambda: parity.check(report, baseline) if baseline is not None else [],
        shown.findings,
        # check: report.assurance
        lambda: assurance.check(report, _demanded(report, options), shown.verified),
        recompute,  # check: report.recompute
        lambda: _refused_warnings(report, options),
        lambda: _replay(result, report, options, known),  # check: report.replay
    ]
    for step in steps:
        try:
            result.findings += step()
        except UNREADABLE as error:
            # A report may follow its schema and still hold evidence of an impossible shape.
            text = f"the evidence cannot be read ({type(error).__name__}: {str(error)[:120]})"
            # check: report.unreadable
            result.findings.append(Finding("E602", "contradiction", text))
    result.findings = _bounded(result.findings)
    return result


def _matrix(report: Mapping[str, Any], options: ReportOptions) -> list[Finding]:
    """The rows of the check matrix; where only the truth is asked for, without those that a true
    report breaks: its gates, the lints that name them, and that nothing was measured."""
    found = report_checks.check(report, options.profile)
    return [f for f in found if not (options.truth_only and f.kind == "policy")]


def _demanded(report: Mapping[str, Any], options: ReportOptions) -> str:
    """The assurance level to check; a report that states a failure makes no claim to check."""
    admitted = dig(report, "assurance", "verdict") == "fail"
    if options.truth_only and options.assurance == "report" and admitted:
        return "off"
    return options.assurance


def _bounded(findings: list[Finding]) -> list[Finding]:
    """The findings as they are listed, with at least one of every code and kind that there is."""
    kept, rest = findings[:MAX_FINDINGS], findings[MAX_FINDINGS:]
    first = {(f.code, f.kind): f for f in reversed(rest)}
    for same in {(f.code, f.kind) for f in kept}:
        first.pop(same, None)
    kept += first.values()
    if len(kept) < len(findings):
        more = f"and {len(findings) - len(kept)} more findings"
        kept.append(kept[0]._replace(message=more))
    return kept


def _refused_warnings(report: Mapping[str, Any], options: ReportOptions) -> list[Finding]:
    count = _warnings(report) if options.fail_on_warnings else 0
    text = f"/guard_warnings/warning_count is {count}"
    return [Finding("POLICY", "policy", text)] if count else []


def _replay(
    result: ReportResult,
    report: Mapping[str, Any],
    options: ReportOptions,
    known: ReportResult | None,
) -> list[Finding]:
    """Recompute what the evidence in the report allows; list the rest as not re-checked."""
    if not _has_evidence(report):
        result.believed.append(REPLAYED)
        if options.require_replay:  # check: report.missing
            text = "the report does not hold both runs' evidence, so nothing can be replayed"
            return [Finding("E004", "missing", text)]
        return []
    too_much = _too_much(report)
    if too_much:  # check: report.draws
        return [Finding("E602", "contradiction", too_much)]
    result.replayed = True
    if known is not None and known.replayed:
        result.believed, result.replay_lines = [*known.believed], known.replay_lines
    else:
        from invarlock.reporting.replay import believed, replay

        result.believed += believed(report)
        result.replay_lines = list(replay(report, options.tolerance))
    return [Finding("E602", "contradiction", f"replay: {line}") for line in result.replay_lines]


def _has_evidence(report: Mapping[str, Any]) -> bool:
    """Whether both runs' sums of both arms are recorded (lists, empty for a rejected subject)."""
    arms = [dig(report, "evaluation_windows", arm, "baseline_nll_sum") for arm in ARMS]
    return all(isinstance(arm, list) for arm in arms)


def _too_much(report: Mapping[str, Any]) -> str:
    """Why a replay would take unreasonable memory or time; empty when it would not."""
    replicates = number(dig(report, "context", "bootstrap", "replicates"))
    if replicates is None:
        return ""  # the replay itself says what is missing
    used = {arm: len(report["evaluation_windows"][arm]["baseline_nll_sum"]) for arm in ARMS}
    windows = max(used.values())
    if not 0 < replicates <= MAX_REPLICATES or replicates * windows > MAX_DRAWS:
        return (
            f"/context/bootstrap/replicates is {replicates:g} over {windows} windows; "
            f"expected 1 to {MAX_REPLICATES} and at most {MAX_DRAWS} draws"
        )
    from invarlock.guards.variance import REPLICATES  # needs NumPy

    trial = dig(report, "variance", "trial")
    columns = trial.values() if isinstance(trial, Mapping) else ()
    tried = max((len(c) for c in columns if isinstance(c, list)), default=0)
    if tried > used["preview"] or REPLICATES * tried > MAX_DRAWS:
        most = min(used["preview"], MAX_DRAWS // REPLICATES)
        return f"/variance/trial is of {tried} windows; expected at most {most}"
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
        "profile": profile,
        "exit_code": exit_code(results, profile),
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
                "context": {"path": result.ident},
            }
    return document


def unloaded(line: str, code: int) -> dict[str, Any]:
    """The envelope where no report could be looked at, as published, with the reason."""
    return {
        "format_version": FORMAT,
        "summary": {"ok": False, "reason": "malformed"},
        "evaluation_report": {"count": 0},
        "results": [],
        "component": "cli",
        "exit_code": code,
        "resolution": {"exit_code": code},
        "error": {
            "code": "USAGE",
            "category": "usage",
            "recoverable": True,
            "context": {"message": line},
        },
    }


def exit_code(results: Sequence[ReportResult], profile: str) -> int:
    """The exit code of all reports: 2 if one is malformed, 3 for a typed error, else 1 or 0."""
    codes = {result.exit_code(profile) for result in results}
    return next((code for code in (2, 3, 1) if code in codes), 0)
