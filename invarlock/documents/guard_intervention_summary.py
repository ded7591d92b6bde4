"""``reports/guard_intervention_summary.json``."""

from typing import Annotated

from invarlock.documents.fields import Closed, Count, Counted, about

TITLE = "Interventions of the guards"


class Signals(Closed):
    """Signal -> counts."""

    spectral_caps: Annotated[Counted, about("one signal")]
    ve_signal: Annotated[Counted, about("one signal")]


class GuardInterventionSummary(Closed):
    """Interventions of the guards."""

    records_total: Annotated[Count, about("evaluations")]
    signals: Signals


DOCUMENT = GuardInterventionSummary
