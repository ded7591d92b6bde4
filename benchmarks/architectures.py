"""How far every causal class of the installed library gets: edits, damage, guards, a pack.

Makes a small random model of each class and takes it through ``tests/architecture_sweep.py``: a
copy, 8-bit rounding, pruning, two kinds of damage, their reports and a pack of them that is
verified. Writes one JSON line a class, an empty result where all went well, and goes on where an
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
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import pack_factory as packs
from architecture_sweep import NotInstantiatedError, sweep
from causal_models import causal_types
from conftest import measuring_here

PAGE = Path(__file__).parent.parent / "docs/architectures.md"
LONGEST = 160  # characters of a reason


def main() -> None:
    """Sweep the classes that the results lack, and count."""
    results, wanted = Path(sys.argv[1]), sys.argv[2:] or list(causal_types())
    text = results.read_text() if results.exists() else ""
    done = {row["type"]: row for row in map(json.loads, text.splitlines())}
    with tempfile.TemporaryDirectory() as own, measuring_here(), results.open("a") as out:
        key = packs.new_key(Path(own) / "key.pem")
        for model_type in [name for name in wanted if name not in done]:
            said, started, built = io.StringIO(), time.process_time(), True
            with tempfile.TemporaryDirectory() as work, contextlib.redirect_stderr(said):
                try:
                    failed = sweep(model_type, Path(work) / model_type, key)
                except NotInstantiatedError as error:
                    failed, built = str(error), False
                except Exception as error:
                    # whatever a class of the library raises is its result
                    failed = f"{type(error).__name__}: {error}"
                    logging.exception(model_type)
            row = {"type": model_type, "result": failed, "built": built}
            row |= {"cpu_s": round(time.process_time() - started, 2)}
            row |= {"said": said.getvalue().splitlines()[-1:]} if failed and built else {}
            done[model_type] = row
            print(json.dumps(row), file=out, flush=True)
    PAGE.write_text(page(done))
    passed = sum(not done[name]["result"] for name in wanted)
    built = sum(done[name]["built"] for name in wanted)
    print(
        f"{passed} of the {built} classes that can be made small go through ({len(wanted)} tried)"
    )


def page(done: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all causal classes: which go through, and what keeps the others."""
    classes = causal_types()
    tried = {name: done[name] for name in sorted(classes) if name in done}
    built = {name: row for name, row in tried.items() if row["built"]}
    passed = [name for name, row in built.items() if not row["result"]]
    share = f"{len(passed) / max(1, len(built)):.0%}"
    lines = [
        "# Causal classes of the library",
        "",
        f"transformers {version('transformers')} has {len(classes)} causal classes. Each is made"
        " small, with random weights, and",
        "taken through 8-bit rounding by groups, and then through a suite of a copy, 8-bit"
        " rounding, pruning, a block too few",
        "and attention of rank one: all guards, reports that replay, a verdict, and a signed pack"
        " that `verify --strict --replay`",
        "accepts. The copy has to come out as the baseline, the lost block to be refused, the lost"
        " ranks to be found, the",
        "verdict to be PASS. Made by `python benchmarks/architectures.py RESULTS.jsonl`"
        " (`make architectures`).",
        "",
        f"A small random configuration instantiates {len(built)} of the {len(tried)} classes that"
        f" were tried; **{len(passed)} of these {len(built)} ({share}) go through**"
        + (f". {len(classes) - len(tried)} were not tried." if len(tried) < len(classes) else "."),
    ]
    failed = {name: row for name, row in built.items() if row["result"]}
    missing = {name: row for name, row in tried.items() if not row["built"]}
    for title, rows in (("Do not go through", failed), ("Not instantiated", missing)):
        if rows:
            lines += ["", f"## {title}", "", "| kind | class | what keeps it |", "|---|---|---|"]
        for name, row in rows.items():
            said = " ".join((row.get("said") or [""])[-1:])
            lines.append(f"| {name} | `{classes[name]}` | {_reason(row['result'], said)} |")
    lines += ["", "## Go through", "", ", ".join(f"`{name}`" for name in passed) + "."]
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
