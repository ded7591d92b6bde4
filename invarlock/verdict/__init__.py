"""From evaluation reports to a verdict: detectors, records, summaries, requirements, text."""

from __future__ import annotations

from invarlock.pages.reading import REJECTED

VERDICT_SCHEMA = "invarlock/final-verdict-v1"
MEASURED = ("reported", REJECTED)  # the only outcomes that can count as a detection
