"""Reports of larger models with every block that a page can show."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import report_factory as factory
from report_factory import PRESET, Document

from invarlock.policy import Override, load_policy

EXPERTS = 64


def make_page_report(
    windows: int = 180, layers: int = 68, harm: float = 0.0, ratio: float = 1.004, **more: Any
) -> Document:
    """A report by the thresholds of a preset; ``harm`` moves every module by about that much.

    ``harm`` is a standard deviation of ln ratios. ``more``: see ``report_factory.make_report``.
    """
    rng = random.Random(f"page {windows} {layers} {harm}")

    def moved(names: Sequence[str], spread: float) -> dict[str, float]:
        return {name: math.exp(rng.gauss(0.0, spread + harm)) for name in names}

    spectral = load_policy("balanced").spectral
    thresholds = {"drift.max": 1.03, "rmt.epsilon.ffn": 0.15}
    thresholds |= {
        f"spectral.tau.{f}": math.log1p(0.03) / spectral.kappa(f) for f in ("attn", "ffn")
    }
    by_hand = Override("tail.mode", "fail", "config")
    with factory.sized(windows, layers):
        weights = [module.name for module in factory.modules({}, {})]
        outputs = [seen.name for seen in factory.activations({}, {})]
        return factory.make_report(
            "quant_8bit_clean",
            ratio,
            scale=moved(weights, 0.004),
            rank=moved(weights, 0.003),
            edge=moved(outputs, 0.007),
            spread=moved(outputs, 0.006),
            gain=0.02,
            overrides=(*factory.preset_overrides(thresholds), by_hand),
            preset_sha256=PRESET,
            **more,
        )


def make_mixture_report(layers: int) -> Document:
    """The report of a mixture of experts, one router of which lost its spread."""
    rng = random.Random("mixture")
    entropy = [math.log(EXPERTS) - rng.uniform(0.2, 0.6) for _ in range(layers)]
    even = [1 / EXPERTS] * EXPERTS
    routers = {
        "name": [f"model.layers.{i:02d}.mlp.gate" for i in range(layers)],
        "layer": list(range(layers)),
        "tokens": [4000] * layers,
        "entropy": entropy,
        "dead": [[]] * layers,
        "utilization": [even] * layers,
        "top_k": 8,
    }
    without = [0.0, 0.0, *[1 / (EXPERTS - 2)] * (EXPERTS - 2)]
    damaged = routers | {
        "entropy": [0.6 * entropy[0], *(e * math.exp(rng.gauss(0.0, 0.01)) for e in entropy[1:])],
        "dead": [[0, 1], *[[]] * (layers - 1)],
        "utilization": [without, *[even] * (layers - 1)],
    }
    return make_page_report(layers=layers, routers=(routers, damaged))
