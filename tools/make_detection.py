"""Write scenarios/detection.json, the catalogue of suite ``detection``, from that of all scenarios.

The suite holds the clean edits of suite smoke-all, and every damage of ``scenarios/scenarios.json``
once an id (the entry that stands first) as published and, where it has a strength, at half and at
double of it. ``make docs`` writes the file; a test fails when it is stale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.damage.specs import parse_damage

ROOT = Path(__file__).resolve().parent.parent
FILE, SOURCE = ROOT / "scenarios/detection.json", ROOT / "scenarios/scenarios.json"
SUITE = "detection"
PURPOSE = "What each check finds of clean edits, and of damage at three strengths."
NOTE = "Made by make docs from scenarios.json: tools/make_detection.py."
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
FULL_BLEND = 1.0
FAR = 10.0  # from this factor on, "half as strong" is half the factor

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A damage of the catalogue at one strength.

    ``parameters`` is None where there is no such thing as that strength; ``note`` says why.
    """

    entry: Entry  # the published scenario
    strength: str  # published, half or double
    parameters: Mapping[str, Any] | None
    setting: str = ""  # the parameter that was scaled, with its value
    note: str = ""

    @property
    def id(self) -> str:
        """The scenario's id in the suite."""
        end = "" if self.strength == "published" else f"_{self.strength}"
        return f"{self.entry['id']}{end}"


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


def catalogued() -> tuple[list[Entry], list[Entry]]:
    """The clean edits of suite smoke-all, and every damage once an id, from the catalogue."""
    clean: list[Entry] = []
    damage: dict[str, Entry] = {}
    for entry in json.loads(SOURCE.read_text())["scenarios"]:
        if entry["generation"]["kind"] == "error":
            damage.setdefault(entry["id"], entry)
        elif entry["category"] == "clean" and "smoke-all" in entry["suites"]:
            clean.append(entry)
    return clean, list(damage.values())


def cases(entry: Entry) -> list[Case]:
    """The damage of an entry as published and, where it has a strength, at half and double."""
    error_type = entry["generation"]["error_type"]
    parameters = entry["generation"].get("env", {})
    name = PARAMETER.get(error_type)
    if name is None:
        return [Case(entry, "published", parameters, note="has no strength")]
    value: Any = parse_damage(error_type, parameters).parameters()[name]
    found = []
    for strength, by in STRENGTHS.items():
        changed = value if by == 1 else scaled(name, value, by)
        if changed is None:
            note = f"not possible: {name} is {value:g}"
            found.append(Case(entry, strength, None, note=note))
            continue
        note = "blend ends at 1" if name == "blend" and changed < value * by else ""
        setting = f"{name} {changed:g}"
        made = parameters if by == 1 else {**parameters, name: changed}
        found.append(Case(entry, strength, made, setting, note))
    return found


def of_damage(entry: Entry) -> list[Entry]:
    """The suite's entries of a damage; at other strengths than the published one it is measured,
    and nothing is asked of it."""
    found: list[Entry] = []
    for case in cases(entry):
        if case.parameters is None:
            continue
        if case.strength == "published":
            found.append({**entry, "suites": [SUITE]})
            continue
        words = ", ".join(filter(None, (case.setting, case.note)))
        asked = {
            "catastrophic_required": False,
            "primary_guard_required": False,
            "notes": f"{entry['id']} at {case.strength} strength: {words}.",
        }
        found.append(
            {
                **entry,
                "id": case.id,
                "suites": [SUITE],
                "strictness": "informational",
                "generation": {**entry["generation"], "env": dict(case.parameters)},
                "requirements": {**entry["requirements"], **asked},
            }
        )
    return found


def text() -> str:
    """The text of the file, a scenario a line."""
    source = json.loads(SOURCE.read_text())
    clean, damage = catalogued()
    entries: list[Entry] = [{**entry, "suites": [SUITE]} for entry in clean]
    entries += [made for entry in damage for made in of_damage(entry)]
    head = {key: source[key] for key in ("schema", "schema_version")}
    head["_meta"] = {"purpose": PURPOSE, "notes": [NOTE]}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    rows = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    return "\n".join(["{", *lines, '  "scenarios": [', rows, "  ]", "}"]) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
