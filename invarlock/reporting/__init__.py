"""Evaluation reports: decided, built, re-checked and rendered."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def render_report_html(report: Mapping[str, Any], embed_css: bool = True) -> str:
    """The report as one self-contained HTML page; see ``invarlock.reporting.render``."""
    # Not an import statement: what judges reports must not depend on how their pages look.
    page: str = importlib.import_module("invarlock.reporting.render").render_report_html(
        report, embed_css
    )
    return page
