"""The confidence label: width, stability, acceptance, in the unit of the metric."""

import math

import numpy as np
import pytest

from invarlock.metrics.confidence import Precision, confidence, power
from invarlock.metrics.perplexity import Bootstrap, decide
from invarlock.policy import load_policy

POLICY = load_policy("balanced").confidence


def label(width, *, acceptable=True, replicates=1200, floor_met=True, kind="ppl_causal"):
    """The block for an interval of a width."""
    ci = None if width is None else (1.0, 1.0 + width)
    return confidence(Precision(kind, ci, acceptable, replicates, floor_met), POLICY)


@pytest.mark.parametrize(
    ("width", "stable", "unstable"),
    [(0.02, "High", "Medium"), (0.05, "Medium", "Medium"), (0.07, "Low", "Low")],
)
def test_width_decides_and_instability_only_lowers(width, stable, unstable):
    """Up to the threshold, up to twice, beyond; a wide interval is Low however unstable."""
    assert label(width)["label"] == stable
    for block in (label(width, replicates=199), label(width, floor_met=False)):
        assert block["label"] == unstable
        assert block["unstable"] is True


@pytest.mark.parametrize("block", [label(0.001, acceptable=False), label(None)])
def test_unaccepted_or_without_interval_is_low(block):
    """A narrow interval of a refused comparison earns nothing; nor does a missing one."""
    assert block["label"] == "Low"


def test_accuracy_is_measured_in_percentage_points():
    """Half a point is High and three points are Low: the threshold is 1 point, not 0.03."""
    narrow = label(0.5, kind="accuracy")
    assert (narrow["label"], narrow["basis"], narrow["threshold"]) == ("High", "accuracy", 1.0)
    assert label(1.5, kind="accuracy")["label"] == "Medium"
    assert label(3.0, kind="accuracy")["label"] == "Low"
    assert label(0.02)["basis"] == "ppl_ratio"


RATIO = {
    "kind": "ppl_causal", "delta_nats": 0.02, "ci": [0.01, 0.032], "standard_error": 0.005,
    "limit": 1.102,
}  # fmt: skip


def test_power_by_hand():
    """The bound keeps to the limit at a true value as far inside as the bound is from the
    estimate in half of the cases, and in 95 % at one that is 1.645 standard errors further."""
    assert power(RATIO) == pytest.approx(
        {
            "pass_50": 1.102 * math.exp(-0.012),
            "pass_95": 1.102 * math.exp(-0.012 - 1.6448536 * 0.005),
        }
    )


@pytest.mark.parametrize("metric", [RATIO | {"standard_error": 0.0}, {"kind": "ppl_causal"}])
def test_nothing_is_said_about_power_where_nothing_varies(metric):
    """Neither for identical runs nor without an interval."""
    assert power(metric) == {}


def test_a_true_ratio_passes_as_often_as_stated():
    """180 documents drawn anew at the stated ratios: half, and nearly all, of them pass."""
    rng = np.random.default_rng(2)
    tokens, spread, settings = np.full(180, 143.0), 0.05, Bootstrap(600, 0.05, 43)
    limit = math.log(1.102)

    def passes(delta):
        differences = tokens * (delta + rng.normal(0.0, spread, 180))
        interval = settings.interval(differences, tokens)
        return decide(interval.point, interval, limit) == "pass"

    first = settings.interval(tokens * rng.normal(0.0, spread, 180), tokens)
    stated = power(
        {
            "kind": "ppl_causal",
            "delta_nats": first.point,
            "ci": [first.low, first.high],
            "standard_error": first.standard_error,
            "limit": 1.102,
        }
    )
    for name, low, high in (("pass_50", 0.35, 0.65), ("pass_95", 0.90, 0.99)):
        share = sum(passes(math.log(stated[name])) for _ in range(300)) / 300
        assert low <= share <= high
