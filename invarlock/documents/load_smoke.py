"""``load_smoke.json`` beside the report of a deployable subject."""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, NotNegative, Sha256, about

TITLE = "load_smoke.json"


class LoadSmoke(Closed, kw_only=True):
    """Whether a fresh process loads the subject by the backend that serves it."""

    schema: Annotated[Literal["invarlock/deployable-load-smoke-v1"], about("Format.")]
    ok: Annotated[bool, about("Whether it was loaded, and everything found its place.")]
    subject_checkpoint_sha256: Annotated[Sha256 | None, about("What was loaded.")]
    backend: Annotated[str | None, about("What loaded it; null where nothing did.")]
    backend_version: Annotated[str | None, about("Version of the backend's package.")]
    device: Annotated[str | None, about("Where it runs.")]
    dtype: Annotated[str | None, about("Its arithmetic, as the backend names it.")]
    loaded_from_saved_checkpoint: Annotated[
        bool, about("Whether what was loaded are the files that were named.")
    ]
    load_time_quantization_override: Annotated[
        Literal[False], about("Nothing is quantized while it is loaded.")
    ]
    missing: Annotated[list[str], about("Weights of the model that the files lack.")]
    unexpected: Annotated[list[str], about("Weights that the model has no place for.")]
    seconds: Annotated[NotNegative | None, about("Wall seconds of loading; of the moment.")]
    error: Annotated[str, about("Why it was not loaded; empty where it was.")]


DOCUMENT = LoadSmoke
