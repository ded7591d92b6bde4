"""Verification of one report: the check matrix, the runtime manifest, and assurance."""

from __future__ import annotations

import json
from collections.abc import Callable

import leaves
import pytest
import report_factory as factory
from pack_factory import Document

from invarlock.evidence import parity
from invarlock.evidence.published import assurance, provenance, report_checks
from invarlock.evidence.report_verify import ReportOptions, ReportResult, verify_report
from invarlock.files import canonical_json, sha256_bytes
from invarlock.guards import BY_NAME

Change = Callable[[Document], object]
CLEAN = factory.make_report("quant_8bit_clean", 1.004)


def runtime(report: bytes, **changes: object) -> Document:
    """The manifest of a host run."""
    document: Document = {
        "manifest_version": 1,
        "verifier_contract_version": "runtime-manifest-v1",
        "generated_at_utc": "2026-01-02T03:04:05+00:00",
        "execution_mode": "host-bypass",
        "report": {
            "path": "evaluation.report.json",
            "filename": "evaluation.report.json",
            "sha256": sha256_bytes(report),
        },
        "config": {"path": None, "sha256": None, "source": "missing"},
        "runtime": {
            "image_ref": "host",
            "image_digest": None,
            "container_execution": False,
            "allow_network": False,
            "allow_remote_code": False,
            "allow_third_party_plugins": False,
        },
    }
    return document | changes


def container(
    report: bytes, ref: str = "invarlock:1", digest: str = "sha256:" + "a" * 64
) -> Document:
    """The manifest of a container run."""
    document = runtime(report, execution_mode="container")
    document["runtime"] |= {
        "image_ref": ref,
        "image_digest": digest,
        "container_execution": True,
    }
    return document


def check(
    change: Change | None = None, report: Document = CLEAN, **options: object
) -> ReportResult:
    """Verify a changed copy of a report beside a manifest that fits it."""
    copy = factory.plain(report)
    if change:
        change(copy)
    data = canonical_json(copy)
    manifest = canonical_json(runtime(data))
    return verify_report(data, manifest, "r", ReportOptions(**options))  # type: ignore[arg-type]


def codes(result: ReportResult) -> set[str]:
    """The codes of the findings."""
    return {finding.code for finding in result.findings}


@pytest.mark.parametrize("profile", ["dev", "ci", "release"])
def test_a_good_report_verifies_and_is_replayed(profile: str) -> None:
    """An honest report has no finding, and its decisions were recomputed."""
    result = check(profile=profile, require_replay=True)
    assert result.findings == []
    assert result.replayed
    assert result.recompute == {"family": "ppl", "ok": True, "reason": None}


def test_release_asks_for_what_was_not_evaluated() -> None:
    """A flag and a block that are left out are missing in profile release."""

    def change(report: Document) -> None:
        del report["validation"]["rmt_stable"], report["guard_overhead"]

    messages = " ".join(f.message for f in check(change, profile="release").findings)
    assert "rmt_stable" in messages
    assert "guard_overhead" in messages


@pytest.mark.parametrize("profile", ["ci", "release"])
def test_the_exploring_tier_never_passes_a_real_profile(profile: str) -> None:
    """Tier none is true and passes dev; it decides nothing that a profile could believe."""
    exploring = factory.make_report(tier="none")
    assert check(report=exploring).ok
    found = check(report=exploring, profile=profile)
    assert [f.message for f in found.findings if f.message.startswith("/auto/tier")]


def test_an_honest_fail_is_true_but_not_acceptable() -> None:
    """No contradiction, and a policy failure in every profile: its own lints name its gates.

    Where the truth alone is asked for, it verifies, and says that it fails.
    """
    for bad in (
        factory.make_report("prune_50pct_stress", 1.6),
        factory.make_report("prune_50pct_stress", 1.6, profile="ci", assurance="strict"),
    ):
        for profile in ("dev", "ci", "release"):
            result = check(report=bad, profile=profile, assurance="off")
            assert (result.exit_code(profile), codes(result), result.sound) == (1, {"POLICY"}, True)
        result = check(report=bad, truth_only=True, require_replay=True)
        assert (result.exit_code("dev"), result.passes, result.replayed) == (0, False, True)
    assert check(truth_only=True).passes


def test_a_rejected_subject_does_not_verify() -> None:
    """Nothing was measured: a policy failure in every profile, and no contradiction."""
    result = check(report=factory.make_rejected())
    assert (result.exit_code("dev"), result.sound) == (1, True)
    result = check(report=factory.make_rejected(), truth_only=True, require_replay=True)
    assert (result.exit_code("dev"), result.passes) == (0, False)


@pytest.mark.parametrize("profile", ["dev", "ci", "release"])
def test_an_untrue_report_never_verifies(profile: str) -> None:
    """Asking for the truth alone forgives no contradiction, missing claim or explicit demand."""
    bad = factory.make_report("prune_50pct_stress", 1.6)
    truth: Document = {"profile": profile, "truth_only": True, "report": bad}
    assert not check(at("validation/spectral_stable", False), **truth).ok
    assert not check(at("validation/primary_metric_acceptable", True), **truth).ok
    assert not check(**truth | {"assurance": "strict"}).ok
    assert not check(**truth | {"provenance": "container"}).ok


def at(path: str, value: object) -> Change:
    """A change of one member."""

    def change(document: Document) -> None:
        *parts, last = path.split("/")
        for part in parts:
            document = document[int(part) if part.isdigit() else part]  # type: ignore[call-overload]
        document[int(last) if last.isdigit() else last] = value  # type: ignore[call-overload]

    return change


MATRIX: dict[str, tuple[str, Change, str]] = {
    "6 ratio": ("dev", at("primary_metric/ratio_vs_baseline", 1.0), "E602"),
    "6 baseline": ("dev", at("baseline_ref/primary_metric/final", -1.0), "E602"),
    "9 reason": ("dev", at("dataset/windows/stats/window_pairing_reason", "no"), "E001"),
    "9 paired": ("dev", at("dataset/windows/stats/paired_windows", 0), "E001"),
    "9 match": ("dev", at("dataset/windows/stats/window_match_fraction", 0.99), "E001"),
    "9 overlap": ("dev", at("dataset/windows/stats/window_overlap_fraction", 0.1), "E001"),
    "10 count": ("dev", at("dataset/windows/final", 179), "E001"),
    "10 coverage": ("dev", at("dataset/windows/stats/coverage/preview/used", 9), "E001"),
    "11 display": ("dev", at("primary_metric/display_ci", [0.5, 2.0]), "E602"),
    "11 order": ("dev", lambda r: r["primary_metric"]["ci"].reverse(), "E602"),
    "12 no interval": ("ci", lambda r: r["primary_metric"].pop("ci"), "E602"),
    "2 no digest": ("ci", at("provenance/provider_digest", {}), "E004"),
    "15 lint": (
        "dev",
        at("meta/model_profile/cert_lints", [{"path": "a.b", "type": "gte", "value": 1}]),
        "POLICY",
    ),
    "16 tokenizer": ("dev", at("baseline_ref/tokenizer_hash", "0"), "E002"),
    "18 contract": ("ci", at("spectral/measurement_contract_match", False), "E602"),
    "18 hash": ("ci", at("spectral/measurement_contract_hash", "0" * 16), "E602"),
    "18 missing": ("ci", at("resolved_policy/spectral/measurement_contract", {}), "E602"),
    "a flag": ("dev", at("validation/spectral_stable", False), "E602"),
}


@pytest.mark.parametrize("row", MATRIX)
def test_the_matrix_catches(row: str) -> None:
    """Each row of the matrix, and each repeated claim, fails with its code."""
    profile, change, code = MATRIX[row]
    result = check(change, profile=profile)
    assert code in codes(result)
    assert result.exit_code(profile) == (1 if profile == "dev" or code == "POLICY" else 3)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"a":1,"a":2}', b"\xff", b'{"schema_version": NaN}', b"[" * 1000],
)
def test_what_is_no_report_is_malformed(text: bytes) -> None:
    """Not strict JSON, or not the schema: exit 2."""
    result = verify_report(text, None, "r", ReportOptions())
    assert (result.exit_code("dev"), codes(result)) == (2, {"E601"})


V1 = {
    "schema_version": "v1",
    "run_id": "20251013T012233Z-quant8-balanced",
    "meta": {"model_id": "gpt2", "adapter": "hf_causal", "device": "cpu"},
    "dataset": {
        "provider": "wikitext2",
        "seq_len": 512,
        "windows": {
            "preview": 200,
            "final": 200,
            "seed": 42,
            "stats": {
                "window_match_fraction": 1.0,
                "window_overlap_fraction": 0.0,
                "paired_windows": 200,
                "coverage": {"preview": {"used": 200}, "final": {"used": 200}},
            },
        },
    },
    "primary_metric": {
        "kind": "ppl_causal",
        "preview": 42.18,
        "final": 43.10,
        "ratio_vs_baseline": 1.02,
        "display_ci": [1.00, 1.05],
    },
    "artifacts": {},
    "plugins": {},
    "something_new": {"fine": True},
}
INCOMPLETE: dict[str, Change] = {
    **{
        f"without {name}": lambda r, name=name: r["primary_metric"].pop(name)  # type: ignore[misc]
        for name in report_checks.MEASURED
    },
    "without an interval, and decided": lambda r: (
        r["primary_metric"].pop("display_ci"), r["primary_metric"].update(decision="pass")
    ),
    "a run id of three letters": lambda r: r.update(run_id="abc"),
    "windows of no token": lambda r: r["dataset"].update(seq_len=0),
}  # fmt: skip


@pytest.mark.parametrize("how", INCOMPLETE)
def test_what_the_page_of_v1_requires(how: str) -> None:
    """The published example with a member more verifies; without what it has to hold: exit 2."""
    whole = verify_report(canonical_json(V1), None, "r", ReportOptions(provenance="host"))
    assert whole.findings == []
    copy = factory.plain(V1)
    INCOMPLETE[how](copy)
    result = verify_report(canonical_json(copy), None, "r", ReportOptions(provenance="host"))
    assert (result.exit_code("dev"), codes(result)) == (2, {"E601"})
    copy["primary_metric"]["invalid"] = True  # says itself that it has no usable value
    result = verify_report(canonical_json(copy), None, "r", ReportOptions(provenance="host"))
    assert result.ok == (how not in ("a run id of three letters", "windows of no token"))


def test_a_comparison_without_an_interval_is_a_report() -> None:
    """Windows of one document decide nothing, and that is true."""

    def one(run: Document) -> None:
        for rows in run["evaluation_windows"].values():
            rows["clusters"] = ["doc-0"] * len(rows["clusters"])

    report = factory.make_report("quant_8bit_clean", 1.004, subject=one)
    assert "display_ci" not in report["primary_metric"]
    assert check(report=report, truth_only=True, require_replay=True).ok


def test_replay_that_has_no_evidence_is_only_believed() -> None:
    """A published report without both runs' sums is believed, unless a replay is demanded."""
    result = check(lambda r: r.pop("evaluation_windows"))
    assert result.ok
    assert result.believed
    assert codes(check(lambda r: r.pop("evaluation_windows"), require_replay=True)) == {"E004"}


def test_parity_with_a_published_report() -> None:
    """--baseline compares the published digests of windows and tokenizer."""
    digest = CLEAN["provenance"]["provider_digest"]
    assert parity.check(CLEAN, {"provenance": {"provider_digest": digest}}) == []
    for key, code in (("ids_sha256", "E006"), ("tokenizer_sha256", "E002")):
        other = {"provenance": {"provider_digest": digest | {key: "0"}}}
        assert [f.code for f in parity.check(CLEAN, other)] == [code]
    assert [f.code for f in parity.check(CLEAN, {})] == ["E004"]


RUN = factory.BASELINE | {"schema": parity.RUN_SCHEMA}


# What an evaluation report does not repeat of its baseline's run.
OWN = ("meta/device", "meta/dtype", "meta/seed", "meta/determinism", "meta/invarlock_version",
       "edit", "work", "guards", "schema", "logloss")  # fmt: skip


def test_the_run_of_the_baseline_is_compared_leaf_by_leaf() -> None:
    """A run report of ours agrees with the reports made from it, and no other run does."""
    reports = [CLEAN, factory.make_report("prune", 1.6), factory.make_rejected()]
    for report in reports:
        assert verify_report(
            canonical_json(report), None, "r",
            ReportOptions(provenance="host", truth_only=True), factory.plain(RUN),
        ).ok  # fmt: skip
    changed = 0
    run = factory.plain(RUN)
    for place in leaves.leaves(run):
        path = leaves.pointer(place)
        if not any(part in path for part in OWN):
            with leaves.changed(run, place):
                found = parity.check(CLEAN, run)
            assert {f.code for f in found} <= {"E002", "E006"}, path
            assert found, path
            changed += 1
    assert changed > 15


DOWN = RUN["guards"][2]["modules"]["name"].index(factory.DOWN)


@pytest.mark.parametrize("place", ["1/modules/sigma_max/0", "1/modules/name/0", "2/modules/edge/3",
                                   f"2/modules/variance/{DOWN}", "2/modules/name/0"])  # fmt: skip
def test_the_baseline_statistics_are_compared(place: str) -> None:
    """The guards' tables repeat what the baseline's run recorded."""
    other = factory.plain(RUN)
    at(f"guards/{place}", "other" if "name" in place else 0.123)(other)
    assert [f.code for f in parity.check(CLEAN, other)] == ["E006"]


def test_a_report_measures_as_its_baseline_did() -> None:
    """A guard that states an earlier contract, or is left out, is not that of today's run."""
    for name in ("spectral", "rmt", "representation", "variance"):
        older = factory.plain(CLEAN)
        older[name]["measurement_contract_hash"] = "0" * 16
        without = {key: value for key, value in older.items() if key != "representation"}
        for report in (older, without):
            assert "E006" in {f.code for f in parity.check(report, RUN)}, name


def test_the_routers_of_the_baseline_are_compared() -> None:
    """Of a mixture they lie beside the guards' statistics."""
    report = factory.plain(factory.make_mixture())
    run = factory.plain({**RUN, "routers": BY_NAME["moe"].baseline_record(report)})
    assert parity.check(report, run) == []
    run["routers"]["entropy"][0] += 0.1
    assert [f.code for f in parity.check(report, run)] == ["E006"]


# --- runtime manifest -----------------------------------------------------------------------


def issues(manifest: Document | None, mode: str = "declared", report: bytes = b"{}") -> list[str]:
    """The issue codes of a manifest beside the report ``{}``."""
    data = None if manifest is None else canonical_json(manifest)
    return [
        code
        for code, _ in provenance.check(json.loads(report), sha256_bytes(report), data, mode).issues
    ]


def test_provenance_modes() -> None:
    """declared takes host runs, container demands one, host demands no manifest."""
    assert issues(runtime(b"{}")) == []
    assert issues(runtime(b"{}"), "container") == ["execution_mode_invalid"]
    assert issues(container(b"{}"), "container") == []
    assert issues(None) == ["manifest_missing"]
    assert issues(None, "host") == []


@pytest.mark.parametrize(
    "manifest",
    [
        runtime(b"other"),
        runtime(b"{}", generated_at_utc="twenty characters and more"),
        runtime(b"{}", config={"path": None, "sha256": None, "source": "file"}),
        container(b"{}", digest=None),  # type: ignore[arg-type]
        container(b"{}", ref="invarlock@sha256:" + "b" * 64),
        runtime(b"{}", execution_mode="container"),
        runtime(b"{}", extra=1),
        runtime(b"{}", manifest_version=True),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(manifest: Document) -> None:
    """Digest, date, configuration, image and mode are checked; the schema is closed."""
    assert "verifier_failed" in issues(manifest)


def timed_manifest(report: bytes, seconds: float = 0.625 * 51.84, **more: object) -> Document:
    """The manifest of a run whose forward pass took so long."""
    context = {
        "timings_seconds": {"forward": seconds},
        "memory_mb": {"forward": 1000.0, "with_guards": 1624.5 * 2**20 / 1e6},
        "telemetry": dict(factory.SLOWER),
    }
    return runtime(report, context=context | more)


def test_what_a_run_took_follows_from_its_times() -> None:
    """51,840 tokens in 32.4 seconds; another speed, in either file, is refused."""
    data = canonical_json(factory.make_timed())

    def lines(manifest: Document, report: bytes = data) -> list[str]:
        result = verify_report(report, canonical_json(manifest), "r", ReportOptions())
        return [f.message for f in result.findings]

    assert lines(timed_manifest(data)) == []
    assert "does not follow" in lines(timed_manifest(data, 30.0))[0]
    assert "not what the report states" in lines(timed_manifest(data, telemetry={}))[0]
    untold = canonical_json(CLEAN)
    assert lines(timed_manifest(untold), untold) == []
    assert "does not follow" in lines(timed_manifest(untold, 30.0), untold)[0]
    silent = timed_manifest(data)
    del silent["context"]["telemetry"]
    assert "missing" in lines(silent)[0]


@pytest.mark.parametrize("seconds", [{"forward": "x"}, {"forward": True}, {"forward": [1]}, {}])
def test_impossible_times_are_no_crash(seconds: Document) -> None:
    """They are found, or say nothing."""
    data = canonical_json(CLEAN)
    for memory in ({}, {"forward": None}, {"forward": 1.0}):
        context = {"timings_seconds": seconds, "memory_mb": memory, "telemetry": {"x": 1}}
        manifest = canonical_json(runtime(data, context=context))
        verify_report(data, manifest, "r", ReportOptions())


def test_report_and_manifest_agree_about_the_mode() -> None:
    """A report that declares a host run beside a container manifest is refused.

    Of a report that declares nothing, the manifest's mode is what was declared.
    """
    report = b'{"meta":{"execution_mode":"host-bypass"}}'
    assert issues(runtime(report), report=report) == []
    assert issues(container(report), report=report) == ["verifier_failed"]
    for manifest, mode in ((runtime(b"{}"), "host-bypass"), (container(b"{}"), "container")):
        found = provenance.check({}, sha256_bytes(b"{}"), canonical_json(manifest), "declared")
        assert found.to_json()["declared_mode"] == mode
    assert provenance.check({}, "", None, "host").to_json()["declared_mode"] == "unknown"


# --- strict assurance -----------------------------------------------------------------------


def strict_report() -> Document:
    """A report that claims strict assurance and shows everything it needs."""
    guard = {"evaluated": True, "passed": True, "decision": "allow"}
    return {
        "assurance": {
            "mode": "strict",
            "claim_set": assurance.CLAIM_SET,
            "verdict": "pass",
            "canonical_guard_chain_enforced": True,
            "profile": "ci",
            "tier": "balanced",
            "guard_chain_observed": assurance.GUARD_CHAIN,
        },
        **{name: dict(guard) for name in assurance.GUARDS},
    }


def test_strict_assurance_accepts_the_full_claim() -> None:
    """A complete claim with container provenance has no finding."""
    assert assurance.check(strict_report(), "strict", True) == []
    event = {"field": "primary_metric.display_ci", "reason": "computed_from_primary_metric_ci"}
    report = strict_report() | {"report_build": {"synthesized_fields": [event]}}
    assert assurance.check(report, "report", True) == []


def test_strict_assurance_is_taken_only_where_asked() -> None:
    """off never asks; report asks where the report claims it."""
    assert assurance.check({}, "off", False) == []
    assert assurance.check({}, "report", False) == []
    assert assurance.check({}, "strict", False)
    assert assurance.check(strict_report(), "report", False)


@pytest.mark.parametrize(
    "change",
    [
        at("assurance/claim_set", "mine"),
        at("assurance/verdict", "fail"),
        at("assurance/canonical_guard_chain_enforced", 1),
        at("assurance/fallback_fields_used", True),
        at("assurance/blocking_reasons", ["x"]),
        at("assurance/profile", "dev"),
        at("assurance/tier", "loose"),
        at("assurance/guard_chain_observed", ["invariants", "spectral"]),
        at("report_build", {"repaired_fields": [{"field": "x"}]}),
        at("rmt/evaluated", False),
        at("variance", {}),
        at("spectral/decision", "block"),
        at("spectral/status", "degraded"),
    ],
)
def test_strict_assurance_refuses(change: Change) -> None:
    """Each condition on its own is enough to refuse."""
    report = strict_report()
    change(report)
    assert len(assurance.check(report, "strict", True)) == 1
