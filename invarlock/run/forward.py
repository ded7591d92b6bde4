"""One forward pass over the windows: log-losses per window, in bounded memory.

Windows of an arm have one length, so batches are filled up to a token budget without padding.
Hidden states go through the output head in chunks of ``CHUNK_BYTES`` of logits, which are turned
into float32 block by block: peak memory is the model plus one chunk, not tokens x vocabulary.
That the head alone gives what the whole model gives is checked on the first window, not assumed
(some architectures scale or cap their logits); where it does not, whole batches of logits are
used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from invarlock.errors import MeasurementError

if TYPE_CHECKING:
    import torch

    Logits = Callable[[torch.Tensor], Iterator[torch.Tensor]]

CHUNK_BYTES = 24 << 20  # bytes of logits that leave the output head at a time
# Float32 logits worked on at a time: on a CPU they should stay in the cache, where the
# passes for maximum, exponential and sum are several times faster than from memory.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
TOP_K = 64  # the baseline's most likely tokens kept per position


@dataclass
class ArmResult:
    """What a pass recorded on one arm."""

    nll_sum: list[float] = field(default_factory=list)  # nats per window
    n_tokens: list[int] = field(default_factory=list)  # predicted tokens per window
    top1: list[np.ndarray] = field(default_factory=list)  # most likely token, per position
    logprob: list[np.ndarray] = field(default_factory=list)  # of the correct token, nats
    top_ids: list[np.ndarray] = field(default_factory=list)  # (positions, TOP_K)
    top_logprob: list[np.ndarray] = field(default_factory=list)  # (positions, TOP_K), nats


def batches(windows: Sequence[Sequence[int]], token_budget: int) -> Iterator[range]:
    """Consecutive windows whose tokens fit the budget, at least one at a time."""
    size = max(1, token_budget // max(1, len(windows[0]))) if windows else 1
    for start in range(0, len(windows), size):
        yield range(start, min(start + size, len(windows)))


def logits_function(model: Any, probe: torch.Tensor) -> Logits:
    """How to get logits from token ids (batch, T): chunks of (tokens, vocabulary).

    Chunks cover positions 0..T-2 of each row, rows in order. ``probe`` (1, T) is a short input
    on which head and whole model are compared.
    """
    import torch

    head = model.get_output_embeddings()
    body: Any = getattr(model, model.base_model_prefix, None)

    def by_chunks(ids: torch.Tensor) -> Iterator[torch.Tensor]:
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        flat = hidden.reshape(-1, hidden.shape[-1])
        step = max(1, CHUNK_BYTES // (flat.element_size() * head.weight.shape[0]))
        for start in range(0, flat.shape[0], step):
            yield head(flat[start : start + step])

    def whole(ids: torch.Tensor) -> Iterator[torch.Tensor]:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        yield logits.reshape(-1, logits.shape[-1])

    if head is None or body is None or body is model:
        return whole
    with torch.inference_mode():
        from_head = head(body(input_ids=probe, use_cache=False).last_hidden_state)
        from_model = model(input_ids=probe, use_cache=False).logits
    return by_chunks if torch.equal(from_head, from_model) else whole


def run_arm(
    logits: Logits,
    windows: Sequence[Sequence[int]],
    *,
    device: str,
    token_budget: int,
    keep_top: bool,
) -> ArmResult:
    """Run all windows of an arm.

    Args:
        logits: from :func:`logits_function`.
        windows: token ids, all of one length T >= 2; T - 1 tokens of each are predicted.
        device: where the model is.
        token_budget: tokens per batch.
        keep_top: also keep the ``TOP_K`` most likely tokens per position (baseline, final arm).

    Raises:
        MeasurementError: windows of different lengths.
    """
    import torch

    lengths = {len(window) for window in windows}
    if len(lengths) > 1:
        raise MeasurementError(f"windows of different lengths: {sorted(lengths)}")
    result = ArmResult()
    with torch.inference_mode():
        for rows in batches(windows, token_budget):
            ids = torch.tensor([list(windows[i]) for i in rows], device=device)
            _record(result, logits, ids, keep_top)
    return result


def _record(result: ArmResult, logits: Logits, ids: torch.Tensor, keep_top: bool) -> None:
    """Add one batch (rows, T) to the result."""
    import torch

    targets = ids[:, 1:].reshape(-1)
    logprob, top1, top_ids, top_logprob = [], [], [], []
    start = 0
    for block in _blocks(logits(ids)):  # (tokens, vocabulary), float32, ours to overwrite
        wanted = targets[start : start + len(block), None]
        start += len(block)
        correct = block.gather(1, wanted)
        top1.append(_argmax(block))
        if keep_top:
            top_values, top_index = block.topk(min(TOP_K, block.shape[-1]), dim=-1)
        largest = block.amax(dim=-1, keepdim=True)
        normalizer = block.sub_(largest).exp_().sum(dim=-1, keepdim=True).log_() + largest
        logprob.append((correct - normalizer)[:, 0])
        if keep_top:
            top_ids.append(top_index.cpu())
            top_logprob.append((top_values - normalizer).cpu())
    shape = (ids.shape[0], ids.shape[1] - 1)
    lp = torch.cat(logprob).cpu().reshape(shape)
    t1 = torch.cat(top1).cpu().reshape(shape)
    result.nll_sum += [-float(row.double().sum()) for row in lp]
    result.n_tokens += [shape[1]] * shape[0]
    result.top1 += [row.numpy().astype(np.int32) for row in t1]
    result.logprob += [row.numpy() for row in lp]
    if keep_top:
        k = top_ids[0].shape[-1]
        result.top_ids += list(torch.cat(top_ids).reshape(*shape, k).numpy().astype(np.int32))
        result.top_logprob += list(torch.cat(top_logprob).reshape(*shape, k).numpy())


def _blocks(chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Cut chunks of logits into float32 blocks that are copies."""
    import torch

    for chunk in chunks:
        budget = BLOCK_BYTES.get(chunk.device.type, BLOCK_BYTES["cuda"])
        rows = max(1, budget // (4 * chunk.shape[-1]))
        for start in range(0, len(chunk), rows):
            yield chunk[start : start + rows].to(torch.float32, copy=True)


def _argmax(block: torch.Tensor) -> torch.Tensor:
    """Most likely token per row, the first of equals; NumPy's is several times faster on a CPU."""
    import torch

    if block.device.type == "cpu":
        return torch.from_numpy(np.argmax(block.numpy(), axis=1))
    return block.argmax(dim=-1)
