"""Switch off each check of the verifier and show that the attacks it stops then get through.

Every attack names its check (``tests/attacks_*.py``), and every check has its name where it
stands in the package. One after another is switched off in a copy of the package, never in the
package itself (``tests/mutants.py``), and the attacks that name it are run. A row must then be
accepted, reach a later step, or break a bound; one that the same step still refuses names the
wrong check.

    python tools/mutants.py [CHECK ...]     exit 1 where a row names the wrong check
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

REFUSED = "STILL REFUSED by the same step"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import pack_factory as packs  # noqa: E402
from attacks import (  # noqa: E402
    CODES,
    MEMORY,
    NOTHING,
    SECONDS,
    Attack,
    Outcome,
    Verifier,
    laboratory,
)
from mutants import switch_off  # noqa: E402
from test_attacks import ROWS  # noqa: E402


def got_through(row: Attack, outcome: Outcome) -> str:
    """What became of an attack without its check; what still refuses it, where that is so."""
    if outcome.code == 0:
        return "accepted"
    if outcome.code < 0:
        return "hangs or is killed"
    if "UnboundLocalError" in outcome.errors:  # left by the check that is off, not by the attack
        return f"{REFUSED}: nothing else reads it"
    if outcome.code not in CODES.values() or "Traceback" in outcome.errors:
        return f"crashes: {outcome.errors.splitlines()[-1][:80]}"
    if outcome.memory > MEMORY:
        return f"takes {outcome.memory >> 20} MiB"
    if outcome.cpu > SECONDS:
        return f"takes {outcome.cpu:.0f} s"
    if outcome.document is None:
        return f"{REFUSED}: {outcome.errors.strip()}"
    if row.step not in outcome.steps:
        return "caught by " + ", ".join(outcome.steps)
    left = next(s["findings"] for s in outcome.document["steps"] if s["name"] == row.step)
    return f"{REFUSED}: {left[0][:160]}"


def attack(good: Path, key: Path, name: str) -> list[tuple[Attack, str]]:
    """Run the rows of one check without it."""
    folder = Path(tempfile.mkdtemp(prefix="mutant"))
    try:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "invarlock", folder / "invarlock", ignore=skip)
        shutil.copytree(ROOT / "contracts", folder / "contracts")
        switch_off(name, folder / "invarlock")
        verifier = Verifier(folder)
        found = []
        for row in (row for row in ROWS if row.check == name):
            with laboratory(good, key) as lab:
                row.inflict(lab)
                outcome = verifier.verify(lab, row.options, row.environment)
            found.append((row, got_through(row, outcome)))
        verifier.close()
        return found
    finally:
        shutil.rmtree(folder)


def main(names: list[str]) -> int:
    """Run the mutants and print one line a row."""
    folder = Path(tempfile.mkdtemp(prefix="mutants"))
    wrong = rows = 0
    try:
        key = packs.new_key(folder / "pack.pem")
        packs.build(packs.write_suite(folder / "out"), folder / "pack", key=key)
        names = names or [*dict.fromkeys(row.check for row in ROWS if row.check != NOTHING)]
        for name in names:
            for row, fate in attack(folder / "pack", key, name):
                rows += 1
                wrong += fate.startswith(REFUSED)
                print(f"{name:<22} {row.step:<10} {row.name:<50} {fate}", flush=True)
    finally:
        shutil.rmtree(folder)
    print(f"{rows} rows, {len(names)} mutants, {wrong} still refused")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
