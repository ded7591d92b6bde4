"""Reports/guard_signal_summary.json."""

from typing import Annotated

from invarlock.documents.fields import Closed, Count, Counted, about

TITLE = "Which guard spoke how often"


class Signals(Closed):
    """Guard -> counts."""

    primary_metric: Annotated[Counted, about("one signal")]
    invariants: Annotated[Counted, about("one signal")]
    spectral: Annotated[Counted, about("one signal")]
    rmt: Annotated[Counted, about("one signal")]
    variance: Annotated[Counted, about("one signal")]


class GuardSignalSummary(Closed):
    """Reports/guard_signal_summary.json."""

    records_total: Annotated[Count, about("evaluations")]
    signals: Signals


DOCUMENT = GuardSignalSummary
