"""Edits that rewrite the tensors of a block together and leave the function alone.

A scale between a norm and the maps behind it, a rotation of a head that its output undoes: of such
an edit each tensor changes, and the model does not. A :class:`Block` holds the tensors of one block
in float32 and shows them as maps; what is done to those is written back in the stored dtype. One
block is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from invarlock.checkpoints import Checkpoint
from invarlock.edits.blocks import Loss, finite_norm, squared_norm
from invarlock.edits.kind import EditSpec
from invarlock.edits.stream import CheckpointChange, NewTensor, tensor_seed
from invarlock.errors import ConfigError, InputError
from invarlock.roles import is_transposed, layer_of, model_type_of
from invarlock.wiring import (
    EXPERT,
    FUSED_EXPERTS,
    ROUTER,
    WIRINGS,
    Heads,
    Wiring,
    heads_of,
    scales_freely,
    wiring_of,
)

if TYPE_CHECKING:
    import torch

ATTN, FFN = "attn", "ffn"
READERS = {ATTN: ("q", "k", "v"), FFN: ("gate", "up", "router")}  # what stands behind each norm
WRITERS = {ATTN: "o", FFN: "down"}  # what is added to the stream
_NUMBERS = {"1": "gate", "2": "down", "3": "up"}  # of the matrices of an expert


@dataclass(frozen=True)
class Norm:
    """The norm in front of attention or of the feed-forward part; float32, to be changed in place.

    ``bias`` is a LayerNorm's.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None


class Block:
    """The tensors of a block as float32 copies, and views of them that are changed in place.

    Views of weights are (outputs, inputs), or (experts, outputs, inputs), whatever is stored.
    """

    def __init__(self, baseline: Checkpoint, prefix: str, names: Sequence[str]) -> None:
        wiring = wiring_of(baseline.config)
        assert wiring is not None
        self.wiring, self.prefix, self.config = wiring, prefix, baseline.config
        self.tensors = {n.removeprefix(prefix): baseline.load(n).float() for n in names}
        self._weights: dict[str, list[torch.Tensor]] = {}
        self._biases: dict[str, list[torch.Tensor]] = {}
        for name, tensor in self.tensors.items():
            found = parts_of(wiring, name)
            if not found:
                continue
            view = tensor.mT if is_transposed(prefix + name, baseline.config) else tensor
            kept = self._biases if name.endswith(".bias") else self._weights
            # q, k and v lie side by side, gate and up within each expert
            views = view.chunk(len(found), dim=1 if view.dim() == 3 else 0)
            for part, one in zip(found, views, strict=True):
                kept.setdefault(part, []).append(one)
        self._check(baseline)

    def _check(self, baseline: Checkpoint) -> None:
        """Refuse a block that is not wired as its architecture is."""
        for side, readers in READERS.items():
            width = self.norm(side).weight.numel()
            needed = ("q", "k", "v", "o") if side == ATTN else ("up", "down")
            lacking = [part for part in needed if not self.weights(part)]
            if lacking or any(w.shape[-1] != width for w in self.weights(*readers)):
                raise InputError(
                    f"the tensors of {self.prefix} are not those of its architecture",
                    where=str(baseline.folder),
                    expected=f"maps of {width} inputs behind each norm, and what they feed",
                    found=f"none for {lacking[0]}" if lacking else "another number of inputs",
                )

    @property
    def heads(self) -> Heads:
        """Heads of queries, heads of keys and values, and the width of each.

        Raises:
            InputError: they do not follow from configuration and shapes.
        """
        inputs, values = self.weights("o")[0].shape[1], self.weights("v")[0].shape[0]
        found = heads_of(self.config, inputs, values)
        if found is None:
            raise InputError(
                f"the heads of {self.prefix} do not follow from its shapes",
                expected=f"whole heads in {inputs} inputs of {self.wiring.out}",
                found=f"{values} rows of values",
            )
        return found

    def weights(self, *parts: str) -> list[torch.Tensor]:
        """The maps of these parts that the block has: q, k, v, o, gate, up, down, router."""
        return [view for part in parts for view in self._weights.get(part, ())]

    def biases(self, *parts: str) -> list[torch.Tensor]:
        """The biases of these parts, of as many outputs each."""
        return [view for part in parts for view in self._biases.get(part, ())]

    def norm(self, which: str) -> Norm:
        """The norm of ``ATTN`` or ``FFN``.

        Raises:
            InputError: the block has none of that name.
        """
        name = self.wiring.attn_norm if which == ATTN else self.wiring.ffn_norm
        weight = self.tensors.get(f"{name}.weight")
        if weight is None:
            raise InputError(f"the checkpoint has no {self.prefix}{name}.weight")
        return Norm(weight, self.tensors.get(f"{name}.bias"))

    def scales_freely(self) -> bool:
        """Whether a neuron's input may be scaled."""
        return scales_freely(self.config, bool(self._weights.get("gate")))


def parts_of(wiring: Wiring, name: str) -> tuple[str, ...]:
    """The parts that a tensor of a block holds, in order; none for a norm."""
    stem = name.rpartition(".")[0]
    if stem in wiring.query:
        return ("q", "k", "v") if len(wiring.query) == 1 else ("qkv"[wiring.query.index(stem)],)
    if stem == wiring.out:
        return ("o",)
    if stem in wiring.ffn:
        return (("gate", "up", "down")[-len(wiring.ffn) :][wiring.ffn.index(stem)],)
    if ROUTER.fullmatch(name):
        return ("router",)
    if one := EXPERT.fullmatch(name):
        return (_NUMBERS[one[3]],)
    one = FUSED_EXPERTS.fullmatch(name)
    return () if one is None else ("down",) if one[2] == "down" else ("gate", "up")


Rewriter: TypeAlias = "Callable[[Block, torch.Generator], None]"


@dataclass(frozen=True)
class Rewrite(EditSpec):
    """Base of the edits that leave the function alone: block by block, tensors together."""

    storage_format: ClassVar[str] = "dense_float"

    def parts(self) -> tuple[str, ...]:
        """What is rewritten: parts of a block, and ``norm``."""
        raise NotImplementedError

    def rewriter(self, baseline: Checkpoint, seed: int) -> Rewriter:
        """What changes the tensors of one block in place; draws come from its generator alone."""
        raise NotImplementedError

    def unsuited(self, config: Mapping[str, Any]) -> str:
        if wiring_of(config) is not None:
            return ""
        kind, known = model_type_of(config), ", ".join(WIRINGS)
        return (
            f"{self.edit_type} rewrites tensors together, and which belong together is not known"
            f" of model_type {kind!r} (known: {known})"
        )

    def change(self, baseline: Checkpoint, seed: int, loss: Loss) -> CheckpointChange:
        problem = self.unsuited(baseline.config)
        if problem:
            raise ConfigError(problem, where=str(baseline.folder / "config.json"))
        replaced: dict[str, NewTensor] = {}
        rewrite = self.rewriter(baseline, seed)
        for prefix, names in self._blocks(baseline).items():
            replaced |= self._rewritten(
                baseline, prefix, names, partial(_made, rewrite, seed), loss
            )
        if not replaced:
            raise ConfigError(
                f"the scope {self.reach} matches no block",
                where=str(baseline.folder),
                expected="attn, ffn or all, of layers that the checkpoint has",
            )
        return CheckpointChange(replaced)

    def _blocks(self, baseline: Checkpoint) -> dict[str, list[str]]:
        """The tensors of each block that the scope means, by the block's prefix."""
        wiring = wiring_of(baseline.config)
        assert wiring is not None
        found: dict[str, list[str]] = {}
        for name, info in sorted(baseline.tensors.items()):
            block = re.match(wiring.block, name)
            if block is None or not info.dtype.startswith(("F", "BF")):
                continue
            if self.reach is None or self.reach.means_layer(layer_of(name)):
                found.setdefault(block.group(), []).append(name)
        return found

    def sides(self) -> tuple[str, ...]:
        """Attention, the feed-forward part, or both, as the scope says."""
        base = self.reach.base if self.reach else "all"
        return {"all": (ATTN, FFN), ATTN: (ATTN,), FFN: (FFN,)}.get(base, ())

    def _rewritten(
        self,
        baseline: Checkpoint,
        prefix: str,
        names: Sequence[str],
        make: Callable[[Block], None],
        loss: Loss,
    ) -> dict[str, NewTensor]:
        """The tensors of a block that change; it is read and rewritten when they are written."""
        wiring = wiring_of(baseline.config)
        assert wiring is not None
        changed = [n for n in names if self._touches(wiring, n.removeprefix(prefix))]
        waiting = _Waiting(baseline, prefix, names, changed, make)

        def chunks(name: str) -> Iterator[memoryview]:
            import torch

            stored = baseline.load(name)
            new = waiting.take(name).to(stored.dtype).contiguous()
            loss.add(cost(stored, new, name, baseline))
            yield new.view(-1).view(torch.uint8).numpy().data

        infos = {name: baseline.tensors[name] for name in changed}
        return {n: NewTensor(i.dtype, i.shape, partial(chunks, n)) for n, i in infos.items()}

    def _touches(self, wiring: Wiring, name: str) -> bool:
        """Whether the edit changes a tensor of a block."""
        sides = self.sides()
        stem = name.rpartition(".")[0]
        if stem in (wiring.attn_norm, wiring.ffn_norm):
            side = ATTN if stem == wiring.attn_norm else FFN
            return "norm" in self.parts() and side in sides
        of_sides = {part for side in sides for part in (*READERS[side], WRITERS[side])}
        return bool({*parts_of(wiring, name)} & {*self.parts()} & of_sides)


def _made(rewrite: Rewriter, seed: int, block: Block) -> None:
    """Rewrite a block with draws of its own, whatever the order of the blocks."""
    import torch

    rewrite(block, torch.Generator().manual_seed(tensor_seed(seed, block.prefix)))


class _Waiting:
    """A rewritten block whose tensors are fetched one by one; forgotten when all were."""

    def __init__(
        self,
        baseline: Checkpoint,
        prefix: str,
        names: Sequence[str],
        changed: Sequence[str],
        make: Callable[[Block], None],
    ) -> None:
        self.baseline, self.prefix, self.names = baseline, prefix, names
        self.changed, self.make = changed, make
        self.left: dict[str, torch.Tensor] = {}

    def take(self, name: str) -> torch.Tensor:
        """The new content of a tensor, float32; it is made again where it was taken before."""
        if name not in self.left:
            block = Block(self.baseline, self.prefix, self.names)
            self.make(block)
            self.left = {n: block.tensors[n.removeprefix(self.prefix)] for n in self.changed}
        return self.left.pop(name)


def cost(old: torch.Tensor, new: torch.Tensor, name: str, baseline: Checkpoint) -> Loss:
    """What a tensor lost or gained by being rewritten.

    Raises:
        InputError: the old or the new one holds NaN or infinity.
    """
    try:
        before = old.float().reshape(-1, old.shape[-1])
        loss = Loss(norm=finite_norm(before))
        finite_norm(new.float().reshape(-1, new.shape[-1]))
        loss.error = squared_norm(new.float().reshape(-1, new.shape[-1]) - before)
    except InputError as error:
        raise InputError(
            f"tensor {name}: {error.what}", where=str(baseline.folder), expected=error.expected
        ) from error
    return loss


def fuse_norm(block: Block, which: str) -> None:
    """The weight and bias of a norm taken over by the maps behind it: the norm keeps none.

    Raises:
        InputError: the norm has a bias, and a map behind it has none to take it over.
    """
    norm, readers = block.norm(which), READERS[which]
    if norm.bias is not None:
        weights, biases = block.weights(*readers), block.biases(*readers)
        if len(weights) != len(biases):
            raise InputError(f"the norm of {block.prefix} has a bias, and a map behind it has none")
        for weight, bias in zip(weights, biases, strict=True):
            bias.add_(weight @ norm.bias)
        norm.bias.zero_()
    for weight in block.weights(*readers):
        weight.mul_(norm.weight)
    norm.weight.fill_(1.0)
