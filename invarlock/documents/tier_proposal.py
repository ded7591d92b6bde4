"""What values of a tier harmless edits would have kept; a proposal, which changes no tier."""

from typing import Annotated, Literal

from msgspec import Meta

from invarlock.documents.fields import (
    EACH_ONCE,
    Alarm,
    Closed,
    Count,
    Positive,
    Sha256,
    Text,
    about,
    check_each_once,
)

TITLE = "Proposal for the values of a tier"

Share = Annotated[float, Meta(gt=0, lt=1)]


class Limit(Closed, kw_only=True):
    """One limit of the tier."""

    path: Annotated[Text, about("The limit, such as rmt.epsilon.ffn.")]
    in_force: Annotated[float | None, about("The tier's value; null: it sets none.")]
    floor: Annotated[float | None, about("Least value that an override may set; null: none may.")]
    ceiling: Annotated[float | None, about("Largest value that an override may set.")]
    runs: Annotated[Positive, about("Runs that say something of this limit.")]
    silent: Annotated[
        Count,
        about(
            "Runs that do not: it was not measured, nothing moved, or it depends on weights alone "
            "that another run has shown."
        ),
    ]
    alarms: Annotated[
        Alarm | None, about("Runs that the value in force flags; null where there is none.")
    ]
    largest: Annotated[float | None, about("Largest of the runs; null: not a finite number.")]
    kept: Annotated[
        float | None,
        about("Smallest value that would have flagged no more of these runs than the aim."),
    ]
    bound: Annotated[
        float | None,
        about(
            "Value above which at most the aim's share of such runs lies, at the confidence: an "
            "order statistic; null: too few runs, or not finite."
        ),
    ]
    runs_needed: Annotated[Positive, about("Fewest runs that give a bound.")]
    proposed: Annotated[float | None, about("The bound, from floor to ceiling; null without one.")]
    clipped: Annotated[
        Literal["floor", "ceiling"] | None,
        about("Which of them it is; at the ceiling false alarms may exceed the aim."),
    ]


class TierProposal(Closed, kw_only=True):
    """What values of a tier's limits harmless edits would have kept. It changes no tier: whoever
    agrees signs its values as a policy pack, or edits the table for a new version."""

    schema: Annotated[
        Literal["invarlock/tier-proposal-v1"], about("Name and version of this format.")
    ]
    sweep: Annotated[
        Literal["null", "variance"], about("Of which limits: the gates', or the variance guard's.")
    ]
    tier: Annotated[Text, about("The tier.")]
    false_alarm: Annotated[Share, about("The aim: share of harmless runs that a limit may flag.")]
    confidence: Annotated[Share, about("Of each bound.")]
    models: Annotated[list[Text], Meta(min_length=1), EACH_ONCE, about("Models of the runs.")]
    runs: Annotated[Positive, about("Different runs.")]
    repeats: Annotated[Count, about("Runs that repeat another one, which count for nothing.")]
    left_out: Annotated[
        Count, about("Runs of the folders that are of damage, or of edits that need not be clean.")
    ]
    inputs: Annotated[
        list[Sha256], Meta(min_length=1), EACH_ONCE, about("Digests of the files, sorted.")
    ]
    limits: Annotated[list[Limit], about("By path.")]
    values: Annotated[
        dict[str, float],
        about(
            "What `invarlock policy create --proposal` signs: what is proposed for limits that "
            "are in force and that an override may set."
        ),
    ]

    def __post_init__(self) -> None:
        check_each_once(self.models, "models")
        check_each_once(self.inputs, "inputs")


DOCUMENT = TierProposal
