"""An evaluation report as one HTML page."""

from invarlock.reporting.render import render_report_html

__all__ = ["render_report_html"]
