"""The confidence label: width, stability, acceptance, in the unit of the metric."""

import pytest

from invarlock.metrics.confidence import Precision, confidence
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
