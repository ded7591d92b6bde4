"""Turn a verdict, an evaluation report or a pack into an exit code: 0 PASS, 1 FAIL, 8 neither.

8 is INCONCLUSIVE: nothing that was measured is bad, but there is too little evidence; the line
says how much would do. 0 is answered only for what was recomputed. A pack counts only when it
verifies with `--replay`; one that does not has said nothing and ends with the exit code of
`advanced evidence-pack verify`: 4 manifest, 5 signature, 6 contents, 7 reports. A PASS that can
only be believed - a verdict without the evaluations it rests on, a report without its evidence -
is 7 too. 2 are wrong options, 3 is a file that is missing, unreadable or at odds with itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from invarlock.cli.evidence_pack import SignerOptions, allows_unverified, signers
from invarlock.cli.options import option
from invarlock.cli.output import printing
from invarlock.counts import counted
from invarlock.errors import ContractError, InputError
from invarlock.evidence import Code, escape
from invarlock.evidence.tree import REPORT_NAME
from invarlock.files import read_bytes, read_json_object, write_bytes
from invarlock.reporting.outcome import FAIL, INCONCLUSIVE, PASS
from invarlock.shown import listed

VERDICT_SCHEMA = "invarlock/final-verdict-v1"
REPEATS = "analysis/determinism_repeats.json"
VERDICTS = ("results/final_verdict.json", "reports/final_verdict.json")
SCENARIOS = "state/scenarios.json"
REVISIONS = "state/model_revisions.json"


EXIT_INCONCLUSIVE = 8
CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: EXIT_INCONCLUSIVE}
MAX_NEEDS = 3  # evaluations whose lack of evidence the line names


class Case(NamedTuple):
    """One test case: a model and scenario, and why it failed (empty: it did not)."""

    suite: str
    name: str
    why: str
    undecided: bool = False  # for lack of evidence alone


class Judged(NamedTuple):
    """The outcome, one line about it, its cases, and why it is only believed (empty: it was
    recomputed)."""

    outcome: str
    line: str
    cases: list[Case]
    believed: str = ""


@dataclass(frozen=True, kw_only=True)
class GateOptions(SignerOptions):
    """Options of ``invarlock gate``."""

    path: Path = option(
        positional=True,
        metavar="PATH",
        help=f"final_verdict.json, {REPORT_NAME}, a pack, or a suite's output folder",
    )
    junit: Path | None = option(None, metavar="FILE", help="write a JUnit XML file", writes=True)


OPTIONS = GateOptions


def main(options: GateOptions) -> int:
    """Print one line; 0 PASS, 1 FAIL, 8 INCONCLUSIVE, others for what is not verified."""
    code = 0
    if options.path.is_dir() and (options.path / "manifest.json").exists():
        code, judged = _pack(options)
    else:
        judged = judge(options.path)
        if (options.path / REPEATS).is_file():
            judged = _with_repeats(judged, read_json_object(options.path / REPEATS))
        if judged.outcome == PASS and judged.believed:
            code = int(Code.REPORTS)
            why = f"NOT RECOMPUTED: {judged.believed}; else {judged.line}"
            judged = Judged(FAIL, why, [*judged.cases, Case("gate", "recomputed", judged.believed)])
    if options.junit:
        write_bytes(options.junit, junit(judged.cases))
    with printing():
        print(escape(judged.line))
    return code or CODES[judged.outcome]


def _with_repeats(judged: Judged, repeats: Mapping[str, Any]) -> Judged:
    """The same, failed where strict repeats differ; files of published versions say nothing."""
    from invarlock.contracts import check
    from invarlock.verdict.repeats import SCHEMA, strict_difference

    if repeats.get("schema") != SCHEMA:
        return judged
    check(repeats, "determinism-repeats", REPEATS)
    if not (why := strict_difference(repeats)):
        return judged
    line = f"FAIL: {why}; else {judged.line}"
    return Judged(FAIL, line, [*judged.cases, Case("determinism", repeats["edit_name"], why)])


def judge(path: Path) -> Judged:
    """The outcome of the verdict or report at ``path``, one line about it, and its cases.

    Raises:
        InputError: it is missing, unreadable, or neither verdict nor report (exit 3).
    """
    if path.is_dir():
        found = next((path / name for name in VERDICTS if (path / name).is_file()), None)
        found = found or (path / REPORT_NAME if (path / REPORT_NAME).is_file() else None)
        if found is None:
            raise InputError(
                "holds no verdict", where=str(path), expected=f"{' or '.join(VERDICTS)}"
            )
        path = found
    document = read_json_object(path)
    if "verdict" in document and "records" in document:
        return _with_evaluations(_verdict(document, str(path)), document, path)
    if "schema_version" in document:
        return _report(path)
    raise ContractError(
        "is neither a verdict nor an evaluation report", where=str(path), hint="name another file"
    )


def _verdict(document: Mapping[str, Any], where: str) -> Judged:
    from invarlock.contracts import check

    if document.get("schema") != VERDICT_SCHEMA:  # of a published version: only its word
        word = str(document["verdict"])
        outcome = PASS if word == "PASS" else FAIL
        cases = [Case("verdict", "verdict", _bad(word))]
        return Judged(outcome, f"{word}: as recorded", cases, "it is of a published version")
    check(document, "final-verdict", where)
    records = document["records"]
    passed = document["verdict"] == "PASS"
    outcome = str(document.get("outcome", PASS if passed else FAIL))
    open_only = outcome == INCONCLUSIVE
    cases = [
        Case(
            suite=r["model"],
            name=f"{r['name']}/run_{r['run_num']}",
            why="" if r["as_expected"] else _why(r),
            undecided=r.get("undecided") is True,
        )
        for r in records
    ]
    cases += [
        Case("requirements", r["id"], "; ".join(r["details"]), open_only)
        for r in document["requirements"]
        if not r["ok"]
    ]
    failed = document["failed_requirements"]
    if passed and (failed or any(case.why for case in cases)):
        raise ContractError("says PASS above records that failed", where=where)
    if (outcome == PASS) is not passed or (
        open_only and any(case.why and not case.undecided for case in cases)
    ):
        raise ContractError("its outcome contradicts its verdict or its records", where=where)
    good = sum(r["as_expected"] for r in records)
    line = f"{outcome.upper()}: {good} of {len(records)} evaluations as expected"
    if open_only:
        return Judged(outcome, f"{line}; {_open(document)}", cases)
    return Judged(outcome, line + (f"; failed: {', '.join(failed)}" if failed else ""), cases)


def _open(document: Mapping[str, Any]) -> str:
    """What an inconclusive verdict lacks, of the first evaluations that lack something."""
    found = [f"{r['name']}: {_why(r)}" for r in document["records"] if r.get("undecided")]
    missing = sum(map(len, document["missing"]["by_model"].values()))
    found += [f"{counted(missing, 'evaluation')} missing"] if missing else []
    return listed(found, MAX_NEEDS, "; ")


def _with_evaluations(judged: Judged, document: Mapping[str, Any], path: Path) -> Judged:
    """The same, held against the evaluations of the output folder that the verdict lies in.

    Raises:
        ContractError: they give another verdict, or a report contradicts its own evidence.
    """
    from invarlock.differences import differences
    from invarlock.documents.fields import is_added
    from invarlock.evidence.report_verify import ReportOptions, verify_report
    from invarlock.reporting.documents.final_verdict import FinalVerdict
    from invarlock.scenarios import expected_evaluations, parse_catalogue
    from invarlock.verdict.records import canonical_path, load_evaluation
    from invarlock.verdict.verdict import compile_verdict

    out = path.resolve().parent.parent
    if judged.believed or not (out / SCENARIOS).is_file():
        why = judged.believed or f"the evaluations of {path.name} do not lie beside it"
        return judged._replace(believed=why)
    manifest = read_json_object(out / SCENARIOS)
    scenarios = parse_catalogue(manifest, str(out / SCENARIOS)).scenarios
    keys = [(r["model"], r["name"], r["run_num"]) for r in document["records"]]
    evaluations = [load_evaluation(out / canonical_path(*key)) for key in keys]
    models = {model for model, _, _ in keys} | {*_pinned(out / REVISIONS)}
    expected = expected_evaluations(scenarios, models, {run for _, _, run in keys})
    verdict = json.loads(json.dumps(compile_verdict(manifest, evaluations, expected)))
    may_lack = partial(is_added, FinalVerdict)
    if wrong := next(differences(document, verdict, may_lack=may_lack), None):
        line = escape(wrong.line("the reports give"))
        raise ContractError(f"does not follow from its evaluations: {line}", where=str(path))
    options = ReportOptions(provenance="host", assurance="off")
    for evaluation in evaluations:
        if evaluation.report is None:
            continue
        place = out / evaluation.path / REPORT_NAME
        found = verify_report(read_bytes(place), None, str(place), options)
        if not found.sound:
            raise ContractError(found.findings[0].message, where=str(place))
        if not found.replayed:
            return judged._replace(believed=f"{evaluation.path} holds no evidence to recompute")
    return judged


def _pinned(path: Path) -> Iterator[str]:
    """The models of a suite, each of which has to be judged."""
    models = read_json_object(path).get("models") if path.is_file() else None
    yield from models if isinstance(models, dict) else ()


def _bad(word: str) -> str:
    return "" if word == "PASS" else f"the verdict is {word}"


def _why(record: Mapping[str, Any]) -> str:
    return str(record["why"]) or "not as expected"


def _report(path: Path) -> Judged:
    """An evaluation report passes when it verifies and every gate of it is true.

    One that does not verify has failed; only one that does can be inconclusive.
    """
    from invarlock.evidence.published.report_checks import report_passes
    from invarlock.evidence.report_verify import ReportOptions, verify_report
    from invarlock.pages.reading import block
    from invarlock.reporting import signals
    from invarlock.reporting.outcome import needed, outcome, too_little

    beside = path.parent / "runtime.manifest.json"
    manifest = read_bytes(beside) if beside.is_file() else None
    options = ReportOptions(provenance="host", assurance="off")
    result = verify_report(read_bytes(path), manifest, str(path), options)
    if result.report is None:
        raise ContractError(result.findings[0].message, where=str(path))
    reasons = [finding.message for finding in result.findings]
    found = FAIL if reasons else PASS
    if not report_passes(result.report):
        # that gates do not hold is said in the report's own words, and is no reason against it
        reasons = [finding.message for finding in result.findings if finding.kind != "policy"]
        own = signals.pass_reasons(result.report) or ["not every gate is true"]
        found = outcome(result.report) if not reasons and signals.gates(result.report) else FAIL
        if found == INCONCLUSIVE:
            own = [too_little(needed(result.report), own)]
        reasons += [_named(reason, result.report) for reason in own]
    edit = block(result.report, "edit")
    name = str(edit.get("scenario") or edit.get("name") or result.report["run_id"])
    model = str(block(result.report, "meta").get("model_id", "model"))
    why = "; ".join(reasons)
    line = f"{found.upper()}: {name} on {model}" + (f": {why}" if why else "")
    believed = "" if result.replayed else "the report holds no evidence to recompute it from"
    return Judged(found, line, [Case(model, name, why, found == INCONCLUSIVE)], believed)


def _named(reason: str, report: Mapping[str, Any]) -> str:
    """A reason with the worst finding of the invariants, where it is one of theirs."""
    from invarlock.guards.invariants_decision import findings
    from invarlock.pages.reading import REJECTED

    worst = findings(report)
    if reason not in (REJECTED, "invariants_fail") or not worst:
        return reason
    return f"{reason} ({worst[0].get('message')})"


def _pack(options: GateOptions) -> tuple[int, Judged]:
    """What is said by a pack that verifies and whose verdict was recomputed, by the signer that
    the options name (0), or why it does not (the exit code of the verification)."""
    from invarlock.evidence.result import VerifyOptions
    from invarlock.evidence.verify import verify_pack

    pinned, trusted, store = signers(options)
    demands = VerifyOptions(
        replay=True,
        pinned=pinned,
        trusted=trusted,
        trust_store=str(store) if store else None,
        allow_unsigned=allows_unverified(),
    )
    result = verify_pack(options.path, demands)
    if result.exit_code:
        why = "; ".join(result.errors[:3])
        cases = [Case("pack", "verify", "; ".join(result.errors))]
        return result.exit_code, Judged(FAIL, f"NOT VERIFIED: {why}", cases)
    assert result.tree is not None  # it verified
    assert result.recomputed.verdict is not None  # which a replay demands
    outcome, line, cases, _ = _verdict(result.recomputed.verdict, str(options.path))
    signed = f"signed by {result.signer}, {result.authenticity}" if result.signer else "unsigned"
    judged = Judged(outcome, f"{line}; {signed}", [*cases, Case("pack", "verify", "")])
    repeats = f"results/{REPEATS}"
    if repeats in result.tree.files:
        judged = _with_repeats(judged, result.tree.json_object(repeats))
    return 0, judged


def junit(cases: list[Case]) -> bytes:
    """JUnit XML: one test suite a model, one test case a record. No times: nothing was timed.

    What is undecided is an error, not a failure: the test could not be made.
    """
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites", name="invarlock")
    _count(root, cases)
    for name in dict.fromkeys(case.suite for case in cases):
        members = [case for case in cases if case.suite == name]
        suite = ElementTree.SubElement(root, "testsuite", name=escape(name))
        _count(suite, members)
        for case in members:
            node = ElementTree.SubElement(
                suite, "testcase", classname=escape(name), name=escape(case.name)
            )
            if case.why:
                kind = "error" if case.undecided else "failure"
                found = ElementTree.SubElement(node, kind, message=escape(case.why)[:500])
                found.text = escape(case.why)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _count(node: Any, cases: list[Case]) -> None:
    node.set("tests", str(len(cases)))
    node.set("failures", str(sum(bool(case.why) and not case.undecided for case in cases)))
    node.set("errors", str(sum(case.undecided for case in cases)))
