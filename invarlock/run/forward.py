"""One forward pass over the windows: log-losses per window, in bounded memory.

Batches hold examples of one shape, filled up to a token budget without padding.
Hidden states go through the output head in chunks of ``CHUNK_BYTES`` of logits, which are turned
into float32 block by block: peak memory is the model plus one chunk, not tokens x vocabulary.
That the head alone gives what the whole model gives is checked on the first window, not assumed
(some architectures scale or cap their logits); where it does not, whole batches of logits are
used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from invarlock.errors import MeasurementError
from invarlock.formats.execution import Engine
from invarlock.metrics.distribution import TOP_K, truncated_kl
from invarlock.metrics.kind import Example

if TYPE_CHECKING:
    import torch

    Logits = Callable[[Mapping[str, torch.Tensor], torch.Tensor], Iterator[torch.Tensor]]

NEVER = -1000.0  # nats: a probability of exactly 0 in float64
# Logits that leave the output head at a time. On a GPU a chunk is one matrix product, which has to
# be large to be fast: of a vocabulary of 150,000 entries the CPU's share would be 80 rows.
CHUNK_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
# Float32 logits worked on at a time: on a CPU they should stay in the cache, where the
# passes for maximum, exponential and sum are several times faster than from memory.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class TopTokens:
    """What a baseline run kept of its final arm, a row per predicted token, windows in order."""

    starts: Sequence[int]  # (windows + 1,) first row of each window, and the end
    top1: NDArray[np.int32]  # (tokens,) most likely token, by :func:`most_likely`
    ids: NDArray[np.int32]  # (tokens, TOP_K) most likely tokens; equal ones in any order
    logprob: NDArray[np.float16]  # (tokens, TOP_K), nats
    correct: NDArray[np.float32]  # (tokens,) log-probability of the correct token, nats

    def rows(self, windows: Sequence[int]) -> NDArray[np.int64]:
        """The rows of these windows, in their order."""
        spans = [np.arange(self.starts[i], self.starts[i + 1]) for i in windows]
        return np.concatenate(spans)


@dataclass
class ArmResult:
    """What a pass recorded on one arm, by window; arrays hold a row per predicted token."""

    nll_sum: dict[int, float] = field(default_factory=dict)  # nats
    top1: dict[int, NDArray[np.int32]] = field(default_factory=dict)  # most likely token
    logprob: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # correct token, nats
    top_ids: dict[int, NDArray[np.int32]] = field(default_factory=dict)  # (tokens, TOP_K)
    top_logprob: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # nats
    kl: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # from the baseline, nats

    def losses(self) -> list[float]:
        """nll_sum of every window, in order."""
        return [self.nll_sum[i] for i in sorted(self.nll_sum)]

    def n_tokens(self) -> list[int]:
        """Predicted tokens of every window, in order."""
        return [len(self.logprob[i]) for i in sorted(self.logprob)]

    def joined(self, name: str) -> NDArray[Any]:
        """One of the columns of arrays over all windows, in order."""
        column: dict[int, NDArray[Any]] = getattr(self, name)
        return np.concatenate([column[i] for i in sorted(column)])


def batches(
    examples: Sequence[Example], rows: Iterable[int], token_budget: int
) -> Iterator[Sequence[int]]:
    """These rows in groups of one shape that fit the budget, at least one example at a time."""
    by_shape: dict[tuple[object, ...], list[int]] = {}
    for row in rows:
        by_shape.setdefault(examples[row].alike, []).append(row)
    for group in by_shape.values():
        size = max(1, token_budget // sum(examples[group[0]].shape))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def logits_function(model: Any, probe: Mapping[str, torch.Tensor]) -> Logits:
    """How to get logits (tokens, vocabulary), in chunks, of some positions of a batch.

    Positions count through the rows of the batch. ``probe`` is a short input on which the head
    alone and the whole model are compared.
    """
    import torch

    head = model.get_output_embeddings()
    dtype = getattr(model, "dtype", torch.float32)

    def cast(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pixels come in float32, and some models take them as they come."""
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}

    def by_chunks(inputs: Mapping[str, torch.Tensor], at: torch.Tensor) -> Iterator[torch.Tensor]:
        (hidden,) = before_head(model, head, cast(inputs))
        flat = hidden.reshape(-1, hidden.shape[-1])[at]
        step = rows_within(CHUNK_BYTES, flat.device, flat.element_size() * head.weight.shape[0])
        for start in range(0, flat.shape[0], step):
            yield head(flat[start : start + step])

    def whole(inputs: Mapping[str, torch.Tensor], at: torch.Tensor) -> Iterator[torch.Tensor]:
        logits = model(**cast(inputs), use_cache=False).logits
        flat = logits.reshape(-1, logits.shape[-1])
        step = rows_within(CHUNK_BYTES, flat.device, flat.element_size() * flat.shape[-1])
        for start in range(0, len(at), step):
            yield flat[at[start : start + step]]

    if head is None:
        return whole
    with torch.inference_mode():
        shown = cast(probe)
        from_head = [head(hidden) for hidden in before_head(model, head, shown)]
        from_model = model(**shown, use_cache=False).logits
    exact = len(from_head) == 1 and torch.equal(from_head[0], from_model)
    return by_chunks if exact else whole


def logits_of(engine: Engine) -> Logits:
    """The same of a model that an engine runs, window by window."""
    import torch

    def by_window(inputs: Mapping[str, torch.Tensor], at: torch.Tensor) -> Iterator[torch.Tensor]:
        ids = inputs["input_ids"]
        rows, positions = at // ids.shape[1], at % ids.shape[1]
        for row, window in enumerate(ids.tolist()):
            logits = torch.from_numpy(engine.logits(window))
            yield logits[positions[rows == row]]

    return by_window


def rows_within(budgets: Mapping[str, int], device: torch.device, row_bytes: int) -> int:
    """How many rows of ``row_bytes`` fit the budget of a device, one at least; all but CPUs are
    taken for a GPU."""
    return max(1, budgets.get(device.type, budgets["cuda"]) // row_bytes)


def before_head(model: Any, head: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the model gives its output head, which is run on no position at all.

    Not even on one: a slice of one position of every row is strided, and the kernels for strided
    bfloat16 took longer on a CPU than the head on all positions of the batch.
    """
    seen: list[torch.Tensor] = []

    def narrow(_head: object, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.append(arguments[0])
        return (arguments[0][..., :0, :],)

    hook = head.register_forward_pre_hook(narrow)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return seen


@dataclass(frozen=True)
class Keep:
    """What a pass records of an arm beyond losses and the most likely tokens."""

    top: bool = False  # the TOP_K most likely tokens (a baseline's final arm)
    against: TopTokens | None = None  # the divergence from a baseline (a subject's final arm)


def run_batch(
    logits: Logits, examples: Sequence[Example], rows: Sequence[int], keep: Keep, device: str
) -> ArmResult:
    """Run some examples as one batch.

    Args:
        logits: from :func:`logits_function`.
        examples: those of the arm.
        rows: which of them to run; they have one shape.
        keep: what to record.
        device: where the model is.

    Raises:
        MeasurementError: examples of different lengths.
    """
    import torch

    mine = [examples[i] for i in rows]
    batch = as_batch(mine, device)
    with torch.inference_mode():
        blocks = _blocks(logits(batch.inputs, batch.at))
        arrays = _record(blocks, batch.targets, list(rows), keep)
    return _by_window(arrays, list(rows), [len(example.targets) for example in mine])


@dataclass(frozen=True)
class Batch:
    """Examples of one shape as tensors on the model's device."""

    inputs: Mapping[str, torch.Tensor]
    at: torch.Tensor  # positions that predict, counted through the rows
    targets: torch.Tensor  # the right token of each


def as_batch(examples: Sequence[Example], device: str) -> Batch:
    """These examples as one batch.

    Raises:
        MeasurementError: examples of different lengths.
    """
    import torch

    if len({example.alike for example in examples}) > 1:
        raise MeasurementError(f"different lengths: {sorted(e.shape for e in examples)}")
    width = examples[0].shape[-1]
    at = [row * width + p for row, example in enumerate(examples) for p in example.positions]
    targets = [token for example in examples for token in example.targets]
    inputs = {
        name: torch.tensor([list(e.inputs[name]) for e in examples], device=device)
        for name in examples[0].inputs
    }
    shown = [e.picture.arrays() for e in examples if e.picture]
    for name in shown[0] if shown else ():  # what processors give of one picture has a batch of one
        inputs[name] = torch.cat([arrays[name] for arrays in shown]).to(device)
    return Batch(inputs, torch.tensor(at, device=device), torch.tensor(targets, device=device))


def _record(
    blocks: Iterator[torch.Tensor], targets: torch.Tensor, rows: list[int], keep: Keep
) -> dict[str, NDArray[Any]]:
    """What is kept of the logits of one batch, a row per predicted token."""
    import torch

    reference = keep.against.rows(rows) if keep.against else None
    columns: dict[str, list[torch.Tensor]] = {}
    start = width = 0
    for block in blocks:  # (tokens, vocabulary), float32, ours to overwrite
        end = start + len(block)
        taken = {"logprob": block.gather(1, targets[start:end, None])}
        columns.setdefault("top1", []).append(most_likely(block))
        if keep.top:
            taken["top_logprob"], top = block.topk(min(TOP_K, block.shape[-1]), dim=-1)
            columns.setdefault("top_ids", []).append(top)
        if keep.against is not None and reference is not None:
            wanted = torch.from_numpy(keep.against.ids[reference[start:end]]).long()
            # rows that pad the baseline's vocabulary may be gone from the subject's
            wanted = wanted.clamp_(max=block.shape[1] - 1).to(block.device)
            taken["at_top"] = block.gather(1, wanted)
            width = block.shape[1]
        largest = block.amax(dim=-1, keepdim=True)
        normalizer = block.sub_(largest).exp_().sum(dim=-1, keepdim=True).log_() + largest
        for name, values in taken.items():
            columns.setdefault(name, []).append(values - normalizer)
        start = end
    arrays = {name: torch.cat(parts).cpu().numpy() for name, parts in columns.items()}
    arrays["logprob"] = arrays["logprob"][:, 0]
    if keep.against is not None and reference is not None:
        # both sides in the stored precision, so that equal distributions differ by exactly 0
        mine = arrays.pop("at_top").astype(np.float16)
        base = keep.against.logprob[reference]
        gone = keep.against.ids[reference] >= width
        if gone.any():  # what the baseline gave them is part of the rest
            base, mine = (np.where(gone, NEVER, side).astype(np.float16) for side in (base, mine))
        arrays["kl"] = truncated_kl(base, mine)
    return arrays


def _by_window(arrays: dict[str, NDArray[Any]], rows: list[int], counts: list[int]) -> ArmResult:
    """Cut columns (tokens of all rows, ...) at the windows."""
    result = ArmResult()
    for name, column in arrays.items():
        kind = np.int32 if name in ("top1", "top_ids") else np.float32
        parts = np.split(column.astype(kind), np.cumsum(counts)[:-1])
        getattr(result, name).update(zip(rows, parts, strict=True))
    losses = {i: -float(lp.astype(np.float64).sum()) for i, lp in result.logprob.items()}
    result.nll_sum.update(losses)
    return result


def merge(results: Iterable[ArmResult]) -> ArmResult:
    """Batches of one arm as one result."""
    whole = ArmResult()
    for result in results:
        for name in ArmResult.__dataclass_fields__:
            getattr(whole, name).update(getattr(result, name))
    return whole


def _blocks(chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Cut chunks of logits into float32 blocks that are copies."""
    import torch

    for chunk in chunks:
        rows = rows_within(BLOCK_BYTES, chunk.device, 4 * chunk.shape[-1])
        for start in range(0, len(chunk), rows):
            yield chunk[start : start + rows].to(torch.float32, copy=True)


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """Most likely token of each row: of equal ones the lowest id, for baseline and subject alike.

    Logits in bfloat16 have eight bits, so that a few of a hundred rows have two best tokens. A
    second way to pick one of them (``topk`` promises no order) would report tokens of unchanged
    weights as changed. NumPy's is several times faster on a CPU.

    Args:
        logits: (tokens, vocabulary).

    Returns:
        (tokens,) ids.
    """
    import torch

    if logits.device.type == "cpu":
        return torch.from_numpy(np.argmax(logits.numpy(), axis=1))
    return logits.argmax(dim=-1)
