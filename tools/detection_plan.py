"""What docs/results.md is about: clean edits, and damage at half, full and double strength."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from invarlock.scenarios import Scenario, load_catalogue

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION_SEEDS = (44, 45, 46)  # none of them a seed of an evaluation
STRENGTHS = {"published": 1.0, "half": 0.5, "double": 2.0}
# The parameter that says how strong a damage is; the others have no strength.
PARAMETER = {
    "shape_mismatch": "extra_rows",
    "missing_tensors": "layers",
    "scale_explosion": "factor",
    "rank_collapse": "matrices",
    "norm_collapse": "matrices",
    "rmt_norm_noise": "blend",
    "spectral_moderate_scale": "factor",
    "ve_mlp_scale_skew": "factor",
}
DEFAULTS = {"layers": 1}  # of parameters that the catalogue leaves out
FULL_BLEND = 1.0
RANK1 = "rank1_projection"
FAR = 10.0  # from this factor on, "half as strong" is half the factor


@dataclass(frozen=True)
class Case:
    """A damage of the catalogue at one strength; without parameters: not possible, see note."""

    scenario: Scenario
    strength: str
    parameters: Mapping[str, Any] | None
    note: str = ""

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.scenario.id}-{self.strength}"

    @property
    def needs_all(self) -> bool:
        """Whether few windows would say little: for a trial on held-out ones, and for a pass."""
        return self.scenario.primary_guard == "variance" or self.scenario.id == RANK1

    @property
    def setting(self) -> str:
        """The parameter that was scaled, with its value."""
        parameter = PARAMETER.get(self.scenario.error_type or "")
        if parameter is None or self.parameters is None:
            return ""
        return f"{parameter} {self.parameters[parameter]:g}"


def scaled(parameter: str, value: float, by: float) -> float | None:
    """A parameter at ``by`` times the strength: the deviation from doing nothing is scaled.

    None where it cannot be: half of one layer, or more than all of a row.
    """
    if parameter == "factor":
        return value * by if value >= FAR else round(1 + (value - 1) * by, 9)
    if parameter == "blend":
        changed = min(FULL_BLEND, value * by)
        return None if by > 1 and changed == value else changed
    changed = value * by
    return int(changed) if changed == int(changed) else None


def cases(scenario: Scenario) -> list[Case]:
    """The damage at its published strength and, where it has one, at half and double."""
    parameter = PARAMETER.get(scenario.error_type or "")
    published = dict(scenario.parameters)
    if parameter is None:
        return [Case(scenario, "published", published, "has no strength")]
    value: Any = published.setdefault(parameter, DEFAULTS.get(parameter))
    found = []
    for strength, by in STRENGTHS.items():
        changed = value if by == 1 else scaled(parameter, value, by)
        if changed is None:
            found.append(Case(scenario, strength, None, f"not possible: {parameter} is {value:g}"))
            continue
        note = "blend ends at 1" if parameter == "blend" and changed < value * by else ""
        found.append(Case(scenario, strength, {**published, parameter: changed}, note))
    return found


@dataclass(frozen=True)
class Plan:
    """What is measured, and where the results go."""

    work: Path
    seeds: tuple[int, ...]  # of the windows that clean edits are measured on
    arm: int  # windows of each arm, clean edits
    damage_arm: int
    calibration_arm: int
    clean: tuple[Scenario, ...]
    damage: tuple[Case, ...]
    model_id: str
    source: str
    text: str
    seq_len: int

    def folder(self, subject: str, windows: str) -> Path:
        """Where an evaluation is."""
        return self.work / "evaluations" / subject / windows

    def windows_of(self, case: Case) -> str:
        """The windows that a damage is measured on."""
        return f"seed_{self.seeds[0]}" if case.needs_all else "damage"

    def evaluations(self) -> list[tuple[str, str]]:
        """Subject and windows of every evaluation."""
        clean = [(s.id, f"seed_{n}") for s in self.clean for n in self.seeds]
        made = [c for c in self.damage if c.parameters is not None]
        return clean + [(c.name, self.windows_of(c)) for c in made]


def make_plan(work: Path, quick: bool) -> Plan:
    """The smoke suite's model and clean edits, and every damage of the catalogue (once an id)."""
    suites = yaml.safe_load((ROOT / "config/suites.yaml").read_text())
    smoke = suites["suites"]["smoke"]
    model_id = smoke["models"][0]
    model = suites["models"][model_id]
    scenarios = load_catalogue(ROOT / "scenarios/scenarios.json").scenarios
    clean = [s for s in scenarios if "smoke" in s.suites and s.category == "clean"]
    damage: dict[str, Scenario] = {}
    for scenario in scenarios:
        if scenario.is_error:
            damage.setdefault(scenario.id, scenario)
    found = [case for scenario in damage.values() for case in cases(scenario)]
    plan = Plan(
        work=work,
        seeds=(101, 102, 103),
        arm=model["preview"] // 2,
        damage_arm=24,
        calibration_arm=16,
        clean=tuple(clean),
        damage=tuple(found),
        model_id=model_id,
        source=model["source"],
        text=smoke["text"],
        seq_len=model["seq_len"],
    )
    if not quick:
        return plan
    two = ("shape_mismatch", "rank1_projection")
    few = tuple(c for c in found if c.scenario.id in two)
    return dataclasses.replace(
        plan,
        seeds=(101,),
        arm=16,
        damage_arm=16,
        calibration_arm=8,
        clean=plan.clean[:2],
        damage=few,
    )
