"""Turn a verdict, an evaluation report or a pack into an exit code: 0 PASS, 1 FAIL.

0 is answered only for what was recomputed. A pack counts only when it verifies with `--replay`; one
that does not has said nothing and ends with the exit code of `advanced evidence-pack verify`: 4
manifest, 5 signature, 6 contents, 7 reports. A PASS that can only be believed - a verdict without
the evaluations it rests on, a report without its evidence - is 7 too. 2 are wrong options, 3 is a
file that is missing, unreadable or at odds with itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from invarlock.cli.evidence_pack import add_signers, allows_unverified, signers
from invarlock.cli.output import printing
from invarlock.errors import ContractError, InputError
from invarlock.evidence import Code, escape
from invarlock.evidence.report_verify import REPORT_NAME
from invarlock.files import read_bytes, read_json_object, write_bytes

VERDICT_SCHEMA = "invarlock/final-verdict-v1"
REPEATS = "analysis/determinism_repeats.json"
VERDICTS = ("results/final_verdict.json", "reports/final_verdict.json")
SCENARIOS = "state/scenarios.json"
REVISIONS = "state/model_revisions.json"


class Case(NamedTuple):
    """One test case: a model and scenario, and why it failed (empty: it did not)."""

    suite: str
    name: str
    why: str


class Judged(NamedTuple):
    """Whether something passes, one line about it, its cases, and why it is only believed (empty:
    it was recomputed)."""

    passed: bool
    line: str
    cases: list[Case]
    believed: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help=f"final_verdict.json, {REPORT_NAME}, a pack, or a suite's output folder",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit XML file")
    add_signers(parser)


def main(args: argparse.Namespace) -> int:
    """Print one line; 0 PASS, 1 FAIL, more for what is not verified or only believed."""
    code = 0
    if args.path.is_dir() and (args.path / "manifest.json").exists():
        code, judged = _pack(args)
    else:
        judged = judge(args.path)
        if (args.path / REPEATS).is_file():
            judged = _with_repeats(judged, read_json_object(args.path / REPEATS))
        if judged.passed and judged.believed:
            code = int(Code.REPORTS)
            why = f"NOT RECOMPUTED: {judged.believed}; else {judged.line}"
            judged = Judged(
                False, why, [*judged.cases, Case("gate", "recomputed", judged.believed)]
            )
    if args.junit:
        write_bytes(args.junit, junit(judged.cases))
    with printing():
        print(escape(judged.line))
    return code or int(not judged.passed)


def _with_repeats(judged: Judged, repeats: Mapping[str, Any]) -> Judged:
    """The same, failed where strict repeats differ; files of published versions say nothing."""
    from invarlock.contracts import validate
    from invarlock.verdict.repeats import SCHEMA, strict_difference

    if repeats.get("schema") != SCHEMA:
        return judged
    validate(repeats, "determinism-repeats", REPEATS)
    if not (why := strict_difference(repeats)):
        return judged
    line = f"FAIL: {why}; else {judged.line}"
    return Judged(False, line, [*judged.cases, Case("determinism", repeats["edit_name"], why)])


def judge(path: Path) -> Judged:
    """Whether the verdict or report at ``path`` passes, one line about it, and its cases.

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
    from invarlock.contracts import validate

    if document.get("schema") != VERDICT_SCHEMA:  # of a published version: only its word
        word = str(document["verdict"])
        cases = [Case("verdict", "verdict", _bad(word))]
        return Judged(word == "PASS", f"{word}: as recorded", cases, "it is of a published version")
    validate(document, "final-verdict", where)
    records = document["records"]
    cases = [
        Case(r["model"], f"{r['name']}/run_{r['run_num']}", "" if r["as_expected"] else _why(r))
        for r in records
    ]
    cases += [
        Case("requirements", r["id"], "; ".join(r["details"]))
        for r in document["requirements"]
        if not r["ok"]
    ]
    failed = document["failed_requirements"]
    passed = document["verdict"] == "PASS"
    if passed and (failed or any(case.why for case in cases)):
        raise ContractError("says PASS above records that failed", where=where)
    suffix = f"; failed: {', '.join(failed)}" if failed else ""
    good = sum(r["as_expected"] for r in records)
    line = f"{document['verdict']}: {good} of {len(records)} evaluations as expected{suffix}"
    return Judged(passed, line, cases)


def _with_evaluations(judged: Judged, document: Mapping[str, Any], path: Path) -> Judged:
    """The same, held against the evaluations of the output folder that the verdict lies in.

    Raises:
        ContractError: they give another verdict, or a report contradicts its own evidence.
    """
    from invarlock.evidence.claims import differences
    from invarlock.evidence.report_verify import ReportOptions, verify_report
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
    if wrong := next(iter(differences("", document, verdict)), ""):
        raise ContractError(f"does not follow from its evaluations: {wrong}", where=str(path))
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
    """An evaluation report passes when it verifies and every gate of it is true."""
    from invarlock.evidence.report_checks import report_passes
    from invarlock.evidence.report_verify import ReportOptions, verify_report
    from invarlock.reporting import signals

    beside = path.parent / "runtime.manifest.json"
    manifest = read_bytes(beside) if beside.is_file() else None
    options = ReportOptions(provenance="host", assurance="off")
    result = verify_report(read_bytes(path), manifest, str(path), options)
    if result.report is None:
        raise ContractError(result.findings[0].message, where=str(path))
    reasons = [finding.message for finding in result.findings]
    if not report_passes(result.report):
        reasons += signals.pass_reasons(result.report) or ["not every gate is true"]
    edit = signals.block(result.report, "edit")
    name = str(edit.get("scenario") or edit.get("name") or result.report["run_id"])
    model = str(signals.block(result.report, "meta").get("model_id", "model"))
    why = "; ".join(reasons)
    line = f"{'FAIL' if why else 'PASS'}: {name} on {model}" + (f": {why}" if why else "")
    believed = "" if result.replayed else "the report holds no evidence to recompute it from"
    return Judged(not why, line, [Case(model, name, why)], believed)


def _pack(args: argparse.Namespace) -> tuple[int, Judged]:
    """What is said by a pack that verifies and whose verdict was recomputed, by the signer that
    the options name (0), or why it does not (the exit code of the verification)."""
    from invarlock.evidence.result import VerifyOptions
    from invarlock.evidence.verify import verify_pack

    pinned, trusted, store = signers(args)
    options = VerifyOptions(
        replay=True,
        pinned=pinned,
        trusted=trusted,
        trust_store=str(store) if store else None,
        allow_unsigned=allows_unverified(),
    )
    result = verify_pack(args.path, options)
    if result.exit_code:
        why = "; ".join(result.errors[:3])
        cases = [Case("pack", "verify", "; ".join(result.errors))]
        return result.exit_code, Judged(False, f"NOT VERIFIED: {why}", cases)
    assert result.tree is not None  # it verified
    assert result.claims.verdict is not None  # which a replay demands
    passed, line, cases, _ = _verdict(result.claims.verdict, str(args.path))
    signed = f"signed by {result.signer}, {result.authenticity}" if result.signer else "unsigned"
    judged = Judged(passed, f"{line}; {signed}", [*cases, Case("pack", "verify", "")])
    repeats = f"results/{REPEATS}"
    if repeats in result.tree.files:
        judged = _with_repeats(judged, result.tree.json_object(repeats))
    return 0, judged


def junit(cases: list[Case]) -> bytes:
    """JUnit XML: one test suite a model, one test case a record. No times: nothing was timed."""
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
                failure = ElementTree.SubElement(node, "failure", message=escape(case.why)[:500])
                failure.text = escape(case.why)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _count(node: Any, cases: list[Case]) -> None:
    node.set("tests", str(len(cases)))
    node.set("failures", str(sum(bool(case.why) for case in cases)))
