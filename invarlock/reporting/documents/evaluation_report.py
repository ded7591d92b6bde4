"""Comparison of one subject with its baseline. Open where the v1 format is open: further members
are allowed except in validation and evaluation_realism.
"""

from invarlock.reporting.evaluation import EvaluationReport

TITLE = "evaluation.report.json (v1)"
DOCUMENT = EvaluationReport
