"""How far every causal class of the installed library gets: edits, damage, guards, replay.

Makes a small random model of each class and takes it through ``tests/architecture_sweep.py``: a
copy, 8-bit rounding, pruning, two kinds of damage, a run, the reports of the copy and of a damaged
subject. Prints one JSON line a class, an empty result where all went well, and goes on where an
earlier run of the same file stopped.

    python benchmarks/architectures.py RESULTS.jsonl [MODEL_TYPE ...]
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from architecture_sweep import sweep
from causal_models import causal_types
from conftest import measuring_here


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
    passed = sum(not done[name]["result"] for name in wanted)
    print(f"{passed} of {len(wanted)} classes go through")


if __name__ == "__main__":
    main()
