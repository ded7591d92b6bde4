"""The RMT guard's decision: growth of the edge risk against an allowance by family."""

from __future__ import annotations

import math

import pytest

from invarlock.guards.rmt import Activation, edge, from_table, judge, to_table
from invarlock.policy import RmtPolicy

POLICY = RmtPolicy(epsilon_default=0.2, epsilon_by_family={"attn": 0.03})


def run(**edges):
    """Activations by name; names that start with q belong to attention."""
    return [
        Activation(name, "attn" if name.startswith("q") else "ffn", 0, value, 1.0)
        for name, value in edges.items()
    ]


def test_the_edge_is_that_of_theory():
    """sqrt(m) + sqrt(n)."""
    assert edge(512, 576) == pytest.approx(math.sqrt(512) + 24.0)


def test_identical_runs_are_stable():
    """Nothing moved: ratio 1, no violation."""
    block = judge(run(q=2.0, up=3.0), run(q=2.0, up=3.0), POLICY)
    assert (block["stable"], block["max_edge_ratio"], block["modules_compared"]) == (True, 1.0, 2)


@pytest.mark.parametrize(
    ("q", "up", "named"),
    [(2.059, 3.0, []), (2.062, 3.0, ["q"]), (2.0, 3.59, []), (2.0, 3.61, ["up"]), (0.1, 0.1, [])],
)
def test_each_family_has_its_allowance(q, up, named):
    """3 % for attention, 20 % for the rest; falling is no violation."""
    block = judge(run(q=2.0, up=3.0), run(q=q, up=up), POLICY)
    assert [v["module"] for v in block["epsilon_violations"]] == named
    assert block["stable"] is block["passed"] is not named
    assert block["decision"] == ("block" if named else "allow")
    assert block["epsilon_by_family"] == {"attn": 0.03, "ffn": 0.2}


def test_a_family_is_as_bad_as_its_worst_module():
    """The module with the largest ratio decides, not the one with the largest value."""
    block = judge(run(q1=9.0, q2=1.0), run(q1=9.1, q2=1.02), POLICY)
    assert block["families"]["attn"]["module"] == "q2"
    assert block["families"]["attn"]["ratio"] == pytest.approx(1.02)
    assert block["edge_risk_by_family"] == {"attn": 1.02}


@pytest.mark.parametrize("names", [{"q": 2.0}, {"q": 2.0, "up": 3.0, "new": 1.0}, {}])
def test_a_module_that_only_one_run_has_blocks(names):
    """What cannot be compared is not passed."""
    block = judge(run(q=2.0, up=3.0), run(**names), POLICY)
    assert not block["stable"]
    assert block["modules_missing"] == len({"q", "up"} ^ set(names))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_lost_number_violates(value):
    """An edge risk that is not finite is larger than any allowance, and is recorded as null."""
    block = judge(run(q=2.0), run(q=value), POLICY)
    assert [v["edge_cur"] for v in block["epsilon_violations"]] == [None]
    assert not block["stable"]
    assert block["max_edge_ratio"] is None


def test_recorded_statistics_read_back():
    """Nine digits and infinity survive the table; rows are sorted."""
    activations = [*run(up=1.23456789012), *run(q=math.inf)]
    back = from_table(to_table(activations))
    assert [a.name for a in back] == ["q", "up"]
    assert back[0].edge == math.inf
    assert back[1].edge == pytest.approx(1.23456789012, rel=1e-8)
