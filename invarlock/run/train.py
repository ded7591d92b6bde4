"""Edits that are trained: a few steps of AdamW on windows of the suite's text.

What is trained of a matrix W is the edit's own (``part``): ``fine_tune`` trains W itself,
``lora_merge`` two factors of an update.

What is trained is kept in float32 on the host, where the optimizer works; the model holds it
rounded to the dtype it runs in, and gives the gradient of every W. A gradient goes to the host as
soon as it is whole, and of a layer's forward pass only the inputs are kept: the layer runs again
for its gradients. So a device needs room for the weights, what goes into the layers, and the
inside of one of them, not for the gradients of the whole scope. Dropout is off. The loss is the
mean over the tokens that a run of the same windows would predict.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.documents.windows import WindowSet
from invarlock.edits.apply import Trained
from invarlock.edits.blocks import finite_norm, row_blocks
from invarlock.edits.kind import Trainable, TrainedEdit
from invarlock.edits.stream import tensor_seed
from invarlock.errors import ConfigError, InputError, MeasurementError
from invarlock.files import sha256_file
from invarlock.metrics.kind import Example
from invarlock.roles import is_transposed, role_of
from invarlock.run.forward import as_batch, batches
from invarlock.run.loading import Loaded, Target, load_model, resolve_target
from invarlock.run.spread import layers_of
from invarlock.run.tasks import task_for
from invarlock.shards import DTYPES
from invarlock.windows import read_windows, set_of_ids

BATCH_WINDOWS = 4  # of one step
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Training:
    """On what and where an edit is trained."""

    windows: Path
    target: Target
    token_budget: int  # tokens that go through the model at a time; a step may take several
    seed: int  # of the order of the windows and of LoRA's first factors


def train(baseline: Checkpoint, spec: TrainedEdit, training: Training) -> Trained:
    """The new tensors of ``spec``, trained on the windows of a file.

    Raises:
        ConfigError: the scope or the rank does not fit, or a tensor cannot be trained because
            the model does not hold it as the checkpoint does.
        InputError: the windows are of another tokenizer, or the checkpoint does not load whole.
        MeasurementError: the loss is not a number, or the device has not enough memory.
    """
    names = {info.name: info.dtype for info, _ in spec.targets(baseline)}
    content = read_windows(training.windows, tokenizer_digest(baseline.folder))
    task = task_for(baseline.folder, content)
    examples = task.examples([*content.preview, *content.final])
    target = exact_target(training.target, set(names.values()))
    loaded = load_model(baseline.folder, target, task.metric.adapter)
    if loaded.missing:
        raise InputError(
            f"the checkpoint lacks the model's tensor {loaded.missing[0]}",
            where=str(baseline.folder),
        )
    weights = _weights(loaded.model, baseline, spec)
    _refuse_other_tensors(as_stored(loaded.model, weights, baseline), baseline, set(names))
    parts = {
        name: spec.part(
            weight, is_transposed(name, baseline.config), tensor_seed(training.seed, name)
        )
        for name, weight in weights.items()
    }
    try:
        losses = _steps(loaded, weights, parts, spec, _Batches(examples, training))
    except torch.OutOfMemoryError as error:
        raise MeasurementError(
            "not enough memory on the device to train",
            where=str(baseline.folder),
            hint="lower token_budget, or train on the CPU (--device cpu)",
        ) from error
    # the model holds what was trained, in float32 or already in the checkpoint's dtype
    stored = {
        name: tensor.to(getattr(torch, DTYPES[names[name]][1]))
        for name, tensor in as_stored(loaded.model, weights, baseline).items()
    }
    return Trained(stored, losses, _record(spec, training, content, loaded))


def exact_target(target: Target, stored: set[str]) -> Target:
    """The dtype that was asked for where it is the checkpoint's, else float32, which holds all."""
    device, dtype = resolve_target(target)
    exact = all(getattr(torch, DTYPES[name][1]) is dtype for name in stored)
    chosen = str(dtype).removeprefix("torch.") if exact else "float32"
    return Target(device, chosen, target.allow_remote_code)


def _weights(model: Any, baseline: Checkpoint, spec: TrainedEdit) -> dict[str, torch.Tensor]:
    """The model's parameters that the scope means, by the model's names; they take gradients."""
    scope = spec.reach
    if scope is None:
        return {}
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim in (2, 3) and scope.covers(name, role_of(name, baseline.config))
    }
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def as_stored(
    model: Any, tensors: Mapping[str, torch.Tensor], baseline: Checkpoint
) -> dict[str, torch.Tensor]:
    """Parameters of the model as the checkpoint stores them: the way back of loading.

    The library fuses matrices of experts, for example, and renames what older versions wrote.
    GPT-2 was released as the model without its head, whose names have no prefix.
    """
    from transformers.core_model_loading import revert_weight_conversion

    # on the host: taking fused experts apart copies them, and a device has no room for that
    plain = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    prefix = f"{model.base_model_prefix}."
    return {
        name if name in baseline.tensors else name.removeprefix(prefix): tensor
        for name, tensor in revert_weight_conversion(model, plain).items()
    }


def _refuse_other_tensors(
    found: Mapping[str, torch.Tensor], baseline: Checkpoint, wanted: set[str]
) -> None:
    """The way back, tried on the untouched model, has to give the checkpoint's own numbers."""
    for name in sorted(wanted | set(found)):
        if name not in found or name not in wanted:
            problem = "in the checkpoint only" if name in wanted else "in the model only"
        else:
            stored, mine = baseline.load(name), found[name]
            _refuse_nan(stored, name, baseline)
            if mine.shape == stored.shape and torch.equal(mine.float(), stored.float()):
                continue
            problem = "other numbers in the model"
        raise ConfigError(
            f"tensor {name} cannot be trained",
            where=str(baseline.folder),
            expected="a tensor that the model holds as the checkpoint does",
            found=problem,
            hint="choose another scope",
        )


def _refuse_nan(stored: torch.Tensor, name: str, baseline: Checkpoint) -> None:
    try:
        for block in row_blocks(stored.reshape(-1, stored.shape[-1])):
            finite_norm(block)
    except InputError as error:
        raise InputError(
            f"tensor {name}: {error.what}", where=str(baseline.folder), expected=error.expected
        ) from error


class _Batches:
    """The examples of each step: windows in seeded order, from the front again when used up."""

    def __init__(self, examples: Sequence[Example], training: Training) -> None:
        rng = random.Random(training.seed)
        self.examples = examples
        self.order = sorted(range(len(examples)), key=lambda _: rng.random())
        self.token_budget = training.token_budget

    def step(self, number: int) -> list[int]:
        """Rows of step ``number``, counted from 0."""
        size = min(BATCH_WINDOWS, len(self.order))
        return [self.order[(number * size + i) % len(self.order)] for i in range(size)]


def _steps(
    loaded: Loaded,
    weights: Mapping[str, torch.Tensor],
    parts: Mapping[str, Trainable],
    spec: TrainedEdit,
    given: _Batches,
) -> list[dict[str, float]]:
    """Train ``parts``; the loss of each step's own windows before and after it."""
    leaves = [leaf for part in parts.values() for leaf in part.leaves]
    learning_rate, steps = spec.schedule()
    optimizer = torch.optim.AdamW(
        leaves, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0
    )
    gradients = to_host(weights)
    _recompute_layers(loaded.model)
    losses = []
    for number in range(steps):
        rows = given.step(number)
        before = _loss(loaded, given, rows, learn=True)
        for name, part in parts.items():
            gradient = gradients.pop(name, None)
            if gradient is not None:  # None: an expert that no token was sent to
                part.value().backward(gradient.float())  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, part in parts.items():
                weights[name].copy_(part.value())
            after = _loss(loaded, given, rows, learn=False)
        losses.append({"before": before, "after": after})
    return losses


def to_host(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make every backward pass leave its gradients here, added up on the host in their dtype."""
    found: dict[str, torch.Tensor] = {}

    def take(name: str, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        gradient, weight.grad = weight.grad.cpu(), None
        found[name] = found[name].add_(gradient) if name in found else gradient

    for name, weight in weights.items():
        weight.register_post_accumulate_grad_hook(partial(take, name))  # type: ignore[no-untyped-call]
    return found


def _recompute_layers(model: torch.nn.Module) -> None:
    """Let each layer keep its inputs only, and run again when its gradients are asked for."""
    for layer in layers_of(model):
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        layer.forward = partial(again, layer.forward)


def _loss(loaded: Loaded, given: _Batches, rows: Sequence[int], *, learn: bool) -> float:
    """Mean loss of the predicted tokens in nats; with ``learn``, gradients go to the host."""
    total = sum(len(given.examples[row].targets) for row in rows)
    loss = 0.0
    for group in batches(given.examples, rows, given.token_budget):
        batch = as_batch([given.examples[row] for row in group], loaded.device)
        logits = loaded.model(**batch.inputs, use_cache=False).logits
        chosen = logits.reshape(-1, logits.shape[-1])[batch.at].float()
        part = torch.nn.functional.cross_entropy(chosen, batch.targets, reduction="sum") / total
        if learn:
            part.backward()  # type: ignore[no-untyped-call]
        loss += float(part.detach())
    if not math.isfinite(loss):
        raise MeasurementError(
            "the training loss is not a finite number",
            found=str(loss),
            hint="lower the learning rate",
        )
    return loss


def _record(
    spec: TrainedEdit,
    training: Training,
    content: WindowSet,
    loaded: Loaded,
) -> dict[str, object]:
    """How it was trained, as the metadata says it."""
    learning_rate, steps = spec.schedule()
    windows = len(content.preview) + len(content.final)
    return {
        "optimizer": "adamw",
        "learning_rate": learning_rate,
        "betas": list(BETAS),
        "epsilon": EPSILON,
        "weight_decay": 0.0,
        "steps": steps,
        "batch_windows": min(BATCH_WINDOWS, windows),
        **how_measured(training, content, loaded),
    }


def how_measured(training: Training, content: WindowSet, loaded: Loaded) -> dict[str, object]:
    """Which text went through the model, and by what arithmetic, as the metadata says it."""
    windows = [*content.preview, *content.final]
    return {
        "windows": {
            "sha256": sha256_file(training.windows),
            "seed": content.seed,
            **set_of_ids(window.window_id for window in windows),
        },
        "device": loaded.device,
        "dtype": loaded.dtype,
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }
