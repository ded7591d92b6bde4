"""The outline of a rendered report: the same sections for Markdown and HTML."""

from __future__ import annotations

from invarlock.files import digest_json
from invarlock.reporting import guard_sections, metric_sections, record_sections
from invarlock.reporting.dashboard import dashboard, headline, title, verdict_word
from invarlock.reporting.page import Outline
from invarlock.reporting.signals import Report, block


def outline(report: Report) -> Outline:
    """The page of an evaluation report; a rejected subject has one too."""
    sections = [
        metric_sections.primary_metric(report),
        metric_sections.tail(report),
        guard_sections.invariants(report),
        guard_sections.spectral(report),
        guard_sections.rmt(report),
        guard_sections.variance(report),
        guard_sections.overhead(report),
        metric_sections.distribution(report),
        *([guard_sections.moe(report)] if block(report, "moe") else []),
        record_sections.warnings(report),
        record_sections.compared(report),
        record_sections.policy(report),
        record_sections.assurance(report),
        record_sections.does_not_show(report),
    ]
    return Outline(
        title=f"Evaluation of {title(report)}",
        verdict=verdict_word(report),
        headline=headline(report),
        digest=digest_json(report),
        dashboard=dashboard(report),
        sections=tuple(sections),
    )
