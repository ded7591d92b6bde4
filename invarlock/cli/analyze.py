"""What the evaluations of a suite show beside the verdict: guards, repeats, times, tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from invarlock.contracts import validate
from invarlock.evidence import escape
from invarlock.files import read_bytes, read_json_object, sha256_bytes, source_date, write_json

CONTRACTS = {
    "guard-value": "guard-value-sweep",
    "repeats": "determinism-repeats",
    "timings": "evaluation-optimization-summary",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument(
            "--evaluation", type=Path, nargs="*", default=[], metavar="DIR", help="their folders"
        )
        command.add_argument("--out", type=Path, required=True, metavar="FILE")
        return command

    sweep = add("guard-value", "what each guard says about the guards' probes")
    sweep.add_argument("--scenarios", type=Path, required=True, help="effective manifest")
    repeats = add("repeats", "compare repeated evaluations field by field")
    repeats.add_argument("--determinism", choices=("strict", "throughput"), required=True)
    repeats.add_argument("--suite", required=True, help="name of the suite")
    timings = add("timings", "where the time of a run went")
    timings.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="output folder")
    timings.add_argument("--deferred", action="store_true", help="pages were rendered together")
    add("table", "evaluations, windows or modules, by the name of FILE: .parquet or .csv")


def main(args: argparse.Namespace) -> int:
    """Run the sub-command."""
    if args.command == "table":
        return _table(args)
    actions = {"guard-value": _guard_value, "repeats": _repeats, "timings": _timings}
    document = actions[args.command](args)
    validate(document, CONTRACTS[args.command], str(args.out))
    write_json(args.out, document)
    print(args.out)
    if args.command == "repeats":
        _warn_of_differences(document)
    return 0


def _table(args: argparse.Namespace) -> int:
    """No document with a contract: a file for other programs, described in docs/reviewer.md."""
    from invarlock.verdict.records import load_evaluation
    from invarlock.verdict.tables import write_table

    write_table(args.out, [load_evaluation(folder) for folder in args.evaluation])
    print(args.out)
    return 0


def _guard_value(args: argparse.Namespace) -> dict[str, Any]:
    from invarlock.scenarios import parse_catalogue
    from invarlock.verdict.guard_value import guard_value
    from invarlock.verdict.records import load_evaluation
    from invarlock.verdict.verdict import judge_all

    document = read_json_object(args.scenarios)
    scenarios = parse_catalogue(document, str(args.scenarios)).scenarios
    evaluations = [load_evaluation(folder) for folder in args.evaluation]
    return guard_value(scenarios, evaluations, judge_all(scenarios, evaluations))


def _repeats(args: argparse.Namespace) -> dict[str, Any]:
    from invarlock.files import parse_json
    from invarlock.verdict.records import MEASURED
    from invarlock.verdict.repeats import Repeat, repeats_document

    repeats = []
    for folder in args.evaluation:
        outcome = read_json_object(folder / "outcome.json")
        validate(outcome, "outcome", str(folder / "outcome.json"))
        report = digest = None
        if outcome["status"] in MEASURED:
            path = folder / "evaluation.report.json"
            data = read_bytes(path)
            report, digest = parse_json(data, str(path)), sha256_bytes(data)
        repeats.append(Repeat(folder.name, outcome, report, digest))
    moment = source_date()
    generated = moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
    return repeats_document(repeats, args.determinism, args.suite, generated)


def _warn_of_differences(document: dict[str, Any]) -> None:
    """Tell where strict repeats differ; the file stays as evidence, and ``gate`` refuses it."""
    from invarlock.verdict.repeats import strict_difference

    if line := strict_difference(document):
        hint = "set determinism: throughput, where differences are only reported"
        hint = hint if document["cert_hashes_match"] is False else "see errors in the file"
        print(f"warning: {escape(line)}; {hint}", file=sys.stderr)


def _timings(args: argparse.Namespace) -> dict[str, Any]:
    from invarlock.verdict.timings import timings_document

    return timings_document(args.run_dir, args.evaluation, args.deferred)
