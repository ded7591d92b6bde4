"""How far edits move a model's predictions, beside the limits of the tiers.

Makes each edit, runs baseline and subject over the final windows by the package's own forward
pass, and prints the distribution shift: mean KL(baseline || subject) with the standard error over
windows, its share of the limit of tier balanced, tokens whose most likely prediction changed, and
the ratio of the perplexities. The table in docs/decisions/0025-limit-on-kl.md is of the smoke
suite's baseline on eight windows.

    python benchmarks/shift.py BASELINE WINDOWS [--count 8] [--spec SPEC ...] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from invarlock.checkpoints import Checkpoint
from invarlock.edits.specs import parse_edit_spec
from invarlock.metrics.distribution import summarize, window_sums
from invarlock.metrics.kind import Example
from invarlock.policy import load_policy
from invarlock.run.determinism import seed_everything, set_environment
from invarlock.run.forward import (
    ArmResult,
    Keep,
    TopTokens,
    batches,
    logits_function,
    merge,
    run_batch,
)
from invarlock.run.loading import Target, load_model
from invarlock.run.measure import PROBE_TOKENS, ReferenceArrays
from invarlock.run.report import token_shift
from invarlock.run.tasks import task_for
from invarlock.windows import read_windows

SMOKE = (  # the clean edits of suite smoke, then further ones of suite smoke-all
    *("noop", "quant_rtn:8:0:all", "fp8_quant:e4m3:all", "magnitude_prune:0.1:all"),
    *("lowrank_svd:384:ffn@layer=15", "quant_rtn:4:32:attn", "fp8_quant:e5m2:ffn"),
    *("magnitude_prune:0.12:ffn", "lowrank_svd:256:ffn@layer=14"),
)


def final_arm(
    folder: Path, target: Target, examples: list[Example], adapter: str, keep: Keep
) -> ArmResult:
    """One pass of a checkpoint over the examples."""
    import torch

    loaded = load_model(folder, target, adapter)
    start = examples[0].start(PROBE_TOKENS)
    probe = {name: torch.tensor([ids], device=loaded.device) for name, ids in start.items()}
    logits = logits_function(loaded.model, probe)
    groups = batches(examples, range(len(examples)), 1024)
    return merge(run_batch(logits, examples, rows, keep, loaded.device) for rows in groups)


def rows(args: argparse.Namespace) -> Iterator[str]:
    """A line of the table for each edit."""
    from invarlock.edits.apply import apply_edit  # imports torch, whose environment has to be set

    content = read_windows(args.windows)
    baseline, target = Checkpoint.open(args.baseline), Target("cpu", args.dtype)
    task = task_for(args.baseline, content)
    examples = task.examples(content.final[: args.count])
    own = final_arm(args.baseline, target, examples, task.metric.adapter, Keep(top=True))
    top = TopTokens(
        starts=np.cumsum([0, *own.n_tokens()]).tolist(),
        top1=own.joined("top1"),
        ids=own.joined("top_ids"),
        logprob=own.joined("top_logprob").astype(np.float16),
        correct=own.joined("logprob"),
    )
    policy = load_policy("balanced").distribution
    for text in args.spec:
        with tempfile.TemporaryDirectory(dir=args.work) as scratch:
            subject = Path(scratch) / "subject"
            apply_edit(baseline, parse_edit_spec(text), subject, args.seed)
            found = final_arm(subject, target, examples, task.metric.adapter, Keep(against=top))
        shift = token_shift(ReferenceArrays(top, []), found)
        block = summarize(shift, policy)
        means = np.array(window_sums(shift)["kl_sum"]) / np.array(shift.token_counts)
        error = means.std(ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        ratio = math.exp((sum(found.losses()) - sum(own.losses())) / sum(own.n_tokens()))
        kl = block["kl"]["mean"]
        share = "-" if policy.kl_mean_max is None else f"{kl / policy.kl_mean_max:.0%}"
        flips = block["flips"]["fraction"]
        yield f"| `{text}` | {kl:.4f} +- {error:.4f} | {share} | {flips:.1%} | {ratio:.4f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", type=Path, help="folder of the baseline checkpoint")
    parser.add_argument("windows", type=Path, help="windows.json")
    parser.add_argument("--count", type=int, default=8, help="final windows (default: 8)")
    parser.add_argument("--spec", nargs="+", default=SMOKE, help="edits (default: clean ones)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=43)
    parser.add_argument("--work", type=Path, help="where edited checkpoints are put meanwhile")
    args = parser.parse_args()
    set_environment("strict", 1, False)
    seed_everything("strict", 1, args.seed)
    print("| edit | mean KL, nats | of the limit | flips | ratio |\n|---|---|---|---|---|")
    for line in rows(args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
