"""From evaluation reports to a verdict: detectors, records, summaries, requirements, text."""
