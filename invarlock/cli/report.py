"""Render an evaluation report, or explain in plain text why it passes or fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from invarlock.cli.options import option
from invarlock.errors import ConfigError, ContractError
from invarlock.evidence.findings import UNREADABLE
from invarlock.files import canonical_json, pretty_json, read_json_object, write_text

FORMATS = ("markdown", "report", "json")


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where the result goes."""

    out: Path | None = option(
        None, metavar="FILE", help="file to write (default: print)", writes=True
    )
    force: bool = option(False, help="overwrite the file")


@dataclass(frozen=True, kw_only=True)
class FormatOptions(PlaceOptions):
    """Options of ``invarlock report``."""

    report: Path | None = option(None, metavar="FILE", help="evaluation.report.json")
    format: str | None = option(
        None,
        choices=FORMATS,
        help="markdown; report: the compact JSON that digests are taken of; json: indented",
    )


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(PlaceOptions):
    """Options of ``invarlock report explain``."""

    report: Path = option(metavar="FILE", help="evaluation.report.json")


@dataclass(frozen=True, kw_only=True)
class HtmlOptions(ExplainOptions):
    """Options of ``invarlock report html``."""

    embed_css: bool = option(
        True, help="put the style sheet into the page (default), or write it beside the page"
    )


OPTIONS = FormatOptions


def main(options: FormatOptions) -> int:
    """Render a report in a format that programs read."""
    if options.report is None:
        raise ConfigError("no report is named", expected="--report FILE")
    if options.format is None:
        raise ConfigError(
            "no format is named", expected="--format " + "|".join(FORMATS), hint="or html, explain"
        )

    def text(report: dict[str, Any]) -> str:
        from invarlock.reporting import render

        if options.format == "markdown":
            return render.render_report_markdown(report)
        if options.format == "report":
            return canonical_json(report).decode() + "\n"
        return pretty_json(report).decode()

    return _write(options.report, text, options)


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
    from invarlock.contracts import validate

    report = read_json_object(path)
    validate(report, "evaluation-report", str(path))
    return report


ACTIONS = {
    "html": (HtmlOptions, _html, "write one self-contained HTML page"),
    "explain": (ExplainOptions, _explain, "say why the report passes or fails"),
}
