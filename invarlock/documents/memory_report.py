"""``memory_report.json`` beside the report of a deployable subject."""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, Count, Sha256, about

TITLE = "memory_report.json"


class Taken(Closed, kw_only=True):
    """What one model takes."""

    file_bytes: Annotated[Count, about("Files of weights.")]
    reported_bytes: Annotated[
        Count | None, about("Parameters and buffers; where an engine maps its files, those.")
    ]
    resident_bytes: Annotated[
        Count | None,
        about("Growth of the process from before loading to after the answers; of the moment."),
    ]
    peak_bytes: Annotated[Count | None, about("Most that the process had; of the moment.")]
    device_peak_bytes: Annotated[
        Count | None, about("Most that was allocated on the GPU; null without one.")
    ]


class MemoryReport(Closed, kw_only=True):
    """What subject and baseline take on disk and in memory."""

    schema: Annotated[Literal["invarlock/deployable-memory-report-v1"], about("Format.")]
    ok: Annotated[bool, about("Whether both were measured.")]
    subject_checkpoint_sha256: Annotated[Sha256 | None, about("The subject.")]
    measurement_method: Annotated[str, about("What the reported bytes are.")]
    baseline: Taken
    subject: Taken
    baseline_reported_bytes: Annotated[Count | None, about("As in baseline.")]
    quantized_reported_bytes: Annotated[Count | None, about("As in subject.")]
    reduction_bytes: Annotated[int | None, about("The first of them less the second.")]
    reduction_ratio: Annotated[
        float | None, about("That over the first; below 0 where more is taken.")
    ]
    runtime_memory_reduction_observed: Annotated[
        bool,
        about("Whether the loaded subject takes less. Some backends unpack weights on a CPU."),
    ]


DOCUMENT = MemoryReport
