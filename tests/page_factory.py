"""Reports with every block a page can show; invented numbers in the shapes of a run.

Starts from a report that the package built and puts invented measurements in the place of what
that small example does not measure.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Sequence
from typing import Any

from report_factory import make_report

Document = dict[str, Any]
PARTS = (
    ("self_attn.q_proj", "attn"),
    ("self_attn.k_proj", "attn"),
    ("self_attn.v_proj", "attn"),
    ("self_attn.o_proj", "attn"),
    ("mlp.gate_proj", "ffn"),
    ("mlp.up_proj", "ffn"),
    ("mlp.down_proj", "ffn"),
    ("input_layernorm", "other"),
    ("post_attention_layernorm", "other"),
)
EPSILON = {"attn": 0.03, "embed": 0.10, "ffn": 0.08, "other": 0.10}
TAU = {"attn": 0.0075, "embed": 0.0908, "ffn": 0.0052, "other": 0.0318}
KAPPA = {"attn": 3.018, "embed": 1.05, "ffn": 3.849, "other": 3.0}


def make_page_report(
    windows: int = 180, layers: int = 30, harm: float = 0.0, ratio: float = 1.004
) -> Document:
    """A report with every block; ``harm`` moves every module by about that much (ln ratio)."""
    report = make_report("quant_8bit_clean", ratio)
    rng = random.Random(f"page {windows} {layers} {harm}")
    report["evaluation_windows"]["final"] = _final(rng, windows, harm)
    report["spectral"] |= _spectral(rng, layers, harm)
    report["rmt"] = _rmt(rng, layers, harm)
    report["variance"] = _variance(rng, layers, harm)
    report["primary_metric_tail"] = _tail(report["evaluation_windows"]["final"])
    report["distribution"] = _distribution(rng, 143 * windows, harm)
    report["guard_overhead"] = {
        "evaluated": True,
        "passed": True,
        "mode": "one_pass",
        "overhead_ratio": 1.0,
        "overhead_percent": 0.0,
        "overhead_threshold": 0.01,
        "threshold_percent": 1.0,
        "source": "policy",
        "work_ratio": 0.213,
        "work_max": 0.35,
        "probe_bytes": 75_497_472,
        "checks": {"metric_unchanged": True, "work": True},
        "diagnostics": [],
    }
    report["confidence"] = {
        "label": "High",
        "basis": "ppl_ratio",
        "width": 0.0041,
        "threshold": 0.03,
        "unstable": False,
    }
    report["telemetry"] = {
        "summary_line": "INVARLOCK_TELEMETRY run_id=0123456789abcdef metric=ppl_causal nprev=180 "
        "nfinal=180 tokens=51480 split=train ci=1.0021,1.0062 width=0.0041 ratio=1.0040 gate=pass"
    }
    source = "preset:0123456789ab"
    report["policy_provenance"]["preset_sha256"] = "0123456789ab" + "0" * 52
    report["policy_provenance"]["overrides"] = [
        {"path": "drift.max", "value": 1.03, "tier_value": 1.05, "source": source},
        *(
            {"path": f"spectral.tau.{f}", "value": t, "tier_value": 0.0953 / KAPPA[f],
             "source": source}
            for f, t in TAU.items()
        ),
        {"path": "tail.mode", "value": "fail", "tier_value": "warn", "source": "config"},
    ]  # fmt: skip
    gates = ("rmt_stable", "primary_metric_tail_acceptable", "guard_overhead_acceptable")
    report["context"]["gates"] = sorted({*report["context"]["gates"], *gates})
    report["validation"] |= {
        "rmt_stable": report["rmt"]["stable"],
        "primary_metric_tail_acceptable": True,
        "guard_overhead_acceptable": True,
    }
    report["guard_warnings"] = {
        "present": bool(report["rmt"]["epsilon_violations"]),
        "warnings": [
            {
                "guard": "rmt",
                "kind": "new_epsilon_violation",
                "message": f"{v['module']}: edge risk",
            }
            for v in report["rmt"]["epsilon_violations"]
        ],
    }
    report["assurance"] |= {"report_local_verdict": "pass", "blocking_reasons": []}
    return report


def _final(rng: random.Random, windows: int, harm: float) -> Document:
    loss = [rng.uniform(2.6, 3.4) for _ in range(windows)]
    shift = [rng.gauss(0.004, 0.012) + harm * rng.expovariate(1.0) for _ in loss]
    return {
        "window_ids": [f"{rng.getrandbits(64):016x}" for _ in loss],
        "clusters": [f"1{790 + i // 3}-Washington-1.txt" for i in range(windows)],
        "token_counts": [143] * windows,
        "nll_sum": [143 * (b + d) for b, d in zip(loss, shift, strict=True)],
        "logloss": [b + d for b, d in zip(loss, shift, strict=True)],
        "baseline_nll_sum": [143 * b for b in loss],
    }


def names(layers: int, suffix: str = "") -> list[tuple[str, str, int | None]]:
    """Name, family and layer of the modules of a model."""
    found: list[tuple[str, str, int | None]] = [
        (f"model.layers.{i}.{part}{suffix}", family, i)
        for i in range(layers)
        for part, family in PARTS
    ]
    return [("model.embed_tokens" + suffix, "embed", None), *found, ("model.norm", "other", None)]


def _columns(modules: Sequence[tuple[str, str, int | None]]) -> Document:
    columns = zip(*modules, strict=True)
    return dict(zip(("name", "family", "layer"), map(list, columns), strict=True))


def _moved(rng: random.Random, values: Sequence[float], spread: float) -> list[float]:
    return [v * math.exp(rng.gauss(0.0, spread)) for v in values]


def _spectral(rng: random.Random, layers: int, harm: float) -> Document:
    modules = names(layers, ".weight")
    sigma = [rng.uniform(4, 40) for _ in modules]
    rank = [rng.uniform(5, 60) for _ in modules]
    return {
        "family_caps": {f: {"kappa": KAPPA[f], "tau": TAU[f]} for f in TAU},
        "modules": {
            **_columns(modules),
            "sigma_max": _moved(rng, sigma, 0.004 + harm),
            "baseline_sigma_max": sigma,
            "stable_rank": _moved(rng, rank, 0.003 + harm),
            "baseline_stable_rank": rank,
        },
    }


def _rmt(rng: random.Random, layers: int, harm: float) -> Document:
    modules = names(layers)
    base = [rng.uniform(1.2, 6.0) for _ in modules]
    edge = _moved(rng, base, 0.007 + harm)
    rows = list(zip(modules, base, edge, strict=True))
    violations = [
        {
            "family": family,
            "module": name,
            "edge_base": b,
            "edge_cur": e,
            "delta": e - b,
            "allowed": (1 + EPSILON[family]) * b,
            "epsilon": EPSILON[family],
        }
        for (name, family, _), b, e in rows
        if e > (1 + EPSILON[family]) * b
    ]
    families = {}
    for family, epsilon in EPSILON.items():
        b, e = max(((b, e) for (_, f, _), b, e in rows if f == family), key=lambda r: r[1] / r[0])
        families[family] = {"edge_base": b, "edge_cur": e, "epsilon": epsilon, "ratio": e / b,
                            "allowed": (1 + epsilon) * b, "delta": e - b}  # fmt: skip
    return {
        "evaluated": True,
        "passed": not violations,
        "stable": not violations,
        "decision": "block" if violations else "allow",
        "status": "unstable" if violations else "stable",
        "mode": "activation_edge_risk",
        "epsilon_default": 0.10,
        "epsilon_by_family": EPSILON,
        "epsilon_violations": violations,
        "families": families,
        "max_edge_ratio": max(f["ratio"] for f in families.values()),
        "calibration": {"windows": 8, "tokens": 1024, "window_ids": []},
        "measurement_contract_match": True,
        "modules": {**_columns(modules), "edge": edge, "baseline_edge": base},
    }


def _variance(rng: random.Random, layers: int, harm: float) -> Document:
    modules = [m for m in names(layers) if m[0].endswith(("o_proj", "down_proj"))]
    base = [rng.uniform(0.01, 2.0) for _ in modules]
    spoke = harm > 0.05
    return {
        "evaluated": True,
        "passed": True,
        "decision": "monitor" if spoke else "allow",
        "enabled": False,
        "deadband": 0.02,
        "proposed_scales": {modules[0][0]: 0.91} if spoke else {},
        "signal": spoke,
        "predictive_gate": {"evaluated": spoke, "passed": spoke, "mean_delta": -0.012,
                            "reason": "ci_gain_met" if spoke else "no_scales",
                            "gain_ci": [0.007, 0.019], "sided": "one"},
        "modules": {**_columns(modules), "variance": _moved(rng, base, 0.006 + harm),
                    "baseline_variance": base},
    }  # fmt: skip


def _tail(rows: Document) -> Document:
    pairs = zip(rows["nll_sum"], rows["baseline_nll_sum"], rows["token_counts"], strict=True)
    values = sorted((s - b) / n for s, b, n in pairs)

    def at(q: float) -> float:
        return float(values[min(len(values) - 1, math.ceil(q * len(values)) - 1)])

    return {
        "mode": "fail",
        "evaluated": True,
        "passed": True,
        "warned": False,
        "violations": [],
        "policy": {"min_windows": 50, "quantile": 0.95, "quantile_max": 0.20, "epsilon": 1e-4,
                   "mass_max": 1.0},
        "stats": {"n": len(values), "n_effective": len(values) - 9, "epsilon": 1e-4,
                  "max": values[-1], "q50": at(0.5), "q90": at(0.9), "q95": at(0.95),
                  "q99": at(0.99), "quantile_point": at(0.95), "quantile_low": at(0.91),
                  "quantile_high": at(0.98), "tail_mass": 0.6, "tail_mass_weighted": 0.6},
        "source": "paired_baseline.final",
        "reason": "",
    }  # fmt: skip


def _distribution(rng: random.Random, tokens: int, harm: float) -> Document:
    from invarlock.metrics.distribution import CHANGE_EDGES, KL_EDGES

    sample = 4000  # enough for a shape
    kl = sorted(math.exp(rng.gauss(-7 + 20 * harm, 2.0)) for _ in range(sample))
    change = sorted(max(-1.0, min(1.0, rng.gauss(0, 0.02 + harm) ** 3 * 40)) for _ in kl)

    def histogram(values: Sequence[float], edges: Sequence[float]) -> Document:
        counts = [0] * (len(edges) - 1)
        for value in values:
            counts[min(max(bisect(edges, value) - 1, 0), len(counts) - 1)] += tokens // sample
        return {"edges": list(edges), "counts": counts}

    def at(values: Sequence[float], q: float) -> float:
        return values[min(sample - 1, int(q * sample))]

    return {
        "evaluated": True,
        "tokens": tokens,
        "top_k": 64,
        "kl": {"mean": sum(kl) / sample, "p99": at(kl, 0.99), "max": kl[-1]},
        "flips": {"count": tokens // 40, "fraction": 0.025},
        "probability_change": {
            "mean": sum(change) / sample,
            **{f"q{n:02d}": at(change, n / 100) for n in (1, 5, 50, 95, 99)},
        },
        "histograms": {
            "kl": histogram(kl, KL_EDGES),
            "probability_change": histogram(change, CHANGE_EDGES),
        },
        "gated": False,
        "passed": True,
    }


def with_mixture(report: Document, layers: int = 16, experts: int = 64) -> Document:
    """The report with the block of a mixture of experts, one router of which lost its spread."""
    rng = random.Random("mixture")
    entropy = [math.log(experts) - rng.uniform(0.2, 0.6) for _ in range(layers)]
    mine = [0.6 * entropy[0], *_moved(rng, entropy[1:], 0.01)]
    report["moe"] = {
        "evaluated": True,
        "passed": False,
        "decision": "block",
        "top_k": 8,
        "routers": {
            "name": [f"model.layers.{i}.mlp.gate" for i in range(layers)],
            "layer": list(range(layers)),
            "entropy": mine,
            "baseline_entropy": entropy,
            "dead": [[3, 17], *[[]] * (layers - 1)],
            "baseline_dead": [[]] * layers,
        },
        "router_entropy": sum(mine) / layers,
        "delta_router_entropy": (sum(mine) - sum(entropy)) / layers,
        "utilization_mean": 1 / experts,
        "max_entropy_drop": 0.4,
        "entropy_drop_max": 0.10,
        "new_dead_experts": 2,
        "new_dead_experts_max": 0,
    }
    report["validation"] |= {"moe_observed": True, "moe_identity_ok": False}
    return report


def make_accuracy_report() -> Document:
    """A report on labelled examples: no losses, percentage points."""
    report = make_report("quant_8bit_clean", 1.004)
    metric = report["primary_metric"]
    for key in ("drift", "standard_error", "delta_nats", "analysis_basis"):
        metric.pop(key, None)
    metric |= {
        "kind": "accuracy",
        "unit": "accuracy",
        "direction": "higher",
        "aggregation_scope": "example",
        "gating_basis": "lower",
        "preview": 0.731,
        "final": 0.728,
        "ratio_vs_baseline": -0.25,
        "ci": [-0.83, 0.31],
        "display_ci": [-0.83, 0.31],
        "limit": -1.1,
        "decision": "pass",
        "mcnemar_p": 0.48,
        "gained": 4,
        "lost": 5,
        "n_final": 400,
        "drift": {"ratio": 1.0031},
    }
    report["baseline_ref"]["primary_metric"] = {"kind": "accuracy", "final": 0.7305}
    report["evaluation_windows"] = {"preview": {}, "final": {}}
    return report
