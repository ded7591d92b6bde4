"""``reports/scenario_signal_summary.json``, in manifest order."""

from typing import Annotated

from invarlock.documents.fields import Category, Closed, Count, Strictness, about
from invarlock.reporting.documents.guards import PrimaryGuard

TITLE = "Signals per scenario"


class ScenarioSignalSummary(Closed):
    """One scenario."""

    id: Annotated[str, about("the scenario")]
    category: Annotated[Category, about("its category")]
    strictness: Annotated[Strictness, about("its strictness")]
    intent: Annotated[str, about("its intent")]
    primary_guard: Annotated[PrimaryGuard, about("its primary guard")]
    primary_guard_required: Annotated[bool, about("whether that guard has to fire")]
    reports: Annotated[Count, about("evaluations")]
    passed: Annotated[Count, about("evaluations that passed every gate")]
    failed: Annotated[Count, about("evaluations that did not")]
    detector_hits: Annotated[Count, about("evaluations whose detectors were satisfied")]
    signaled: Annotated[
        Count, about("evaluations in which any core guard fired, whatever the detectors say")
    ]
    primary_guard_hits: Annotated[Count, about("evaluations in which the primary guard fired")]


DOCUMENT = list[ScenarioSignalSummary]
