"""``report.json``, ``events.jsonl`` and ``guards.safetensors`` of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from invarlock import __version__
from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.errors import ContractError, InputError
from invarlock.files import (
    digest_json,
    read_json_object,
    sha256_bytes,
    write_bytes,
    write_json,
)
from invarlock.guards import CHAIN, invariants_decision, spectral
from invarlock.guards.invariants_decision import Failure
from invarlock.guards.weight_stats import CONTRACT
from invarlock.run.forward import ArmResult
from invarlock.run.measure import ARMS, Measurement, RunWindows

SCHEMA = "invarlock/run-report-v1"
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


def numbers(values: Sequence[float]) -> list[float | None]:
    """Losses for JSON: what is not finite becomes null (JSON has no NaN)."""
    return [float(v) if np.isfinite(v) else None for v in values]


def run_report(
    settings: RunSettings,
    checkpoint: Checkpoint,
    windows: RunWindows,
    failures: Sequence[Failure],
    measured: Measurement | None,
    determinism: Mapping[str, Any],
) -> dict[str, Any]:
    """The report of one run; ``measured`` is None when the checkpoint was not run."""
    content = windows.content
    checkpoint_sha256 = checkpoint.digest()
    identity = {
        "checkpoint": checkpoint_sha256,
        "windows": windows.sha256,
        "settings": vars(settings),
        "determinism": dict(determinism),
        "version": __version__,
    }
    return {
        "schema": SCHEMA,
        "meta": {
            "run_id": digest_json(identity)[:16],
            "model_id": settings.model_id,
            "adapter": "hf_causal",
            "seed": settings.seed,
            "seeds": determinism.get("seeds", {}),
            "device": measured.device if measured else None,
            "dtype": measured.dtype if measured else None,
            "token_budget": settings.token_budget,
            "tokenizer_hash": tokenizer_digest(checkpoint.folder),
            "invarlock_version": __version__,
            "determinism": dict(determinism),
            "checkpoint_sha256": checkpoint_sha256,
            "parameters": checkpoint.n_parameters,
        },
        "data": {
            "windows_sha256": windows.sha256,
            "source": dict(content.source),
            "seq_len": content.seq_len,
            "stride": content.stride,
            "seed": content.seed,
            "n_documents": content.n_documents,
            **{f"{arm}_n": len(windows.arm(arm)) for arm in ARMS},
        },
        "edit": {"name": settings.edit_name, "scenario": settings.scenario},
        "guards": _guards(failures, measured),
        "evaluation_windows": {
            arm: _arm(windows, arm, measured.arms[arm]) for arm in ARMS if measured
        },
        "artifacts": {"events_path": EVENTS_NAME},
        "context": {"profile": settings.profile, "tier": settings.tier},
    }


def _guards(failures: Sequence[Failure], measured: Measurement | None) -> list[dict[str, Any]]:
    """What each guard recorded, in canonical order; guards that did not run are absent."""
    guards: list[dict[str, Any]] = [
        {"name": "invariants", "phase": "checkpoint", **invariants_decision.judge(failures)}
    ]
    if measured:
        guards.append(
            {
                "name": "spectral",
                "phase": "weights",
                "measurement_contract": CONTRACT,
                "measurement_contract_hash": spectral.contract_hash(),
                "modules": spectral.to_table(measured.modules),
            }
        )
        after = invariants_decision.judge(measured.loaded_failures)
        guards.append({"name": "invariants", "phase": "loaded", **after})
    assert all(guard["name"] in CHAIN for guard in guards)
    return guards


def _arm(windows: RunWindows, arm: str, result: ArmResult) -> dict[str, Any]:
    tokens = np.asarray(result.n_tokens)
    return {
        "window_ids": [window.window_id for window in windows.arm(arm)],
        "clusters": [window.cluster for window in windows.arm(arm)],
        "token_counts": result.n_tokens,
        "nll_sum": numbers(result.nll_sum),
        "logloss": numbers(np.asarray(result.nll_sum) / tokens) if len(tokens) else [],
    }


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
    ``final.top_id`` (tokens, 64) int32 and ``final.top_logprob`` (tokens, 64) float16: the most
    likely tokens. Rows are the windows' predicted tokens, in order.
    """
    from safetensors.numpy import save

    final = measured.arms["final"]
    top = {
        "final.logprob": np.concatenate(final.logprob),
        "final.top_id": np.concatenate(final.top_ids),
        "final.top_logprob": np.concatenate(final.top_logprob).astype(np.float16),
    }
    write_bytes(folder / GUARDS_NAME, save(top))


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

    def modules(self) -> list[spectral.Module]:
        """The recorded statistics of the baseline's weights."""
        for guard in self.report["guards"]:
            if guard["name"] == "spectral":
                return spectral.from_table(guard["modules"])
        raise InputError("the run holds no spectral statistics", where=str(self.folder))

    def require_same_inputs(self, windows: RunWindows, checkpoint_sha256: str) -> None:
        """Refuse a run of other windows or another baseline, whatever becomes of the subject.

        Raises:
            InputError: other windows, or another baseline checkpoint.
        """
        found = self.report["data"]["windows_sha256"]
        self._require("windows", found, windows.sha256)
        found = self.report["meta"]["checkpoint_sha256"]
        self._require("baseline checkpoint", found, checkpoint_sha256)

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

    def top1_agreement(self, final: ArmResult) -> list[int]:
        """Positions per final window where both runs find the same token most likely."""
        from safetensors.numpy import load_file

        top = load_file(self.folder / GUARDS_NAME)["final.top_id"][:, 0]
        starts = np.cumsum([0, *final.n_tokens])
        return [
            int(np.sum(top[a:b] == mine))
            for a, b, mine in zip(starts[:-1], starts[1:], final.top1, strict=True)
        ]
