"""What was tried to make a pass cheaper: CPU time over that of the pass as it is, and whether
losses, log-probabilities and most likely tokens stay as they are, bit for bit.

Variants take turns in one process; a ratio is that of one round. Windows are of one length at a
time, since what pays depends on it.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROUNDS = 5
BUDGET = 1024  # tokens of a batch, as it is
BUDGETS = (144, 288, 432, 576, 2048, 4096)
AS_IT_IS = f"as it is: {BUDGET} tokens a batch"
Row = list[Any]


@contextmanager
def memory_not_filled() -> Iterator[None]:
    """New tensors keep what was in their memory: strict determinism fills them."""
    import torch

    was = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = was


@contextmanager
def sorted_weights(model: Any) -> Iterator[None]:
    """Weights in the order of the matrix product, whatever their dtype."""
    from invarlock.run import packed_weights

    whatever = mock.patch.object(packed_weights, "_sortable", return_value=True)
    with whatever, packed_weights.packed_weights(model, BUDGET):
        yield


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Scores as a matrix in memory."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads; the CPU time is that of all."""
    import torch

    was = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(was)


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """Every block compiled by itself: one program, since blocks have one code."""
    import torch

    layers = list(model.model.layers)
    for number, layer in enumerate(layers):
        model.model.layers[number] = torch.compile(layer, dynamic=False)
    try:
        yield
    finally:
        for number, layer in enumerate(layers):
            model.model.layers[number] = layer


def measure_variants(folder: Path, windows: Path, dtype: str, count: int) -> list[Row]:
    """A row a variant: median ratio, its range, equal or not, and the CPU seconds."""
    from invarlock.run.determinism import seed_everything, set_environment

    set_environment("strict", 1, network=False)
    seed_everything("strict", 1, 43)
    import torch

    from invarlock.run.forward import (
        ArmResult,
        Keep,
        as_batch,
        batches,
        logits_function,
        merge,
        run_batch,
    )
    from invarlock.run.loading import Target, load_model
    from invarlock.run.tasks import commonest_shape, task_for
    from invarlock.windows import read_windows

    model = load_model(folder, Target("cpu", dtype)).model
    content = read_windows(windows)
    examples = task_for(folder, content).examples(content.final)
    rows = commonest_shape(examples)[:count]
    start = as_batch([examples[rows[0]].start(16)], "cpu")
    logits = logits_function(model, start.inputs)

    def ours(budget: int) -> ArmResult:
        groups = batches(examples, rows, budget)
        return merge(run_batch(logits, examples, group, Keep(), "cpu") for group in groups)

    def bare(budget: int) -> None:
        with torch.inference_mode():
            for group in batches(examples, rows, budget):
                inputs = as_batch([examples[i] for i in group], "cpu").inputs
                model(**inputs, use_cache=False)

    Setting = Callable[[], AbstractContextManager[None]]
    variants: dict[str, tuple[Setting, Callable[[int], Any], int]] = {
        AS_IT_IS: (nullcontext, ours, BUDGET),
        "bare forward": (nullcontext, bare, BUDGET),
        **{f"{n} tokens a batch": (nullcontext, ours, n) for n in BUDGETS},
        "new memory not filled": (memory_not_filled, ours, BUDGET),
        "weights sorted": (lambda: sorted_weights(model), ours, BUDGET),
        "scores as a matrix (eager)": (lambda: plain_attention(model), ours, BUDGET),
        "two threads": (lambda: threads(2), ours, BUDGET),
    }
    if shutil.which("g++"):
        variants["blocks compiled"] = (lambda: compiled_layers(model), ours, BUDGET)
    took: dict[str, list[float]] = {name: [] for name in variants}
    first: dict[str, float] = {}
    found: dict[str, ArmResult | None] = {}
    for number in range(ROUNDS + 1):
        for name, (setting, run, budget) in variants.items():
            begin = time.process_time()
            with setting():
                entered = time.process_time()
                found[name] = run(budget)
                seconds = time.process_time() - entered
            if number:  # the first time pays for what is set up once
                took[name].append(seconds)
            else:
                first[name] = time.process_time() - begin
    return [_row(name, took, found, first) for name in variants]


def _row(
    name: str,
    took: Mapping[str, Sequence[float]],
    found: Mapping[str, Any],
    first: Mapping[str, float],
) -> Row:
    ratios = [a / b for a, b in zip(took[name], took[AS_IT_IS], strict=True)]
    spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
    middle = f"{statistics.median(ratios):.3f}"
    equal = "" if found[name] is None else _equal(found[name], found[AS_IT_IS])
    return [name, statistics.median(took[name]), middle, spread, equal, first[name]]


def _equal(mine: Any, plain: Any) -> str:
    same = mine.nll_sum == plain.nll_sum and all(
        np.array_equal(getattr(mine, column)[row], getattr(plain, column)[row])
        for column in ("logprob", "top1")
        for row in plain.nll_sum
    )
    if same:
        return "yes"
    moved = max(abs(mine.nll_sum[row] - nll) for row, nll in plain.nll_sum.items())
    return f"no: losses move by up to {moved:.1g} nats a window"
