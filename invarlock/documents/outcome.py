"""``outcome.json``."""

from typing import Annotated, Literal

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Closed, Positive, Sha256, Status, Text, about

TITLE = "Outcome of one evaluation"


class Outcome(Closed, kw_only=True):
    """Outcome of one evaluation."""

    schema: Annotated[Literal["invarlock/outcome-v1"], about("format of this document")]
    model_id: Annotated[Text, about("the model")]
    scenario: Annotated[Text, about("the scenario")]
    run: Annotated[Positive, about("number of the run")]
    status: Annotated[
        Status,
        about(
            "only the first two can count as a detection; the others never pass and never detect"
        ),
    ]
    exit_code: Annotated[int | None, about("exit code of the measuring process")]
    injected: Annotated[bool | None, about("whether damage was done; null for edits")]
    detectors_hit: Annotated[list[str], about("detectors of the scenario that were true")]
    detectors_missed: Annotated[
        list[str],
        about("detectors of the scenario that were not, with the reason where there is one"),
    ]
    windows_sha256: Annotated[Sha256 | None, about("digest of windows.json")]
    subject_sha256: Annotated[
        Sha256 | None, about("digest of the subject checkpoint; null when it could not be read")
    ]
    baseline_sha256: Annotated[Sha256 | None, about("digest of the baseline checkpoint")]
    preset_sha256: Annotated[
        Sha256 | None, about("digest of the preset; null: the tier's own constants")
    ]
    attempt: Annotated[
        Positive,
        about(
            "1: with the whole batch; each further attempt had half the batch of the one "
            "before, which had run out of memory"
        ),
    ]
    token_budget: Annotated[
        Positive | UnsetType, about("tokens per batch of this attempt: all that a retry changes")
    ] = UNSET
    error: Annotated[str | None, about("one line of cause when nothing was measured")]


DOCUMENT = Outcome
