"""Measure how far each row of embedding, head and position tables moved (see ``rows``).

What leaves a function alone moves all rows of a table alike, and is taken away first:

* a constant vector (tables that are summed may pass one to each other; logits only know
  differences): the median of the differences, column by column, over anchor rows;
* a rotation of the residual stream, a permutation of its channels, a scale: where the rows moved
  much as a whole, least trimmed squares over anchor rows (Rousseeuw, JASA 79, 1984), each step of
  which is an orthogonal Procrustes problem (Schoenemann, Psychometrika 31, 1966) with scale. Half
  of the anchors may be damaged;
* a scale of the last norm that went into the head: heads are compared as they act, times it;
* a multiple of (1, ..., 1) in a row, where a LayerNorm reads the stream and takes it away.

Rows go through in blocks; memory is that of the anchors, the blocks and a number a row.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.files import read_json
from invarlock.guards.operators import behind_layer_norm
from invarlock.guards.rows import (
    ANCHORS_PER_COLUMN,
    EXAMINED,
    LISTED,
    MAX_ANCHORS,
    MIN_ROWS,
    OTHER,
    SEED,
    STEP,
    STEPS,
    TOKEN,
    TRANSFORM_ABOVE,
    ListedRow,
    RowTable,
    edge_of,
)
from invarlock.guards.weight_stats import rounded
from invarlock.roles import Role, architecture_of, family_of, is_token_table, role_of
from invarlock.shown import shortened

if TYPE_CHECKING:
    import torch

    from invarlock.checkpoints import Checkpoint

BLOCK_ELEMENTS = 1 << 22  # elements of a block in float32: 16 MB
TOKEN_CHARACTERS = 40  # of a token's text in a message
LARGEST = 1e6  # a change is recorded up to here
TRIMMED_STEPS = 8  # at most; it ends where the median no longer falls
SETTLED = 0.98  # ratio of two medians that ends it
Tokenizer = Mapping[str, Any]  # tokenizer.json


@dataclass(frozen=True)
class _Table:
    """A stored table; ``scale``: what its columns are multiplied by before they act.

    ``projected``: a LayerNorm reads its rows, which takes a multiple of (1, ..., 1) away.
    """

    weight: torch.Tensor  # (rows, columns), as stored
    device: str
    projected: bool = False
    scale: torch.Tensor | None = None  # (columns,) float32

    def rows(self, index: torch.Tensor | slice) -> torch.Tensor:
        """The named rows in float32, as they act."""
        block = self.weight[index].to(self.device).float()
        block = block if self.scale is None else block * self.scale.to(self.device)
        return block - block.mean(dim=1, keepdim=True) if self.projected else block

    def blocks(self, rows: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """The first ``rows`` rows, a block at a time."""
        size = max(1, BLOCK_ELEMENTS // self.weight.shape[1])
        for start in range(0, rows, size):
            place = slice(start, min(start + size, rows))
            yield place, self.rows(place)


@dataclass(frozen=True)
class _Pair:
    """One table of both checkpoints."""

    name: str
    family: str
    kind: str
    baseline: _Table
    subject: _Table

    @property
    def rows(self) -> int:
        """How many both have."""
        return min(len(self.baseline.weight), len(self.subject.weight))


@dataclass(frozen=True)
class _Transform:
    """``subject = scale * baseline @ rotation + shift``; no rotation: the identity."""

    rotation: torch.Tensor | None
    scale: float
    shift: torch.Tensor

    def undone(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the subject in the baseline's coordinates."""
        back = rows - self.shift
        return back if self.rotation is None else back @ self.rotation.T / self.scale


def measure_rows(baseline: Checkpoint, subject: Checkpoint, device: str = "cpu") -> list[RowTable]:
    """How far the rows moved, of every table that both checkpoints hold; finite tensors.

    Tables of fewer than ``MIN_ROWS`` rows, and those of an architecture without role table, are
    not looked at.
    """
    known: _Transform | None = None
    found = []
    for pair in _pairs(baseline, subject, device):
        table, transform = _measure(pair, known, baseline)
        if pair.kind == TOKEN and transform.rotation is not None and known is None:
            known = transform  # tables on one residual stream turn together
        found.append(table)
    return sorted(found, key=lambda table: table.name)


def _pairs(baseline: Checkpoint, subject: Checkpoint, device: str) -> Iterator[_Pair]:
    """Tables by name in both, token tables first, and the head where one of them stores it."""
    config, both = baseline.config, (baseline, subject)
    projected = behind_layer_norm(config)
    embeddings = [n for n in baseline.tensors if role_of(n, config) is Role.EMBED]
    embeddings.sort(key=lambda name: not is_token_table(name, config))
    for name in embeddings:
        kind = TOKEN if is_token_table(name, config) else OTHER
        if _comparable(baseline, name, subject, name):
            first, second = (_Table(one.load(name), device, projected) for one in both)
            yield _Pair(name, family_of(name, config), kind, first, second)
    known = architecture_of(config)
    if known is None or known.head not in {*baseline.tensors, *subject.tensors}:
        return  # the head is the embedding, which has been looked at
    stored = [
        known.head if known.head in one.tensors else next(iter(embeddings), known.head)
        for one in (baseline, subject)
    ]
    if _comparable(baseline, stored[0], subject, stored[1]):
        norms = [_last_norm(one, known.last_norm) for one in (baseline, subject)]
        if None in norms:
            norms = [None, None]
        sides = (
            _Table(baseline.load(stored[0]), device, projected, norms[0]),
            _Table(subject.load(stored[1]), device, projected, norms[1]),
        )
        yield _Pair(known.head, family_of(known.head, config), TOKEN, *sides)


def _comparable(baseline: Checkpoint, mine: str, subject: Checkpoint, theirs: str) -> bool:
    """Whether both are tables of floating point with equally long rows, and rows enough."""
    if mine not in baseline.tensors or theirs not in subject.tensors:
        return False  # for the invariants guard
    both = baseline.tensors[mine], subject.tensors[theirs]
    return (
        all(len(info.shape) == 2 and info.dtype.startswith(("F", "BF")) for info in both)
        and both[0].shape[1] == both[1].shape[1] > 0
        and min(info.shape[0] for info in both) >= MIN_ROWS
    )


def _last_norm(checkpoint: Checkpoint, pattern: str) -> torch.Tensor | None:
    """The weights of the norm before the head, float32."""
    name = next((name for name in checkpoint.tensors if re.fullmatch(pattern, name)), None)
    return None if name is None else checkpoint.load(name).float()


def _measure(
    pair: _Pair, turned: _Transform | None, baseline: Checkpoint
) -> tuple[RowTable, _Transform]:
    """The record of one table; ``turned``: what is known of the model's other tables."""
    import torch

    width = pair.baseline.weight.shape[1]
    count = min(pair.rows, max(ANCHORS_PER_COLUMN * width, 1024), MAX_ANCHORS)
    # Anchors are drawn and not the first rows: those are mostly special tokens and bytes.
    order = torch.randperm(pair.rows, generator=torch.Generator().manual_seed(SEED))
    anchors = order[:count].sort().values
    before, after = pair.baseline.rows(anchors), pair.subject.rows(anchors)
    centre = before.mean(dim=0)
    chosen = _shifted(None, 1.0, before, after)
    changes, unit = _changes(pair, chosen, centre)
    # The rows as they stand come first: a fitted rotation could absorb part of a real damage, so it
    # is only looked for where half of the rows moved far, which single damaged rows cannot cause.
    if float(changes.median()) > TRANSFORM_ABOVE:
        other = None
        # Half of the anchors are kept in the fit, and a rotation of `width` columns takes as many.
        if count >= 2 * width:
            other = _shifted(*_procrustes(before, after), before, after)
        elif turned is not None and turned.shift.shape == centre.shape:
            other = _shifted(turned.rotation, turned.scale, before, after)
        if other is not None:
            turned_changes, _ = _changes(pair, other, centre)
            # a fit always explains something; only one that explains most is a common rotation
            if float(turned_changes.median()) < float(changes.median()) / 2:
                chosen, changes = other, turned_changes
    typical = float(changes.median())
    exact = changes.double()
    counts = [int((exact > edge_of(step)).sum()) for step in range(1, STEPS + 1)]
    table = RowTable(
        name=pair.name,
        family=pair.family,
        kind=pair.kind,
        rows=pair.rows,
        baseline_only=len(pair.baseline.weight) - pair.rows,
        subject_only=len(pair.subject.weight) - pair.rows,
        transform="shift" if chosen.rotation is None else "rotation",
        typical=_number(typical),
        above=tuple(counts[: max((i for i, n in enumerate(counts, 1) if n), default=0)]),
        listed=_listed(pair, chosen, changes, unit, baseline),
    )
    return table, chosen


def _shifted(
    rotation: torch.Tensor | None, scale: float, before: torch.Tensor, after: torch.Tensor
) -> _Transform:
    """The transform with the shift that most anchors agree on."""
    image = before if rotation is None else scale * before @ rotation
    return _Transform(rotation, scale, (after - image).median(dim=0).values)


def _procrustes(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Rotation and scale that most anchors agree on; ``after = scale * before @ rotation``."""
    import torch

    kept = torch.arange(len(before), device=before.device)
    best = float("inf")
    rotation, scale = torch.eye(before.shape[1], device=before.device), 1.0
    for step in range(TRIMMED_STEPS):
        means = before[kept].mean(dim=0), after[kept].mean(dim=0)
        a, b = before[kept] - means[0], after[kept] - means[1]
        sizes = a.norm(dim=1), b.norm(dim=1)
        sound = (sizes[0] > 0) & (sizes[1] > 0)
        if not bool(sound.any()):
            break
        # at first no row counts for more than another: the damaged ones may be huge
        weights = 1 / (sizes[0] * sizes[1]) if step == 0 else torch.ones_like(sizes[0])
        left, _, right = torch.linalg.svd((a * weights.where(sound, 0.0)[:, None]).T @ b)
        turn, size = left @ right, float((sizes[1] / sizes[0])[sound].median())
        back = (after - means[1]) @ turn.T / size + means[0]
        off = (back - before).norm(dim=1) / (before - means[0]).norm(dim=1).clamp_min(1e-30)
        median = float(off.median())
        if not median < best:
            break
        rotation, scale = turn, size
        if median > SETTLED * best:
            break
        best = median
        kept = off.argsort(stable=True)[: len(off) // 2]
    return rotation, scale


def _changes(
    pair: _Pair, transform: _Transform, centre: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change of every row, and the unit it is counted in, (rows,) each, on the CPU."""
    import torch

    moved, unit = torch.empty(pair.rows), torch.empty(pair.rows)
    for (place, b), (_, s) in zip(
        pair.baseline.blocks(pair.rows), pair.subject.blocks(pair.rows), strict=True
    ):
        moved[place] = (transform.undone(s) - b).norm(dim=1).cpu()
        unit[place] = (b - centre).norm(dim=1).cpu()
    # Rows next to the mean would make any rounding look large: their unit is half the median's.
    unit = unit.clamp_min(max(float(unit.median()) / 2, 1e-30))
    return (moved / unit).clamp_max(LARGEST), unit


def _listed(
    pair: _Pair,
    transform: _Transform,
    changes: torch.Tensor,
    unit: torch.Tensor,
    baseline: Checkpoint,
) -> tuple[ListedRow, ...]:
    """The rows of the largest change, and those closer to another row than to their own."""
    order = changes.argsort(descending=True, stable=True)[:EXAMINED]
    examined = order[changes[order] > STEP]
    if not len(examined):
        return ()
    now = transform.undone(pair.subject.rows(examined))
    nearest = _nearest(pair, now, examined)
    apart = (now - pair.baseline.rows(nearest)).norm(dim=1).cpu() / unit[examined]
    texts: dict[int, str] = {}
    special: set[int] = set()
    if pair.kind == TOKEN:
        tokenizer = tokenizer_of(baseline.folder)
        texts = token_texts(tokenizer, {*examined.tolist(), *nearest.tolist()})
        special = special_ids(tokenizer)
    rows = [
        ListedRow(
            row=row,
            token=texts.get(row),
            change=_number(float(changes[row])),
            nearest=other,
            nearest_token=texts.get(other),
            nearest_change=_number(min(distance, LARGEST)),
            special=row in special,
        )
        for row, other, distance in zip(
            examined.tolist(), nearest.tolist(), apart.tolist(), strict=True
        )
    ]
    closer = [row for row in rows[LISTED:] if row.nearest_change < row.change]
    return (*rows[:LISTED], *closer[:LISTED])


def _nearest(pair: _Pair, now: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Number of the baseline's row that is closest to each of ``now``, its ``own`` left out."""
    import torch

    centre = now.mean(dim=0)  # taken away, so that the squares below lose few digits
    best = torch.full((len(now),), float("inf"), device=now.device)
    found = torch.zeros(len(now), dtype=torch.int64)
    for place, b in pair.baseline.blocks(len(pair.baseline.weight)):
        away = b - centre
        # |now - b|^2 without |now|^2, which is the same for every b and moves no minimum
        squares = away.square().sum(dim=1) - 2 * (now - centre) @ away.T
        inside = (own >= place.start) & (own < place.stop)
        squares[inside.nonzero().squeeze(1), own[inside] - place.start] = float("inf")
        least, which = squares.min(dim=1)
        better = (least < best).cpu()
        found[better] = which.cpu()[better] + place.start
        best = torch.minimum(best, least)
    return found


def _number(value: float) -> float:
    recorded = rounded(value)
    assert recorded is not None  # the tensors are finite
    return recorded


def tokenizer_of(folder: Path) -> Tokenizer:
    """``tokenizer.json``; empty where there is none."""
    path = folder / "tokenizer.json"
    document = read_json(path) if path.is_file() else None
    return document if isinstance(document, dict) else {}


def token_texts(tokenizer: Tokenizer, ids: Collection[int]) -> dict[int, str]:
    """Text of the named ids as ``tokenizer.json`` spells them: printable ASCII, cut to length.

    The marks of a leading space (of byte-level and of SentencePiece vocabularies) become one.
    Empty where it holds no vocabulary.
    """
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: an id is a place in the list of (piece, score)
        pieces = {i: row[0] for i, row in enumerate(vocabulary) if isinstance(row, list) and row}
    else:
        known = vocabulary if isinstance(vocabulary, dict) else {}
        pieces = {i: piece for piece, i in known.items() if isinstance(i, int)}
    pieces |= {i: token.get("content") for i, token in _added(tokenizer)}
    return {i: _printable(piece) for i in ids if isinstance(piece := pieces.get(i), str)}


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of its special tokens."""
    return {i for i, token in _added(tokenizer) if token.get("special") is True}


def _added(tokenizer: Tokenizer) -> Iterator[tuple[int, Tokenizer]]:
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            yield token["id"], token


def _printable(piece: str) -> str:
    text = piece.translate({0x120: " ", 0x2581: " "}).encode("unicode_escape").decode("ascii")
    return shortened(text, TOKEN_CHARACTERS)
