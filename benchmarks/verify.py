"""What verifying a pack costs, as Markdown tables: CPU seconds, peak memory, throughput.

    python benchmarks/verify.py [--pack DIR] [--reports 200] [--files 10000]

cold start  a pack with one report, from a fresh interpreter to the verdict; also inspect, verify
            of the report alone, gate, and the bare interpreter; medians and ranges
reports     a pack with many reports, all of them replayed
files       a pack with many files of 10 kB more, against reading and hashing the same files in
            the same process, and against hashing the same bytes in memory

The packs are made of a real one (--pack; what `make smoke` left is taken otherwise): its
evaluations are repeated as further runs. Nothing here is asserted; run it on an idle machine.
Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from speed import Cost, cost, invarlock, table

from invarlock.evidence import checksums, keys, manifest
from invarlock.evidence.result import VerifyOptions
from invarlock.evidence.verify import verify_pack

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "evidence_pack_runs/smoke/evidence_pack"
REPEATS = 9
SIZE = 10_240  # bytes of each further file
PACK = ("advanced", "evidence-pack")


def quietly(*words: str | Path) -> None:
    """Run a command of the package that has to work."""
    done = subprocess.run(invarlock(*words), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words[:4]))}: {done.stderr or done.stdout}")


def repeated(pack: Path, folder: Path, reports: int) -> Path:
    """A signed pack with as many reports, of the evaluations of ``pack``; one: the no-op's."""
    run, document = folder / "run", json.loads((pack / "metadata/scenarios.json").read_text())
    found = sorted(pack.glob("reports/**/outcome.json"))
    if reports == 1:
        found = [path for path in found if path.parent.parent.name == "noop_clean"]
        document["scenarios"] = [s for s in document["scenarios"] if s["id"] == "noop_clean"]
    for entry in document["scenarios"]:
        entry["runs"] = 0
    by_id = {entry["id"]: entry for entry in document["scenarios"]}
    for number in range(reports):
        path = found[number % len(found)]
        copied(path.parent, run, number // len(found) + 1)
        by_id[path.parent.parent.name]["runs"] += 1
    state = run / "state"
    state.mkdir()
    (state / "scenarios.json").write_text(json.dumps(document))
    shutil.copy(pack / "metadata/model_revisions.json", state)
    for path in pack.glob("metadata/*.*.json"):
        kind, model = path.stem.split(".", 1)
        name = f"calibrated_preset_{model}.json" if kind == "preset" else f"{kind}.json"
        target = run / model / ("" if kind == "baseline" else "presets") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    evaluations = sorted(path.parent for path in run.glob("*/reports/*/*/outcome.json"))
    where = ("--out-dir", run / "reports", "--analysis-dir", run / "analysis")
    quietly(
        "verdict", "--scenarios", state / "scenarios.json", "--evaluation", *evaluations, *where
    )
    quietly(*PACK, "keygen", "--out", folder / "key.pem")
    made = folder / "pack"
    quietly(*PACK, "build", made, "--run-dir", run, "--signing-key", folder / "key.pem")
    return made


def copied(evaluation: Path, run: Path, number: int) -> None:
    """One evaluation of a pack as run ``number`` of a suite's folder."""
    outcome = json.loads((evaluation / "outcome.json").read_text())
    slug = str(evaluation).rpartition("/reports/")[2].partition("/")[0]
    target = run / slug / "reports" / outcome["scenario"] / f"run_{number}"
    shutil.copytree(evaluation, target)
    (target / "outcome.json").write_text(json.dumps(outcome | {"run": number}))


def with_files(pack: Path, folder: Path, files: int) -> Path:
    """A copy of a pack with further listed files, signed again."""
    target = folder / "many"
    shutil.copytree(pack, target)
    for number in range(files):
        path = target / "material" / f"{number % 100:02}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SIZE))
    listed = {
        path.relative_to(target).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in target.rglob("*")
        if path.is_file() and path.relative_to(target).as_posix() not in checksums.CONTROL_FILES
    }
    listing = checksums.render(listed)
    (target / checksums.CHECKSUMS).write_bytes(listing)
    document = json.loads((target / checksums.MANIFEST).read_text())
    document["artifacts"] = sorted(path for path in listed if not path.startswith("reports/"))
    document["checksums_sha256_digest"] = hashlib.sha256(listing).hexdigest()
    data = manifest.render(document)
    (target / checksums.MANIFEST).write_bytes(data)
    key = keys.load_signing_key(folder / "key.pem")
    (target / checksums.SIGNATURE).write_bytes(manifest.sign(data, key))
    return target


# --- the tables ------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} - {max(values):.3f})"


def commands(rows: dict[str, list[str]], title: str) -> None:
    """CPU time and peak memory of commands, alternating."""
    taken: dict[str, list[Cost]] = {what: [] for what in rows}
    for _ in range(REPEATS):
        for what, command in rows.items():
            taken[what].append(cost(command))
    shown = [
        [what, spread([c.cpu for c in costs]), round(max(c.peak_mb for c in costs))]
        for what, costs in taken.items()
    ]
    table(title, ["", "CPU s, median (range)", "peak MB"], shown)


def cold_start(pack: Path) -> None:
    """Commands on a pack with one report."""
    report = next(pack.glob("reports/**/evaluation.report.json"))
    rows = {
        "bare interpreter": [sys.executable, "-c", "pass"],
        "`evidence-pack verify --strict --replay`": invarlock(
            *PACK, "verify", pack, "--strict", "--replay"
        ),
        "`evidence-pack inspect`": invarlock(*PACK, "inspect", pack),
        "`verify` of the report": invarlock("verify", report),
        "`gate` on the report": invarlock("gate", report),
    }
    commands(rows, f"Cold start, a pack with one report, {REPEATS} times")


def many_reports(pack: Path) -> None:
    """Verification of a pack with many reports."""
    count = len(list(pack.glob("reports/**/evaluation.report.json")))
    size = sum(path.stat().st_size for path in pack.rglob("*") if path.is_file()) / 1e6
    row = {
        "`evidence-pack verify --strict --replay`": invarlock(
            *PACK, "verify", pack, "--strict", "--replay"
        )
    }
    commands(row, f"{count} reports, {size:.1f} MB, {REPEATS} times")


def throughput(pack: Path) -> None:
    """Verification against hashing alone, alternating in this process, warm caches."""
    paths = [str(path) for path in pack.rglob("*") if path.is_file()]
    contents = [Path(path).read_bytes() for path in paths]
    size = sum(map(len, contents)) / 1e6

    def verify() -> None:
        assert verify_pack(pack, VerifyOptions(strict=True)).exit_code == 0

    def read_and_hash() -> None:
        for path in paths:
            with open(path, "rb", buffering=0) as handle:
                hashlib.sha256(handle.read()).digest()

    def only_hash() -> None:
        for data in contents:
            hashlib.sha256(data).digest()

    actions: dict[str, Callable[[], None]] = {
        "verify": verify,
        "read and hash": read_and_hash,
        "hash in memory": only_hash,
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(REPEATS):
        for name, action in actions.items():
            start = time.process_time()
            action()
            taken[name].append(time.process_time() - start)
    rows = []
    for name, seconds in taken.items():
        shares = [a / b for a, b in zip(seconds, taken["verify"], strict=True)]
        speed = round(size / statistics.median(seconds))
        rows.append([name, spread(seconds), speed, f"{100 * statistics.median(shares):.0f} %"])
    head = ["", "CPU s, median (range)", "MB/s", "speed of verify over this"]
    table(f"{len(paths)} files, {size:.1f} MB, {REPEATS} times", head, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", type=Path, default=DEFAULT, help="a real pack of a suite")
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--files", type=int, default=10_000)
    args = parser.parse_args()
    if not args.pack.is_dir():
        print(
            f"\nverify: {args.pack} is not there; make smoke leaves it, or name another with --pack"
        )
        return
    with tempfile.TemporaryDirectory() as name:
        one, many = (Path(name) / kind for kind in ("one", "many"))
        single = repeated(args.pack.resolve(), one, 1)
        cold_start(single)
        many_reports(repeated(args.pack.resolve(), many, args.reports))
        throughput(with_files(single, one, args.files))


if __name__ == "__main__":
    main()
