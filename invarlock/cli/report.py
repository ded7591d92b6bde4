"""Render an evaluation report, or explain in plain text why it passes or fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from invarlock.errors import ConfigError, ContractError
from invarlock.evidence.findings import UNREADABLE
from invarlock.files import canonical_json, pretty_json, read_json_object, write_text

FORMATS = ("markdown", "report", "json")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options and sub-commands."""
    _common(parser, required=False)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="markdown; report: the compact JSON that digests are taken of; json: indented",
    )
    actions = parser.add_subparsers(dest="action", metavar="html|explain")
    html = actions.add_parser("html", help="write one self-contained HTML page")
    _common(html, required=True)
    html.add_argument(
        "--embed-css",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put the style sheet into the page (default), or write it beside the page",
    )
    explain = actions.add_parser("explain", help="say why the report passes or fails")
    _common(explain, required=True)


def _common(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--report", type=Path, required=required, help="evaluation.report.json", metavar="FILE"
    )
    parser.add_argument("--out", type=Path, help="file to write (default: print)", metavar="FILE")
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def main(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.report is None:
        raise ConfigError("no report is named", expected="--report FILE")
    if args.action is None and args.format is None:
        raise ConfigError(
            "no format is named", expected="--format " + "|".join(FORMATS), hint="or html, explain"
        )
    beside = args.action == "html" and not args.embed_css
    if beside and args.out is None:
        raise ConfigError("the style sheet is written beside the page", expected="--out FILE")
    from invarlock.reporting import render

    report = read_report(args.report)
    try:
        text = _text(args, report)
    except UNREADABLE as error:  # follows its schema, and holds records of an impossible shape
        raise ContractError(
            f"cannot be rendered: {type(error).__name__}", where=str(args.report)
        ) from error
    if args.out is None:
        sys.stdout.write(text)
        return 0
    files = {args.out: text}
    styles = args.out.with_name(render.STYLES)
    # A style sheet that another page has left there is the same.
    if beside and not (styles.is_file() and styles.read_text() == render.style_sheet()):
        files[styles] = render.style_sheet()
    for path in files:
        if path.exists() and not args.force:
            raise ConfigError("the file exists", where=str(path), hint="overwrite it with --force")
    for path, content in files.items():
        write_text(path, content)
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


def _text(args: argparse.Namespace, report: dict[str, Any]) -> str:
    from invarlock.reporting import render

    if args.action == "html":
        return render.render_report_html(report, embed_css=args.embed_css)
    if args.action == "explain":
        return render.explain(report)
    if args.format == "markdown":
        return render.render_report_markdown(report)
    data = canonical_json(report) + b"\n" if args.format == "report" else pretty_json(report)
    return data.decode()
