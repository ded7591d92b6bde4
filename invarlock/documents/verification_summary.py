"""``reports/verification_summary.json``."""

from typing import Annotated

from invarlock.documents.fields import Closed, Count, about

TITLE = "Reports by what was expected of them"


class VerificationSummary(Closed):
    """Reports by what was expected of them."""

    clean_reports: Annotated[Count, about("clean and custom reports that pass")]
    error_injection_reports: Annotated[Count, about("reports of deliberate damage")]
    expected_failure_reports: Annotated[
        Count, about("reports that had to fail or to be detected, and were")
    ]
    failed_reports: Annotated[
        Count, about("evaluations that did not show what their scenario asks for")
    ]
    policy_profile: Annotated[
        str | None,
        about(
            "profile that the reports were judged by (several: joined by commas); null: no report"
        ),
    ]


DOCUMENT = VerificationSummary
