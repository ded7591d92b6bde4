"""Search for inputs that the verifiers have no answer to, guided by coverage; one core.

    pip install --target FOLDER atheris
    PYTHONPATH=FOLDER python benchmarks/fuzz.py [--minutes 10] [--crashes DIR]

pack     a file of a good pack replaced, the pack re-signed: ``verify`` of packs
report   a report or its runtime manifest replaced: every command that reads reports
parsers  the readers of checksums, signatures, keys, runtime manifests, reports, gpg's status

Each takes a third of the time. Half of the inputs are mutated as JSON, the others as bytes. A crash
is an exception, an exit code that is not documented, or output that no terminal should see; its
input and traceback are kept, and the search goes on. The exit code is 1 when there was one.
atheris (Linux, CPython) is no dependency of the project: it is only needed here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("pack", "report", "parsers")
MEMORY = 2048  # MB; libFuzzer ends the search beyond
SECONDS = 20  # one input; libFuzzer ends the search beyond
Target = Callable[[bytes], object]


def main() -> int:
    """Search in one process a target, and print what was done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="in all (default: 10)")
    parser.add_argument("--crashes", type=Path, help="where crashes go (default: a new folder)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        print(__doc__.split("\n\n")[1])
        print("\natheris is not installed: see the two lines above", file=sys.stderr)
        return 2
    if args.child:
        search(args.child[0], Path(args.child[1]), args.minutes * 60)
        return 0  # never reached: libFuzzer ends the process
    targets = args.target or TARGETS
    crashes = args.crashes or Path(tempfile.mkdtemp(prefix="fuzz-"))
    for target in targets:
        run_child(target, crashes, args.minutes / len(targets))
    found = sorted(crashes.glob("*.txt"))
    print(f"{len(found)} distinct crashes" + (f" in {crashes}" if found else ""))
    if not found and not args.crashes:
        crashes.rmdir()
    return 1 if found else 0


def run_child(target: str, crashes: Path, minutes: float) -> None:
    """One search; libFuzzer's own words are read for the figures."""
    crashes.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    command = [sys.executable, __file__, "--minutes", str(minutes), "--child", target, str(crashes)]
    environment = os.environ | {"HOME": str(crashes), "PYTHONHASHSEED": "0"}
    environment.pop("INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    runs = re.findall(r"number_of_executed_units: *(\d+)", done.stderr)
    edges = re.findall(r" cov: (\d+)", done.stderr)
    if not runs or not edges or done.returncode:
        name = crashes / f"{target}-ended.txt"
        name.write_text(done.stderr[-20_000:])
        print(f"{target}: ended early with exit code {done.returncode}; see {name}")
        return
    seconds = time.monotonic() - start
    print(
        f"{target}: {runs[-1]} executions in {seconds:.0f} s, {edges[0]} edges at first, "
        f"{edges[-1]} at the end",
        flush=True,
    )


# --- in the child ---------------------------------------------------------------------------


def search(target: str, crashes: Path, seconds: float) -> None:
    """Give libFuzzer the target, its seeds and the time."""
    import atheris

    sys.path.insert(0, str(ROOT / "tests"))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        with atheris.instrument_imports(include=["invarlock"]), quiet():
            import fuzz_pack

            packs = fuzz_pack.make_packs(folder)
            for pack in packs:  # imports what is only imported when it is needed
                fuzz_pack.check_pack(pack)
                fuzz_pack.check_others(pack)
            from invarlock.evidence.published import gpg  # noqa: F401
        run, seeds = {"pack": of_packs, "report": of_reports, "parsers": of_parsers}[target](packs)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / f"{number:04}").write_bytes(seed)
        words = [sys.argv[0], str(corpus), f"-max_total_time={int(seconds)}", "-max_len=100000"]
        words += [f"-rss_limit_mb={MEMORY}", f"-timeout={SECONDS}", "-print_final_stats=1"]
        words += [f"-artifact_prefix={crashes}/{target}-", "-len_control=0"]
        atheris.Setup(words, recorded(target, run, crashes), custom_mutator=mutate)
        atheris.Fuzz()


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Nothing is printed."""
    return contextlib.redirect_stdout(io.StringIO())


def recorded(target: str, run: Target, crashes: Path) -> Target:
    """The target with every new crash written down instead of ending the search."""
    seen: set[tuple[str, str, int]] = set()

    def one(data: bytes) -> None:
        try:
            run(data)
        except Exception as error:  # noqa: BLE001 - whatever escapes is what is searched for
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = (type(error).__name__, Path(last.filename).stem, last.lineno or 0)
            if where not in seen:
                seen.add(where)
                name = "-".join([target, *map(str, where)])
                (crashes / f"{name}.bin").write_bytes(data)
                (crashes / f"{name}.txt").write_text(
                    "".join(traceback.format_exception(error)), errors="replace"
                )

    return one


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half as bytes by libFuzzer, half as a JSON document; the first two bytes choose the file."""
    import atheris
    from test_fuzz import change_members

    rng = Random(seed)
    if rng.random() < 0.5:
        try:
            return data[:2] + change_members(rng, data[2:])[: max_size - 2]
        except (ValueError, RecursionError):  # not JSON any more
            pass
    return bytes(atheris.Mutate(data, max_size))


def of_packs(packs: list[Any]) -> tuple[Target, list[bytes]]:
    """Two bytes choose pack and file, the others are the file."""
    import fuzz_pack

    def run(data: bytes) -> None:
        if len(data) >= 2:
            pack = packs[data[0] % len(packs)]
            path = sorted(pack.files)[data[1] % len(pack.files)]
            pack.place({path: data[2:]}, resign=True)
            fuzz_pack.check_json(pack)

    return run, [
        bytes([which, index]) + pack.files[path]
        for which, pack in enumerate(packs)
        for index, path in enumerate(sorted(pack.files))
    ]


def of_reports(packs: list[Any]) -> tuple[Target, list[bytes]]:
    """Two bytes choose pack and report or runtime manifest; the commands beside ``verify``."""
    import fuzz_pack

    choices = [
        (pack, report, path)
        for pack in packs
        for report in pack.reports()
        for path in (report, report.removesuffix(fuzz_pack.REPORT) + fuzz_pack.RUNTIME)
        if path in pack.files
    ]

    def run(data: bytes) -> None:
        if len(data) >= 2:
            pack, report, path = choices[data[0] % len(choices)]
            pack.place({path: data[2:]}, resign=True)
            fuzz_pack.check_report(pack.folder / report)

    return run, [
        bytes([index, 0]) + pack.files[path] for index, (pack, _, path) in enumerate(choices)
    ]


def of_parsers(packs: list[Any]) -> tuple[Target, list[bytes]]:
    """One byte chooses the reader; documented errors are its answers."""
    from invarlock.errors import InvarlockError
    from invarlock.evidence import checksums, keys, manifest
    from invarlock.evidence.published import gpg, provenance
    from invarlock.evidence.report_verify import ReportOptions, verify_report
    from invarlock.files import parse_json

    files = packs[1].files
    report = next(path for path in files if path.endswith("evaluation.report.json"))
    runtime = files[report.replace("evaluation.report.json", "runtime.manifest.json")]
    status = b"[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG A B\n[GNUPG:] VALIDSIG A 1 2 3 4 5 6 8 00 A\n"

    def read_pem(data: bytes) -> None:
        with contextlib.suppress(ValueError):  # its documented refusal
            keys.parse_public_pem(data.decode("latin-1"))

    readers: list[tuple[Target, bytes]] = [
        (lambda d: parse_json(d, "x"), b'{"a": [1, 2.5e3, "\\u00e9", null]}'),
        (checksums.parse, files["checksums.sha256"]),
        (manifest.read_manifest, files["manifest.json"]),
        (lambda d: manifest.read_signature(b"", d), files["manifest.signature.json"]),
        (read_pem, keys.public_pem(packs[0].key.public).encode()),
        (lambda d: provenance.check({}, "", d, "container"), runtime),
        (lambda d: verify_report(d, runtime, "r", ReportOptions()), files[report]),
        (lambda d: gpg.read_status(0, d), status),
    ]

    def run(data: bytes) -> None:
        if len(data) >= 2:
            with contextlib.suppress(InvarlockError):
                readers[data[0] % len(readers)][0](data[2:])

    return run, [bytes([index, 0]) + seed for index, (_, seed) in enumerate(readers)]


if __name__ == "__main__":
    sys.exit(main())
