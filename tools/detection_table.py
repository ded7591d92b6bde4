"""Make docs/results.md: what the checks see of clean edits and of damage, on the embedded model.

    python tools/detection_table.py [--work DIR] [--out FILE] [--keep] [--quick]

Measures what is not yet there (about 40 minutes on two slow cores) and writes the page from the
reports. Paths are relative to the repository. --keep: also what older code measured is not measured
again; the page says at which commits. --quick: a few evaluations on a few windows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections import Counter
from pathlib import Path

from catalogue_table import kept
from detection_page import Clean, Damaged, page
from detection_plan import ROOT, Plan, make_plan
from detection_runs import read_stamp, run_all

from invarlock.files import read_json_object, write_text

LIBRARIES = ("torch", "transformers", "numpy")


def provenance(plan: Plan) -> list[str]:
    """Commits, hardware and versions; no host name."""
    stamps = [read_stamp(plan.work, f"{name}-{windows}") for name, windows in plan.evaluations()]
    commits = Counter(stamp.commit for stamp in stamps if stamp)
    made = [f"* measured at commit {name}: {n} evaluations" for name, n in commits.items()]
    model = [x for x in _lines("/proc/cpuinfo") if x.startswith("model name")]
    memory = [x for x in _lines("/proc/meminfo") if x.startswith("MemTotal")]
    cpu = model[0].partition(":")[2].strip() if model else platform.machine()
    gib = f", {int(memory[0].split()[1]) / 2**20:.0f} GiB memory" if memory else ""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return [
        *made,
        f"* {cpu}, {os.cpu_count()} cores{gib}; evaluations side by side, one thread each",
        f"* Python {platform.python_version()}, {versions}",
    ]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def read_results(plan: Plan) -> tuple[list[Clean], list[Damaged]]:
    """The reports of everything in the plan."""
    clean = []
    for scenario in plan.clean:
        for seed in plan.seeds:
            folder = plan.folder(scenario.id, f"seed_{seed}")
            manifest = read_json_object(folder / "runtime.manifest.json")
            report = read_json_object(folder / "evaluation.report.json")
            name = f"`{scenario.edit_spec}`"
            clean.append(Clean(name, seed, report, manifest["context"]["guard_overhead"] or {}))
    damaged = []
    for case in plan.damage:
        if case.parameters is None:
            damaged.append(Damaged(case, None))
            continue
        folder = plan.folder(case.name, plan.windows_of(case))
        report = read_json_object(folder / "evaluation.report.json")
        status = read_json_object(folder / "outcome.json")["status"]
        damaged.append(Damaged(case, report, status))
    return clean, damaged


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="default: evidence_pack_runs/results[_quick]")
    parser.add_argument("--out", type=Path, help="default: docs/results.md, with --quick in WORK")
    parser.add_argument("--keep", action="store_true", help="do not repeat what older code did")
    parser.add_argument("--quick", action="store_true", help="few evaluations on few windows")
    args = parser.parse_args()
    os.chdir(ROOT)
    name = "results_quick" if args.quick else "results"
    work = args.work or Path("evidence_pack_runs") / name
    plan = make_plan(work, args.quick)
    run_all(plan, args.keep)
    out = args.out or (work / "results.md" if args.quick else Path("docs/results.md"))
    text = page(plan, *read_results(plan), provenance(plan))
    write_text(out, kept(out.read_text(), text) if out.is_file() else text)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
