"""Check a runtime manifest against the report it was written for: a container run, bound to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.cli.output import printing
from invarlock.errors import ContractError, InputError
from invarlock.evidence import escape
from invarlock.evidence.published import provenance
from invarlock.files import parse_json, read_bytes, sha256_bytes

FORMAT = "runtime-verify-v1"


@dataclass(frozen=True, kw_only=True)
class RuntimeVerifyOptions:
    """Options of ``invarlock advanced runtime-verify``."""

    report: Path = option(metavar="FILE", help="evaluation.report.json")
    manifest: Path = option(metavar="FILE", help="its runtime.manifest.json")
    json: bool = option(False, help="print one JSON object")


OPTIONS = RuntimeVerifyOptions


def main(options: RuntimeVerifyOptions) -> int:
    """Run the command: 0 a container run and bound to the report, 1 anything else."""
    errors = _errors(options.report, options.manifest)
    if options.json:
        document = {
            "format_version": FORMAT,
            "ok": not errors,
            "exit_code": int(bool(errors)),
            "errors": errors,
            "report": escape(options.report),
            "manifest": escape(options.manifest),
        }
        lines = [json.dumps(document, sort_keys=True)]
    else:
        lines = [*errors, f"RUNTIME {'FAIL' if errors else 'OK'} {escape(options.report)}"]
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
