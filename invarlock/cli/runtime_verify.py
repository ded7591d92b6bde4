"""Check a runtime manifest against the report it was written for: a container run, bound to it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from invarlock.cli.output import printing
from invarlock.errors import ContractError, InputError
from invarlock.evidence import escape
from invarlock.evidence.published import provenance
from invarlock.files import parse_json, read_bytes, sha256_bytes

FORMAT = "runtime-verify-v1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--report", type=Path, required=True, metavar="FILE", help="evaluation.report.json")
    add("--manifest", type=Path, required=True, metavar="FILE", help="its runtime.manifest.json")
    add("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    """Run the command: 0 a container run and bound to the report, 1 anything else."""
    errors = _errors(args.report, args.manifest)
    if args.json:
        document = {
            "format_version": FORMAT,
            "ok": not errors,
            "exit_code": int(bool(errors)),
            "errors": errors,
            "report": escape(args.report),
            "manifest": escape(args.manifest),
        }
        lines = [json.dumps(document, sort_keys=True)]
    else:
        lines = [*errors, f"RUNTIME {'FAIL' if errors else 'OK'} {escape(args.report)}"]
    with printing():
        print("\n".join(lines))
    return 1 if errors else 0


def refused(_: Sequence[str], line: str, code: int) -> dict[str, object]:
    """The document of a command whose words could not be used."""
    return {"format_version": FORMAT, "ok": False, "exit_code": code, "errors": [escape(line)]}


def _errors(report: Path, manifest: Path) -> list[str]:
    """Everything that is wrong, escaped."""
    try:
        data = read_bytes(report)
        document = parse_json(data, str(report))
        if not isinstance(document, dict):
            raise ContractError("is not a JSON object", where=str(report))
        found = provenance.check(document, sha256_bytes(data), read_bytes(manifest), "container")
    except InputError as error:
        return [escape(error)]
    return [escape(message) for _, message in found.issues]
