"""Where and how one evaluation report was made; sits beside the report and is bound to its
bytes. Closed, except context.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import Closed, Digest, Open, Sha256, Text, about

TITLE = "runtime.manifest.json"


class Report(Closed):
    """The report this file belongs to."""

    path: Annotated[Text, about("where the report was written; informative only")]
    filename: Annotated[Text, about("base name of the report")]
    sha256: Annotated[Sha256, about("SHA-256 of the report's raw bytes")]


class Config(Closed):
    """The configuration of the evaluation."""

    path: Annotated[str | None, about("configuration file, or null")]
    sha256: Annotated[
        Sha256 | None,
        about(
            "digest of the file's bytes or of the inline configuration's canonical JSON; "
            "null when missing"
        ),
    ]
    source: Annotated[
        Literal["file", "inline", "missing"], about("where the configuration came from")
    ]


class Runtime(Closed):
    """The runtime."""

    image_ref: Annotated[Text, about("image reference")]
    image_digest: Annotated[Digest | None, about("digest of the image, null outside a container")]
    container_execution: Annotated[bool, about("the evaluation ran inside the image")]
    allow_network: Annotated[bool, about("network access was allowed")]
    allow_remote_code: Annotated[bool, about("remote model code was allowed")]
    allow_third_party_plugins: Annotated[bool, about("third-party plugins were allowed")]


class Context(Open):
    """Free-form: command, profile, tier, timings."""

    timings_seconds: Annotated[dict[str, Any] | UnsetType, about("wall seconds of each phase")] = (
        UNSET
    )
    memory_mb: Annotated[
        dict[str, Any] | UnsetType, about("peak resident memory without and with guards, MB")
    ] = UNSET
    telemetry: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "latency (ms a token), throughput (tokens a second) and peak memory (MiB); empty: "
            "nothing ran"
        ),
    ] = UNSET
    guard_overhead: Annotated[
        dict[str, Any] | UnsetType | None,
        about(
            "seconds of each guard, and time and memory relative to the bare pass; null: "
            "nothing ran"
        ),
    ] = UNSET


class RuntimeManifest(Closed):
    """Where and how one evaluation report was made; sits beside the report and is bound to its
    bytes. Closed, except context.
    """

    manifest_version: Annotated[Literal[1], about("layout version")]
    verifier_contract_version: Annotated[
        Literal["runtime-manifest-v1"], about("contract the verifier applies")
    ]
    generated_at_utc: Annotated[
        str,
        Meta(min_length=20, max_length=64),
        Meta(extra_json_schema={"format": "date-time"}),
        about("time of writing: an ISO 8601 date-time with its offset"),
    ]
    execution_mode: Annotated[
        Literal["container", "host-bypass"],
        about("container: inside the recorded image; host-bypass: directly on the host"),
    ]
    report: Report
    config: Config
    runtime: Runtime
    context: Context | UnsetType = UNSET


DOCUMENT = RuntimeManifest
