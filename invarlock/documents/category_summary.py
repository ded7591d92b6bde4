"""``reports/category_summary.json``: category -> counts."""

from typing import Annotated

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Closed, Count, about

TITLE = "Counts per category"


class Clean(Closed):
    """One category."""

    scenarios: Annotated[Count, about("distinct scenarios")]
    reports: Annotated[Count, about("evaluations")]
    primary_metric_fail: Annotated[Count, about("evaluations whose primary metric fired")]
    invariants_fail: Annotated[Count, about("invariants fail or error")]
    invariants_warn: Annotated[Count, about("invariants warn")]
    any_flag: Annotated[Count, about("evaluations in which any core guard fired")]


class CategorySummary(Closed):
    """Counts per category."""

    clean: Clean | UnsetType = UNSET
    stress: Clean | UnsetType = UNSET
    error_injection: Clean | UnsetType = UNSET
    custom: Clean | UnsetType = UNSET


DOCUMENT = CategorySummary
