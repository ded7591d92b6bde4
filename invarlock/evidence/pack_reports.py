"""Step 8 of ``evidence-pack verify``: every report of the pack, and what it had to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from invarlock.counts import counted
from invarlock.differences import differences
from invarlock.documents.fields import is_added
from invarlock.documents.verify_v1 import VerifyV1
from invarlock.errors import InputError
from invarlock.evidence import Code, escape
from invarlock.evidence.consistency import Reports, lines_of
from invarlock.evidence.findings import UNREADABLE, Kind, dig
from invarlock.evidence.layout import (
    OUTCOME_NAME,
    VERIFIED,
    Entry,
    ReportPlace,
    expects_pass,
    object_in,
    places,
    run_path,
)
from invarlock.evidence.report_verify import (
    REPLAYED,
    ReportOptions,
    ReportResult,
    envelope,
    page_options,
    verify_report,
)
from invarlock.evidence.result import PackResult, Step, VerifyOptions
from invarlock.evidence.tree import REPORT_NAME, Tree
from invarlock.guards.guard import RUN_SCHEMA
from invarlock.policy import PROFILES
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST


def check_reports(tree: Tree, scenarios: Mapping[str, Entry] | None, result: PackResult) -> None:
    """Take step 8 and add it to ``result``."""
    step = Step(8, "reports", Code.REPORTS)
    result.steps.append(step)
    options = result.options
    if options.skip_verify:
        step.note = "skipped"
        return
    consistent = Reports(tree, scenarios or {})
    step.findings += consistent.findings
    found = places(tree)
    expected_pass = [place for place in found if expects_pass(place, scenarios)]
    if not options.pack_whatever_is_true:
        if not found:
            step.findings.append("reports/: there is no report")
        elif not expected_pass:  # check: expectation.passes
            step.findings.append("reports/: no report has to pass, so nothing shows that any can")
    step.findings += result.recomputed.absent  # check: claims.absent
    # check: report.missing
    if options.replay and result.recomputed.verdict is None and found:
        step.findings.append(f"the verdict cannot be replayed: {result.recomputed.why_believed}")
    results = []
    baselines = {place.model: _baseline(tree, place.model, step) for place in found}
    for place in found:
        report = _verify_one(tree, place, options, baselines[place.model])
        results.append(report)
        step.findings += [
            f"{escape(place.report)}: {text}"
            for text in _failures(report, place, scenarios, result)
        ]
        step.findings += [
            f"{escape(place.report)}: {text}" for text in consistent.check(place, report.report)
        ]
        step.findings += _said(tree, place, report)
        report.report = _without_evidence(report.report)
    result.envelope = _envelope(found, results, expected_pass, options.profile)
    if any(report.replayed for report in results):
        result.replayed.append(
            f"{REPLAYED} of {counted(sum(r.replayed for r in results), 'report')}"
        )
    result.believed += _believed(found, results)
    step.note = (
        f"{counted(len(found), 'report')}, {sum(r.replayed for r in results)} replayed; "
        f"{len(expected_pass)} have to pass"
    )


def _baseline(tree: Tree, model: str, step: Step) -> dict[str, Any] | None:
    """The run report of a model's baseline, where the pack holds it."""
    path = run_path(model)
    if path not in tree.files:
        return None
    try:
        document = tree.json_object(path)
    except InputError as error:
        step.findings.append(escape(error))
        return None
    if document.get("schema") != RUN_SCHEMA:  # check: run.schema
        step.findings.append(f"{escape(path)}: /schema is not {RUN_SCHEMA}")
        return None
    return document


def _said(tree: Tree, place: ReportPlace, report: ReportResult) -> Iterator[str]:
    """Where ``verify.json`` beside a report of ours says something else than ``verify`` does."""
    path = place.folder + VERIFIED
    if report.report is None or not {path, place.folder + OUTCOME_NAME} <= tree.files.keys():
        return
    stored = object_in(tree, path)
    profile = stored.get("profile")
    if profile not in PROFILES:  # check: said.profile
        yield f"{escape(path)}: /profile is none of {', '.join(PROFILES)}"
        return
    beside = tree.files.get(place.folder + RUNTIME_MANIFEST)
    again = verify_report(
        tree.data(place.report),
        beside.data if beside else None,
        REPORT_NAME,
        page_options(profile),
        known=report,
        sha256=tree.files[place.report].sha256,
    )
    found = differences(stored, envelope([again], profile), may_lack=partial(is_added, VerifyV1))
    # check: said.same
    yield from (f"{escape(path)}: {line}" for line in lines_of(found, "verify says"))


def _verify_one(
    tree: Tree, place: ReportPlace, options: VerifyOptions, baseline: dict[str, Any] | None
) -> ReportResult:
    beside = tree.files.get(place.folder + RUNTIME_MANIFEST)
    strict = options.report_assurance == "strict"
    return verify_report(
        tree.files[place.report].data or b"",
        beside.data if beside else None,
        escape(place.report),
        ReportOptions(
            profile=options.profile,
            assurance=options.report_assurance,
            provenance="container" if strict else "declared",
            require_replay=options.replay,
        ),
        options.baseline or baseline,  # check: run.parity
        sha256=tree.files[place.report].sha256,
        strict=place.report in tree.strict,
    )


def _failures(
    report: ReportResult,
    place: ReportPlace,
    scenarios: Mapping[str, Entry] | None,
    result: PackResult,
) -> list[str]:
    """Why a report fails the pack.

    What is not true always does. What is true and not good does where the scenario asks for a
    pass, and the other way round - unless the pack's own recomputed verdict says so: then it is
    an honest FAIL, which only profiles ci and release refuse.
    """
    options, record = result.options, result.recomputed.records.get(place.folder)
    admitted = record is not None and record["as_expected"] is not True
    tolerated = admitted and (options.profile == "dev" or options.pack_whatever_is_true)
    must_pass = expects_pass(place, scenarios) and not tolerated
    borne = () if must_pass else _borne(report, record is not None or options.replay)
    lines = [
        f"{finding.code} {escape(finding.message)}"
        for finding in report.findings
        if finding.kind not in borne or finding.code == "PROVENANCE"
    ]
    if record is not None:
        why = str(record["why"]) if admitted else ""
    else:
        entry = (scenarios or {}).get(place.scenario or "")
        why = _shortfall(report, entry, place.below_errors)
    if why and tolerated:
        result.warnings.append(f"{escape(place.report)}: not as expected: {escape(why)}")
    elif why:
        lines.append(f"not as expected: {escape(why)}")  # check: expectation.fails
    return lines


def _borne(report: ReportResult, complete: bool) -> tuple[Kind, ...]:
    """The kinds of finding by which a report may fail that is there to fail.

    Packs of ours are complete. Of published ones a damaged subject may leave no metric, no
    evidence and nothing that could be compared; that its report says so is no contradiction.
    """
    if complete or report.report is None:
        return ("policy",)
    return ("policy", "missing", "incomparable", "malformed")


def _believed(found: list[ReportPlace], results: list[ReportResult]) -> list[str]:
    """Claims of the reports that no check of the pack recomputes; one line for equal claims."""
    lines, left_open = [], Counter[str]()
    for place, report in zip(found, results, strict=True):
        if report.replayed:
            from invarlock.reporting.replay import POLICY_PACK, PRESET

            traced = (PRESET, POLICY_PACK)
            left_open.update(claim for claim in report.believed if claim not in traced)
        else:
            lines += [f"{escape(place.report)}: {claim}" for claim in report.believed]
    return lines + [
        f"{claim} (of {counted(number, 'report')})" for claim, number in left_open.items()
    ]


def _without_evidence(report: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A report as far as results show it: the per-window evidence of many would fill memory."""
    kept = ("primary_metric", "guard_warnings")
    return None if report is None else {key: report[key] for key in kept if key in report}


def _envelope(
    found: list[ReportPlace],
    results: list[ReportResult],
    expected_pass: list[ReportPlace],
    profile: str,
) -> dict[str, Any]:
    """The verify-v1 envelope: reports that have to pass, and an envelope for each other one."""
    passing = {place.folder for place in expected_pass}
    both = list(zip(found, results, strict=True))
    document = envelope([r for p, r in both if p.folder in passing], profile)
    others = [(p, r) for p, r in both if p.folder not in passing]
    if others:
        document["expected_failures"] = {
            "verify": [envelope([report], profile) for _, report in others],
            "reports": [escape(place.report) for place, _ in others],
        }
    return document


def _shortfall(result: ReportResult, entry: Mapping[str, Any] | None, below_errors: bool) -> str:
    """What is missing of the expectation, empty when nothing is.

    A report that has to fail must fail for a reason: one that is malformed or contradicts itself
    has shown nothing. An unknown scenario below ``errors/`` has to fail in some way.
    """
    if result.report is None:
        return ""  # malformed, which is a finding of its own
    strictness = dig(entry, "strictness") if entry is not None else None
    if entry is None:
        strictness = "must_fail" if below_errors else "must_pass"
    if strictness == "must_fail" and result.ok:
        return "passed, but has to fail"
    if strictness in ("must_fail", "must_detect") and entry is not None:
        return _detectors(result.report, entry)
    return ""


def _detectors(report: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    from invarlock.verdict.detectors import evaluate_detectors

    needs = entry.get("requirements")
    if not isinstance(needs, Mapping) or not (
        needs.get("detectors_any_of") or needs.get("detectors_all_of")
    ):
        return ""  # published catalogues need not name any
    try:
        found = evaluate_detectors(needs, report)
    except UNREADABLE as error:
        return f"its detectors cannot be read: {type(error).__name__}"
    return "" if found.satisfied else "not detected: " + "; ".join(found.missed)
