"""Signed statement that binds checksums.sha256 and the referenced files. Open: published packs
carry further members.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import Count, Digest, Open, Sha256, Text, about, matches

TITLE = "manifest.json of an evidence pack"


class Builder(Open):
    """What built the pack."""

    id: Annotated[Text, about("kind of builder")]
    name: Annotated[Text, about("name of the builder")]
    version: Annotated[str | UnsetType, about("its version")] = UNSET


class Subject(Open):
    """The verdict the pack is about."""

    name: Annotated[Text, about("what the file is")]
    path: Annotated[
        str, Meta(min_length=1, max_length=1024), about("path relative to the pack's root")
    ]
    digest: Annotated[Digest, about("sha256: and the digest of the file's bytes")]


class Reference(Open):
    """A file of the pack, where there is one."""

    name: Annotated[Text | UnsetType, about("what the file is")] = UNSET
    path: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1024)] | UnsetType,
        about("path relative to the pack's root"),
    ] = UNSET
    digest: Annotated[Digest | UnsetType, about("sha256: and the digest of the file's bytes")] = (
        UNSET
    )


class ConfigSource(Reference):
    """The source repository."""

    uri: Annotated[str | UnsetType, about("address")] = UNSET
    commit: Annotated[str | UnsetType, about("commit")] = UNSET
    branch: Annotated[str | UnsetType, about("branch")] = UNSET
    describe: Annotated[str | UnsetType, about("git describe")] = UNSET
    dirty: Annotated[bool | UnsetType, about("uncommitted changes were present")] = UNSET


class Invocation(Open):
    """What was run."""

    config_source: ConfigSource | UnsetType = UNSET
    parameters: Annotated[
        dict[str, Any] | UnsetType, about("suite, scenario ids and other parameters of the run")
    ] = UNSET


class Environment(Reference):
    """Where the run was made."""


class Material(Reference):
    """One packed input."""

    name: Annotated[str, matches(r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), about("name given at build")]


class Model(Open):
    """One model."""

    model_id: Annotated[Text, about("model id")]
    revision: Annotated[str, about("pinned revision, empty for local and packaged models")]


class Verification(Open):
    """What the builder verified."""

    clean_reports: Annotated[Count | UnsetType, about("reports that are expected to pass")] = UNSET
    error_injection_reports: Annotated[Count | UnsetType, about("reports of deliberate damage")] = (
        UNSET
    )
    failed_reports: Annotated[Count | UnsetType, about("reports expected to pass that did not")] = (
        UNSET
    )
    policy_profile: Annotated[Text | UnsetType, about("verification profile")] = UNSET
    report_assurance: Annotated[Text | UnsetType, about("report assurance")] = UNSET


class EvidencePackManifest(Open):
    """Signed statement that binds checksums.sha256 and the referenced files. Open: published packs
    carry further members.
    """

    format: Annotated[Literal["evidence-pack-v1"], about("layout version")]
    checksums_sha256: Annotated[Literal["checksums.sha256"], about("name of the checksum file")]
    checksums_sha256_digest: Annotated[
        Sha256, about("lower-case SHA-256 of the raw bytes of checksums.sha256")
    ]
    generated_at: Annotated[
        Annotated[str, Meta(min_length=20)] | UnsetType,
        about("time of building, only when SOURCE_DATE_EPOCH fixes it"),
    ] = UNSET
    suite: Annotated[Text | UnsetType, about("name of the suite")] = UNSET
    determinism: Annotated[
        Text | UnsetType,
        about(
            "determinism level of the runs: that of the settings, or of the comparison of repeats"
        ),
    ] = UNSET
    run_dir: Annotated[
        Text | UnsetType, about("run folder (published packs; ours name no folder of a machine)")
    ] = UNSET
    invarlock_version: Annotated[
        str | UnsetType, about("version of the program that built the pack")
    ] = UNSET
    network_mode: Annotated[
        Literal["offline", "online"] | UnsetType,
        about("whether the settings of the run let it use the network"),
    ] = UNSET
    evidence_level: Annotated[
        Literal["low", "medium", "high"] | UnsetType,
        about("computed by the builder, recomputed by the verifier, never given"),
    ] = UNSET
    repeats: Annotated[
        Count | UnsetType, about("determinism repeats that the pack holds the comparison of")
    ] = UNSET
    determinism_repeats: Annotated[
        dict[str, Any] | list[Any] | UnsetType | None, about("summary of the determinism repeats")
    ] = UNSET
    builder: Builder | UnsetType = UNSET
    subject: Subject | UnsetType = UNSET
    invocation: Invocation | UnsetType = UNSET
    environment: Environment | UnsetType = UNSET
    materials: Annotated[list[Material] | UnsetType, about("further inputs that are packed")] = (
        UNSET
    )
    models: Annotated[list[Model] | UnsetType, about("the baseline models")] = UNSET
    model_list: Annotated[list[str] | UnsetType, about("ids of the baseline models, by name")] = (
        UNSET
    )
    model_licenses: Annotated[
        dict[str, Any] | UnsetType, about("licence by model id, where its source states one")
    ] = UNSET
    artifacts: Annotated[
        list[Text] | UnsetType,
        about("paths of the packed files outside reports/ (published packs: of all)"),
    ] = UNSET
    verification: Verification | UnsetType = UNSET
    signing_key_fingerprint: Annotated[
        Annotated[str, Meta(min_length=16)] | UnsetType,
        about("fingerprint of the key that signs this file"),
    ] = UNSET


DOCUMENT = EvidencePackManifest
