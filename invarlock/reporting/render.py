"""Evaluation reports for people: Markdown and self-contained HTML from one outline.

The JSON report stays the authority; a page is a view of it. Nothing here depends on the clock,
the host or the order of anything that is not in the report.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.pages.passages import LEGEND
from invarlock.pages.reading import Report
from invarlock.pages.wording import visible
from invarlock.reporting.dashboard import explain
from invarlock.reporting.outline import outline

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["explain", "render_report_html", "render_report_markdown", "style_sheet"]

TEMPLATES = Path(__file__).with_name("templates")
STYLES = "report.css"
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&$!])|(?<![0-9A-Za-z])(_)|(_)(?![0-9A-Za-z])|(://)|(www\.)")


def render_report_html(report: Report, embed_css: bool = True) -> str:
    """The report as one HTML page without scripts or outside references.

    Args:
        report: an evaluation report.
        embed_css: put the style sheet into the page, instead of a link to the file beside it.
    """
    template = _environment(html=True).get_template("report.html.j2")
    words = {"page": outline(report), "legend": LEGEND}
    return template.render(words, embed_css=embed_css, stylesheet=STYLES)


def style_sheet() -> str:
    """The style sheet that a page without styles of its own links to."""
    return (TEMPLATES / STYLES).read_text()


def render_report_markdown(report: Report) -> str:
    """The report as Markdown (CommonMark with tables)."""
    return _environment(html=False).get_template("report.md.j2").render(page=outline(report))


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no links, no line breaks."""

    def escape(match: re.Match[str]) -> str:
        found = match.group()
        if found == "://":
            return ":\\/\\/"
        return "www\\." if found == "www." else "\\" + found

    return _MARKDOWN.sub(escape, visible(text))


@functools.cache
def _environment(html: bool) -> Environment:
    """Every value a template prints passes through ``finalize``, so none can be forgotten."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, Markup):
            return visible(value) if html else escape_markdown(value)
        return value

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
