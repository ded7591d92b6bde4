"""Whether the parts of a report that repeat or summarize its evidence agree with it.

The replay recomputes the decisions; these are the places that a reader would otherwise believe:
per-window losses, the digest of the window ids, coverage, guard results, the limits in force,
the windows that guards were calibrated and tried on, and the report's own summaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.errors import InvarlockError
from invarlock.evidence.findings import dig
from invarlock.files import digest_json
from invarlock.guards import CHAIN, CONTRACTS, contract_fields
from invarlock.guards.rmt import CALIBRATION_WINDOWS, MAX_TOKENS
from invarlock.guards.variance import is_target
from invarlock.metrics.perplexity import Bootstrap
from invarlock.reporting.assurance import assurance_block
from invarlock.reporting.evaluation import GUARD_FIELDS, resolved_policy
from invarlock.reporting.judgement import Judgement
from invarlock.reporting.replay import policy_of
from invarlock.reporting.runs import Comparison
from invarlock.reporting.tables import read_activations
from invarlock.reporting.telemetry import telemetry_block

ARMS = ("preview", "final")
LOSS_TOLERANCE = 1e-9  # relative, of logloss against nll_sum / token_counts
TRIED = (("clusters", "clusters"), ("token_counts", "token_counts"), ("plain_nll", "nll_sum"))
Report = Mapping[str, Any]
# Pairs of places that hold the same thing.
SAME = (
    ("baseline_ref/tokenizer_hash", "provenance/provider_digest/tokenizer_sha256"),
    ("baseline_ref/tokenizer_hash", "dataset/tokenizer/hash"),
    ("meta/checkpoint_sha256", "provenance/subject/checkpoint_sha256"),
    ("baseline_ref/checkpoint_sha256", "provenance/baseline/checkpoint_sha256"),
    ("baseline_ref/run_id", "provenance/baseline/run_id"),
    ("baseline_ref/primary_metric/kind", "primary_metric/kind"),
    ("auto/tier", "assurance/tier"),
    ("auto/tier", "policy_provenance/tier"),
    ("auto/tier", "policy_digest/tier_policy_name"),
    ("auto/tier", "dataset/windows/stats/coverage/tier"),
    ("context/profile", "assurance/profile"),
    ("context/assurance/mode", "assurance/mode"),
    ("context/guard_chain_observed", "assurance/guard_chain_observed"),
    *((f"context/bootstrap/{k}", f"dataset/windows/stats/bootstrap/{k}")
      for k in ("replicates", "alpha", "seed")),
    ("context/bootstrap/replicates", "dataset/windows/stats/coverage/replicates/used"),
)  # fmt: skip


def check(report: Report) -> list[str]:
    """Every disagreement, as ``/pointer ...`` lines.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: evidence of an impossible shape.
    """
    parts = (_same, _windows, _classification, _guards, _measured, _policy, _summaries)
    return [line for part in parts for line in part(report)]


def _same(report: Report) -> Iterator[str]:
    for one, other in SAME:
        values = [dig(report, *place.split("/")) for place in (one, other)]
        if None not in values and values[0] != values[1]:
            yield f"/{other} differs from /{one}"


def _windows(report: Report) -> Iterator[str]:
    windows, stats = report["evaluation_windows"], report["dataset"]["windows"]["stats"]
    ids: list[Any] = []
    for arm in ARMS:
        rows, used = windows[arm], len(windows[arm]["window_ids"])
        ids += rows["window_ids"]
        for column in ("logloss", "nll_sum", "baseline_nll_sum", "token_counts", "clusters"):
            if len(rows[column]) != used:
                yield f"/evaluation_windows/{arm}/{column} has not one entry a window"
                return
        for index in range(used):
            total, count, loss = (rows[c][index] for c in ("nll_sum", "token_counts", "logloss"))
            if total is None and loss is None:
                continue  # not finite, and the metric is then invalid
            if not math.isclose(total / count, loss, rel_tol=LOSS_TOLERANCE):
                yield f"/evaluation_windows/{arm}/logloss/{index} is not nll_sum / token_counts"
                break
        coverage = stats["coverage"][arm]
        if coverage["used"] != used or coverage["ok"] is not (used >= coverage["required"]):
            yield f"/dataset/windows/stats/coverage/{arm} does not fit {used} windows"
    if not ids:
        return
    if dig(report, "provenance", "provider_digest", "ids_sha256") != digest_json(sorted(ids)):
        yield "/provenance/provider_digest/ids_sha256 is not the digest of the window ids"
    if len(set(ids)) != len(ids):
        yield "/evaluation_windows: a window is in there twice"
    if stats["clusters"] != len(set(windows["final"]["clusters"])):
        yield "/dataset/windows/stats/clusters is not the number of clusters"


def _classification(report: Report) -> Iterator[str]:
    """The counts of an accuracy are those of the recorded answers."""
    if report["primary_metric"]["kind"] != "accuracy" or "metrics" not in report:
        return
    stated = report["metrics"]["classification"]
    for arm in ARMS:
        correct = report["evaluation_windows"][arm]["correct"]
        if stated[arm] != {"correct_total": sum(correct), "total": len(correct)}:
            yield f"/metrics/classification/{arm} does not count the answers"
    final = stated["final"]
    if (stated["n_correct"], stated["n_total"]) != (final["correct_total"], final["total"]):
        yield "/metrics/classification/n_correct or n_total is not that of the final arm"


def _guards(report: Report) -> Iterator[str]:

    for index, guard in enumerate(report["guards"]):
        section = report.get(str(guard["name"]), {})
        for name in GUARD_FIELDS:
            if guard.get(name) != section.get(name):
                yield f"/guards/{index}/{name} differs from /{guard['name']}/{name}"
    observed = [(guard["name"], guard["phase"]) for guard in report["guards"]]
    if [
        (entry["guard"], entry["phase"]) for entry in report["context"]["execution_log"]
    ] != observed:
        yield "/context/execution_log does not list the guards of /guards"
    if [name for name, _ in observed] != report["context"]["guard_chain_observed"]:
        yield "/context/guard_chain_observed does not list the guards of /guards"
    ran = bool(report["evaluation_windows"]["final"]["window_ids"])
    if ran and tuple(name for name, _ in observed) != CHAIN:
        yield "/guards is not the canonical chain, although the subject was run"


def _measured(report: Report) -> Iterator[str]:
    """How, where and on which windows the guards measured."""

    if report["rmt"]["evaluated"] is not True:
        return
    for name in CONTRACTS:
        section, digest = report[name], contract_fields(name)["measurement_contract_hash"]
        hashes = [section[key + "measurement_contract_hash"] for key in ("", "baseline_")]
        if hashes != [digest, digest] or section["measurement_contract_match"] is not True:
            yield f"/{name}: both runs have to have measured by the contract of this version"
    rmt, variance = report["rmt"], report["variance"]
    activations = read_activations(rmt["modules"], "edge")[1]
    targets = [a.name for a in activations if is_target(a, variance["tap"])]
    if not targets == variance["modules"]["name"] == variance["target_module_names"]:
        yield "/variance/modules are not the modules of /rmt that /variance/tap names"
    if "router" in report["spectral"]["modules"]["family"] and "moe" not in report:
        yield "/moe is missing, although the model has routers"
    preview = report["evaluation_windows"]["preview"]
    places = {window: i for i, window in enumerate(preview["window_ids"])}
    calibration, used = rmt["calibration"], rmt["calibration"]["window_ids"]
    if not (
        set(used) <= set(places)
        and len(set(used)) == len(used) == calibration["windows"]
        and 0 < len(used) <= CALIBRATION_WINDOWS
        and 0 < calibration["tokens"] <= MAX_TOKENS
    ):
        yield "/rmt/calibration does not name windows of the preview arm"
    trial = variance["trial"]
    if trial is None:
        if variance["proposed_scales"] and len(used) < len(places):
            yield "/variance/trial is missing, although scales are proposed"
        return
    tried = trial["window_ids"]
    if len(set(tried)) != len(tried) or not set(tried) <= set(places) - set(used):
        yield "/variance/trial does not name held-out windows of the preview arm"
        return
    for column, recorded in TRIED:
        if trial[column] != [preview[recorded][places[window]] for window in tried]:
            yield f"/variance/trial/{column} differs from /evaluation_windows/preview/{recorded}"


def _policy(report: Report) -> Iterator[str]:
    """The limits said to have been in force are those of the tier with the recorded overrides."""

    try:
        policy = policy_of(report)
    except InvarlockError:
        return  # the replay says so
    if digest_json(report["resolved_policy"]) != digest_json(resolved_policy(policy)):
        yield f"/resolved_policy is not that of tier {policy.tier} with the recorded overrides"
    for place in ("auto/policy_digest", "policy_digest/thresholds_hash",
                  "policy_provenance/policy_digest"):  # fmt: skip
        if dig(report, *place.split("/")) != policy.digest:
            yield f"/{place} is not the digest of tier {policy.tier} with the recorded overrides"
    preset = report["policy_provenance"]["preset_sha256"]
    for index, override in enumerate(policy.overrides):
        asked = override.path == "tail.mode"  # the one threshold that is set by hand
        known = "config" if asked else f"preset:{preset[:12]}" if preset else None
        if override.source != known:
            yield f"/policy_provenance/overrides/{index}/source is not the report's preset"


def _summaries(report: Report) -> Iterator[str]:
    """Telemetry and the report's own verdict follow from the rest of it."""

    context = report["context"]
    try:
        policy = policy_of(report)
    except InvarlockError:
        return
    comparison = Comparison(
        baseline={},
        subject={"guards": report["guards"], "meta": report["meta"]},
        bootstrap=Bootstrap(**context["bootstrap"]),
        profile=context["profile"],
        assurance=context["assurance"]["mode"],
    )
    decided = Judgement(dict(report), dict(report["validation"]), tuple(context["gates"]))
    expected = {
        "assurance": assurance_block(comparison, policy, decided),
        "telemetry": telemetry_block(report),
    }
    for name, computed in expected.items():
        for key, value in computed.items():
            if report[name].get(key) != value:
                yield f"/{name}/{key} does not follow from the report"


def baseline_parts(report: Report) -> dict[str, str]:
    """Digests of what a report records of its baseline run, by name; all reports about one
    model in one pack must hold the same. A rejected subject's report has no windows."""
    parts = {
        "run": dig(report, "baseline_ref", "run_id"),
        "checkpoint": dig(report, "baseline_ref", "checkpoint_sha256"),
        "windows file": dig(report, "provenance", "windows_sha256"),
    }
    windows = report.get("evaluation_windows")
    for arm in ARMS:
        columns = [
            dig(windows, arm, column)
            for column in ("window_ids", "clusters", "token_counts", "baseline_nll_sum")
        ]
        if all(isinstance(column, list) and column for column in columns):
            parts[f"{arm} windows and losses"] = columns
    return {name: digest_json(value) for name, value in parts.items() if value is not None}
