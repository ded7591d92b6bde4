"""How large the inputs of each matrix are on a text: what importance pruning weighs weights by."""

from __future__ import annotations

from typing import Any

import torch

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.edits.apply import Calibrated
from invarlock.edits.kinds.importance_prune import ImportancePrune
from invarlock.errors import ConfigError
from invarlock.roles import role_of
from invarlock.run.forward import as_batch, batches
from invarlock.run.loading import load_model
from invarlock.run.tasks import task_for
from invarlock.run.train import Training, as_stored, exact_target, how_measured
from invarlock.windows import read_windows


def calibrate(baseline: Checkpoint, spec: ImportancePrune, text: Training) -> Calibrated:
    """The L2 norm of every input of the matrices that ``spec`` means, over the windows' tokens.

    Raises:
        ConfigError: the scope matches nothing, or holds a matrix whose inputs no module shows, such
            as fused experts.
        InputError: the windows are of another tokenizer, or the checkpoint does not load.
    """
    targets = {info.name: info.dtype for info, _ in spec.targets(baseline)}
    content = read_windows(text.windows, tokenizer_digest(baseline.folder))
    task = task_for(baseline.folder, content)
    examples = task.examples([*content.preview, *content.final])
    target = exact_target(text.target, set(targets.values()))
    loaded = load_model(baseline.folder, target, task.metric.adapter)
    squares = _watch(loaded.model, baseline, spec)
    for name in targets:
        if name not in squares:
            raise ConfigError(
                f"the inputs of tensor {name} cannot be measured",
                where=str(baseline.folder),
                expected="a matrix of a module of its own",
                hint="choose another scope",
            )
    with torch.no_grad():
        for rows in batches(examples, range(len(examples)), text.token_budget):
            batch = as_batch([examples[row] for row in rows], loaded.device)
            loaded.model(**batch.inputs, use_cache=False)
    inputs = {name: squares[name].sqrt().float() for name in targets}
    return Calibrated(spec, inputs, how_measured(text, content, loaded))


def _watch(model: Any, baseline: Checkpoint, spec: ImportancePrune) -> dict[str, torch.Tensor]:
    """Sums of squares of the inputs, float64, by the checkpoint's names; filled by forward passes.

    An expert that no token was sent to keeps 0: then every weight is of equal importance.
    """
    sums: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        name = f"{path}.weight"
        if weight is None or weight.dim() != 2 or spec.reach is None:
            continue
        if not spec.reach.covers(name, role_of(name, baseline.config)):
            continue
        (stored,) = as_stored(model, {name: weight}, baseline)
        width = baseline.tensors[stored].numel // baseline.tensors[stored].shape[0]
        transposed = type(module).__name__ == "Conv1D"
        total = torch.zeros(weight.shape[0] if transposed else width, dtype=torch.float64)
        sums[stored] = total

        def add(_: object, given: tuple[torch.Tensor, ...], total: torch.Tensor = total) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1]).float()
            total.add_(rows.square().sum(dim=0).double().cpu())

        module.register_forward_pre_hook(add)
    return sums
