"""How far every causal class of the installed library gets: edits, damage, guards, replay.

Makes a small random model of each class and takes it through ``tests/architecture_sweep.py``: a
copy, 8-bit rounding, pruning, two kinds of damage, a run, the reports of the copy and of a damaged
subject. Prints one JSON line a class, an empty result where all went well, and goes on where an
earlier run of the same file stopped. Last it makes docs/architectures.md of all that the file has.

    python benchmarks/architectures.py RESULTS.jsonl [MODEL_TYPE ...]
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from architecture_sweep import sweep
from causal_models import causal_types
from conftest import measuring_here

PAGE = Path(__file__).parent.parent / "docs/architectures.md"
LONGEST = 160  # characters of a reason


def main() -> None:
    """Sweep the classes that the results lack, and count."""
    results, wanted = Path(sys.argv[1]), sys.argv[2:] or list(causal_types())
    text = results.read_text() if results.exists() else ""
    done = {row["type"]: row for row in map(json.loads, text.splitlines())}
    with measuring_here(), results.open("a") as out:
        for model_type in [name for name in wanted if name not in done]:
            said = io.StringIO()
            with tempfile.TemporaryDirectory() as work, contextlib.redirect_stderr(said):
                try:
                    failed = sweep(model_type, Path(work) / model_type)
                except Exception as error:
                    # whatever a class of the library raises is its result
                    failed = f"{type(error).__name__}: {error}"
                    logging.exception(model_type)
            row = {"type": model_type, "result": failed}
            row |= {"said": said.getvalue().splitlines()[-1:]} if failed else {}
            done[model_type] = row
            print(json.dumps(row), file=out, flush=True)
    PAGE.write_text(page(done))
    passed = sum(not done[name]["result"] for name in wanted)
    print(f"{passed} of {len(wanted)} classes go through")


def page(done: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all causal classes: which go through, and what keeps the others."""
    classes = causal_types()
    tried = {name: done[name] for name in classes if name in done}
    passed = [name for name, row in tried.items() if not row["result"]]
    lines = [
        "# Causal classes of the library",
        "",
        f"transformers {version('transformers')} has {len(classes)} causal classes. Each is made"
        " small, with random weights, and",
        "taken through a copy, 8-bit rounding, pruning, missing layers, a hundredfold matrix, a run"
        " with all guards,",
        "and the reports of the copy and of the hundredfold matrix, which are replayed. The copy"
        " has to come out as the",
        "baseline, and the matrix to be found. Made by"
        " `python benchmarks/architectures.py RESULTS.jsonl`.",
        "",
        f"**{len(passed)} of {len(tried)} classes that were tried go through**"
        + (f"; {len(classes) - len(tried)} were not tried." if len(tried) < len(classes) else "."),
        "",
        "| kind | class | what keeps it |",
        "|---|---|---|",
    ]
    for name, row in sorted(tried.items()):
        if row["result"]:
            said = " ".join((row.get("said") or [""])[-1:])
            lines.append(f"| {name} | `{classes[name]}` | {_reason(row['result'], said)} |")
    lines += ["", "These go through:", "", ", ".join(f"`{name}`" for name in sorted(passed)) + "."]
    left = sorted(set(classes) - set(tried))
    if left:
        lines += ["", "Not tried: " + ", ".join(f"`{name}`" for name in left) + "."]
    return "\n".join(lines) + "\n"


def _reason(result: str, said: str) -> str:
    """In one line, without the paths of this machine."""
    text = said.partition(": ")[2] if said.startswith("invarlock") else result
    text = re.sub(r"/tmp/\S*?/(?=[\w.-]+: )", "", " ".join(text.split())).replace("|", "\\|")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


if __name__ == "__main__":
    main()
