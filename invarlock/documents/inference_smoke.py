"""``inference_smoke.json`` beside the report of a deployable subject."""

from typing import Annotated, Literal

from msgspec import Meta

from invarlock.documents.fields import (
    Closed,
    Count,
    Fraction,
    NotNegative,
    Positive,
    Sha256,
    TokenId,
    about,
)

TITLE = "inference_smoke.json"


class Answer(Closed, kw_only=True):
    """One prompt."""

    prompt: Annotated[list[TokenId], about("Token ids of the prompt.")]
    baseline: Annotated[list[TokenId], about("The baseline's most likely tokens after it.")]
    subject: Annotated[list[TokenId], about("The subject's.")]
    agreed: Annotated[Count, about("How many of them are the same before the first other one.")]
    logits_finite: Annotated[bool, about("Whether all logits of the prompt are numbers.")]


class InferenceSmoke(Closed, kw_only=True):
    """What the subject answers in a fresh process, beside what the baseline does."""

    schema: Annotated[Literal["invarlock/deployable-inference-smoke-v1"], about("Format.")]
    ok: Annotated[bool, about("Whether it answered, by numbers and with tokens that there are.")]
    subject_checkpoint_sha256: Annotated[Sha256 | None, about("What was asked.")]
    new_tokens: Annotated[Positive, about("Tokens that were asked for after each prompt.")]
    vocabulary: Annotated[Positive | None, about("Tokens that the model has; null: no answer.")]
    answers: Annotated[list[Answer], about("Prompts, which are the same for every model.")]
    agreement: Annotated[
        Fraction | None,
        about("Agreed tokens over tokens asked for. Not judged: the metric is. Null: no answer."),
    ]
    all_logits_finite: Annotated[bool, about("Whether all logits of all prompts are numbers.")]
    logits_sha256: Annotated[
        Sha256 | None, about("SHA-256 of the float32 logits of the first prompt.")
    ]
    logits_shape: Annotated[
        list[Count], Meta(max_length=2), about("Their shape: tokens, vocabulary.")
    ]
    tokens_per_second: Annotated[NotNegative | None, about("Of the subject; of the moment.")]
    baseline_tokens_per_second: Annotated[
        NotNegative | None, about("Of the baseline, run by transformers; of the moment.")
    ]
    error: Annotated[str, about("Why there is no answer; empty where there is.")]


DOCUMENT = InferenceSmoke
