"""Rotations, by which outliers are spread before rounding (QuaRot, arXiv 2404.00456; SpinQuant).

Value heads: per head v becomes Q v, and the output projection o becomes o Q'. Stream: with the
norms fused every map reads x Q' and writes Q y, and an RMSNorm without weights commutes with Q. The
head reads the rotated stream too and takes over the last norm: with D that norm's weights its rows
become e D Q' where those of the embedding are e Q'. One matrix cannot be both, so a head that was
the embedding is stored as a matrix of its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.edits.blocks import Loss, transform_rows
from invarlock.edits.kind import Limits
from invarlock.edits.rewrite import READERS, WRITERS, Block, Rewrite, Rewriter, fuse_norm
from invarlock.edits.stream import CheckpointChange, NewTensor, rewritten_matrices, tensor_seed
from invarlock.errors import InputError
from invarlock.roles import architecture_of, is_tied, is_token_table
from invarlock.wiring import wiring_of

if TYPE_CHECKING:
    import torch

HEADS, STREAM = "heads", "stream"


@dataclass(frozen=True)
class Rotation(Rewrite):
    """Value heads, or the residual stream, in another orthonormal basis: the function stays.

    ``heads``: each value head rotated and the output projection rotated back. ``stream``: norms
    fused and the stream rotated (QuaRot); a head that was the embedding becomes one of its own.
    """

    edit_type: ClassVar[str] = "rotation"
    basis: Annotated[str, Limits("what is rotated", words=(HEADS, STREAM))]

    def parts(self) -> tuple[str, ...]:
        if self.basis == HEADS:
            return ("v", "o")
        return ("norm", "q", "k", "v", "o", "gate", "up", "down", "router")

    def unsuited(self, config: Mapping[str, Any]) -> str:
        wiring = wiring_of(config)
        if self.basis == STREAM and wiring is not None and wiring.layer_norm:
            return "a stream behind LayerNorms cannot be rotated, its heads can: rotation:heads"
        return super().unsuited(config)

    def rewriter(self, baseline: Checkpoint, seed: int) -> Rewriter:
        if self.basis == HEADS:
            return _turn_heads
        return partial(_turn_stream, _of_stream(baseline, seed))

    def change(self, baseline: Checkpoint, seed: int, loss: Loss) -> CheckpointChange:
        change = super().change(baseline, seed, loss)
        if self.basis == HEADS:
            return change
        embedding, last_norm, head = _tables(baseline)
        back = _of_stream(baseline, seed).T.contiguous()
        scale = baseline.load(last_norm.name).float()

        def rows(info: TensorInfo, turn: _Turn, cost: Loss) -> NewTensor:
            return rewritten_matrices(
                baseline, info, lambda w: transform_rows(w, lambda r, _: turn(r)), cost
            )

        new = {
            embedding.name: rows(embedding, lambda r: r @ back, loss),
            last_norm.name: rows(last_norm, lambda r: r.new_ones(r.shape), loss),
        }
        known = architecture_of(baseline.config)
        assert known is not None
        tied = is_tied(baseline.config) or head is None
        source, of_head = embedding if tied or head is None else head, Loss() if tied else loss
        made = rows(source, lambda r: (r * scale) @ back, of_head)
        added = {} if head else {known.head: (embedding.file, made)}
        return replace(
            change,
            replaced={**change.replaced, **new, **({head.name: made} if head else {})},
            added=added,
            config={**baseline.config, "tie_word_embeddings": False} if tied else None,
        )


_Turn = Callable[["torch.Tensor"], "torch.Tensor"]  # of rows


def _tables(baseline: Checkpoint) -> tuple[TensorInfo, TensorInfo, TensorInfo | None]:
    """Embedding, last norm, and the head that is stored, if one is.

    Raises:
        InputError: the embedding or the norm is missing.
    """
    known = architecture_of(baseline.config)
    assert known is not None
    tables = [i for n, i in baseline.tensors.items() if is_token_table(n, baseline.config)]
    norms = [i for n, i in baseline.tensors.items() if re.fullmatch(known.last_norm, n)]
    if len(tables) != 1 or len(norms) != 1:
        raise InputError(
            "the stream cannot be rotated",
            where=str(baseline.folder),
            expected="one embedding of tokens, and one norm before the head",
            found=f"{len(tables)} and {len(norms)}",
        )
    return tables[0], norms[0], baseline.tensors.get(known.head)


def _of_stream(baseline: Checkpoint, seed: int) -> torch.Tensor:
    """Q, (channels, channels) float32."""
    return _rotation(_tables(baseline)[0].shape[1], tensor_seed(seed, STREAM))


@functools.lru_cache(maxsize=1)
def _rotation(width: int, seed: int) -> torch.Tensor:
    """A drawn orthonormal matrix, float32."""
    import torch

    return _drawn(width, torch.Generator().manual_seed(seed))


def _drawn(width: int, random: torch.Generator) -> torch.Tensor:
    import torch

    drawn = torch.randn(width, width, generator=random, dtype=torch.float64)
    turn: torch.Tensor = torch.linalg.qr(drawn).Q.float()
    return turn


def _turn_heads(block: Block, random: torch.Generator) -> None:
    """Each value head in a basis of its own, undone where the output projection reads it."""
    import torch

    heads, groups, width = block.heads
    turn = torch.stack([_drawn(width, random) for _ in range(groups)])
    for weight in block.weights("v"):
        values = weight.view(groups, width, -1)
        values.copy_(turn @ values)
    for bias in block.biases("v"):
        rows = bias.view(groups, width)
        rows.copy_((turn @ rows[..., None])[..., 0])
    back = turn.mT.repeat_interleave(heads // groups, dim=0)
    for weight in block.weights("o"):
        columns = weight.view(-1, heads, width)
        columns.copy_(torch.einsum("ohd,hde->ohe", columns, back))


def _turn_stream(turn: torch.Tensor, block: Block, random: torch.Generator) -> None:
    """The norms fused, what reads and what writes in the other basis."""
    for side, readers in READERS.items():
        fuse_norm(block, side)
        for weight in block.weights(*readers):
            weight.copy_(weight @ turn.T)
    for weight in block.weights(*WRITERS.values()):
        weight.copy_(turn @ weight)
    for bias in block.biases(*WRITERS.values()):
        bias.copy_(turn @ bias)
