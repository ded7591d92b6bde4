"""Every step of the verification with every finding; written with --json and --json-out."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Closed, Count, about, matches

TITLE = "Result of evidence-pack verify and proof-pack verify"


class Step(Closed):
    """One step."""

    number: Annotated[Count, about("its number")]
    name: Annotated[str, about("its name")]
    ok: Annotated[bool, about("no finding")]
    note: Annotated[str, about("what was found in order, or why it was not done")]
    findings: Annotated[list[str], about("what and where")]


class Verdict(Closed):
    """The pack's verdict."""

    recorded: Annotated[str | None, about("as recorded")]
    recomputed: Annotated[
        str | None, about("as recomputed from the reports, null when they do not suffice")
    ]
    outcome: Annotated[
        str | UnsetType | None,
        about("pass, fail or inconclusive, as recomputed; null when the reports do not suffice"),
    ] = UNSET


class EvidencePackVerify(Closed, kw_only=True):
    """Every step of the verification with every finding; written with --json and --json-out."""

    format_version: Annotated[
        Literal["evidence-pack-verify-v1", "proof-pack-verify-v1"], about("layout version")
    ]
    pack: Annotated[str, about("the pack as named on the command line, escaped")]
    ok: Annotated[bool, about("the pack verified")]
    exit_code: Annotated[
        Literal[0, 2, 3, 4, 5, 6, 7],
        about("0 ok, 3 incomplete, 4 manifest, 5 signature, 6 integrity, 7 reports"),
    ]
    strict: Annotated[bool, about("extra files fail")]
    skip_verify: Annotated[bool, about("reports were not verified")]
    replay: Annotated[bool, about("missing evidence fails")]
    profile: Annotated[Literal["dev", "ci", "release"], about("verification profile")]
    report_assurance: Annotated[Literal["off", "report", "strict"], about("report assurance")]
    warnings: Annotated[list[str], about("what does not fail the pack")]
    errors: Annotated[list[str], about("every finding of every step")]
    steps: Annotated[list[Step], about("the numbered steps that were reached")]
    evidence_level: Annotated[
        Literal["low", "medium", "high", None],
        about("the level recomputed from the pack, null when not reached"),
    ]
    authenticity: Annotated[
        Literal["unsigned", "unverified", "unpinned", "pinned", "mismatch"],
        about("whether the signer was compared with something"),
    ]
    trust_store: Annotated[str | UnsetType, about("the trust store that was used")] = UNSET
    signer_fingerprint: Annotated[
        Annotated[str, matches(r"^(sha256:[0-9a-f]{64}|[0-9A-F]{40}|[0-9A-F]{64})$")] | UnsetType,
        about("the signer's fingerprint; of an older pack, that of an OpenPGP key"),
    ] = UNSET
    verdict: Verdict
    replayed: Annotated[list[str], about("what was recomputed from recorded evidence")]
    believed: Annotated[list[str], about("what was only believed")]
    verify: Annotated[
        dict[str, Any] | UnsetType, about("the verify-v1 envelope of the reports")
    ] = UNSET


DOCUMENT = EvidencePackVerify
