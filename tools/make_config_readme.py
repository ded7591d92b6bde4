"""Make config/README.md from the configuration, the suites, the catalogue, the environment names.

``make docs`` writes it; ``--check`` exits with 1 when it is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from invarlock.config import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "config/README.md"
SECTION = re.compile(r"# --- (.+?) -+$")
SETTING = re.compile(r"( *)(\w+):(?: +(.*?))?(?: +# (.*))?$")
HEAD = """# Configuration

Made by `make docs` from `config/config.yaml`, `config/suites.yaml` and `scenarios/scenarios.json`;
a test fails when it is stale. Change a value in the file, or for one run:
`snakemake --config suite=subset net=1 'windows={seed: 7}'`. Your own `--configfile` takes the place
of a profile's settings file. Unknown keys are refused. Command line and profile win over the
environment, the environment over files named by `include`, these over the file. A set `MODEL_n`
takes the n-th place of the suite's list of models; an empty one turns that place off.
"""


def table(head: str, rows: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table; ``head`` is its first row, cells separated by ``|``."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {head} |", "|---" * len(cells[0]) + "|", *(f"| {' | '.join(r)} |" for r in cells)]


def code(value: object) -> str:
    """``value`` as code, or a dash where there is none."""
    return f"`{value}`" if value not in ("", None) else "-"


def settings(text: str) -> Iterator[tuple[str, str, str, str]]:
    """(section, key, default, meaning) of every setting of ``config.yaml``, in its order."""
    section = parent = ""
    for line in text.splitlines():
        if found := SECTION.match(line):
            section = found[1]
        elif found := SETTING.match(line):
            indent, key, default, meaning = found.groups(default="")
            parent = parent if indent else key
            if default or meaning:  # a line without either only opens a group
                yield section, f"{parent}.{key}" if indent else key, default, meaning


def keys() -> list[str]:
    """One table a section of ``config.yaml``."""
    rows = list(settings((ROOT / "config/config.yaml").read_text()))
    lines: list[str] = []
    for section in dict.fromkeys(row[0] for row in rows):
        mine = [(code(key), code(value), text) for s, key, value, text in rows if s == section]
        heading = f"## {section[:1].upper()}{section[1:]}"
        lines += [heading, "", *table("key | default | meaning", mine), ""]
    return lines


def suite_row(name: str, suite: dict[str, Any], scenarios: list[dict[str, Any]]) -> list[object]:
    """Cells of one suite."""
    show = [code(name), ", ".join(suite["models"]) or "`baseline`", code(suite["text"])]
    return [*show, sum(name in s["suites"] for s in scenarios), suite["min_free_disk_gb"]]


def scenario_row(s: dict[str, Any]) -> list[object]:
    """Cells of one scenario."""
    made, wanted = s["generation"], s["requirements"]
    parameters = [f"{key}={value}" for key, value in made.get("env", {}).items()]
    what = made.get("edit_spec") or " ".join([made["error_type"], *parameters])
    guard = s["primary_guard"] + (" (must speak)" if wanted["primary_guard_required"] else "")
    show = [code(s["id"]), ", ".join(s["suites"]), s["strictness"]]
    return [*show, code(what), guard, wanted["notes"]]


def page() -> str:
    """The whole page."""
    suites = yaml.safe_load((ROOT / "config/suites.yaml").read_text())
    scenarios = json.loads((ROOT / "scenarios/scenarios.json").read_text())["scenarios"]
    models = {**suites["models"], "any other folder": suites["default_geometry"]}
    columns = ("source", "weights_gb", "seq_len", "preview", "final")
    variables = {**{n: key for n, (key, _) in ENVIRONMENT.items()}, "MODEL_1 ... MODEL_8": "models"}
    tables: dict[str, tuple[str, Iterable[Iterable[object]]]] = {
        "Environment": ("variable | key", [map(code, pair) for pair in variables.items()]),
        "Suites (`config/suites.yaml`)": (
            "suite | models | text | scenarios | GB that must stay free",
            [suite_row(name, suite, scenarios) for name, suite in suites["suites"].items()],
        ),
        "Models (`config/suites.yaml`)": (
            "model | source | weights, GB | tokens of a window | preview windows | final windows",
            [(name, *(model.get(c, "-") for c in columns)) for name, model in models.items()],
        ),
        "Scenarios (`scenarios/scenarios.json`)": (
            "id | suites | strictness | edit or damage | guard | note",
            [scenario_row(s) for s in scenarios],
        ),
    }
    lines = [line for t, rows in tables.items() for line in (f"## {t}", "", *table(*rows), "")]
    return "\n".join([HEAD, *keys(), *lines]).rstrip() + "\n"


def main() -> None:
    """Write the page, or with ``--check`` say whether it is current."""
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
    elif not PAGE.is_file() or PAGE.read_text() != page():
        sys.exit("config/README.md is stale; run: make docs")


if __name__ == "__main__":
    main()
