"""What a report derives from its evidence beside the decisions that the replay recomputes.

Guard results that are repeated, the contracts and windows that guards measured by, the limits in
force and their source, the report's own verdict and its telemetry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.errors import InvarlockError
from invarlock.evidence.findings import dig
from invarlock.files import digest_json
from invarlock.guards import CHAIN, CONTRACTS, contract_fields, rows
from invarlock.guards.rmt import CALIBRATION_WINDOWS, MAX_TOKENS
from invarlock.guards.variance import is_target
from invarlock.guards.weight_stats import WeightStats
from invarlock.metrics import ARMS
from invarlock.metrics.distribution import TOP_K
from invarlock.metrics.perplexity import Bootstrap
from invarlock.reporting.assurance import assurance_block
from invarlock.reporting.evaluation import (
    GUARD_FIELDS,
    coverage,
    policy_digest,
    resolved_policy,
    run_id,
)
from invarlock.reporting.judgement import Judgement
from invarlock.reporting.replay import policy_of
from invarlock.reporting.runs import Comparison
from invarlock.reporting.tables import HEAD, as_recorded, read_activations
from invarlock.reporting.telemetry import telemetry_block

Report = Mapping[str, Any]
# Columns of a trial and of the preview arm that hold the same.
TRIED = (("clusters", "clusters"), ("token_counts", "token_counts"), ("plain_nll", "nll_sum"))


def check(report: Report) -> list[str]:
    """Every part that does not follow from the rest, as ``/pointer ...`` lines.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: evidence of an impossible shape.
    """
    parts = (_guards, _tables, _execution, _measured, _geometry, _policy, _summaries)
    return [line for part in parts for line in part(report)]


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


def _tables(report: Report) -> Iterator[str]:
    """Modules of both runs, sorted and with no column more than a report has."""
    if report["rmt"]["evaluated"] is not True:
        return
    for guard, columns in (
        ("spectral", WeightStats.fields()),
        ("rmt", ("edge",)),
        ("variance", ("variance",)),
    ):
        table, may = report[guard]["modules"], guard != "spectral"
        if not as_recorded(table, columns, names_may_differ=may):
            yield f"/{guard}/modules is not the table that a report has"
    for line in rows.contradictions(rows.from_json(report["spectral"]["row_tables"])):
        yield f"/spectral/row_tables: {line}"


def _execution(report: Report) -> Iterator[str]:
    """Digests of what guards recorded, where the report repeats all of it."""
    if report["rmt"]["evaluated"] is not True:
        return
    variance = report["variance"]
    table = report["spectral"]["modules"]
    modules = {column: table[column] for column in (*HEAD, *WeightStats.fields())}
    records = {
        "spectral": {"modules": modules, "row_tables": report["spectral"]["row_tables"]},
        "variance": {"tap": variance["tap"], "trial": variance["trial"]},
    }
    for index, entry in enumerate(report["context"]["execution_log"]):
        name = entry["guard"]
        if name in records:
            head = {"name": name, "phase": entry["phase"]}
            if entry["digest"] != digest_json(head | records[name] | contract_fields(name)):
                yield f"/context/execution_log/{index}/digest is not that of what {name} recorded"


def _geometry(report: Report) -> Iterator[str]:
    """Length of the windows against the tokens predicted in them (see ``invarlock.run.tasks``)."""
    data, kind = report["dataset"], report["primary_metric"]["kind"]
    length = data["seq_len"]
    if data["stride"] != length:
        yield "/dataset/stride is not /dataset/seq_len, although windows do not overlap"
    counts = {n for arm in ARMS for n in report["evaluation_windows"][arm]["token_counts"]}
    exact = {"ppl_causal": length - 1, "ppl_seq2seq": length - length // 2}.get(kind)
    if counts and (max(counts) > length if exact is None else counts != {exact}):
        yield f"/dataset/seq_len is {length}, which does not fit the tokens of the windows"
    shift = report["distribution"]
    if shift["evaluated"] is True and not 0 < shift["top_k"] <= TOP_K:
        yield f"/distribution/top_k is not from 1 to {TOP_K}"


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
    most = min(CALIBRATION_WINDOWS, len(places))
    alike = report["primary_metric"]["kind"] != "accuracy"  # records differ in shape
    if not (
        set(used) <= set(places)
        and len(set(used)) == len(used) == calibration["windows"]
        and (len(used) == most if alike else 0 < len(used) <= most)
        and 0 < calibration["tokens"] <= MAX_TOKENS
    ):
        yield "/rmt/calibration does not name windows of the preview arm"
    if len(report["guard_overhead"]["bare_nll"]) != len(used):
        yield "/guard_overhead/bare_nll has not one loss a calibration window"
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
    if report["policy_digest"] != policy_digest(policy):
        yield f"/policy_digest is not that of tier {policy.tier} with the recorded overrides"
    windows, bootstrap = report["dataset"]["windows"], report["context"]["bootstrap"]
    used = {arm: windows[arm] for arm in ARMS}
    if windows["stats"]["coverage"] != coverage(used, bootstrap["replicates"], policy):
        yield f"/dataset/windows/stats/coverage is not that of tier {policy.tier}"
    own = run_id(
        report["baseline_ref"]["run_id"],
        report["meta"]["run_id"],
        policy.digest,
        bootstrap,
        report["context"].get("accept", []),
    )
    if report["run_id"] != own:
        yield "/run_id is not that of both runs, policy and bootstrap"
    for place in ("auto/policy_digest", "policy_provenance/policy_digest"):
        if dig(report, *place.split("/")) != policy.digest:
            yield f"/{place} is not the digest of tier {policy.tier} with the recorded overrides"
    preset = report["policy_provenance"]["preset_sha256"]
    for index, override in enumerate(policy.overrides):
        asked = override.path.split(".")[0] in ("tail", "distribution")  # those set by hand
        known = "config" if asked else f"preset:{preset[:12]}" if preset else None
        if override.source != known:
            yield f"/policy_provenance/overrides/{index}/source is not the report's preset"


def _summaries(report: Report) -> Iterator[str]:
    """Telemetry, lists of parts and the report's own verdict follow from the rest of it."""
    plugins = {
        "adapters": [report["meta"]["adapter"]],
        "edits": [report["edit"]["name"]],
        "guards": list(CHAIN),
    }
    if report["plugins"] != plugins:
        yield "/plugins does not list adapter, edit and guards of the report"
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
        "assurance": assurance_block(comparison, policy, decided, report),
        "telemetry": telemetry_block(report),
    }
    for name, computed in expected.items():
        for key, value in computed.items():
            if report[name].get(key) != value:
                yield f"/{name}/{key} does not follow from the report"
