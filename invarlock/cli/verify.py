"""Re-check evaluation reports: schema, consistency, runtime manifest, and a full replay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.cli.output import printing
from invarlock.counts import counted
from invarlock.errors import ConfigError, InputError
from invarlock.evidence import escape
from invarlock.evidence.report_verify import RUNTIME_PROVENANCE, unloaded
from invarlock.evidence.tree import REPORT_NAME
from invarlock.files import write_json
from invarlock.metrics.kinds import metric_named
from invarlock.policy import ASSURANCE, PROFILES
from invarlock.reporting.runtime_manifest import now_utc
from invarlock.reporting.verify_contract import (
    ReportResult,
    envelope,
    exit_code,
    verify_reports,
)

WARNING_POLICIES = {"pass": False, "warn": False, "advisory": False, "fail": True, "strict": True}


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of ``invarlock verify``."""

    report: tuple[Path, ...] = option(
        positional=True, metavar="REPORT", help=f"{REPORT_NAME}, or its folder"
    )
    baseline: Path | None = option(
        None, metavar="FILE", help="the baseline's run (report.json): compare"
    )
    profile: str = option(
        "dev",
        choices=PROFILES,
        help="dev: what the report says is true, PASS or FAIL; ci, release: and acceptable",
    )
    assurance: str = option(
        "report",
        choices=ASSURANCE,
        help="strict: the full claim; report: where the report claims it",
    )
    runtime_provenance: str = option(
        "declared",
        choices=RUNTIME_PROVENANCE,
        help="container: demand one; host: no runtime manifest is needed",
    )
    tolerance: float = option(1e-9, help="of recomputed numbers, relative and absolute")
    warning_policy: str = option(
        "pass", choices=tuple(WARNING_POLICIES), help="fail: guard warnings fail"
    )
    fail_on_warnings: bool = option(False, help="the same as --warning-policy fail")
    replay: bool = option(False, help="evidence that is missing for the replay fails")
    json: bool = option(False, help="print the verify-v1 envelope")
    out: Path | None = option(
        None, metavar="FILE", help="write the verify-v1 envelope to a file", writes=True
    )


OPTIONS = VerifyOptions


def main(options: VerifyOptions) -> int:
    """Run the command: 0 ok, 1 policy, 2 malformed or unusable, 3 typed error in ci and release."""
    if not 0 <= options.tolerance < 1:
        raise ConfigError("not a tolerance", where="--tolerance", expected="0 to 1")
    try:
        results = verify_reports(
            options.report,
            profile=options.profile,
            assurance=options.assurance,
            runtime_provenance=options.runtime_provenance,
            tolerance=options.tolerance,
            fail_on_warnings=options.fail_on_warnings or WARNING_POLICIES[options.warning_policy],
            replay=options.replay,
            baseline=options.baseline,
        )
    except InputError as error:
        raise ConfigError(str(error)) from error  # exit 2, as published
    document = envelope(results, options.profile)
    if options.out:
        write_json(options.out, document)
    with printing():
        if options.json:
            stamped = document | {"ts": now_utc()}  # files hold no time
            print(json.dumps(stamped, sort_keys=True, allow_nan=False))
        else:
            for result in results:
                _print(result)
    return exit_code(results, options.profile)


def refused(_: Sequence[str], line: str, code: int) -> dict[str, object]:
    """The ``verify-v1`` envelope of a command that could not look at any report."""
    return unloaded(escape(line), code)


def _print(result: ReportResult) -> None:
    for finding in result.findings:
        print(f"{escape(result.ident)}: {finding.code} {escape(finding.message)}")
    if result.ok:
        _print_point(result)
    else:
        shown = result.to_json()["verification"]["runtime_provenance"]
        print(
            f"VERIFY FAIL {escape(result.ident)}: {counted(len(result.findings), 'finding')} "
            f"mode={escape(shown['declared_mode'])}"
        )
    if result.believed:
        print(f"{escape(result.ident)}: not re-checked: {escape('; '.join(result.believed))}")


def _print_point(result: ReportResult) -> None:
    shown = result.to_json()
    interval = shown["ci"]
    point = "-" if shown["ratio_vs_baseline"] is None else f"{shown['ratio_vs_baseline']:.6g}"
    ci = f"[{interval[0]:.6g}, {interval[1]:.6g}]" if interval else "-"
    width = f"{interval[1] - interval[0]:.3g}" if interval else "-"
    what = metric_named(shown["kind"]).points
    print(
        f"VERIFY OK {escape(result.ident)}: metric={escape(shown['kind'])} {what}={point} "
        f"ci={ci} width={width} outcome={shown['outcome'] or '-'} "
        f"replayed={'yes' if result.replayed else 'no'} "
        f"mode={escape(shown['verification']['runtime_provenance']['declared_mode'])} "
        f"says={'PASS' if result.passes else 'FAIL'}"
    )
