"""The outline of a rendered report: the same sections for Markdown and HTML."""

from __future__ import annotations

from msgspec.structs import replace

from invarlock.files import digest_json
from invarlock.guards import GUARDS
from invarlock.pages.parts import Outline
from invarlock.pages.reading import Report, block
from invarlock.reporting import metric_sections, record_sections
from invarlock.reporting.advice import next_steps
from invarlock.reporting.dashboard import dashboard, headline, title, verdict_word
from invarlock.reporting.judged import judged, judged_line
from invarlock.reporting.where import where

GUARD_PART, APPENDIX = "Guard observability", "Appendix"


def outline(report: Report) -> Outline:
    """The page of an evaluation report; a rejected subject has one too."""
    guards = [g for g in GUARDS if g.every_model or block(report, g.name)]
    sections = [
        *judged(report),
        *next_steps(report),
        *where(report),
        metric_sections.primary_metric(report),
        metric_sections.tail(report),
        metric_sections.distribution(report),
        *(replace(guard.section(report), part=GUARD_PART) for guard in guards),
        replace(record_sections.warnings(report), part=GUARD_PART),
        record_sections.policy(report),
        replace(record_sections.compared(report), part=APPENDIX),
        replace(record_sections.inference(report), part=APPENDIX),
        replace(record_sections.assurance(report), part=APPENDIX),
        record_sections.does_not_show(report),
    ]
    return Outline(
        title=f"Evaluation of {title(report)}",
        verdict=verdict_word(report),
        headline=headline(report),
        digest=digest_json(report),
        judged=judged_line(report),
        dashboard=dashboard(report),
        sections=tuple(sections),
        folded=tuple(s.id for s in sections if s.part == GUARD_PART or s.id == "policy"),
    )
