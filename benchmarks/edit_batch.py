"""One process for all edits of the smoke suite against one process for each edit.

    python benchmarks/edit_batch.py MODEL [--repeats 3]

MODEL is a checkpoint folder. Both ways write the same subjects and their metadata. "together"
opens and hashes the baseline once and starts one interpreter; the subjects are all there at once,
as they would be if one pass over the baseline wrote them. "apart" is what the workflow does. "read"
is the reading and hashing of the baseline alone: what a single pass could save for every further
edit. Medians of ``--repeats`` rounds, the ways taken in turn. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("apart", "together", "read")


def specs() -> list[str]:
    """The edits of the smoke suite."""
    from invarlock.scenarios import load_catalogue

    chosen = load_catalogue(ROOT / "scenarios/scenarios.json").select("smoke")
    return [s.edit_spec for s in chosen if s.edit_spec]


def edit(model: Path, wanted: list[str], out: Path) -> None:
    """Make the subjects in this process, one after the other."""
    from invarlock.checkpoints import Checkpoint
    from invarlock.edits.apply import apply_edit
    from invarlock.edits.metadata import edit_metadata
    from invarlock.edits.specs import parse_edit_spec
    from invarlock.files import write_json

    baseline = Checkpoint.open(model)
    for spec in wanted:
        edited = apply_edit(baseline, parse_edit_spec(spec), out / spec, 43)
        write_json(out / f"{spec}.json", edit_metadata(baseline, edited))


def read(model: Path) -> None:
    """Read and hash every tensor."""
    from invarlock.checkpoints import Checkpoint

    Checkpoint.open(model).digest()


def seconds(commands: list[list[str]]) -> tuple[float, float]:
    """Wall and CPU seconds of these processes, one after the other."""
    wall, before = time.perf_counter(), os.times()
    for command in commands:
        subprocess.run([sys.executable, __file__, *command], check=True)
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - wall, cpu


def table(model: Path, repeats: int, folder: Path) -> None:
    """Take the ways in turn and print their medians."""
    wanted = specs()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    peak = 0
    for number in range(repeats):
        for way in WAYS:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                task = [str(model), "--out", out, "--task"]
                groups = [[spec] for spec in wanted] if way == "apart" else [wanted]
                commands = [[*task, *group] for group in groups]
                found[way].append(seconds(commands if way != "read" else [[*task, "read"]]))
                files = {(s.st_dev, s.st_ino): s.st_size for s in map(Path.stat, _files(out))}
                peak = max(peak, sum(files.values()))
        print(f"round {number + 1} of {repeats}", file=sys.stderr)
    print(f"{len(wanted)} edits: {', '.join(wanted)}\n")
    print(f"{'way':<12}{'wall s':>10}{'CPU s':>10}")
    for way, rows in found.items():
        wall, cpu = (statistics.median(row[i] for row in rows) for i in (0, 1))
        print(f"{way:<12}{wall:>10.1f}{cpu:>10.1f}")
    ratios = [a[1] / b[1] for a, b in zip(found["apart"], found["together"], strict=True)]
    print(f"\napart over together, CPU: {statistics.median(ratios):.2f} ({_range(ratios)})")
    print(f"disk of all subjects at once: {peak / 1e6:.0f} MB")


def _files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Edits in one process against one each.")
    parser.add_argument("model", type=Path, help="a checkpoint folder")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--folder", type=Path, help="where subjects are made (default: temp)")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task == ["read"]:
        read(args.model)
    elif args.task:
        edit(args.model, args.task, args.out)
    else:
        table(args.model, args.repeats, args.folder)


if __name__ == "__main__":
    main()
