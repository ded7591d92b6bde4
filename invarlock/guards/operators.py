"""Operators of a causal model: products of weights that every parametrization of it shares.

A function has many sets of weights. What may differ between them: a scale between a norm and the
linear maps behind it; a scale between up and down rows of a gated block; any invertible change of
the basis of a value head, undone in the output projection; a scale and a turn of each rotary pair
of a query head, undone in its key head; the order of neurons, heads and experts; an orthogonal
change of the basis of the residual stream, and its scale. With D the diagonal of the norm weights
in front of a map and c the size of the stream, singular values of these products stay where they
were (proof: ``docs/decisions/0041-operators.md``):

* ``qk``: per query head D Wq' Wk D (at rotary distance 0); with a norm on queries and keys, whose
  weights stand in the middle, each factor counts by its direction only;
* ``vo``: per query head Wo Wv D / c;
* ``up``: the rows of Wup D at unit length; ``down``: Wdown / c, each column times the length of its
  row of Wup D; ``gate``: Wgate D. Without a gate ``up`` is Wup D and ``down`` Wdown / c, unless the
  activation is ReLU, which lets a positive scale through;
* ``router``: its rows times D, without their mean, which softmax does not see;
* ``table``: an embedding or position table without its mean row, over c; ``head``: the head
  times the last D, without its mean row, which softmax does not see.

c is the root mean square length of the rows of the token table, without their mean. Behind a
LayerNorm the stream has no component along (1, ..., 1): it is projected out of every map. A matrix
that belongs to none of these is an operator of its own, ``matrix``, whose rank alone is shared.

Heads and experts are the members of one operator, since their order is free. The products of the
heads are never formed: with QR, A'B has the singular values of the small R_A R_B'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from invarlock.guards import weight_stats
from invarlock.guards.weight_stats import WeightStats
from invarlock.roles import (
    Role,
    architecture_of,
    family_of,
    is_token_table,
    is_transposed,
    layer_of,
    role_of,
)
from invarlock.wiring import (
    EXPERT,
    FUSED_EXPERTS,
    ROUTER,
    heads_of,
    scales_freely,
    wiring_of,
)

if TYPE_CHECKING:
    import torch

    from invarlock.checkpoints import Checkpoint

MATRIX = "matrix"  # the kind of an operator that is one matrix as it was stored
NORMS = ("norm.weight", "ln_1.weight", "ln_2.weight")  # ends of the names of a block's norms
# A table as narrow as this is measured by the product with itself, one pass over its rows in
# blocks; of a wider one that product costs more than the passes of the Lanczos process.
GRAM_COLUMNS = 1024
WIDENED_ELEMENTS = 1 << 25  # of a block that is kept in float32: 134 MB
BLOCK_ELEMENTS = 1 << 22  # elements of a block in float32: 16 MB

CONTRACT = {
    "qk": "D Wq' Wk D per query head",
    "vo": "Wo Wv D / c per query head",
    "ffn": "Wgate D; rows of Wup D at unit length; Wdown / c with their lengths",
    "router": "rows times D, centred",
    "tables": "rows centred; the embedding over c, the head times the last D",
    "c": "root mean square length of the token table's centred rows",
    "layer_norm": "(1, ..., 1) projected out",
    "heads": "singular values of R_A R_B', QR of each factor, float32",
}


class Module(NamedTuple):
    """A weight matrix with its family and its statistics."""

    name: str
    family: str
    layer: int | None
    stats: WeightStats


class OperatorStats(NamedTuple):
    """Statistics of an operator over its members; all are one member's where there is one."""

    sigma_max: float  # largest singular value of any member
    sigma_mean: float  # geometric mean of the members' largest singular values
    sigma_min: float  # largest singular value of the weakest member
    stable_rank: float  # lowest of the members': Frobenius norm^2 / sigma^2

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the statistics, in table order."""
        return cls._fields


class Operator(NamedTuple):
    """A product of weights with its family and its statistics."""

    name: str  # of the block or matrix, ":" and the kind
    family: str
    layer: int | None
    kind: str
    stats: OperatorStats


class Weights(NamedTuple):
    """What is measured of a checkpoint's weights."""

    modules: list[Module]
    operators: list[Operator]


class Known(NamedTuple):
    """What was measured of a baseline, in the digits of its report."""

    checkpoint: Checkpoint
    weights: Weights


def behind_layer_norm(config: Mapping[str, Any]) -> bool:
    """Whether all that reads the stream stands behind a LayerNorm, which takes its mean away."""
    wiring = wiring_of(config)
    return wiring is not None and wiring.layer_norm


def measure_weights(checkpoint: Checkpoint, device: str, known: Known | None = None) -> Weights:
    """Statistics of the weights as they were stored, and of the operators they make.

    Read from the checkpoint and not from the loaded model: names are the file's, and values
    are those that were stored, whatever dtype the model runs in. One block's tensors are in memory
    at a time.

    Args:
        checkpoint: whose weights.
        device: where it is computed.
        known: of blocks whose bytes are the baseline's, the numbers are taken from there. They are
            equal once recorded, if the device is one.
    """
    reader = _Reader(checkpoint, device)
    modules: list[Module] = []
    operators: list[Operator] = []
    blocks = None
    if known is not None and (blocks := _changed_blocks(known.checkpoint, checkpoint)):
        modules = [m for m in known.weights.modules if not m.name.startswith(blocks)]
        operators = [o for o in known.weights.operators if not o.name.startswith(blocks)]
    for group in reader.groups():
        if blocks and not group[0].startswith(blocks):
            continue
        tensors = reader.read(group)
        matrices = {name: w for name, w in tensors.items() if reader.is_matrix(name)}
        measured = [m for name, w in matrices.items() for m in reader.modules(name, w)]
        used, found = reader.operators(tensors)
        modules += measured
        operators += found
        operators += [
            Operator(m.name, m.family, m.layer, MATRIX, _alone(m.stats))
            for m in measured
            if m.name.partition("[")[0] not in used
        ]
    return Weights(sorted(modules, key=lambda m: m.name), sorted(operators, key=lambda o: o.name))


def _changed_blocks(baseline: Checkpoint, subject: Checkpoint) -> tuple[str, ...]:
    """What stands before the names of each block that differs; empty where that is not all that
    differs, or where nothing does: a subject without an edit is measured whole, as a control."""
    wiring = wiring_of(baseline.config)
    if wiring is None or baseline.config != subject.config or baseline.packed or subject.packed:
        return ()
    found = [re.match(wiring.block, name) for name in subject.changed_tensors(baseline) or ()]
    return tuple({block.group() for block in found if block}) if all(found) else ()


def _alone(stats: WeightStats) -> OperatorStats:
    return OperatorStats(stats.sigma_max, stats.sigma_max, stats.sigma_max, stats.stable_rank)


class _Reader:
    """One checkpoint, its sizes, and the size of its residual stream."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.checkpoint, self.device = checkpoint, device
        self._grams: dict[str, _Gram] = {}  # of narrow tables, which are read twice
        self.config: Mapping[str, Any] = checkpoint.config
        self.wiring = wiring_of(self.config)
        self._layer_norm = behind_layer_norm(self.config)

    def is_matrix(self, name: str) -> bool:
        """Whether a tensor is a matrix, or one for each expert, of floating point."""
        info = self.checkpoint.tensors[name]
        return len(info.shape) in (2, 3) and info.dtype.startswith(("F", "BF"))

    def groups(self) -> Iterator[list[str]]:
        """The tensors that are read together: those of a block, or one."""
        pattern = re.compile(self.wiring.block if self.wiring else r"(?!)")
        groups: dict[str, list[str]] = {}
        for name in sorted(self.checkpoint.tensors):
            found = pattern.match(name)
            norm = found is not None and name.endswith(NORMS)
            if self.is_matrix(name) or norm:
                groups.setdefault(found.group() if found else name, []).append(name)
        yield from (groups[key] for key in sorted(groups))

    def read(self, group: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors of a group; of a small block in float32, since each is looked at twice."""
        tensors = {name: self.load(name) for name in group}
        small = sum(w.numel() for w in tensors.values()) <= WIDENED_ELEMENTS
        if len(group) == 1 or not small:
            return tensors
        return {name: w.float() for name, w in tensors.items()}

    def load(self, name: str) -> torch.Tensor:
        """A tensor on the device, (outputs, inputs)."""
        weight = self.checkpoint.load(name).to(self.device)
        return weight.transpose(-1, -2) if is_transposed(name, self.config) else weight

    def modules(self, name: str, weight: torch.Tensor) -> list[Module]:
        """Statistics of a matrix, or of every expert of a 3-D one."""
        family, layer = family_of(name, self.config), layer_of(name)
        if weight.dim() == 2:
            rows = self._rows(name, weight)
            stats = rows.described() if rows else weight_stats.measure(weight)
            return [Module(name, family, layer, stats)]
        return [
            Module(f"{name}[{i}]", family, layer, weight_stats.measure(w))
            for i, w in enumerate(weight)
        ]

    @cached_property
    def unit(self) -> float:
        """The size c of the residual stream; 1 without a token table."""
        if self.wiring is None:
            return 1.0
        names = [n for n in self.checkpoint.tensors if is_token_table(n, self.config)]
        if len(names) != 1 or not self.is_matrix(names[0]):
            return 1.0
        weight = self.load(names[0])
        rows = self._rows(names[0], weight) or _Rows(weight)
        return math.sqrt(rows.square(self._layer_norm) / len(weight)) or 1.0

    def _rows(self, name: str, weight: torch.Tensor) -> _Rows | None:
        """A table with the product of its rows, which is made once; None for another matrix."""
        if self.wiring is None or role_of(name, self.config) is not Role.EMBED:
            return None
        rows = _Rows(weight, self._grams.get(name))
        if rows.gram is None:
            return None
        self._grams[name] = rows.gram
        return rows

    # --- the parts of an operator ------------------------------------------------------------

    @staticmethod
    def _centred(rows: torch.Tensor) -> torch.Tensor:
        return rows - rows.mean(dim=0)

    def _stream(self, weight: torch.Tensor, axis: int) -> torch.Tensor:
        """Without what no map behind a LayerNorm sees; ``axis`` is that of the stream."""
        return weight - weight.mean(dim=axis, keepdim=True) if self._layer_norm else weight

    def _read(self, weight: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """A map (outputs, stream) with the norm in front of it."""
        w = weight.float()
        return self._stream(w if norm is None else w * norm.float(), axis=-1)

    def _written(self, weight: torch.Tensor) -> torch.Tensor:
        """A map (stream, inputs) in the unit of the stream."""
        return self._stream(weight.float(), axis=-2) / self.unit

    # --- the operators -----------------------------------------------------------------------

    def operators(self, tensors: Mapping[str, torch.Tensor]) -> tuple[set[str], list[Operator]]:
        """The operators of a group, and the names of the tensors that they are made of."""
        if self.wiring is None:
            return set(), []
        first = next(iter(tensors))
        block = re.match(self.wiring.block, first)
        if block is None:
            return self._tables(tensors)
        parts = {name.removeprefix(block.group()): w for name, w in tensors.items()}
        used: set[str] = set()
        found: list[Operator] = []
        for made in (self._attention(parts), self._feed_forward(parts), self._mixture(parts)):
            for names, stem, kind, stats in made:
                used |= {block.group() + name for name in names}
                at = block.group() + names[0]
                found.append(
                    Operator(f"{block.group()}{stem}:{kind}", family_of(at, self.config),
                             layer_of(at), kind, stats)
                )  # fmt: skip
        return used, found

    def _tables(self, tensors: Mapping[str, torch.Tensor]) -> tuple[set[str], list[Operator]]:
        """Embeddings and the head; a tied head is an operator of the embedding's tensor."""
        (name, weight), known = next(iter(tensors.items())), architecture_of(self.config)
        assert known is not None  # every wiring has a table of roles
        embedding = role_of(name, self.config) is Role.EMBED
        tied = is_token_table(name, self.config) and known.head not in self.checkpoint.tensors
        if not embedding and name != known.head:
            return set(), []
        rows, found = self._rows(name, weight) or _Rows(weight), []
        if embedding:
            sigma, square = rows.measured(None, self._layer_norm)
            measured = sigma / self.unit, square / self.unit**2
            found.append(self._table(name, "table", measured))
        if name == known.head or tied:
            pattern = known.last_norm
            norm = next((n for n in self.checkpoint.tensors if re.fullmatch(pattern, n)), None)
            scale = None if norm is None else self.checkpoint.load(norm).to(self.device)
            # under one name, wherever the head is stored
            found.append(self._table(known.head, "head", rows.measured(scale, self._layer_norm)))
        return {name}, found

    def _table(self, name: str, kind: str, measured: tuple[float, float]) -> Operator:
        family = family_of(name, self.config)
        return Operator(f"{name}:{kind}", family, None, kind, _members([measured]))

    def _attention(self, parts: Mapping[str, torch.Tensor]) -> Iterator[_Made]:
        wiring = self.wiring
        assert wiring is not None
        names = [f"{name}.weight" for name in (*wiring.query, wiring.out)]
        if not all(name in parts for name in names):
            return
        norm = parts.get(f"{wiring.attn_norm}.weight")
        *reading, out = (parts[name] for name in names)
        if len(reading) == 1:
            reading = list(reading[0].chunk(3))
        q, k, v = reading
        found = heads_of(self.config, out.shape[1], len(v))
        if found is None or len(q) != out.shape[1] or len(k) != len(v):
            return
        heads, groups, own = found
        shared = heads // groups  # query heads of a key head
        factors = [(r := self._read(w, norm)).reshape(-1, own, r.shape[1]) for w in (q, k, v)]
        for i, part in enumerate(("q_norm", "k_norm")):
            inner = parts.get(f"{wiring.out.partition('.')[0]}.{part}.weight")
            if inner is not None:  # the norm takes the scale of the head away and puts in its own
                size = _lengths(factors[i].flatten(1)).clamp_min(1e-30)[:, None, None]
                factors[i] = factors[i] / size * math.sqrt(own) * inner.float()[:, None]
        outs = self._written(out).reshape(-1, heads, own).permute(1, 2, 0)  # heads, own, stream
        small = [_triangular(f) for f in (*factors, outs)]
        keys, values = (t.repeat_interleave(shared, dim=0) for t in small[1:3])
        stem = wiring.out.partition(".")[0]
        made = (names[:-1] if len(names) > 2 else names[:1])[:2]
        yield made, stem, "qk", _products(small[0], keys)
        yield names[-1:] + names[-2:-1], stem, "vo", _products(small[3], values)

    def _feed_forward(self, parts: Mapping[str, torch.Tensor]) -> Iterator[_Made]:
        wiring = self.wiring
        assert wiring is not None
        names = [f"{name}.weight" for name in wiring.ffn]
        if not all(name in parts for name in names):
            return
        maps = [parts[name][None] for name in names]
        norm = parts.get(f"{wiring.ffn_norm}.weight")
        stem = wiring.ffn[0].partition(".")[0]
        gate = maps[0] if len(maps) == 3 else None
        for kind, stats in self._gated(gate, maps[-2], maps[-1], norm):
            position = {"gate": 0, "up": len(names) - 2, "down": len(names) - 1}[kind]
            yield [names[position]], stem, kind, stats

    def _mixture(self, parts: Mapping[str, torch.Tensor]) -> Iterator[_Made]:
        """Router and experts, whose members are the experts."""
        wiring = self.wiring
        assert wiring is not None
        norm = parts.get(f"{wiring.ffn_norm}.weight")
        for name, weight in parts.items():
            if router := ROUTER.fullmatch(name):
                centred = self._centred(self._read(weight, norm))
                yield [name], router[1], "router", _members([_measured(centred)])
        single = {m.groups(): name for name in parts if (m := EXPERT.fullmatch(name))}
        fused = {m.groups(): name for name in parts if (m := FUSED_EXPERTS.fullmatch(name))}
        for stem in sorted({key[0] for key in (*single, *fused)}):
            kinds = ("gate", "up", "down")
            names = {
                kind: [n for (s, _, w), n in sorted(single.items()) if (s, w) == (stem, number)]
                for kind, number in zip(kinds, "132", strict=True)
            }
            gate: _Maps
            up: _Maps
            down: _Maps
            if (stem, "gate_up") in fused and (stem, "down") in fused:
                both, last = fused[stem, "gate_up"], fused[stem, "down"]
                names = {"gate": [both], "up": [both], "down": [last]}
                gate, up, down = *parts[both].chunk(2, dim=1), parts[last]
                if parts[both].shape[2] != parts[last].shape[1]:
                    continue  # stored the other way round
            elif len({len(n) for n in names.values()}) == 1 and names["gate"]:
                gate, up, down = ([parts[n] for n in names[kind]] for kind in kinds)
            else:
                continue
            for kind, stats in self._gated(gate, up, down, norm):
                yield names[kind], stem, kind, stats

    def _gated(
        self,
        gate: _Maps | None,
        up: _Maps,
        down: _Maps,
        norm: torch.Tensor | None,
    ) -> Iterator[tuple[str, OperatorStats]]:
        """A feed-forward block; a map (outputs, inputs) for each member."""
        free = scales_freely(self.config, gate is not None)
        found: dict[str, list[tuple[float, float]]] = {}
        for member in range(len(up)):
            rows = self._read(up[member], norm)
            columns, unit = self._written(down[member]), 1.0
            if free:
                length = _lengths(rows)
                unit = weight_stats.unit_of(length)
                rows = rows / length.clamp_min(1e-30)[:, None]
                columns = columns * (length / unit)
            if gate is not None:
                found.setdefault("gate", []).append(_measured(self._read(gate[member], norm)))
            found.setdefault("up", []).append(_measured(rows))
            sigma, square = _measured(columns)
            found.setdefault("down", []).append((sigma * unit, square * unit**2))
        for kind, members in found.items():
            yield kind, _members(members)


# names of tensors, what stands before the kind in the operator's name, kind, statistics
_Made = tuple[Sequence[str], str, str, OperatorStats]
_Maps: TypeAlias = "Sequence[torch.Tensor] | torch.Tensor"  # of the members


class _Gram(NamedTuple):
    """What is left of a narrow table, float64."""

    mean: torch.Tensor  # (columns,), the mean row
    product: torch.Tensor  # (columns, columns), rows' rows without the mean row


class _Rows:
    """A table of many rows, one for each token or position, as a map without its mean row.

    Args:
        weight: (rows, columns).
        gram: of the same table, from an earlier look; of a narrow one it is made where it is None.
    """

    def __init__(self, weight: torch.Tensor, gram: _Gram | None = None) -> None:
        self.weight = weight
        narrow = weight.shape[1] <= GRAM_COLUMNS
        if gram is None and narrow and weight_stats.unit_of(weight) == 1.0:
            gram = self._product()
        self.gram = gram

    def described(self) -> WeightStats:
        """Statistics of a narrow table as it was stored, mean row and all."""
        import torch

        assert self.gram is not None
        mean, product = self.gram
        whole = product + len(self.weight) * mean[:, None] * mean
        squares = whole.diagonal()
        norms = torch.cat([block.norm(dim=1) for block in self._blocks()])
        sigma = math.sqrt(weight_stats.sigma_max(whole.float()))
        size = math.sqrt(float(squares.sum()))
        return weight_stats.described(sigma, size, norms, squares.sqrt())

    def measured(self, scale: torch.Tensor | None, projected: bool) -> tuple[float, float]:
        """Largest singular value and squared Frobenius norm.

        Args:
            scale: what the columns are multiplied by first.
            projected: take away the component of every row along (1, ..., 1).
        """
        import torch

        if self.gram is None:
            rows = self.weight.float() - self._mean().float()
            rows = rows if scale is None else rows * scale.float()
            return _measured(rows - rows.mean(dim=1, keepdim=True) if projected else rows)
        gram = self.gram.product
        if scale is not None:
            gram = gram * scale.double() * scale.double()[:, None]
        gram = _projected(gram) if projected else gram
        largest = float(torch.linalg.eigvalsh(gram)[-1])
        return math.sqrt(max(largest, 0.0)), float(gram.trace())

    def square(self, projected: bool) -> float:
        """Squared Frobenius norm; ``projected`` as in ``measured``."""
        if self.gram is not None:
            product = self.gram.product
            return float((_projected(product) if projected else product).trace())
        mean, total = self._mean(), 0.0
        for block in self._blocks():
            away = block.double() - mean
            away = away - away.mean(dim=1, keepdim=True) if projected else away
            total += float(away.square().sum())
        return total

    def _mean(self) -> torch.Tensor:
        """The mean row, float64."""
        sums = [block.sum(dim=0).double() for block in self._blocks()]
        total = sums[0]
        for one in sums[1:]:
            total = total + one
        return total / len(self.weight)

    def _product(self) -> _Gram:
        mean = self._mean()
        product = mean.new_zeros(2 * self.weight.shape[1:])
        for block in self._blocks():
            away = block - mean.float()  # first, so that the squares lose no digits
            product += (away.T @ away).double()
        return _Gram(mean, product)

    def _blocks(self) -> Iterator[torch.Tensor]:
        size = max(1, BLOCK_ELEMENTS // self.weight.shape[1])
        for start in range(0, len(self.weight), size):
            yield self.weight[start : start + size].float()


def _projected(gram: torch.Tensor) -> torch.Tensor:
    """rows' rows without the component of every row along (1, ..., 1)."""
    gram = gram - gram.mean(dim=0)
    return gram - gram.mean(dim=1, keepdim=True)


def _triangular(factor: torch.Tensor) -> torch.Tensor:
    """R of the QR decomposition of each factor', (heads, own, stream) to (heads, n, own)."""
    import torch

    small: torch.Tensor = torch.linalg.qr(factor.mT, mode="r").R
    return small


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    """The length of each row, also where squares leave float32: one flipped bit can be 1e38."""
    import torch

    plain = weight_stats.unit_of(rows) == 1.0
    peaks = rows.new_ones(len(rows)) if plain else rows.abs().amax(dim=1).clamp_min(1e-30)
    lengths: torch.Tensor = torch.linalg.vector_norm(
        rows if plain else rows / peaks[:, None], dim=1
    )
    return lengths * peaks


def _products(first: torch.Tensor, second: torch.Tensor) -> OperatorStats:
    """Statistics of first second' per head, from the R of both."""
    import torch

    units = weight_stats.unit_of(first), weight_stats.unit_of(second)
    values = torch.linalg.svdvals((first / units[0]) @ (second / units[1]).mT).double()
    values *= math.prod(units)
    sigma = values[:, 0].tolist()
    squares = values.square().sum(dim=1).tolist()
    return _members(list(zip(sigma, squares, strict=True)))


def _measured(matrix: torch.Tensor) -> tuple[float, float]:
    """Largest singular value of a matrix, and its squared Frobenius norm."""
    unit = weight_stats.unit_of(matrix)
    scaled = matrix / unit if unit != 1.0 else matrix
    square = float(scaled.square().sum(dim=1).double().sum())
    return weight_stats.sigma_max(scaled) * unit, square * unit**2


def _members(members: Sequence[tuple[float, float]]) -> OperatorStats:
    """Statistics over the members, each its sigma and its squared Frobenius norm."""
    sigmas = [sigma for sigma, _ in members]
    weakest = min(sigmas)
    mean = math.exp(math.fsum(map(math.log, sigmas)) / len(sigmas)) if weakest > 0 else 0.0
    rank = min(square / sigma**2 if sigma > 0 else 0.0 for sigma, square in members)
    return OperatorStats(max(sigmas), mean, weakest, rank)
