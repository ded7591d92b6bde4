"""``reports/guard_signal_summary.json``."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

from invarlock.documents.fields import Closed, Count, Counted, about
from invarlock.reporting.documents.guards import each

TITLE = "Which guard fired how often"


if TYPE_CHECKING:
    Signals: TypeAlias = Closed
else:
    Signals = each("Signals", Annotated[Counted, about("one signal")], "Guard -> counts.")


class GuardSignalSummary(Closed):
    """Which guard fired how often."""

    records_total: Annotated[Count, about("evaluations")]
    signals: Signals


DOCUMENT = GuardSignalSummary
