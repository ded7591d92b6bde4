"""What one run of a subject costs, with and without metric and guards; called by ``speed.py``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

KINDS = ("bare", "metric", "full")  # bare passes; with the metric; with the metric and all guards
BUDGET = 1024  # tokens of a batch


def measure_run(model: Path, windows: Path, kind: str) -> dict[str, float]:
    """CPU seconds after loading, and peak memory, of one of ``KINDS``.

    Args:
        model: the subject; the baseline's run stands beside it, named ``.run``.
        windows: what both were run on.
        kind: what to do with the windows.
    """
    from invarlock.run.determinism import seed_everything, set_environment

    set_environment("strict", 1, network=False)
    seed_everything("strict", 1, 43)

    from invarlock.checkpoints import Checkpoint
    from invarlock.policy import load_policy
    from invarlock.run import loading, measure
    from invarlock.run.report import Reference

    loaded_at: list[float] = []

    def load(*arguments: Any) -> loading.Loaded:
        loaded = loading.load_checkpoint(*arguments)
        loaded_at.append(time.process_time())
        return loaded

    target, content = loading.Target("cpu", "auto"), measure.RunWindows.read(windows, None)
    baseline = replace(
        Reference.read(model.with_suffix(".run")).arrays(), checkpoint=Checkpoint.open(model)
    )
    if kind == "full":
        vars(measure)["load_checkpoint"] = load
        found = measure.measure_checkpoint(
            Checkpoint.open(model),
            content,
            target,
            token_budget=BUDGET,
            against=baseline,
            policy=load_policy("balanced"),
        )
        assert found.records["variance"]["trial"] is not None
    else:
        network = load(model, target, "hf_causal").model
        run_passes(network, model, content, baseline if kind == "metric" else None)
    used = time.process_time() - loaded_at[0]
    return {"cpu": used, "peak_mb": measure.peak_memory_mb()}


def run_passes(network: Any, model: Path, windows: Any, baseline: Any) -> None:
    """Forward passes over all windows in the batches of a run; without a baseline, bare ones."""
    import torch

    from invarlock.guards.rmt import CALIBRATION_WINDOWS
    from invarlock.run.forward import Keep, batches, logits_function, run_batch
    from invarlock.run.measure import ARMS, evenly_spaced
    from invarlock.run.tasks import commonest_shape, task_for

    task, logits, kept = task_for(model, windows.content), None, []
    for arm in ARMS:
        examples = task.examples(windows.arm(arm))
        if logits is None:
            start = torch.tensor([examples[0].start(16)["input_ids"]])
            logits = logits_function(network, {"input_ids": start})
        # what a run puts into one batch, for the activations
        hooked = evenly_spaced(commonest_shape(examples), CALIBRATION_WINDOWS)
        if arm == "final":
            hooked = []
        rest = [i for i in range(len(examples)) if i not in hooked]
        keep = Keep(against=baseline.top if baseline and arm == "final" else None)
        for rows in filter(None, (hooked, *batches(examples, rest, BUDGET))):
            if baseline:
                kept.append(run_batch(logits, examples, rows, keep, "cpu"))
                continue
            ids = [list(examples[i].inputs["input_ids"]) for i in rows]
            with torch.inference_mode():
                network(input_ids=torch.tensor(ids), use_cache=False)
