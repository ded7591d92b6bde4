"""docs/results.md is made of what was measured: strengths, readings, tables and words."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from report_factory import make_crashed, make_rejected, make_report
from repository_copy import ROOT

UP = "model.layers.2.mlp.up_proj"
DOWN = "model.layers.2.mlp.down_proj"


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, ModuleType]]:
    """The modules of the tool."""
    sys.path.insert(0, str(ROOT / "tools"))
    import detection_page
    import detection_plan
    import detection_readings
    import detection_runs

    yield {
        "page": detection_page,
        "plan": detection_plan,
        "readings": detection_readings,
        "runs": detection_runs,
    }
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def plan(tools: dict[str, ModuleType]) -> Any:
    """The full plan."""
    return tools["plan"].make_plan(Path("work"), quick=False)


def case(plan: Any, name: str, strength: str = "published") -> Any:
    """A damage of the plan."""
    return next(c for c in plan.damage if (c.scenario.id, c.strength) == (name, strength))


# --- what is measured ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "value", "half", "double"),
    [
        ("factor", 100, 50, 200),
        ("factor", 1.5, 1.25, 2.0),
        ("factor", 0.90, 0.95, 0.80),
        ("factor", 1.12, 1.06, 1.24),
        ("blend", 0.3, 0.15, 0.6),
        ("blend", 0.8, 0.4, 1.0),
        ("blend", 1.0, 0.5, None),
        ("matrices", 8, 4, 16),
        ("layers", 1, None, 2),
    ],
)
def test_strength_is_the_deviation_from_doing_nothing(
    tools: dict[str, ModuleType], parameter: str, value: float, half: Any, double: Any
) -> None:
    """Half and double of every kind of parameter; None where there is no such thing."""
    scaled = tools["plan"].scaled
    assert (scaled(parameter, value, 0.5), scaled(parameter, value, 2.0)) == (half, double)


def test_plan_holds_every_damage_of_the_catalogue_once(plan: Any) -> None:
    """Each id at its published parameters, and at half and double where a strength is there."""
    entries = json.loads((ROOT / "scenarios/scenarios.json").read_text())["scenarios"]
    errors = {e["id"] for e in entries if e["generation"]["kind"] == "error"}
    published = [c for c in plan.damage if c.strength == "published"]
    assert sorted(c.scenario.id for c in published) == sorted(errors)
    for one in published:
        assert dict(one.scenario.parameters).items() <= one.parameters.items()
    assert len(plan.clean) * len(plan.seeds) >= 12
    assert not set(plan.seeds) & {44, 45, 46}
    assert plan.windows_of(case(plan, "ve_mlp_scale_skew")) == "seed_101"
    assert plan.windows_of(case(plan, "rank_collapse")) == "damage"
    strong = case(plan, "rmt_norm_noise", "double")
    assert (strong.parameters["blend"], strong.note) == (1.0, "blend ends at 1")
    assert strong.parameters["row_frac"] == 0.2  # all else as published
    assert case(plan, "rmt_norm_noise_strong", "double").parameters is None
    assert case(plan, "extreme_quant").note == "has no strength"
    assert case(plan, "missing_tensors", "double").setting == "layers 2"


def test_every_planned_damage_is_one_that_the_package_makes(plan: Any) -> None:
    """The parameters of every case are admitted."""
    from invarlock.damage.specs import parse_damage

    for one in plan.damage:
        if one.parameters is not None:
            parse_damage(one.scenario.error_type, one.parameters)


def test_a_step_is_done_once(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again for other words, another input, code or a lost output; not for a repetition."""
    runner, made, ran = tools["runs"].Runner(tmp_path, keep=False), tmp_path / "made", []

    def run(name: str, words: list[str]) -> None:
        ran.append(name)
        made.touch()

    monkeypatch.setattr(runner, "run", run)
    runner.step("pin", ["pin", "a"], made, [])
    runner.step("cut", ["windows"], made, ["pin"])
    runner.step("pin", ["pin", "a"], made, [])
    runner.step("cut", ["windows"], made, ["pin"])
    assert ran == ["pin", "cut"]
    runner.step("pin", ["pin", "b"], made, [])
    runner.step("cut", ["windows"], made, ["pin"])
    assert ran == ["pin", "cut"] * 2
    made.unlink()
    runner.step("cut", ["windows"], made, ["pin"])
    assert ran == ["pin", "cut", "pin", "cut", "cut"]
    monkeypatch.setattr(tools["runs"], "code_digest", lambda *_: "other")
    runner.keep = True
    runner.step("pin", ["pin", "b"], made, [])
    assert len(ran) == 5
    runner.keep = False
    runner.step("pin", ["pin", "b"], made, [])
    assert len(ran) == 6


# --- what a report says ----------------------------------------------------------------------


def test_readings_are_those_of_the_planted_change(tools: dict[str, ModuleType]) -> None:
    """Statistic over threshold, by hand, for a change of each kind."""
    readings = tools["readings"]
    report = make_report(
        scale={f"{UP}.weight": 1.5}, edge={UP: 1.5}, spread={DOWN: 1 / 0.81}, gain=0.05
    )
    sigma = readings.spectral_reading(report)
    limit = report["resolved_policy"]["spectral"]["deadband"]
    assert sigma.margin == pytest.approx(math.log(1.5) / math.log1p(limit), rel=1e-4)
    rmt = readings.rmt_reading(report)
    assert rmt.value == pytest.approx(0.5)
    assert rmt.margin == pytest.approx(0.5 / rmt.threshold)
    variance = readings.variance_reading(report)
    assert variance.value == pytest.approx(0.9)
    assert variance.margin == pytest.approx(0.1 / variance.threshold)
    assert readings.spoke(report) == ["spectral", "rmt", "variance"]
    assert readings.spoke(make_report()) == []
    rank = readings.spectral_reading(make_report(rank={f"{UP}.weight": 0.05}))
    assert (rank.what, rank.margin) == ("stable rank ratio", pytest.approx(0.25 / 0.05))
    assert readings.metric_reading(make_report(ratio=2.0)).margin > 1


def test_what_was_not_measured_has_no_reading(tools: dict[str, ModuleType]) -> None:
    """A subject that was not run says nothing but what the invariants found."""
    readings = tools["readings"]
    for report in (make_rejected(), make_crashed()):
        others = [read(report) for name, read in readings.READINGS.items() if name != "invariants"]
        assert others == [None] * 4
    assert readings.spoke(make_rejected()) == ["invariants"]
    assert readings.invariants_reading(make_rejected()).more == "non_finite_tensor (fatal)"
    assert readings.spoke(make_crashed()) == []


# --- the page --------------------------------------------------------------------------------


def results(tools: dict[str, ModuleType], plan: Any) -> tuple[list[Any], list[Any]]:
    """Two clean evaluations, one of them noisy, and damage that was found, missed, not run."""
    page, cost = tools["page"], {"time_ratio": 0.03, "memory_ratio": 1.05}
    clean = [
        page.Clean("`noop`", 101, make_report(), cost),
        page.Clean("`quant`", 102, make_report(edge={UP: 1.5}), cost | {"time_ratio": 0.05}),
    ]
    seen = make_report(rank={f"{DOWN}.weight": 0.05})
    damaged = [
        page.Damaged(case(plan, "nan_injection"), make_rejected(), "rejected_by_invariants"),
        page.Damaged(case(plan, "rank1_projection"), seen),
        page.Damaged(case(plan, "rmt_norm_noise"), make_report(edge={UP: 1.05})),
        page.Damaged(case(plan, "rmt_norm_noise", "double"), make_report(edge={UP: 1.6})),
        page.Damaged(case(plan, "rmt_norm_noise_strong", "double"), None),
        page.Damaged(case(plan, "norm_collapse", "half"), make_crashed(), "crashed"),
    ]
    return clean, damaged


def test_summary_counts_what_the_reports_say(tools: dict[str, ModuleType], plan: Any) -> None:
    """Found, missed with its margin, false alarms; a crash is no find, the impossible not asked."""
    text = "\n".join(tools["page"].summary(*results(tools, plan)))
    assert "spoke on 1 of 2 (95 % interval 1 - 99 %) of the clean evaluations" in text
    assert "`quant`, seed 102: rmt spoke" in text
    assert "2 of 3 (95 % interval 9 - 99 %) at published strength" in text
    assert "2 of 2 (95 % interval 16 - 100 %) of those that" in text
    assert "0 of 1 (95 % interval 0 - 98 %) at half strength" in text
    assert "1 of 1 (95 % interval 3 - 100 %) at double strength" in text
    assert "rank 1: the metric says pass; found by spectral." in text
    assert "`rmt_norm_noise` (rmt): edge growth 0.05, threshold 0.2, margin 0.25" in text
    assert "nan_injection" not in text


def test_nothing_missed_is_said(tools: dict[str, ModuleType], plan: Any) -> None:
    """Without a miss and without a false alarm the page says so."""
    clean, damaged = results(tools, plan)
    text = "\n".join(tools["page"].summary(clean[:1], damaged[:2]))
    assert "spoke on 0 of 1" in text
    assert "Nothing escaped" in text


def test_tables_have_a_row_for_everything(tools: dict[str, ModuleType], plan: Any) -> None:
    """Rows of equal width with statistic, threshold, margin and who spoke."""
    page = tools["page"]
    clean, damaged = results(tools, plan)
    tables = page.clean_table(clean), page.damage_table(damaged)
    for made, rows in zip(tables, (clean, damaged), strict=True):
        assert len(made) == len(rows) + 2
        assert len({line.count(" |") for line in made}) == 1
    assert tables[0][2].startswith("| `noop` | 101 | 1.0000 [1.0000, 1.0000] pass | 0 / ")
    assert tables[0][2].endswith("| none |")
    assert "1.500 / 1.200" in tables[0][3]
    assert "findings 1; non_finite_tensor (fatal) | 0 | - | yes |" in tables[1][2]
    assert "stable rank ratio 0.05 | 0.25 | 5 | yes |" in tables[1][3]
    assert "edge growth 0.05 | 0.2 | 0.25 | no |" in tables[1][4]
    assert "| double, not possible: blend is 1 |" in tables[1][6]
    assert "| half, matrices 16 | spectral | crashed | none | not measured |" in tables[1][7]


def test_page_is_whole_and_readable(tools: dict[str, ModuleType], plan: Any) -> None:
    """Every section is there, costs with their range, prose within 130 characters."""
    small = dataclasses.replace(plan, damage=plan.damage[:3])
    text = tools["page"].page(small, *results(tools, plan), ["* commit abc"])
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert [head.split()[1] for head in heads] == ["What", "Summary", "Clean", "Damage:", "Cost"]
    assert "* time: 0.040 (0.030 - 0.050), wanted at most 0.35" in text
    assert "{" not in text
    assert max(len(x) for x in text.splitlines() if not x.startswith("|")) < 130


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (48.32, "48.3"), (1e-6, "1.0e-6"), (123456.0, "1.2e5"),
     (float("inf"), "infinite"), (float("nan"), "-")],
)  # fmt: skip
def test_numbers_are_short(tools: dict[str, ModuleType], value: float, text: str) -> None:
    """Three digits; an exponent only where it is needed."""
    assert tools["page"].number(value) == text
