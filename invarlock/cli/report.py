"""Render an evaluation report, or explain in plain text why it passes or fails.

With --run and --baseline: compare two finished runs, and write their evaluation report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from invarlock.cli.judging import Judging
from invarlock.cli.options import option
from invarlock.errors import ConfigError, ContractError
from invarlock.evidence.findings import UNREADABLE, dig
from invarlock.files import (
    canonical_json,
    pretty_json,
    read_bytes,
    read_json_object,
    write_bytes,
    write_json,
    write_text,
)
from invarlock.metrics.cost import costs_of
from invarlock.policy import POLICY_PACK

FORMATS = ("markdown", "report", "json", "html")
RUN_NAME, REPORT_NAME = "report.json", "evaluation.report.json"
PAGES = {"markdown": "evaluation.md", "html": "evaluation.html"}


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where the result goes."""

    out: Path | None = option(
        None, metavar="FILE", help="file to write (default: print)", writes=True
    )
    force: bool = option(False, help="overwrite the file")


@dataclass(frozen=True, kw_only=True)
class ComparingOptions(Judging):
    """Options for two runs that are compared."""

    run: Path | None = option(
        None, metavar="RUN", help="the subject's run: a folder or its report.json"
    )
    baseline: Path | None = option(None, metavar="RUN", help="the baseline's run")
    output: Path | None = option(
        None,
        metavar="DIR",
        help=f"folder for {REPORT_NAME}, the page and the subject's report.json (default: print)",
        writes=True,
    )
    profile: str = option("", help="dev, ci or release (default: the run's)")
    tier: str = option("", help="tier of the policy (default: the run's)")
    accept: tuple[str, ...] = option(
        (), comma=True, metavar="NAME[,NAME]", help="differences that are meant (as in evaluate)"
    )
    edit_label: str = option("", help="name of the edit, where the run has none")


@dataclass(frozen=True, kw_only=True)
class FormatOptions(ComparingOptions, PlaceOptions):
    """Options of ``invarlock report``."""

    titles: ClassVar[Mapping[type, str]] = {
        ComparingOptions: "two finished runs that are compared",
        Judging: "limits of that comparison",
    }

    report: Path | None = option(None, metavar="FILE", help="evaluation.report.json")
    format: str | None = option(
        None,
        choices=FORMATS,
        help="markdown; html; report: the compact JSON that digests are taken of; json: indented",
    )


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(PlaceOptions):
    """Options of ``invarlock report explain``."""

    report: Path = option(metavar="FILE", help="evaluation.report.json")


@dataclass(frozen=True, kw_only=True)
class HtmlOptions(ExplainOptions):
    """Options of ``invarlock report html``."""

    report: Path = option(metavar="FILE", help="evaluation.report.json", also=("-i",))
    out: Path | None = option(
        None, metavar="FILE", help="file to write (default: print)", writes=True, also=("-o",)
    )
    embed_css: bool = option(
        True, help="put the style sheet into the page (default), or write it beside the page"
    )


OPTIONS = FormatOptions


def main(options: FormatOptions) -> int:
    """Render a report, or compare two runs."""
    if options.run is not None:
        if options.report is not None or options.out is not None:
            raise ConfigError("--run goes with --baseline and --output, not with --report or --out")
        return _compare(options, options.run)
    if options.baseline is not None or options.output is not None:
        raise ConfigError("no run is named", expected="--run RUN")
    if options.report is None:
        raise ConfigError(
            "no report is named", expected="--report FILE, or --run RUN --baseline RUN"
        )
    if options.format is None:
        raise ConfigError(
            "no format is named", expected="--format " + "|".join(FORMATS), hint="or html, explain"
        )
    form = options.format
    return _write(options.report, lambda report: _text(report, form), options)


def _text(report: dict[str, Any], form: str) -> str:
    """A report in one of ``FORMATS``."""
    from invarlock.reporting import render

    if form == "markdown":
        return render.render_report_markdown(report)
    if form == "html":
        return render.render_report_html(report)
    if form == "report":
        return canonical_json(report).decode() + "\n"
    return pretty_json(report).decode()


def _compare(options: FormatOptions, run: Path) -> int:
    """Compare two runs; of one run alone keep its report, as archives have it."""
    path = _run_report(run)
    subject = read_json_object(path)
    if options.baseline is None:
        if options.output is None:
            raise ConfigError("no baseline is named", expected="--baseline RUN, or --output DIR")
        _keep(path, options.output / RUN_NAME, options.force)
        print(f"{options.output / RUN_NAME}: kept; without --baseline nothing is compared")
        return 0
    report = _compared(options, subject, read_json_object(_run_report(options.baseline)))
    form = options.format or "report"
    if options.output is None:
        sys.stdout.write(_text(report, form))
        return 0
    _write_comparison(options, path, report)
    if form in PAGES:
        write_text(options.output / PAGES[form], _text(report, form))
    from invarlock.reporting.dashboard import told

    print(f"{options.output / REPORT_NAME}: {told(report)}")
    return 0


def _compared(
    options: FormatOptions, subject: dict[str, Any], baseline: dict[str, Any]
) -> dict[str, Any]:
    """The evaluation report of two run reports."""
    from invarlock.reporting.compare_runs import compare_runs

    tier, profile = dig(subject, "context", "tier"), dig(subject, "context", "profile")
    judging = replace(
        options,
        tier=options.tier or (tier if isinstance(tier, str) else "balanced"),
        profile=options.profile or (profile if isinstance(profile, str) else "dev"),
    )
    judging.check_judging()
    checkpoint = dig(baseline, "meta", "checkpoint_sha256")
    policy, preset = judging.policy(checkpoint if isinstance(checkpoint, str) else None)
    overlay = judging.overlay()
    return compare_runs(
        subject,
        baseline,
        policy=policy,
        preset_sha256=preset,
        policy_pack=overlay.named if overlay else None,
        replicates=options.replicates,
        alpha=options.alpha,
        profile=judging.profile,
        accepted=options.accept,
        edit_label=options.edit_label,
    )


def _run_report(path: Path) -> Path:
    return path / RUN_NAME if path.is_dir() else path


def _keep(source: Path, target: Path, force: bool) -> None:
    """Copy a run report to where reports are kept; one that is there is not lost."""
    from invarlock.guards.guard import RUN_SCHEMA

    if read_json_object(source).get("schema") != RUN_SCHEMA:
        raise ContractError("not a run report", where=str(source), expected=RUN_SCHEMA)
    data = read_bytes(source)
    if target.is_file() and target.read_bytes() == data:
        return
    if target.exists() and not force:
        raise ConfigError("the file exists", where=str(target), hint="overwrite it with --force")
    write_bytes(target, data)


def _write_comparison(options: FormatOptions, run: Path, report: dict[str, Any]) -> None:
    """Write the report, its runtime manifest and the run's report.

    A report that is there with the same bytes stays, with the manifest that ``evaluate`` wrote.
    """
    from invarlock.reporting.runtime_manifest import Circumstances, write_runtime_manifest

    assert options.output is not None
    target, data = options.output / REPORT_NAME, canonical_json(report) + b"\n"
    if target.is_file() and target.read_bytes() == data:
        return
    if target.exists() and not options.force:
        raise ConfigError("the file exists", where=str(target), hint="overwrite it with --force")
    _keep(run, options.output / RUN_NAME, options.force)
    write_bytes(target, data)
    tier = report["auto"]["tier"]
    if (overlay := replace(options, tier=tier).overlay()) is not None:
        write_json(options.output / POLICY_PACK, dict(overlay.document))
    # Run reports do not say where they were made and what was allowed: the manifest claims least.
    circumstances = Circumstances(network=True, remote_code=True, third_party_plugins=True)
    context = {"command": "report", "profile": report["context"]["profile"]}
    took = {"telemetry": costs_of(report["telemetry"])} if costs_of(report["telemetry"]) else {}
    write_runtime_manifest(target, circumstances, {**context, "tier": tier, **took})


def _html(options: HtmlOptions) -> int:
    """Render the page, with the style sheet in it or beside it."""
    from invarlock.reporting import render

    beside: dict[Path, str] = {}
    if not options.embed_css:
        if options.out is None:
            raise ConfigError("the style sheet is written beside the page", expected="--out FILE")
        styles = options.out.with_name(render.STYLES)
        # a style sheet that another page has left there is the same
        if not (styles.is_file() and styles.read_text() == render.style_sheet()):
            beside[styles] = render.style_sheet()

    def text(report: dict[str, Any]) -> str:
        return render.render_report_html(report, embed_css=options.embed_css)

    return _write(options.report, text, options, beside)


def _explain(options: ExplainOptions) -> int:
    """Say why the report passes or fails."""
    from invarlock.reporting import render

    return _write(options.report, render.explain, options)


def _write(
    path: Path,
    text: Callable[[dict[str, Any]], str],
    place: PlaceOptions,
    beside: Mapping[Path, str] = MappingProxyType({}),
) -> int:
    """Print the report's text, or write it and what belongs beside it."""
    report = read_report(path)
    try:
        content = text(report)
    except UNREADABLE as error:  # follows its schema, and holds records of an impossible shape
        raise ContractError(
            f"cannot be rendered: {type(error).__name__}", where=str(path)
        ) from error
    if place.out is None:
        sys.stdout.write(content)
        return 0
    files = {place.out: content, **beside}
    for file in files:
        if file.exists() and not place.force:
            raise ConfigError("the file exists", where=str(file), hint="overwrite it with --force")
    for file, content in files.items():
        write_text(file, content)
    return 0


def read_report(path: Path) -> dict[str, Any]:
    """Read and check an evaluation report.

    Raises:
        InputError: missing, unreadable, or not a v1 evaluation report.
    """
    from invarlock.contracts import check

    report = read_json_object(path)
    check(report, "evaluation-report", str(path))
    return report


ACTIONS = {
    "html": (HtmlOptions, _html, "write one self-contained HTML page"),
    "explain": (ExplainOptions, _explain, "say why the report passes or fails"),
}
