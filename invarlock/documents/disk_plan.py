"""What a run still writes to its disk (state/disk.json); written at the start of a run whose
edited checkpoints do not all fit side by side, and read before each of them is made.
"""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, Count, Positive, Text, about

TITLE = "Disk plan"


class Need(Closed):
    """One need."""

    model: Annotated[Text, about("Folder name of the model.")]
    what: Annotated[
        Literal["download", "baseline", "null edit", "edited checkpoint"], about("What is written.")
    ]
    bytes: Annotated[Count, about("Bytes of one.")]
    count: Annotated[Positive, about("How many are to be written.")]
    done: Annotated[
        str,
        about(
            "File whose presence ends the need, relative to the run's folder; empty for "
            "edited checkpoints, which come and go."
        ),
    ]


class DiskPlan(Closed):
    """What a run still writes to its disk (state/disk.json); written at the start of a run whose
    edited checkpoints do not all fit side by side, and read before each of them is made.
    """

    schema: Annotated[Literal["invarlock/disk-plan-v1"], about("Name and version of this format.")]
    tight: Annotated[bool, about("Whether the edited checkpoints have to take turns.")]
    needed_bytes: Annotated[
        Count,
        about(
            "Bytes without which the run cannot end: all needs, but only one edited "
            "checkpoint, the largest, unless they are kept."
        ),
    ]
    needs: Annotated[list[Need], about("What is still to be written, by model.")]
    free_bytes: Annotated[Count, about("Bytes that were free at the start.")]
    min_free_bytes: Annotated[Count, about("Bytes that must stay free (min_free_disk_gb).")]
    keep_subjects: Annotated[
        bool, about("Whether edited checkpoints are kept after their evaluations.")
    ]


DOCUMENT = DiskPlan
