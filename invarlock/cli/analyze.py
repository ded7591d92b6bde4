"""What the evaluations of a suite show beside the verdict: guards, repeats, times, tables."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from invarlock.cli.options import option
from invarlock.contracts import validate
from invarlock.evidence import escape
from invarlock.files import read_bytes, read_json_object, source_date, write_json


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options of ``invarlock advanced analyze table``, and of all analyses."""

    evaluation: tuple[Path, ...] = option((), metavar="DIR", help="their folders")
    out: Path = option(metavar="FILE", writes=True)


@dataclass(frozen=True, kw_only=True)
class GuardValueOptions(TableOptions):
    """Options of ``invarlock advanced analyze guard-value``."""

    scenarios: Path = option(help="effective manifest")


@dataclass(frozen=True, kw_only=True)
class RepeatsOptions(TableOptions):
    """Options of ``invarlock advanced analyze repeats``."""

    determinism: Literal["strict", "throughput"] = option(choices=("strict", "throughput"))
    suite: str = option(help="name of the suite")


@dataclass(frozen=True, kw_only=True)
class TimingsOptions(TableOptions):
    """Options of ``invarlock advanced analyze timings``."""

    run_dir: Path = option(metavar="DIR", help="output folder")
    deferred: bool = option(False, help="pages were rendered together")


def _write(document: dict[str, Any], contract: str, out: Path) -> int:
    validate(document, contract, str(out))
    write_json(out, document)
    print(out)
    return 0


def _table(options: TableOptions) -> int:
    """No document with a contract: a file for other programs, described in docs/reviewer.md."""
    from invarlock.verdict.records import load_evaluation
    from invarlock.verdict.tables import write_table

    write_table(options.out, [load_evaluation(folder) for folder in options.evaluation])
    print(options.out)
    return 0


def _guard_value(options: GuardValueOptions) -> int:
    from invarlock.scenarios import parse_catalogue
    from invarlock.verdict.guard_value import guard_value
    from invarlock.verdict.records import load_evaluation
    from invarlock.verdict.verdict import judge_all

    document = read_json_object(options.scenarios)
    scenarios = parse_catalogue(document, str(options.scenarios)).scenarios
    evaluations = [load_evaluation(folder) for folder in options.evaluation]
    document = guard_value(scenarios, evaluations, judge_all(scenarios, evaluations))
    return _write(document, "guard-value-sweep", options.out)


def _repeats(options: RepeatsOptions) -> int:
    from invarlock.files import parse_json
    from invarlock.verdict import MEASURED
    from invarlock.verdict.repeats import Repeat, digest_of, repeats_document

    repeats = []
    for folder in options.evaluation:
        outcome = read_json_object(folder / "outcome.json")
        validate(outcome, "outcome", str(folder / "outcome.json"))
        report = digest = None
        if outcome["status"] in MEASURED:
            path = folder / "evaluation.report.json"
            data = read_bytes(path)
            report = parse_json(data, str(path))
            digest = digest_of(report, data)
        repeats.append(Repeat(folder.name, outcome, report, digest))
    moment = source_date()
    generated = moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
    document = repeats_document(repeats, options.determinism, options.suite, generated)
    code = _write(document, "determinism-repeats", options.out)
    _warn_of_differences(document)
    return code


def _warn_of_differences(document: dict[str, Any]) -> None:
    """Tell where strict repeats differ; the file stays as evidence, and ``gate`` refuses it."""
    from invarlock.verdict.repeats import strict_difference

    if line := strict_difference(document):
        hint = "set determinism: throughput, where differences are only reported"
        hint = hint if document["cert_hashes_match"] is False else "see errors in the file"
        print(f"warning: {escape(line)}; {hint}", file=sys.stderr)


def _timings(options: TimingsOptions) -> int:
    from invarlock.verdict.timings import timings_document

    document = timings_document(options.run_dir, options.evaluation, options.deferred)
    return _write(document, "evaluation-optimization-summary", options.out)


ACTIONS = {
    "guard-value": (
        GuardValueOptions,
        _guard_value,
        "what each guard says about the guards' probes",
    ),
    "repeats": (RepeatsOptions, _repeats, "compare repeated evaluations field by field"),
    "timings": (TimingsOptions, _timings, "where the time of a run went"),
    "table": (
        TableOptions,
        _table,
        "evaluations, windows or modules by FILE's name, .parquet or .csv",
    ),
}
