"""The outline of a rendered report: the same sections for Markdown and HTML."""

from __future__ import annotations

from invarlock.files import digest_json
from invarlock.guards import GUARDS
from invarlock.pages.parts import Outline
from invarlock.pages.reading import Report, block
from invarlock.reporting import metric_sections, record_sections
from invarlock.reporting.dashboard import dashboard, headline, title, verdict_word


def outline(report: Report) -> Outline:
    """The page of an evaluation report; a rejected subject has one too."""
    sections = [
        metric_sections.primary_metric(report),
        metric_sections.tail(report),
        *(guard.section(report) for guard in GUARDS if guard.every_model),
        metric_sections.distribution(report),
        *(g.section(report) for g in GUARDS if not g.every_model and block(report, g.name)),
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
