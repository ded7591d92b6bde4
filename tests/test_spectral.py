"""Spectral decisions on planted changes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invarlock.guards import matrices
from invarlock.guards.caps import log_ratio, selected
from invarlock.guards.operators import MATRIX, Module, Operator, OperatorStats
from invarlock.guards.spectral import (
    TABLES,
    from_table,
    judge,
    operators_from_table,
    operators_to_table,
    table_again,
    to_table,
)
from invarlock.guards.weight_stats import WeightStats
from invarlock.policy import load_policy

POLICY = load_policy("balanced").spectral


def modules(n=40, family="ffn", kind="down"):
    """Healthy operators of different sizes, of one member each."""
    return [
        Operator(f"layers.{i}.w", family, i, kind, OperatorStats(*3 * [1.0 + i], 30.0 + i))
        for i in range(n)
    ]


def changed(base, index, **stats):
    """A copy with one module changed."""
    if "sigma_max" in stats:
        stats = dict.fromkeys(("sigma_mean", "sigma_min"), stats["sigma_max"]) | stats
    subject = list(base)
    subject[index] = base[index]._replace(stats=base[index].stats._replace(**stats))
    return subject


def test_no_change_is_allowed():
    """The baseline against itself: no cap, all z zero."""
    block = judge(modules(), modules(), POLICY)
    assert (block["passed"], block["decision"], block["caps_applied"]) == (True, "allow", 0)
    assert block["summary"]["max_abs_z"] == 0.0


def test_one_scaled_module_is_capped_and_named():
    """A matrix times 1.5 is one cap: monitored, within the budget of five."""
    base = modules()
    block = judge(base, changed(base, 7, sigma_max=8.0 * 1.5), POLICY)
    assert (block["caps_applied"], block["decision"], block["passed"]) == (1, "monitor", True)
    assert block["violations"][0]["module"] == "layers.7.w"


def test_shrinking_is_seen_as_well_as_growing():
    """The statistic is a log-ratio: a matrix divided by 1.5 is as far away."""
    base = modules()
    up = judge(base, changed(base, 7, sigma_max=8.0 * 1.5), POLICY)["violations"][0]["z_score"]
    down = judge(base, changed(base, 7, sigma_max=8.0 / 1.5), POLICY)["violations"][0]["z_score"]
    assert up == pytest.approx(-down)


def test_inside_the_deadband_is_silent():
    """A change of 9 % is below the balanced deadband of 10 %; one of 11 % is not."""
    base = modules()
    assert judge(base, changed(base, 3, sigma_max=4 * 1.09), POLICY)["caps_applied"] == 0
    assert judge(base, changed(base, 3, sigma_max=4 * 1.11), POLICY)["caps_applied"] == 1


def test_more_caps_than_the_budget_block():
    """Six scaled modules exceed max_caps of five; five do not."""
    base = modules()
    subject = base
    for i in range(5):
        subject = changed(subject, i, sigma_max=(1.0 + i) * 2)
    assert judge(base, subject, POLICY)["passed"]
    block = judge(base, changed(subject, 5, sigma_max=12.0), POLICY)
    assert (block["passed"], block["caps_exceeded"], block["decision"]) == (False, True, "block")


@pytest.mark.parametrize("field", ["stable_rank", "sigma_min"])
def test_collapse_is_fatal_although_sigma_is_unchanged(field):
    """A fall below the fatal ratio blocks at once; a small one warns."""
    base = modules()
    value = getattr(base[0].stats, field)
    block = judge(base, changed(base, 0, **{field: value * 0.08}), POLICY)
    assert (block["decision"], block["caps_applied"]) == ("block", 0)
    warn = judge(base, changed(base, 0, **{field: value * 0.24 if field != "stable_rank" else 10}),
                 POLICY)  # fmt: skip
    assert (warn["decision"], warn["violations"][0]["severity"]) == ("monitor", "warning")


def test_rank_one_is_fatal_whatever_the_stable_rank_was():
    """A member of rank one blocks where the baseline had none, and a stable rank of 1.3 is none."""
    base = changed(modules(), 3, stable_rank=1.3)
    block = judge(base, changed(base, 3, stable_rank=1.00001), POLICY)
    assert [(v["type"], v["severity"]) for v in block["violations"]] == [
        ("degenerate_rank", "fatal")
    ]
    assert judge(base, changed(base, 3, stable_rank=1.05), POLICY)["decision"] == "allow"
    one = changed(modules(), 3, stable_rank=1.0001)
    wiped = changed(one, 3, sigma_max=0.0, stable_rank=0.0)
    assert "degenerate_rank" in {v["type"] for v in judge(one, wiped, POLICY)["violations"]}
    assert judge(one, changed(one, 3, stable_rank=1.0), POLICY)["decision"] == "allow"


def test_a_member_that_changes_alone_moves_the_mean():
    """Of eight heads one grows to less than the largest: the geometric mean is what moves."""
    base = modules()
    block = judge(base, changed(base, 3, sigma_mean=4.0 * 3 ** (1 / 8)), POLICY)
    assert [v["module"] for v in block["violations"]] == ["layers.3.w"]


def test_a_matrix_outside_known_operators_is_judged_by_its_rank_alone():
    """Its scale belongs to the parametrization; zero and rank one do not."""
    base = modules(kind=MATRIX)
    halved = changed(base, 2, sigma_max=1.5, stable_rank=5.0)
    assert judge(base, halved, POLICY)["decision"] == "allow"
    for wiped in ({"stable_rank": 1.0}, {"sigma_max": 0.0, "stable_rank": 0.0}):
        block = judge(base, changed(base, 2, **wiped), POLICY)
        assert [v["type"] for v in block["violations"]] == ["degenerate_rank"]
        assert not block["passed"]


@pytest.mark.parametrize("field", ["stable_rank", "row_min", "column_min"])
def test_the_rule_of_reports_without_operators_judges_matrices(field):
    """What blocked in them goes on blocking: fallen rank or norms, and too many caps."""
    base = [
        Module(f"layers.{i}.w", "ffn", i, WeightStats(1.0 + i, 30.0 + i, 9.0, 0.5, 0.6))
        for i in range(40)
    ]
    fallen = {field: getattr(base[0].stats, field) * 0.05}
    block = matrices.judge(base, changed(base, 0, **fallen), POLICY)
    assert [(v["type"], v["severity"]) for v in block["violations"]] == [
        ("degenerate_" + field, "fatal")
    ]
    grown = [m._replace(stats=m.stats._replace(sigma_max=2 * m.stats.sigma_max)) for m in base]
    block = matrices.judge(base, grown, POLICY)
    assert (block["caps_applied"], block["passed"]) == (40, False)
    assert block["summary"]["modules_checked"] == 40


def test_a_wiped_matrix_is_caught():
    """Sigma zero is an infinite fall, not an exception."""
    base = modules()
    block = judge(base, changed(base, 0, sigma_max=0.0, stable_rank=0.0), POLICY)
    assert block["decision"] == "block"
    assert log_ratio(0.0, 1.0) == -20.0
    assert log_ratio(0.0, 0.0) == 0.0


def test_benjamini_hochberg_by_hand():
    """The step-up rule on the textbook example: the largest k with p_(k) <= alpha k / m."""
    p = [0.001, 0.2, 0.012, 0.03, 0.9]
    assert selected(p, "bh", 0.05) == [True, False, True, True, False]
    assert selected(p, "bonferroni", 0.05) == [True, False, False, False, False]
    assert selected([0.9, 0.8], "bh", 0.05) == [False, False]


def test_table_round_trips():
    """What is recorded decides exactly as what was measured (after rounding once)."""
    base = operators_from_table(operators_to_table(modules()))
    assert operators_from_table(operators_to_table(base)) == base


NUMBER = st.floats(-1e12, 1e12) | st.floats(1e-30, 1e-3).map(lambda x: float(f"{x:.9g}"))
ROW = st.tuples(st.sampled_from("ab"), st.sampled_from(["ffn", "attn"]), st.none() | st.integers())


@given(st.lists(st.tuples(ROW, *[NUMBER] * len(WeightStats.fields())), max_size=6))
def test_a_table_is_written_again_as_its_rows_are(rows):
    """By columns the same as by rows, equal names in their order; numbers rounded or not."""
    head, fields = TABLES["modules"]
    columns = list(zip(*((*row, *numbers) for row, *numbers in rows), strict=True))
    table = dict(zip((*head, *fields), map(list, columns or [()] * 8), strict=True))
    again, wanted = table_again(table, head, fields), to_table(from_table(table))
    assert list(again) == list(wanted)
    assert repr(again) == repr(wanted)


@pytest.mark.parametrize("bad", [[None], [1.0, 2.0], [], ["x"], [[1.0]], [10**400]])
def test_no_table_is_made_of_a_broken_column(bad):
    """Neither way: a number that is none, or a column of another length."""
    head, fields = TABLES["modules"]
    table = {"name": ["a"], "family": ["ffn"], "layer": [0]} | {key: [1.0] for key in fields}
    table |= {fields[-1]: bad}
    for write in (lambda: table_again(table, head, fields), lambda: to_table(from_table(table))):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            write()


def test_recorded_digits_do_not_decide():
    """Rounding to the recorded digits moves r by less than a millionth of the deadband."""
    exact = Module("a", "ffn", 0, WeightStats(math.pi * 1e3, 12.3456789123, 1.0, 0.5, 0.5))
    kept = from_table(to_table([exact]))[0]
    assert abs(log_ratio(exact.stats.sigma_max, kept.stats.sigma_max)) < 1e-7
