"""Suite ``detection``: every damage at half, published and double strength, and clean edits."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from repository_copy import ROOT

from invarlock.damage.specs import parse_damage
from invarlock.scenarios import Scenario, load_catalogue


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator of the suite's catalogue."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_detection

    return make_detection


def suite() -> dict[str, Scenario]:
    """The scenarios of the suite by id."""
    catalogue = load_catalogue(ROOT / "scenarios/detection.json")
    return {s.id: s for s in catalogue.select("detection")}


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
    maker: ModuleType, parameter: str, value: float, half: Any, double: Any
) -> None:
    """Half and double of every kind of parameter; None where there is no such thing."""
    assert (maker.scaled(parameter, value, 0.5), maker.scaled(parameter, value, 2.0)) == (
        half,
        double,
    )


def test_the_catalogue_is_current(maker: ModuleType) -> None:
    """The file is what its generator makes of scenarios.json now."""
    assert maker.text() == maker.FILE.read_text(), "run: make docs"


def test_the_suite_holds_every_damage_once(maker: ModuleType) -> None:
    """Each id as published, at half and double where it has a strength; all clean edits."""
    found = suite()
    entries = json.loads((ROOT / "scenarios/scenarios.json").read_text())["scenarios"]
    errors: dict[str, Any] = {}
    for entry in entries:
        if entry["generation"]["kind"] == "error":
            errors.setdefault(entry["id"], entry)
    clean = [e["id"] for e in entries if "smoke-all" in e["suites"] and e["category"] == "clean"]
    ends = ("_half", "_double")
    assert [s.id for s in found.values() if not s.id.endswith(ends)] == [*clean, *errors]
    assert not any(name.endswith(ends) for name in errors)
    for name, entry in errors.items():
        assert found[name].entry == entry | {"suites": ["detection"]}
    made = [s for s in found.values() if s.id.endswith(ends)]
    assert len(made) == 30
    for scenario in made:
        origin = errors[scenario.id.rpartition("_")[0]]
        assert (scenario.error_type, scenario.primary_guard) == (
            origin["generation"]["error_type"],
            origin["primary_guard"],
        )
        # measured only: the verdict of the suite hangs on what is published
        assert (scenario.strictness, scenario.primary_guard_required) == ("informational", False)
        parse_damage(str(scenario.error_type), scenario.parameters)
        old = dict(origin["generation"].get("env", {}))
        (changed,) = dict(scenario.parameters).items() - old.items()
        assert changed[0] == maker.PARAMETER[scenario.error_type]
        assert {**old, changed[0]: changed[1]} == scenario.parameters


def test_what_has_no_such_strength_is_left_out(maker: ModuleType) -> None:
    """A blend ends at 1, half a layer is none, and one NaN is one NaN."""
    found = suite()
    assert found["rmt_norm_noise_double"].parameters["blend"] == 1.0
    assert found["missing_tensors_double"].parameters == {"layers": 2}
    for name in ("rmt_norm_noise_strong_double", "missing_tensors_half", "nan_injection_half"):
        assert name not in found
    notes = {c.id: c.note for e in maker.catalogued()[1] for c in maker.cases(e) if c.note}
    assert notes["rmt_norm_noise_double"] == "blend ends at 1"
    assert notes["rmt_norm_noise_strong_double"] == "not possible: blend is 1"
    assert notes["extreme_quant"] == "has no strength"
