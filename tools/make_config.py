"""Make config/README.md and contracts/config.schema.json from config/config.yaml.

The page also shows the suites, the catalogue and the names of the environment. ``make docs`` writes
both; ``--check`` exits with 1 when one is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from generated import write_or_check

from invarlock.variables import VARIABLES, Variable

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "config/README.md"
CONTRACT = ROOT / "contracts/config.schema.json"
CATALOGUE = "scenarios/scenarios.json"  # of a suite that names none
SECTION = re.compile(r"# --- (.+?) -+$")
# Indent, key, default; then, in the comment, what a value may be and what the setting means.
SETTING = re.compile(
    r"(?P<indent> *)(?P<key>\w+):(?: +(?P<default>[^#].*?))?"
    r"(?: +# (?:\[(?P<allowed>(?:[^]/]|/\S*/)*)\] )?(?P<meaning>.*))?$"
)
# What a setting is, before what a value may be; config.yaml says what each word means.
TRAITS = ("path", "file", "files", "source", "secret", "check", "fetch")
NUMBER = r"(-?[\d.]+)"
# Words of what a value may be -> the keywords of JSON Schema that they stand for, with the numbers
# or texts in them.
WORDS = {
    rf"{NUMBER} to {NUMBER}": ("minimum", "maximum"),
    rf"{NUMBER} or more": ("minimum",),
    rf"above {NUMBER}": ("exclusiveMinimum",),
    rf"below {NUMBER}": ("exclusiveMaximum",),
    "/(.*)/": ("pattern",),
}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
HEAD = """# Configuration

Made by `make docs` from `config/config.yaml`, `config/suites.yaml` and `scenarios/scenarios.json`;
a test fails when it is stale. Change a value in the file, or for one run:
`snakemake --config suite=subset net=1 'windows={seed: 7}'`. Your own `--configfile` takes the place
of a profile's settings file. Unknown keys are refused. Command line and profile win over the
environment, the environment over files named by `include`, these over the file. A set `MODEL_n`
takes the n-th place of the suite's list of models; an empty one turns that place off. A name that
begins with `PACK_` or `INVARLOCK_` and stands in neither table below is warned of, and so is a
variable without effect.
"""


def table(head: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table; ``head`` is its first row, cells separated by ``|``."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {head} |", "|---" * len(cells[0]) + "|", *(f"| {' | '.join(r)} |" for r in cells)]


def code(value: object) -> str:
    """``value`` as code, or a dash where there is none."""
    return f"`{value}`" if value not in ("", None) else "-"


class Setting(NamedTuple):
    """A setting of ``config.yaml``, or the line above a group of them, which has no default."""

    section: str
    key: str  # with its group: windows.seed
    default: str
    allowed: str
    meaning: str
    traits: list[str]

    def schema(self) -> dict[str, Any]:
        """What its values are checked by, and what it is."""
        return self.values() | ({"traits": self.traits} if self.traits else {})

    def values(self) -> dict[str, Any]:
        """What its values are checked by."""
        if not self.default:
            return {"description": sentence(self.meaning), **closed({})}
        default = yaml.safe_load(self.default)
        kind = TYPES.get(type(default), "")
        found: dict[str, Any] = {"type": kind, "description": sentence(self.meaning)}
        if isinstance(default, dict):
            return {**found, "type": "object", "additionalProperties": self.members()}
        words = restrictions(self.allowed, kind)
        if not isinstance(default, list):
            return {**found, **words}
        found = {**found, "type": "array"}
        if words.pop("uniqueItems", False):
            found["uniqueItems"] = True
        return {**found, "items": {"type": "string", **words}}

    def members(self) -> dict[str, Any]:
        """What the values of a mapping are checked by: `by WHAT: NAME WORDS, NAME WORDS`."""
        pairs = (part.split(" ", 1) for part in self.allowed.partition(": ")[2].split(", "))
        members = {
            name: {"type": "integer", "description": f"{name} of config/suites.yaml, for a model."}
            | restrictions(words, "")
            for name, words in pairs
        }
        return closed(members) | {"minProperties": 1}


def restrictions(allowed: str, kind: str) -> dict[str, Any]:
    """The keywords of JSON Schema for what stands in brackets, such as `number, above 0`."""
    if " | " in allowed:
        values = [("" if v == "empty" else v) for v in allowed.split(" | ")]
        return {"enum": [v if kind == "string" else yaml.safe_load(v) for v in values]}
    found: dict[str, Any] = {}
    rest = allowed
    for words, keyword in (("number", {"type": "number"}), ("each once", {"uniqueItems": True}),
                           ("not empty", {"minLength": 1})):  # fmt: skip
        if rest.startswith(words):
            found, rest = found | keyword, rest.removeprefix(words)
    for words, keywords in WORDS.items():
        if match := re.search(words, rest):
            values = [v if "pattern" in keywords else yaml.safe_load(v) for v in match.groups()]
            found |= dict(zip(keywords, values, strict=True))
            rest = rest.replace(match[0], "")
    if rest.strip(", "):
        raise SystemExit(f"config/config.yaml: [{allowed}]: {rest.strip(', ')} is not known")
    return found


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object of these members and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def sentence(text: str) -> str:
    """A comment as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def settings(text: str) -> Iterator[Setting]:
    """Every setting of ``config.yaml``, in its order."""
    section = parent = ""
    for line in text.splitlines():
        if found := SECTION.match(line):
            section = found[1]
        elif found := SETTING.match(line):
            indent, key, default, allowed, meaning = found.groups(default="")
            parent = parent if indent else key
            name = f"{parent}.{key}" if indent else key
            traits: list[str] = []
            while (word := allowed.partition(", ")[0]) in TRAITS:
                traits.append(word)
                allowed = allowed.partition(", ")[2]
            yield Setting(section, name, default, allowed, meaning, traits)


def contract(text: str) -> str:
    """The schema of the settings; every one is required, since the file has them all."""
    properties: dict[str, Any] = {}
    for setting in settings(text):
        if not setting.meaning:
            raise SystemExit(f"config/config.yaml: {setting.key} has no comment")
        group, _, key = setting.key.rpartition(".")
        members = properties[group]["properties"] if group else properties
        members[key] = setting.schema()
    for part in properties.values():
        if "properties" in part:
            part["required"] = list(part["properties"])
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config/config.yaml",
        "description": "Every setting of the workflow. Made by make docs from config/config.yaml.",
        **closed(properties),
        "required": list(properties),
    }
    return json.dumps(whole, indent=2) + "\n"


def keys() -> list[str]:
    """One table a section of ``config.yaml``."""
    rows = list(settings((ROOT / "config/config.yaml").read_text()))
    lines: list[str] = []
    for section in dict.fromkeys(row.section for row in rows):
        mine = [
            (code(r.key), code(r.default), code(r.allowed), r.meaning)
            for r in rows
            if r.section == section and r.default
        ]
        lines += [f"## {sentence(section)[:-1]}", ""]
        lines += [*table("key | default | allowed | meaning", mine), ""]
    return lines


def suite_row(name: str, suite: dict[str, Any]) -> list[object]:
    """Cells of one suite."""
    show = [code(name), ", ".join(suite["models"]) or "`baseline`", code(suite["text"])]
    scenarios = scenarios_of(suite.get("catalogue", CATALOGUE))
    return [*show, sum(name in s["suites"] for s in scenarios), suite["min_free_disk_gb"]]


def scenarios_of(catalogue: str) -> list[dict[str, Any]]:
    """The entries of a catalogue."""
    found: list[dict[str, Any]] = json.loads((ROOT / catalogue).read_text())["scenarios"]
    return found


def scenario_row(s: dict[str, Any]) -> list[object]:
    """Cells of one scenario."""
    made, wanted = s["generation"], s["requirements"]
    parameters = [f"{key}={value}" for key, value in made.get("env", {}).items()]
    what = made.get("edit_spec") or " ".join([made["error_type"], *parameters])
    guard = s["primary_guard"] + (" (must speak)" if wanted["primary_guard_required"] else "")
    show = [code(s["id"]), ", ".join(s["suites"]), s["strictness"]]
    return [*show, code(what), guard, wanted["notes"]]


def effects(variables: Iterable[Variable]) -> list[list[str]]:
    """Names that do the same, and what that is."""
    names: dict[str, list[str]] = {}
    for variable in variables:
        names.setdefault(variable.does, []).append(code(variable.name))
    return [[", ".join(same), does] for does, same in names.items()]


def page() -> str:
    """The whole page."""
    suites = yaml.safe_load((ROOT / "config/suites.yaml").read_text())
    models = {**suites["models"], "any other folder": suites["default_geometry"]}
    set_or_read = [v for v in VARIABLES.values() if not v.inert]
    inert = [v for v in VARIABLES.values() if v.inert]
    columns = ("source", "weights_gb", "seq_len", "preview", "final")
    tables: dict[str, tuple[str, Iterable[Iterable[object]]]] = {
        "Environment": ("variable | setting, or what it does", effects(set_or_read)),
        "Variables without effect": ("variable | why", effects(inert)),
        "Suites (`config/suites.yaml`)": (
            "suite | models | text | scenarios | GB that must stay free",
            [suite_row(name, suite) for name, suite in suites["suites"].items()],
        ),
        "Models (`config/suites.yaml`)": (
            "model | source | weights, GB | tokens of a window | preview windows | final windows",
            [(name, *(model.get(c, "-") for c in columns)) for name, model in models.items()],
        ),
        f"Scenarios (`{CATALOGUE}`)": (
            "id | suites | strictness | edit or damage | guard | note",
            [scenario_row(s) for s in scenarios_of(CATALOGUE)],
        ),
    }
    lines = [line for t, rows in tables.items() for line in (f"## {t}", "", *table(*rows), "")]
    return "\n".join([HEAD, *keys(), *lines]).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(
        write_or_check(
            {PAGE: page(), CONTRACT: contract((ROOT / "config/config.yaml").read_text())}.items()
        )
    )
