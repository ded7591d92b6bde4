"""``report.json``, ``events.jsonl`` and ``guards.safetensors`` of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from invarlock import __version__
from invarlock.checkpoints import Identity
from invarlock.documents.windows import Slice
from invarlock.errors import ContractError, InputError
from invarlock.files import (
    digest_json,
    read_json_object,
    sha256_bytes,
    write_bytes,
    write_json,
)
from invarlock.guards import BY_NAME, CHAIN, CONTRACTS, GUARDS, contract_fields, rmt, spectral
from invarlock.guards.findings import Failure
from invarlock.guards.guard import RUN_SCHEMA
from invarlock.guards.invariants_decision import judge
from invarlock.metrics import ARMS
from invarlock.metrics.cost import cost
from invarlock.metrics.distribution import TokenShift, shift_columns, summarize
from invarlock.metrics.kind import Metric
from invarlock.metrics.kinds import metric_for
from invarlock.pictures import processor_digest
from invarlock.policy import Policy
from invarlock.run.forward import ArmResult, TopTokens
from invarlock.run.measure import SERVER, Measurement, ReferenceArrays, RunWindows

SCHEMA = RUN_SCHEMA
OPTIONAL = ("accepted", "edit_config")  # settings that a run's id names only where they are given
EVENTS_NAME, REPORT_NAME, GUARDS_NAME = "events.jsonl", "report.json", "guards.safetensors"


@dataclass(frozen=True)
class RunSettings:
    """What was asked of a run; all of it is recorded in ``meta``."""

    model_id: str
    seed: int
    token_budget: int
    profile: str
    tier: str
    edit_name: str = "noop"
    scenario: str | None = None
    accepted: tuple[str, ...] = ()  # names of findings that the user accepts
    edit_config: Mapping[str, Any] | None = None  # what the user says of his own edit
    telemetry: bool = False  # whether the report holds what the run took; it is no other run


def numbers(values: Sequence[float]) -> list[float | None]:
    """Losses for JSON: what is not finite becomes null (JSON has no NaN)."""
    return [float(v) if np.isfinite(v) else None for v in values]


def run_report(
    settings: RunSettings,
    checkpoint: Identity,
    windows: RunWindows,
    failures: Sequence[Failure],
    measured: Measurement | None,
    determinism: Mapping[str, Any],
    policy: Policy,
) -> dict[str, Any]:
    """The report of one run.

    Args:
        settings: what was asked of it.
        checkpoint: what was measured.
        windows: on what.
        failures: findings of the files.
        measured: None where the checkpoint was not run.
        determinism: as it was set.
        policy: the thresholds it is to be judged by; a baseline's are its tier's own.
    """
    content = windows.content
    metric = metric_for(checkpoint.config, content.kind)
    arms = {arm: _arm(windows, arm, measured) for arm in ARMS if measured}
    identity = {
        "checkpoint": checkpoint.sha256,
        "windows": windows.sha256,
        "settings": {
            k: v for k, v in vars(settings).items() if k != "telemetry" and (v or k not in OPTIONAL)
        },
        "determinism": dict(determinism),
        "version": __version__,
    }
    return {
        "schema": SCHEMA,
        "meta": {
            "run_id": digest_json(identity)[:16],
            "model_id": settings.model_id,
            "adapter": metric.adapter,
            "metric": metric.name,
            "seed": settings.seed,
            "seeds": determinism.get("seeds", {}),
            "device": measured.device if measured else None,
            "dtype": measured.dtype if measured else None,
            "token_budget": settings.token_budget,
            "tokenizer_hash": checkpoint.tokenizer_sha256,
            "invarlock_version": __version__,
            "determinism": dict(determinism),
            "checkpoint_sha256": checkpoint.sha256,
            "parameters": checkpoint.n_parameters,
            **_execution(checkpoint, measured),
            **({"started": measured.started._asdict()} if measured and measured.started else {}),
        },
        "data": {
            "windows_sha256": windows.sha256,
            "source": msgspec.to_builtins(content.source),
            "kind": content.kind,
            "seq_len": content.seq_len,
            "stride": content.stride,
            **({} if content.bos is None else {"bos_token_id": content.bos}),
            **(
                {"processor_sha256": processor_digest(windows.pictures.files)}
                if windows.pictures
                else {}
            ),
            "seed": content.seed,
            "n_documents": content.n_documents,
            "vocabulary": {
                "used": len({token for tokens in windows.token_ids() for token in tokens}),
                "size": checkpoint.config.get("vocab_size"),
            },
            **{f"{arm}_n": len(windows.arm(arm)) for arm in ARMS},
            **(
                {"slices": [_slice(part) for part in content.of_slices]}
                if content.of_slices
                else {}
            ),
        },
        "checkpoint": dict(checkpoint.parts),
        "edit": {
            **(settings.edit_config or {}),
            "name": settings.edit_name,
            "scenario": settings.scenario,
        },
        "guards": _guards(failures, settings.accepted, measured),
        "evaluation_windows": arms,
        **{
            guard.beside: measured.records[guard.name]
            for guard in GUARDS
            if measured and guard.beside and guard.name in measured.records
        },
        "metrics": _metrics(metric, settings, arms, measured),
        "policy_resolved": {
            "tier_policy_name": policy.tier,
            "thresholds_hash": policy.digest,
            **policy.resolved,
        },
        "artifacts": {"events_path": EVENTS_NAME},
        "context": {"profile": settings.profile, "tier": settings.tier},
    }


def _execution(checkpoint: Identity, measured: Measurement | None) -> dict[str, Any]:
    """Of a packed model: how its weights are packed, and what multiplied them."""
    if not checkpoint.packing:
        return {}
    ran = measured.ran if measured else None
    return {"execution": {**checkpoint.packing, **({} if ran is None else asdict(ran))}}


def _metrics(
    metric: Metric,
    settings: RunSettings,
    arms: Mapping[str, Mapping[str, Any]],
    measured: Measurement | None,
) -> dict[str, Any]:
    """The metric of this run alone, and what the run took where that was asked for."""
    if measured is None:
        return {}
    tokens = sum(sum(rows["token_counts"]) for rows in arms.values())
    return {
        "primary_metric": {
            "kind": metric.name,
            "unit": metric.unit,
            "direction": metric.direction,
            **{arm: metric.value(rows) for arm, rows in arms.items()},
        },
        **(cost(measured.timings, measured.memory_mb, tokens) if settings.telemetry else {}),
    }


def _guards(
    failures: Sequence[Failure], accepted: Sequence[str], measured: Measurement | None
) -> list[dict[str, Any]]:
    """What each guard recorded, in canonical order; guards that did not run are absent."""
    invariants = {"name": CHAIN[0]}
    guards: list[dict[str, Any]] = [
        {**invariants, "phase": "checkpoint", **judge(failures, accepted)}
    ]
    if measured is None:
        return guards
    if measured.device == SERVER:  # which no guard has looked at
        return []
    for guard in GUARDS:
        if guard.name in measured.records and not guard.beside:
            head = {"name": guard.name, "phase": guard.phase}
            guards.append({**head, **measured.records[guard.name], **guard.contract_fields()})
    guards.append(
        {
            **invariants,
            "phase": "loaded",
            **judge(measured.loaded_failures, accepted),
            "loaded_sha256": measured.loaded_sha256,
        }
    )
    return guards


def _arm(windows: RunWindows, arm: str, measured: Measurement) -> dict[str, Any]:
    result = measured.arms[arm]
    tokens, losses = result.n_tokens(), result.losses()
    ran = [windows.arm(arm)[i] for i in sorted(result.nll_sum)]
    names = windows.slice_names(arm)
    return {
        "window_ids": [window.window_id for window in ran],
        "clusters": [window.cluster for window in ran],
        "token_counts": tokens,
        "nll_sum": numbers(losses),
        "logloss": numbers(np.asarray(losses) / np.asarray(tokens)),
        **measured.columns.get(arm, {}),
        **({"slices": [names[i] for i in sorted(result.nll_sum)]} if names else {}),
    }


def _slice(part: Slice) -> dict[str, Any]:
    """A slice as reports state it: the files of its text by one digest, as ``windows.json`` and
    the pins list them."""
    row: dict[str, Any] = msgspec.to_builtins(part)
    del row["n_documents"]  # windows.json says it
    row["source"]["files_sha256"] = digest_json(row["source"].pop("files"))
    return row


def write_run(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``report.json`` and ``events.jsonl`` (the execution log: what ran, in order)."""
    events = [
        {"event": "run", "run_id": report["meta"]["run_id"]},
        *(
            {
                "event": "guard",
                "guard": guard["name"],
                "phase": guard["phase"],
                "digest": digest_json(guard),
            }
            for guard in report["guards"]
        ),
        *(
            {"event": "windows", "arm": arm, "n": len(rows["nll_sum"]), "digest": digest_json(rows)}
            for arm, rows in report["evaluation_windows"].items()
        ),
    ]
    lines = [
        json.dumps({"seq": i, **event}, sort_keys=True) + "\n" for i, event in enumerate(events)
    ]
    write_bytes(folder / EVENTS_NAME, "".join(lines).encode())
    write_json(folder / REPORT_NAME, report)


def write_reference(folder: Path, measured: Measurement) -> None:
    """Write what later runs compare with token by token (``guards.safetensors``, final arm).

    ``final.logprob`` (tokens,) float32: log-probability of the correct token, nats.
    ``final.top1`` (tokens,) int32: the most likely token, the lowest id of equal ones.
    ``final.top_id`` (tokens, 64) int32 and ``final.top_logprob`` (tokens, 64) float16: the most
    likely tokens, equal ones in any order. Rows are the windows' predicted tokens, in order.
    What probes keep (``representation.ARRAYS``) has names of its own.
    """
    from safetensors.numpy import save

    top = measured.reference_arrays().top
    arrays: dict[str, NDArray[Any]] = {
        "final.logprob": top.correct,
        "final.top1": top.top1,
        "final.top_id": top.ids,
        "final.top_logprob": top.logprob,
        **measured.arrays,
    }
    write_bytes(folder / GUARDS_NAME, save(arrays))


@dataclass(frozen=True)
class Reference:
    """A baseline run, read back."""

    report: Mapping[str, Any]
    folder: Path
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> Reference:
        """Read a run folder.

        Raises:
            InputError: unreadable, or not a run report.
        """
        report = read_json_object(folder / REPORT_NAME)
        if report.get("schema") != SCHEMA:
            raise ContractError(
                "not a run report", where=str(folder / REPORT_NAME), expected=SCHEMA
            )
        return cls(report, folder, sha256_bytes((folder / REPORT_NAME).read_bytes()))

    def arrays(self) -> ReferenceArrays:
        """What the baseline's run recorded token by token and module by module.

        Raises:
            InputError: the run holds no such record.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            stored = load_file(self.folder / GUARDS_NAME)
            starts = np.cumsum([0, *self.report["evaluation_windows"]["final"]["token_counts"]])
            return ReferenceArrays(
                TopTokens(
                    starts.tolist(),
                    stored["final.top1"],
                    stored["final.top_id"],
                    stored["final.top_logprob"],
                    stored["final.logprob"],
                ),
                rmt.activations_of(self.report),
                arrays={k: v for k, v in stored.items() if not k.startswith("final.")},
                weights=spectral.weights_of(self.report),
            )
        except (KeyError, OSError, SafetensorError) as error:
            raise InputError(
                f"not the record of a baseline run: {error}",
                where=str(self.folder / GUARDS_NAME),
                hint="measure the baseline again with invarlock run",
            ) from error

    def require_same_inputs(self, windows: RunWindows, checkpoint_sha256: str) -> None:
        """Refuse a run of other windows or another baseline, whatever becomes of the subject.

        Raises:
            InputError: other windows, another baseline checkpoint, or other definitions of
                what the guards measure.
        """
        found = self.report["data"]["windows_sha256"]
        self._require("windows", found, windows.sha256)
        found = self.report["meta"]["checkpoint_sha256"]
        self._require("baseline checkpoint", found, checkpoint_sha256)
        for name in CONTRACTS:
            now = str(contract_fields(name)["measurement_contract_hash"])
            found = BY_NAME[name].recorded(self.report).get("measurement_contract_hash")
            self._require(f"definition of what {name} measures", found, now)

    def require_same_arithmetic(self, dtype: str, device: str) -> None:
        """Refuse to compare losses of different arithmetic.

        Raises:
            InputError: another dtype or device.
        """
        self._require("dtype", self.report["meta"]["dtype"], dtype)
        self._require("device", self.report["meta"]["device"], device)

    def _require(self, what: str, recorded: object, now: str) -> None:
        if recorded != now:
            raise InputError(
                f"the baseline run used another {what}",
                where=str(self.folder),
                expected=now,
                found=str(recorded),
                hint="measure the baseline again with invarlock run",
            )


def against(
    baseline: Mapping[str, Any],
    shift: TokenShift | None,
    policy: Policy,
    excerpts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What a subject's run measured together with the baseline's: whose it was, the shift of the
    predictions, and the limits by which guards tried something.

    Args:
        baseline: the run report of the baseline.
        shift: None where the subject was not run.
        policy: of that measurement.
        excerpts: of the windows that lost most, where they are wanted.
    """
    found: dict[str, Any] = {
        "run_id": baseline["meta"]["run_id"],
        "report_sha256": digest_json(baseline),
        "tried_by": {guard.name: dict(guard.limits(policy)) for guard in GUARDS if guard.tries},
    }
    if shift is not None:
        found["distribution"] = summarize(shift, policy.distribution)
        found["final"] = shift_columns(shift)
    if excerpts:
        found["excerpts"] = list(excerpts)
    return {"against": found}


def token_shift(arrays: ReferenceArrays, final: ArmResult) -> TokenShift:
    """How the subject's predictions on the final arm differ from the baseline's."""
    rows = arrays.top.rows(sorted(final.nll_sum))
    return TokenShift(
        kl=final.joined("kl"),
        probability_change=np.exp(final.joined("logprob")) - np.exp(arrays.top.correct[rows]),
        flips=final.joined("top1") != arrays.top.top1[rows],
        token_counts=final.n_tokens(),
        top_k=arrays.top.ids.shape[1],
    )
