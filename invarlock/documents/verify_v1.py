"""One result per report with every finding; written with --json and --out."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.documents.fields import ADDED, Closed, Count, about

TITLE = "Result of invarlock verify"


class Summary(Closed):
    """Over all reports."""

    ok: Annotated[bool, about("every report verified")]
    reason: Annotated[Literal["ok", "policy_fail", "malformed"], about("worst reason")]


class EvaluationReport(Closed):
    """How many reports."""

    count: Annotated[Count, about("reports verified")]


class Resolution(Closed):
    """Present when no report could be loaded."""

    exit_code: Annotated[Count, about("exit code")]


class Error(Closed):
    """Present when the command fails with a typed error."""

    code: Annotated[str, about("code of the first finding that decides the exit code")]
    category: Annotated[str, about("kind of that finding")]
    recoverable: Annotated[bool, about("another input could mend it")]
    context: Annotated[dict[str, Any], about("the report it is about")]


class ExpectedFailures(Closed):
    """Reports of a pack that have to fail."""

    verify: Annotated[list[dict[str, Any]], about("their results, an envelope each")]
    reports: Annotated[list[str], about("their paths")]


class Recompute(Closed):
    """Recomputation of the point from the recorded windows."""

    family: Annotated[Literal["ppl", "accuracy", "other"], about("metric family")]
    ok: Annotated[bool, about("equal within the tolerance")]
    reason: Annotated[Literal["mismatch", "skipped", None], about("why not")]


class Issue(Closed):
    """One issue."""

    code: Annotated[
        str, about("manifest_missing, manifest_invalid, execution_mode_invalid or verifier_failed")
    ]
    message: Annotated[str, about("what")]
    details: Annotated[dict[str, Any], about("further facts")]


class RuntimeProvenance(Closed):
    """The runtime manifest's verification."""

    declared_mode: Annotated[str, about("execution mode the report declares")]
    status: Annotated[Literal["verified", "failed", "skipped"], about("result")]
    verified: Annotated[bool, about("a container run whose manifest is in order")]
    skipped: Annotated[bool, about("container provenance was not demanded")]
    strict_blocking: Annotated[bool, about("strict assurance refuses this report")]
    issues: Annotated[list[Issue], about("what is wrong")]


class Verification(Closed):
    """Checks of what lies beside the report."""

    runtime_provenance: RuntimeProvenance


class ResultsError(Closed):
    """One finding."""

    code: Annotated[
        str,
        about(
            "E002 to E006 parity and evidence, E601 schema, E602 recomputation, POLICY, "
            "PROVENANCE, ASSURANCE"
        ),
    ]
    kind: Annotated[
        Literal["malformed", "contradiction", "incomparable", "missing", "policy"],
        about("what the finding means"),
    ]
    message: Annotated[str, about("what, where, expected, found")]


class Result(Closed, kw_only=True):
    """The result of one report."""

    id: Annotated[str, about("path of the report as given")]
    schema_version: Annotated[Literal["v1"], about("version of the report format")]
    kind: Annotated[str, about("kind of the primary metric, empty for a malformed report")]
    ok: Annotated[bool, about("this report verified")]
    passes: Annotated[
        bool | UnsetType,
        about("the report says that its subject passes; ok says that this is true"),
    ] = UNSET
    reason: Annotated[Literal["ok", "policy_fail", "malformed"], about("why not")]
    ratio_vs_baseline: Annotated[float | None, about("recorded ratio")]
    ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | None,
        about("recorded interval of the ratio"),
    ]
    recompute: Annotated[
        Recompute | None, about("recomputation of the point from the recorded windows")
    ]
    replayed: Annotated[
        bool, about("ratio, interval, guards and flags were recomputed from the recorded evidence")
    ]
    believed: Annotated[
        list[str], about("what could not be recomputed because its evidence is not in the report")
    ]
    guard_warnings_present: Annotated[bool, about("the report holds guard warnings")]
    warning_count: Annotated[Count, about("their number")]
    verification: Verification
    errors: Annotated[list[ResultsError], about("every finding")]
    outcome: Annotated[
        str | UnsetType | None,
        about("pass, fail or inconclusive, as the report says; null where it does not"),
    ] = UNSET


class VerifyV1(Closed, kw_only=True):
    """One result per report with every finding; written with --json and --out."""

    format_version: Annotated[Literal["verify-v1"], about("layout version")]
    summary: Summary
    evaluation_report: EvaluationReport
    ts: Annotated[
        Annotated[str, Meta(min_length=20)] | UnsetType,
        about("when it was printed; absent from files"),
    ] = UNSET
    component: Annotated[Literal["cli"], about("what wrote this")]
    profile: Annotated[str | UnsetType, ADDED, about("profile that was asked for")] = UNSET
    exit_code: Annotated[Count | UnsetType, about("exit code of the command")] = UNSET
    resolution: Resolution | UnsetType = UNSET
    error: Error | UnsetType = UNSET
    expected_failures: ExpectedFailures | UnsetType = UNSET
    results: Annotated[list[Result], about("one per report")]


DOCUMENT = VerifyV1
