"""Write a report again from the evidence it records, and compare.

``comparison_of`` reads both runs back out of a report; ``evaluation_report``, the function that
wrote the report, writes it again by the verifier's own tier table. The two have to be equal but
for what only the run can know (``BELIEVED``). Whatever a later version adds to its reports is
held to the evidence without a word here, unless it is evidence itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

from invarlock.differences import differences, equal_text, is_list, is_number
from invarlock.documents.fields import is_added
from invarlock.errors import ContractError, InvarlockError
from invarlock.files import digest_json
from invarlock.guards import BY_NAME, CONTRACTS, GUARDS
from invarlock.guards.guard import SEPARATE, SERVED, STATISTICS, Guard
from invarlock.guards.invariants_decision import Invariants
from invarlock.metrics import ARMS, distribution, excerpts, looks
from invarlock.metrics.cost import COSTS, LATENCY, THROUGHPUT, costs_of
from invarlock.metrics.kind import Metric
from invarlock.metrics.kinds import METRICS
from invarlock.metrics.perplexity import Bootstrap
from invarlock.metrics.started import Started
from invarlock.pages.reading import BASELINE
from invarlock.policy import Override, Policy, resolve_policy, source_of
from invarlock.reporting.evaluation import EvaluationReport, evaluation_report
from invarlock.reporting.outcome import FAIL, outcome
from invarlock.reporting.runs import Comparison, RecordedShift

if TYPE_CHECKING:
    import numpy as np
else:
    from invarlock import numpy_on_use as np

TOLERANCE = 1e-9  # relative and absolute; the sums are exact, BLAS may order them differently
ROUNDED = 1e-6  # relative; more than the digits of a cost leave open
SHIFT_COLUMNS = ("top1_agreement", "kl_sum", "probability_change_sum")
Report = Mapping[str, Any]
Contracts = Mapping[str, Mapping[str, Any]]  # measurement contracts by the guards' names
NOT_RUN = "the windows of a subject that was not run"
NOT_ALL = "the windows of a control that were not measured"
POLICY_PACK = "that the thresholds are those of the policy pack it names"
PRESET = "that the thresholds are those of the preset it names"


def _believed_of_guards() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {STATISTICS: ()}
    for guard in GUARDS:
        if guard.believed:
            found[guard.believed_as] = (*found.get(guard.believed_as, ()), *guard.believed)
    return found


# What a report alone can say, by subject and the JSON pointers of it ("*": any one name or index).
# A pack can trace some of it (``invarlock.evidence``): the preset, the text, the subject.
BELIEVED: Mapping[str, tuple[str, ...]] = {
    "losses of the windows, and which documents they are of": (
        "/evaluation_windows/*/baseline_nll_sum", "/evaluation_windows/*/clusters",
    ),
    "which slice each window is of, and its text": ("/dataset/slices/*/source",),
    **_believed_of_guards(),
    "how many token ids the windows use, from windows that are not here": ("/vocabulary",),
    "quantiles of the shift of the predictions, within their histograms' bins": (
        "/distribution/kl", "/distribution/probability_change", "/distribution/reason",
    ),
    "texts of the tokens in excerpts, and how the loss of a window lies on them": (
        "/excerpts/*/tokens", "/excerpts/*/before",
    ),
    "model, edit, text, seeds, device and versions, as the runs name them": (
        "/meta", "/edit", "/dataset/source", "/dataset/windows/seed", "/dataset/bos_token_id",
        "/provenance/invarlock_version", "/structure/parameters/baseline",
    ),
    # a time alone contradicts the throughput, so that only memory can be another by itself
    "times and memory, as the machine told them": ("/telemetry/memory_mb_peak",),
    NOT_RUN: ("/provenance/provider_digest/ids_sha256",),
    NOT_ALL: ("/provenance/provider_digest/ids_sha256",),
    PRESET: ("/policy_provenance/preset_sha256",),
    POLICY_PACK: (
        "/policy_provenance/policy_pack/name", "/policy_provenance/policy_pack/sha256",
        "/policy_provenance/policy_pack/signer",
    ),
}  # fmt: skip


def replay(report: Report, tolerance: float = TOLERANCE) -> list[str]:
    """Every contradiction between a report and its evidence, as ``/pointer: ...`` lines.

    Args:
        report: an evaluation report that satisfies its contract.
        tolerance: relative and absolute, for recomputed numbers.
    """
    found: list[str] = []
    try:
        policy = policy_of(report)
        found += _lengths(report)
        if found:
            return found
        found += _impossible(report, policy)
        with np.errstate(all="ignore"):  # hostile numbers are findings, not warnings
            rebuilt = evaluation_report(comparison_of(report), policy)
        _take_over(report, rebuilt)
        found += _departures(rebuilt, report, tolerance)
    except InvarlockError as error:
        found.append(str(error))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # a report may follow its contract and still hold evidence of an impossible shape
        found.append(f"the recorded evidence cannot be read: {type(error).__name__} {error}")
    return found


def believed(report: Report) -> list[str]:
    """What a report says that no evidence in it shows."""
    return [
        subject
        for subject, pointers in BELIEVED.items()
        if not (subject == NOT_RUN and _ran(report))
        and not (subject == NOT_ALL and _look(report) == 1.0)
        and any(_says(report, pointer.split("/")[1:]) for pointer in pointers)
    ]


def _says(value: object, parts: Sequence[str]) -> bool:
    if not parts:
        return value not in (None, [], {}, "")
    if parts[0] == "*":
        inner = list(value.values()) if isinstance(value, Mapping) else value
        return is_list(inner) and any(_says(item, parts[1:]) for item in inner)
    return isinstance(value, Mapping) and parts[0] in value and _says(value[parts[0]], parts[1:])


def policy_of(report: Report) -> Policy:
    """The policy that the report says it was judged by, within what our tier table allows.

    Raises:
        ConfigError: no such tier, or an override that it does not allow.
    """
    recorded = report["policy_provenance"]["overrides"]
    overrides = [Override(str(o["path"]), o["value"], str(o["source"])) for o in recorded]
    return resolve_policy(str(report["auto"]["tier"]), overrides, _later_sections(report))


def _later_sections(report: Report) -> list[str]:
    """Limits of guards that came after the version which wrote the report."""
    return [guard.policy_key for guard in GUARDS if _lacks(report, guard)]


def _lacks(report: Report, guard: Guard) -> bool:
    return guard.added and guard.name not in report


# --- both runs, read back --------------------------------------------------------------------


def _processor(report: Report) -> dict[str, str]:
    """The digest of the processor, where there were pictures; none of ours can contradict it."""
    digest = report["provenance"].get("provider_digest", {})
    return {k: digest[k] for k in ("processor_sha256",) if k in digest}


def comparison_of(report: Report) -> Comparison:
    """Both runs as far as the report records them.

    Raises:
        ContractError: a guard's statistics were measured in another way, or not all of them.
    """
    context, ran, contracts = report["context"], _ran(report), _contracts(report)
    shown = ran and not _served(report)  # by the guards
    separate = _separate(report)
    _require_guards(report, ran, contracts)
    meta = {k: v for k, v in report["meta"].items() if k not in ("subject_run_id", "model_profile")}
    windows = _windows(report) if ran else {"baseline": _none(), "subject": {}}
    reference, data = report["baseline_ref"], report["dataset"]
    baseline: dict[str, Any] = {
        "meta": {
            "run_id": reference["run_id"],
            # of the subject: one model is compared
            "model_id": meta["model_id"],
            "adapter": meta["adapter"],
            "metric": meta["metric"],
            "tokenizer_hash": reference["tokenizer_hash"],
            "checkpoint_sha256": reference["checkpoint_sha256"],
            "parameters": report.get("structure", {}).get("parameters", {}).get("baseline"),
        },
        "metrics": {k: v["baseline"] for k, v in report.get("system_overhead", {}).items()},
        "checkpoint": report["provenance"]["baseline"]["checkpoint"],
        "data": {
            "source": data["source"],
            "seq_len": data["seq_len"],
            # windows do not overlap; a begin-of-text token is none of the text's
            "stride": data["seq_len"] - ("bos_token_id" in data),
            **{key: data[key] for key in ("bos_token_id",) if key in data},
            "seed": data["windows"]["seed"],
            "windows_sha256": data["hash"]["dataset"],
            "vocabulary": report["vocabulary"],
            **({"slices": data["slices"]} if "slices" in data else {}),
            **_processor(report),
        },
        "evaluation_windows": windows["baseline"],
        "guards": _baseline_guards(report, contracts) if shown else _named(report, False),
        **(
            {g.beside: g.baseline_record(report) for g in GUARDS if g.beside}
            if shown is ran
            else {g["beside"]: g for g in _named(report, True)}
        ),
    }
    subject = {
        "meta": meta,
        "metrics": costs_of(report.get("telemetry", {})),
        "checkpoint": report["provenance"]["subject"]["checkpoint"],
        "edit": report["edit"],
        "guards": _subject_guards(report, ran, contracts),
        "evaluation_windows": windows["subject"],
        **{g.beside: next(g.subject_records(report), None) for g in GUARDS if g.beside and shown},
    }
    final = report["evaluation_windows"]["final"]
    return Comparison(
        baseline=baseline,
        subject=subject,
        bootstrap=Bootstrap.read(context["bootstrap"]),
        profile=context["profile"],
        assurance=context["assurance"]["mode"],
        reason_not_run="" if ran else str(report["primary_metric"].get("degraded_reason", "")),
        separate=separate,
        invariants_evaluated=report[Invariants.name].get("evaluated") is True,
        shift=None
        if separate or _served(report)
        else RecordedShift(
            report["distribution"], {c: final[c] for c in SHIFT_COLUMNS if c in final}
        ),
        excerpts=excerpts.read_back(report.get("excerpts", ())),
        preset_sha256=report["policy_provenance"]["preset_sha256"],
        policy_pack=report["policy_provenance"].get("policy_pack"),
        accepted=context.get("accept", []),
        early=context.get("early_decision"),
        contracts=contracts,
    )


def _ran(report: Report) -> bool:
    return bool(report["evaluation_windows"]["final"]["window_ids"])


def _separate(report: Report) -> bool:
    """Whether the report compares two runs that each measured their own model: what needs both is
    lacking, and so are flags that decide."""
    return equal_text(report["context"].get("runs"), SEPARATE)


def _served(report: Report) -> bool:
    """Whether the subject is a running server, of which only losses were measured."""
    return equal_text(report["context"].get("runs"), SERVED)


def _contracts(report: Report) -> Contracts:
    """How the guards measured: as the report states, where that is a way of this version or of one
    before it. Anything else is found to differ from today's."""
    found = {}
    for name, now in CONTRACTS.items():
        limits = report["resolved_policy"].get(BY_NAME[name].policy_key, {})
        stated = limits.get("measurement_contract")
        before = BY_NAME[name].earlier_contracts
        found[name] = next((contract for contract in before if contract == stated), now)
    return found


def _require_guards(report: Report, ran: bool, contracts: Contracts) -> None:
    there = [name for name in CONTRACTS if not _lacks(report, BY_NAME[name])]
    measured = [name for name in there if report[name].get("evaluated") is True]
    for name in measured:
        if report[name]["measurement_contract"] != contracts[name]:
            raise ContractError(f"/{name}/measurement_contract: not the one of this version")
    separate = _separate(report)
    asked = [
        name
        for name in there
        if not (BY_NAME[name].spared(report[name]) or (separate and BY_NAME[name].needs_both))
    ]
    if measured != (asked if ran and not _served(report) else []):
        raise ContractError("/guards: a subject that was run has been through every guard")


def _columns(kind: Metric) -> list[str]:
    return ["window_ids", "clusters", "token_counts", "nll_sum", *kind.columns]


def _paired(kind: Metric) -> list[str]:
    """Columns that both runs have of their own."""
    return ["nll_sum", *kind.columns]


def _none() -> dict[str, dict[str, list[Any]]]:
    return {arm: {"window_ids": []} for arm in ARMS}


def _windows(report: Report) -> dict[str, dict[str, Any]]:
    """The windows of both runs; loss per token follows from the sums."""
    kind, windows = METRICS[report["meta"]["metric"]], report["evaluation_windows"]
    mine, base = {}, {}
    columns = [*_columns(kind), *(["slices"] if "slices" in report["dataset"] else [])]
    for arm in ARMS:
        rows = {column: windows[arm][column] for column in columns}
        losses = zip(rows["nll_sum"], rows["token_counts"], strict=True)
        mine[arm] = rows | {"logloss": [None if nll is None else nll / n for nll, n in losses]}
        base[arm] = rows | {c: windows[arm][BASELINE + c] for c in _paired(kind)}
    return {"baseline": base, "subject": mine}


def _subject_guards(report: Report, ran: bool, contracts: Contracts) -> list[dict[str, Any]]:
    """What the subject's guards recorded, in the order of the log; the digest of what a report
    does not repeat in full only the run can know."""
    records = {
        guard.name: guard.subject_records(report)
        for guard in GUARDS
        if not guard.beside and (ran or guard.of_files)
    }
    found = []
    for entry in report["context"]["execution_log"]:
        name = entry["guard"]
        record: dict[str, Any] = {"name": name, "phase": entry["phase"]}
        if name in records:
            fields = BY_NAME[name].contract_fields(contracts.get(name))
            record |= next(records[name], {}) | fields
        if name in BY_NAME and not BY_NAME[name].whole:
            record["digest"] = entry["digest"]
        found.append(record)
    return found


def _baseline_guards(report: Report, contracts: Contracts) -> list[dict[str, Any]]:
    """What the baseline's guards recorded that a comparison reads."""
    return [
        {"name": guard.name} | record | guard.contract_fields(contracts.get(guard.name))
        for guard in GUARDS
        if not guard.beside and (record := guard.baseline_record(report)) is not None
    ]


def _named(report: Report, beside: bool) -> list[dict[str, Any]]:
    """What is known of the baseline's guards beside a running server: that there were some."""
    if not _served(report):
        return []
    mine = (g for g in GUARDS if bool(g.beside) is beside and g.name in report)
    return [{"name": guard.name, "beside": guard.beside} for guard in mine]


def _take_over(report: Report, rebuilt: dict[str, Any]) -> None:
    """What no evidence gives: the version that wrote the report, and of a subject that was not
    run the digest of the baseline's windows."""
    rebuilt["provenance"]["invarlock_version"] = str(report["provenance"]["invarlock_version"])
    if "min_effective" not in report["policy_digest"]:  # of a version that never called it changed
        rebuilt["policy_digest"]["changed"] = False
    if not _ran(report) or _look(report) < 1.0:
        ids = report["provenance"]["provider_digest"]["ids_sha256"]
        rebuilt["provenance"]["provider_digest"]["ids_sha256"] = str(ids)


# --- evidence that no run can have recorded --------------------------------------------------


def _impossible(report: Report, policy: Policy) -> Iterator[str]:
    """What writing the report again takes as given, and what no run records."""
    yield from _sources(report)
    yield from _checkpoints(report)
    yield from _vocabulary(report)
    yield from _costs(report)
    yield from _shift(report, policy)
    yield from _excerpts(report)
    yield from _packed(report)
    if _ran(report):
        yield from _early(report, policy)
        yield from _started(report)
        yield from _geometry(report)
        for guard in GUARDS:
            lacking = _served(report) or (guard.needs_both and _separate(report))
            if not (lacking or _lacks(report, guard)):
                yield from guard.impossible(report)


def _lengths(report: Report) -> Iterator[str]:
    windows, kind = report["evaluation_windows"], METRICS[report["meta"]["metric"]]
    if set(windows) != set(ARMS):
        yield "/evaluation_windows: other samples than preview and final"
        return
    for arm, rows in windows.items():
        columns = (*_columns(kind), *(BASELINE + column for column in _paired(kind)))
        counts = rows["token_counts"]
        whole = (set(map(type, counts)) == {int} and 0 < min(counts) <= max(counts) < 1 << 53) or (
            all(is_number(n) and math.isfinite(n) and n > 0 and n % 1 == 0 for n in counts)
        )
        if len({len(rows[column]) for column in columns}) != 1 or not whole:
            yield f"/evaluation_windows/{arm}: columns of different lengths, or impossible counts"
            return
        if _look(report) == 1.0:
            yield from _slice_names(report["dataset"].get("slices"), arm, rows)
    ids = [window for arm in ARMS for window in windows[arm]["window_ids"]]
    if len(set(ids)) != len(ids) or len({bool(windows[arm]["window_ids"]) for arm in ARMS}) > 1:
        yield "/evaluation_windows: a window is in there twice, or a sample is missing"


def _slice_names(slices: Sequence[Report] | None, arm: str, rows: Report) -> Iterator[str]:
    """The windows of an arm stand in the order of the slices, as many of each as there are."""
    if slices is None:
        if "slices" in rows or any("/doc-" in str(cluster) for cluster in rows["clusters"]):
            yield f"/evaluation_windows/{arm} is of slices that /dataset/slices does not list"
        return
    names = [part["name"] for part in slices for _ in range(part["counts"][arm])]
    twice = len({part["name"] for part in slices}) != len(slices)
    if rows["window_ids"] and (rows.get("slices") != names or twice):
        yield f"/evaluation_windows/{arm}/slices does not hold what /dataset/slices says"


def _look(report: Report) -> float:
    """The share of the windows that a report is of: less than 1 only of a control."""
    early = report["context"].get("early_decision")
    return 1.0 if early is None else float(early["share"])


def _early(report: Report, policy: Policy) -> Iterator[str]:
    """Looks at a control: of this version, with the errors that they leave, and the windows are
    those of the last one, which refused it."""
    early = report["context"].get("early_decision")
    if early is None:
        return
    where, share, windows = "/context/early_decision", _look(report), report["evaluation_windows"]
    alpha = math.fsum(early["levels"])
    most = policy.coverage.alpha * (1 + TOLERANCE)
    if share not in looks.SHARES or alpha > most:
        yield f"{where}: no look of this version, or more errors than {policy.coverage.alpha:g}"
        return
    stated = looks.stated(share, alpha, early["planned"])
    if any(differences(early, stated, tolerance=TOLERANCE)):
        yield f"{where}: not the looks of this version"
    if not math.isclose(report["context"]["bootstrap"]["alpha"], looks.level_of(share, alpha)):
        yield "/context/bootstrap/alpha is not the error of that look"
    slices = report["dataset"].get("slices")
    of_slices = {str(part["name"]): part["counts"] for part in slices or ()}
    planned = of_slices or {"": early["planned"]}
    rows = windows["final"]
    counts = {name: counts["final"] for name, counts in planned.items()}
    if not looks.is_look(share, rows["clusters"], rows.get("slices", ()), counts):
        yield "/evaluation_windows/final is not what that look sees"
    if any(early["planned"][arm] < len(windows[arm]["window_ids"]) for arm in ARMS):
        yield f"{where}/planned: more windows were measured"
    if share < 1.0 and outcome(report) != FAIL:
        yield f"{where}: nothing refuses the subject, and not all windows were measured"


def _started(report: Report) -> Iterator[str]:
    """A pass that began at a later block: of a subject whose weights differ, on windows that are
    here, with calibration windows that ran whole; before that block nothing is another."""
    said = report["meta"].get("started")
    if said is None:
        return
    where = "/meta/started"
    names = Started._fields
    if not (isinstance(said, Mapping) and set(said) == set(names)
            and all(_is_count(said[key]) and said[key] > 0 for key in names)):  # fmt: skip
        yield f"{where} does not hold {', '.join(names)}, each above 0"
        return
    ran = sum(len(report["evaluation_windows"][arm]["window_ids"]) for arm in ARMS)
    if said["block"] > said["blocks"] or said["windows"] + said["checked"] > ran:
        yield f"{where} is of more blocks or windows than there are"
    before, after = (
        report["provenance"][side]["checkpoint"] or {} for side in ("baseline", "subject")
    )
    if before.get("weights_sha256") == after.get("weights_sha256"):
        yield f"{where}: no weight is another, so the pass runs whole"
    for guard in GUARDS:
        found = report.get(guard.name, {})
        for name, table in found.items():
            if any(_changed_before(table, said["block"])):
                yield f"/{guard.name}/{name} has changes before the block in {where}"


def _changed_before(table: object, block: int) -> Iterator[bool]:
    """Whether rows of a table of modules differ from the baseline's in the layers before one."""
    if not (isinstance(table, Mapping) and is_list(table.get("layer"))):
        return
    for column, values in table.items():
        theirs = table.get(BASELINE + column)
        if theirs is not None and column != "name":
            for layer, mine, base in zip(table["layer"], values, theirs, strict=True):
                yield _is_count(layer) and layer < block and not equal_text(mine, base)


def _sources(report: Report) -> Iterator[str]:
    """Thresholds that are not the tier's own are of the report's preset or policy pack, or set by
    hand; a policy pack sets some."""
    preset = report["policy_provenance"]["preset_sha256"]
    overlay = report["policy_provenance"].get("policy_pack")
    pack = source_of(overlay["sha256"]) if overlay else None
    sources = [override["source"] for override in report["policy_provenance"]["overrides"]]
    if overlay and pack not in sources:
        yield "/policy_provenance/policy_pack sets none of the thresholds"
    for index, override in enumerate(report["policy_provenance"]["overrides"]):
        by_hand = str(override["path"]).split(".")[0] in ("tail", "distribution")
        known = "config" if by_hand else f"preset:{preset[:12]}" if preset else None
        if override["source"] != known and not (pack and override["source"] == pack):
            yield f"/policy_provenance/overrides/{index}/source is not the report's preset"


def _checkpoints(report: Report) -> Iterator[str]:
    """A checkpoint's digest is that of the parts that the report lists."""
    for side in ("baseline", "subject"):
        stated = report["provenance"][side]
        digest, parts = stated["checkpoint_sha256"], stated["checkpoint"]
        if digest != (None if parts is None else digest_json(parts)):
            yield f"/provenance/{side}/checkpoint_sha256 is not that of the parts beside it"
    mine, theirs = (
        (report["provenance"][side]["checkpoint"] or {}).get("tokenizer_sha256")
        for side in ("subject", "baseline")
    )
    stated = report["baseline_ref"]["tokenizer_hash"]
    if theirs is not None and theirs != stated:
        yield "/provenance/baseline/checkpoint/tokenizer_sha256 is not that of /baseline_ref"
    # a subject whose file spells the same tokenizer otherwise has the baseline's
    if mine is not None and report["meta"]["tokenizer_hash"] not in (mine, stated):
        yield "/meta/tokenizer_hash is not that of /provenance/subject/checkpoint"


def _vocabulary(report: Report) -> Iterator[str]:
    """No more different tokens than the vocabulary has, or the windows hold."""
    used, size = (report["vocabulary"][key] for key in ("used", "size"))
    if not (_is_count(used) and used > 0 and (size is None or (_is_count(size) and used <= size))):
        yield "/vocabulary does not say how many of how many token ids the windows use"
        return
    windows = sum(len(report["evaluation_windows"][arm]["window_ids"]) for arm in ARMS)
    if _look(report) < 1.0:  # of a control all those that there were to be
        windows = sum(report["context"]["early_decision"]["planned"][arm] for arm in ARMS)
    # of records several answers are read
    text = not METRICS[report["meta"]["metric"]].labelled
    longest = max(part["seq_len"] for part in _parts(report))
    if text and windows and used > windows * longest:
        yield "/vocabulary/used is more than the windows have tokens"


def _costs(report: Report) -> Iterator[str]:
    """Times and memory are positive, and the throughput is the inverse of the latency."""
    stated = {"/telemetry": costs_of(report.get("telemetry", {}))}
    stated |= {
        f"/system_overhead/{side}": {k: v[side] for k, v in found.items()}
        for side in ("baseline", "subject")
        if (found := report.get("system_overhead"))
    }
    for where, costs in stated.items():
        if not costs:
            continue
        if set(costs) != set(COSTS) or not all(is_number(v) and v > 0 for v in costs.values()):
            yield f"{where} does not hold {', '.join(COSTS)}, each above 0"
        elif not math.isclose(costs[LATENCY] * costs[THROUGHPUT], 1000, rel_tol=ROUNDED):
            yield f"{where}/{THROUGHPUT} is not the inverse of {LATENCY}"
    if report.get("telemetry", {}).keys() & set(COSTS) and not _ran(report):
        yield "/telemetry holds times of a subject that was not run"


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _shift(report: Report, policy: Policy) -> Iterator[str]:
    block, final = report["distribution"], report["evaluation_windows"]["final"]
    if _separate(report) or _served(report):  # which is written again without one
        return
    if block["evaluated"] is not True:
        sums = [*final.get("kl_sum", []), *final.get("probability_change_sum", [])]
        # a subject that was run has them, and finite ones leave no reason for no block
        if final["window_ids"] and None not in sums:
            yield "/distribution is left out, although the windows have finite sums"
        return
    # a shift of one token has the members that a summary has
    one = distribution.TokenShift(np.zeros(1), np.zeros(1), np.zeros(1, dtype=bool), [1], 1)
    wanted = distribution.summarize(one, policy.distribution)
    yield from (f"/distribution{where}: does not follow" for where in _further(block, wanted))
    found = distribution.check(block, final, policy.distribution)
    yield from (f"/distribution{field}: contradicts the windows" for field in found)
    if not 0 < block["top_k"] <= distribution.TOP_K:
        yield f"/distribution/top_k is not from 1 to {distribution.TOP_K}"


def _excerpts(report: Report) -> Iterator[str]:
    found = report.get("excerpts")
    if found is None:
        return
    if _separate(report) or _served(report) or not METRICS[report["meta"]["metric"]].flows:
        yield "/excerpts are of losses that such a run does not record"
        return
    yield from excerpts.impossible(found, report["evaluation_windows"]["final"])


def _packed(report: Report) -> Iterator[str]:
    """A subject of packed files says how they are packed: else it would pass for a dense one."""
    checkpoint = report["provenance"]["subject"].get("checkpoint") or {}
    said = report["meta"].get("execution") or {}
    if "packed_files" in checkpoint and not said.get("schemes"):
        yield "/meta/execution does not say how the subject's packed files are packed"


def _further(value: object, known: object, at: str = "") -> Iterator[str]:
    """The members of an object, and of those in it, that a known one does not have."""
    if isinstance(value, Mapping) and isinstance(known, Mapping):
        for key, inner in value.items():
            if key in known:
                yield from _further(inner, known[key], f"{at}/{key}")
            else:
                yield f"{at}/{key[:60]}"


def _geometry(report: Report) -> Iterator[str]:
    """Length of the windows against the tokens predicted in them."""
    kind, windows = METRICS[report["meta"]["metric"]], report["evaluation_windows"]
    for part in _parts(report):
        length, name = part["seq_len"], part.get("name")
        counts = {
            n
            for arm in ARMS
            for n, of in zip(
                windows[arm]["token_counts"],
                windows[arm].get("slices", [None] * len(windows[arm]["token_counts"])),
                strict=True,
            )
            if of == name
        }
        if counts != {kind.predicted(length)} if kind.exact else max(counts) > length:
            of = f"slices/{name}/" if name else ""
            yield f"/dataset/{of}seq_len is {length}, which does not fit the tokens of the windows"


def _parts(report: Report) -> Sequence[Report]:
    """The slices, or all windows where there are none; each with its length."""
    slices: Sequence[Report] = report["dataset"].get("slices", [report["dataset"]])
    return slices


def _departures(rebuilt: Report, report: Report, tolerance: float) -> Iterator[str]:
    """Where a report departs from the one that its evidence gives; equal bytes need no walk."""
    names = rebuilt.keys() & report.keys()
    same = {name for name in names if equal_text(report[name], rebuilt[name])}
    stored, computed = (
        {k: v for k, v in document.items() if k not in same} for document in (report, rebuilt)
    )
    may_lack = partial(is_added, EvaluationReport)
    found = differences(stored, computed, tolerance=tolerance, may_lack=may_lack)
    yield from (difference.line() for difference in found)
