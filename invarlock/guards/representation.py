"""Representation guard: do the blocks still tell the tokens of a text apart as they did?

What a block writes into the residual stream, ``X`` (tokens x features) on the calibration windows,
says by its Gram matrix ``X X'`` which tokens look alike to the model. With its columns centred and
the matrix normalized, ``G = C X X' C / ||C X X' C||_F``, ``C = 1 - 11'/n``, the distance

    d = ||G_subject - G_baseline||_F = sqrt(2 - 2 CKA)

is a function of linear CKA (Kornblith et al., ICML 2019) between 0 and sqrt 2. It is the same in
every parametrization of one function: a rotation or permutation of the features, their scale and a
constant added to each of them cancel. Weights that are moved, copied or exchanged do not.

What moved one block moves those behind it. What decides is therefore the part of a distance that
no block before has, the *excess* ``sqrt(max(0, d^2 - m^2))``, m the largest distance of the blocks
that wrote earlier: squares of Frobenius norms of uncorrelated changes add.

A baseline of 64 blocks of 512 tokens would keep 64 MB of such matrices. It keeps ``G R`` instead, R
(tokens x ``SKETCH``) of independent signs: ``||(G_s - G_b) R||_F^2 / SKETCH`` has the mean d^2
(Hutchinson, Commun. Stat. Simul. 19, 1990) and a relative standard deviation of at most
``sqrt(2 / SKETCH)``, so that d is known to 6.7 % at worst, and better where the difference has more
than one direction. Equal matrices give exactly 0. With at most ``SKETCH`` tokens G itself is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from msgspec import UNSET, UnsetType

from invarlock.counts import counted
from invarlock.documents.fields import Count, Measured, about
from invarlock.guards.block_outputs import (
    ATTENTION,
    CONSTANT,
    FFN,
    WINDOW_TOKENS,
    Place,
    RowsProbe,
    block_outputs,
)
from invarlock.guards.guard import (
    Block,
    CheckpointRun,
    Guard,
    Probe,
    Run,
    Runs,
    Statistic,
    place,
    warning,
    worst_family,
)
from invarlock.guards.weight_stats import rounded, rounded_column
from invarlock.pages.panels import Panels, Point, draw_panels
from invarlock.pages.parts import (
    LESS,
    LISTED,
    Advice,
    Check,
    Section,
    Table,
    not_evaluated,
    unmeasured,
)
from invarlock.pages.plots import (
    LEFT,
    MARK,
    MARKERS,
    RIGHT,
    Canvas,
    Plot,
    linear_axis,
    scale,
)
from invarlock.pages.reading import BASELINE, Report, block, columns, evaluated, objects
from invarlock.pages.wording import fixed, number, yes
from invarlock.policy import Policy, RepresentationPolicy
from invarlock.roles import Role

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
else:
    from invarlock import numpy_on_use as np

KINDS = (ATTENTION, FFN)
FAMILIES = {ATTENTION: "attn", FFN: "ffn"}  # whose marker a kind has in a picture
TOP, BOTTOM = 16, 166  # px of the picture of distances
SKETCH = 112  # columns of a sketch: 64 blocks of 8 windows are 7.3 MB in float16
SEED = 7_919  # of the signs
# Families of modules of which every model has a block.
_PROJECTIONS = (Role.ATTN, Role.FFN, Role.EXPERT)
LARGEST = 2.0  # of two normalized matrices; an estimate of sqrt 2 may be larger than that
NO_BLOCKS = "the model has no attention or feed-forward block"
ARRAYS = "representation."  # kind, dot, block: what a baseline's run keeps

CONTRACT = {
    "kind": "gram_distance",
    "statistic": "frobenius_of_normalized_centred_gram_matrices",
    "output": "of_the_last_projection_of_each_attention_and_feed_forward_block",
    "tokens": {"per_window": WINDOW_TOKENS, "indices_policy": "evenly_spaced"},
    "estimator": {
        "type": "rademacher_sketch",
        "columns": SKETCH,
        "seed": SEED,
        "stored_as": "float16",
        "dtype": "float32",
    },
}


class SeenBlock(NamedTuple):
    """What a probe saw of one block, and how far that is from the baseline's."""

    name: str  # of the module whose output it is
    kind: str  # ATTENTION or FFN
    layer: int | None
    tokens: int  # rows of the matrix
    order: int  # of the blocks of a forward pass, which one writes first, from 0
    distance: float  # infinity if not finite, or without a counterpart; 0 in a baseline's run


HEAD = ("name", "kind", "layer", "tokens", "order")


def to_table(seen: Sequence[SeenBlock]) -> dict[str, list[Any]]:
    """Blocks as columns, sorted by name; what is not finite becomes null."""
    ordered = sorted(seen, key=lambda b: b.name)
    table: dict[str, list[Any]] = {key: [getattr(b, key) for b in ordered] for key in HEAD}
    return table | {"distance": rounded_column([b.distance for b in ordered])}


def from_table(table: Mapping[str, Sequence[Any]], prefix: str = "") -> list[SeenBlock]:
    """The inverse of :func:`to_table`; with a prefix, the columns of a baseline."""
    head = [table[prefix + key] for key in HEAD]
    distances = [0.0] * len(head[0]) if prefix else table["distance"]
    return [
        SeenBlock(
            name=str(name),
            kind=str(kind),
            layer=layer,
            tokens=int(tokens),
            order=int(order),
            distance=math.inf if far is None else float(far),
        )
        for name, kind, layer, tokens, order, far in zip(*head, distances, strict=True)
    ]


# --- the statistic -----------------------------------------------------------------------------


def signs(tokens: int) -> NDArray[np.float32]:
    """``R``: (tokens, SKETCH) independent signs, the same everywhere and in every version."""
    # NumPy promises the stream of a bit generator, not that of the distributions made from it.
    words = np.random.PCG64(SEED).random_raw(-(-tokens * SKETCH // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: tokens * SKETCH]
    found: NDArray[np.float32] = bits.reshape(tokens, SKETCH).astype(np.float32) * 2 - 1
    return found


def sketch(x: torch.Tensor) -> NDArray[np.float16]:
    """``G R`` of one block, or ``G`` where it has at most ``SKETCH`` tokens.

    Args:
        x: (tokens, features), what the block wrote; overwritten.

    Returns:
        (tokens, SKETCH or tokens); zeros for a constant, NaN where something is not finite.
    """
    import torch

    tokens = len(x)
    width = min(tokens, SKETCH)
    x /= x.abs().max().clamp_min(1e-30)  # squares of large activations leave float32
    written = x.square().sum().sqrt()
    x -= x.mean(dim=0)
    size = x.square().sum().sqrt()
    if bool(size <= CONSTANT * written):
        return np.zeros((tokens, width), np.float16)
    x /= size
    r = torch.from_numpy(signs(tokens)).to(x.device) if tokens > SKETCH else None
    # the smaller of the two products has the same norm
    if x.shape[1] < tokens and r is not None:
        norm, product = torch.linalg.norm(x.T @ x), x @ (x.T @ r)
    else:
        gram = x @ x.T
        norm, product = torch.linalg.norm(gram), gram if r is None else gram @ r
    found: NDArray[np.float16] = (product / norm).half().cpu().numpy()
    return found


def distance(baseline: NDArray[np.float16], subject: NDArray[np.float16]) -> float:
    """d from two sketches; infinity where they are of other tokens or not finite."""
    if baseline.shape != subject.shape:
        return math.inf
    change = subject.astype(np.float64) - baseline.astype(np.float64)
    tokens, width = change.shape
    square = float(np.square(change).sum()) / (width if tokens > width else 1)
    return math.sqrt(square) if math.isfinite(square) else math.inf


# --- a run -------------------------------------------------------------------------------------


class GramProbe(RowsProbe):
    """The sketches of what attention and feed-forward blocks wrote."""

    kinds: ClassVar[tuple[str, ...]] = KINDS

    def __init__(self) -> None:
        super().__init__()
        self.sketches: dict[str, NDArray[np.float16]] = {}  # by block

    def places(self, model: torch.nn.Module, config: Mapping[str, Any]) -> Sequence[Place]:
        """The outputs of blocks."""
        return [p for p in block_outputs(model, config) if p.kind in KINDS]

    @property
    def blocks(self) -> list[Place]:
        """Those that were seen, by name."""
        return sorted(self.seen, key=lambda place: place.name)

    def saw(self, place: Place, x: torch.Tensor) -> None:
        """Keep the sketch of one block."""
        self.sketches[place.name] = sketch(x)

    def record(self, run: CheckpointRun) -> Block:
        """Blocks as columns; a subject's with their distances."""
        kept = run.baseline_arrays or {}
        order = {name: at for at, name in enumerate(self.sketches)}  # written in that order
        seen = [
            SeenBlock(
                name=each.name,
                kind=each.kind,
                layer=each.layer,
                tokens=len(self.sketches[each.name]),
                order=order[each.name],
                distance=distance(kept[_array(each)], self.sketches[each.name])
                if _array(each) in kept
                else math.inf,
            )
            for each in self.blocks
            if each.name in self.sketches
        ]
        if run.baseline_arrays is None:
            seen = [each._replace(distance=0.0) for each in seen]
        return {"blocks": to_table(seen), **Representation().contract_fields()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sketches, for subjects to be held against, in the order of a forward pass."""
        named = {each.name: each for each in self.blocks}
        return {_array(named[name]): values for name, values in self.sketches.items()}


def _array(each: Place) -> str:
    return f"{ARRAYS}{each.kind}.{each.name}"


def excesses(seen: Sequence[SeenBlock]) -> dict[str, float]:
    """Of each block the part of its distance that no earlier block has, by name.

    Infinity where the distance is not finite; such a distance is no reason for those behind it.
    """
    found: dict[str, float] = {}
    before = 0.0
    for each in sorted(seen, key=lambda b: b.order):
        if math.isfinite(each.distance):
            found[each.name] = math.sqrt(max(0.0, each.distance**2 - before**2))
            before = max(before, each.distance)
        else:
            found[each.name] = math.inf
    return found


def null_excesses(
    baseline: Mapping[str, NDArray[Any]], subject: Mapping[str, NDArray[Any]]
) -> dict[str, list[float]]:
    """By kind of block, the excess of each in order of names, from what two probes kept."""
    seen = []
    for order, (name, values) in enumerate(subject.items()):
        if name.startswith(ARRAYS):
            kind = name.removeprefix(ARRAYS).partition(".")[0]
            far = distance(baseline[name], values)
            seen.append(SeenBlock(name, kind, None, len(values), order, far))
    own = excesses(seen)
    kinds: dict[str, list[float]] = {}
    for each in sorted(seen, key=lambda b: b.name):
        kinds.setdefault(each.kind, []).append(own[each.name])
    return kinds


# --- two runs ----------------------------------------------------------------------------------


def judge(
    baseline: Sequence[SeenBlock], subject: Sequence[SeenBlock], policy: RepresentationPolicy
) -> dict[str, Any]:
    """Hold the excesses against their limits; a block that only one run has, or saw other tokens,
    blocks, and so does one that is not finite.

    Returns:
        the decided part of the report's ``representation`` block.
    """
    before = {b.name: b for b in baseline}
    pairs = [s for s in subject if s.name in before and before[s.name][:-1] == s[:-1]]
    complete = len(pairs) == len(before) == len(subject)
    own = excesses(pairs)
    moved = sorted(
        (s for s in pairs if not own[s.name] <= policy.warn), key=lambda s: (-own[s.name], s.name)
    )
    violations = [
        {
            "family": s.kind,
            "module": s.name,
            "layer": s.layer,
            "distance": rounded(s.distance),
            "excess": rounded(own[s.name]),
            "limit": policy.limit(s.kind),
            "blocks": policy.beyond(s.kind, own[s.name]),
        }
        for s in moved
    ]
    kinds = {
        kind: _kind([s for s in pairs if s.kind == kind], own, policy.limit(kind))
        for kind in KINDS
        if any(s.kind == kind for s in pairs)
    }
    passed = complete and not any(policy.beyond(s.kind, own[s.name]) for s in pairs)
    return {
        "evaluated": True,
        "passed": passed,
        "decision": "block" if not passed else "monitor" if violations else "allow",
        "status": "kept" if passed else "changed",
        "blocks_compared": len(pairs),
        "blocks_missing": len(before) + len(subject) - 2 * len(pairs),
        "max_distance": rounded(max((s.distance for s in pairs), default=0.0)),
        "max_excess": rounded(max(own.values(), default=0.0)),
        "kinds": kinds,
        "violations": violations,
    }


def _kind(
    pairs: Sequence[SeenBlock], own: Mapping[str, float], limit: float | None
) -> dict[str, Any]:
    """The blocks of a kind: the largest excess decides, the largest and middle distance tell."""
    worst = max(pairs, key=lambda s: (own[s.name], s.name))
    far = sorted(s.distance for s in pairs)
    return {
        "module": worst.name,
        "blocks": len(far),
        "excess": rounded(own[worst.name]),
        "distance": rounded(far[-1]),
        "median": rounded(far[(len(far) - 1) // 2]),
        "limit": limit,
    }


class RepresentationBlock(Measured):
    """Gram matrices of what blocks write, against the baseline's."""

    blocks_compared: Annotated[Count | UnsetType, about("blocks that both runs have")] = UNSET
    blocks_missing: Annotated[Count | UnsetType, about("blocks that only one run has")] = UNSET
    max_distance: Annotated[
        float | UnsetType | None,
        about("largest distance; null where one is not finite"),
    ] = UNSET
    max_excess: Annotated[
        float | UnsetType | None,
        about("largest part of a distance that no earlier block has; null: not finite"),
    ] = UNSET
    kinds: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "per kind of block: the one of the largest excess, its excess and limit (null: never "
            "blocks), the largest and the middle distance"
        ),
    ] = UNSET
    violations: Annotated[
        list[Any] | UnsetType,
        about(
            "blocks beyond the warning level: module, family, layer, distance, excess, limit, and "
            "whether it blocks"
        ),
    ] = UNSET
    blocks: Annotated[
        dict[str, Any] | UnsetType,
        about("name, kind, layer, tokens, order and distance as parallel lists"),
    ] = UNSET


class Representation(Guard):
    """Which tokens look alike to each block, against the baseline."""

    name = "representation"
    title = "Representation (blocks)"
    advice = Advice(
        "A block no longer tells tokens apart as it did",
        f"Begin with the first block that is named: {LESS}. A whole block that moved alone points"
        " to copied, exchanged or misplaced weights.",
    )
    block = RepresentationBlock
    # The published format closes the list of flags. This one says that activations are where the
    # baseline's are; it is true only if both guards that look at them find that.
    flag = "rmt_stable"
    fails_as = "representation_fail"
    every_model = False
    added = True
    policy_key = "representation"
    contract = CONTRACT
    # outside the list of guards, whose order strict assurance knows
    beside = "representation"
    needs_both = True
    believed = ("/representation/blocks",)

    def probe(self) -> Probe:
        """A fresh probe for one run."""
        return GramProbe()

    def judged(self, runs: Runs, policy: Policy) -> Block:
        """The decisions; none on a model in which neither run saw such a block."""
        if self.lacking(runs):
            return super().judged(runs, policy)
        seen = self._seen(runs.baseline) or self._seen(runs.subject)
        if runs.ran and not seen:
            return {"evaluated": False, "reason": NO_BLOCKS}
        return super().judged(runs, policy)

    def flags(self, block: Mapping[str, Any]) -> dict[str, bool]:
        """The shared flag; of a model without such blocks this guard says nothing."""
        return {} if self.spared(block) else super().flags(block)

    def spared(self, block: Mapping[str, Any]) -> bool:
        """Whether neither run saw a block: a model of mixers alone has none."""
        return block.get("reason") == NO_BLOCKS

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The blocks of both runs."""
        base, mine = self._seen(runs.baseline), self._seen(runs.subject)
        return judge(base, mine, policy.representation)

    def _seen(self, run: Run) -> list[SeenBlock]:
        recorded = self.recorded(run)
        return from_table(recorded["blocks"]) if recorded else []

    def statistics(self, runs: Runs) -> Block:
        """The subject's table; the baseline's head only where it differs."""
        base, mine = (to_table(self._seen(run)) for run in (runs.baseline, runs.subject))
        if any(base[key] != mine[key] for key in HEAD):
            mine |= {BASELINE + key: base[key] for key in HEAD}
        return {"blocks": mine}

    def warnings(self, block: Mapping[str, Any]) -> Iterator[Block]:
        """Every block beyond the level of a warning, and whether the guard fails by it."""
        for item in block.get("violations", []):
            text = f"{item['module']}: excess Gram distance {item['excess']}, limit "
            text += "none" if item["limit"] is None else str(item["limit"])
            where = place(item, {"passed": not item["blocks"]}, text)
            yield warning(self.name, "representation_changed", text) | where

    def subject_records(self, report: Report) -> Iterator[Block]:
        """The subject's table."""
        table = block(report, self.name).get("blocks")
        if table:
            own = {key: table[key] for key in (*HEAD, "distance")}
            yield {"blocks": own, **self.contract_fields()}

    def baseline_record(self, report: Report) -> Block | None:
        """The baseline's columns, which are the subject's where they are not given; empty ones
        where nothing was run."""
        if self.name not in report:
            return None
        table = report[self.name].get("blocks") or to_table([])
        prefix = BASELINE if BASELINE + "name" in table else ""
        seen = [b._replace(distance=0.0) for b in from_table(table, prefix)]
        return {"blocks": to_table(seen), **self.contract_fields()}

    def impossible(self, report: Report) -> Iterator[str]:
        """Known kinds, tokens of calibration windows, distances of normalized matrices."""
        table = report[self.name]["blocks"]
        windows = len(report["rmt"]["calibration"]["window_ids"])
        prefixes = ("", BASELINE) if BASELINE + "name" in table else ("",)
        seen = [b for prefix in prefixes for b in from_table(table, prefix)]
        if not (
            all(b.kind in KINDS and 0 < b.tokens <= windows * WINDOW_TOKENS for b in seen)
            and all(far is None or 0 <= far <= LARGEST for far in table["distance"])
            and all(list(table[p + "name"]) == sorted(set(table[p + "name"])) for p in prefixes)
            and all(
                sorted(table[p + "order"]) == [*range(len(table[p + "order"]))] for p in prefixes
            )
        ):
            yield f"/{self.name}/blocks holds what no run can have recorded"
        families = set(report["rmt"]["modules"]["family"])
        if self.spared(report[self.name]) and families.intersection(_PROJECTIONS):
            yield f"/{self.name}/reason: rmt saw modules of such blocks"

    def statistic(self, block: Mapping[str, Any]) -> Statistic | None:
        """The excess of the kind closest to its limit."""
        kinds = block.get("kinds")
        found = kinds if isinstance(kinds, Mapping) else {}
        return worst_family(found, "excess", lambda kind: kind.get("limit"), "gram_excess")

    def check(self, report: Report) -> Check:
        """The largest excess against the limits."""
        section = block(report, self.name)
        if not evaluated(report, self.name):
            return unmeasured(report, self.name, self.title, self.flag)
        kinds = _kinds(section)
        limits = {kind: number(row.get("limit")) for kind, row in kinds.items()}
        words = [f"{kind} {fixed(limit)}" for kind, limit in limits.items() if limit is not None]
        free = [f"{kind} has no limit" for kind, limit in limits.items() if limit is None]
        seen = [f"{kind} {fixed(row.get('excess'))}" for kind, row in kinds.items()]
        found = objects(section.get("violations"))
        note = f"{section.get('blocks_compared', '-')} blocks"
        if found:
            worst = str(found[0].get("module"))
            note = f"{counted(len(found), 'block')} moved, the furthest {worst}"
        return Check(
            name=self.title,
            status=self.status(report),
            measured="largest excess Gram distance " + (", ".join(seen) or "-"),
            threshold="; ".join(["excess at most " + ", ".join(words), *free]) if words else "-",
            note=note,
            flag=self.flag,
        )

    def where(self, report: Report) -> tuple[Plot, ...]:
        """The distance of every block, layer by layer."""
        return _distances(_shown(block(report, self.name))) if evaluated(report, self.name) else ()

    def section(self, report: Report) -> Section:
        """How far each block is from the baseline's."""
        title, section = "Representation guard (blocks)", block(report, self.name)
        if not evaluated(report, self.name):
            return not_evaluated(report, self.name, title)
        names = ("blocks", "excess", "limit", "module", "distance", "median")
        rows = tuple(
            (kind, *(_cell(row.get(key)) for key in names)) for kind, row in _kinds(section).items()
        )
        seen = _shown(section)
        own = excesses(seen)
        moved = sorted((b for b in seen if b.distance), key=lambda b: (-own[b.name], b.name))
        tables = [Table("Kinds of block", ("Kind", *(n.capitalize() for n in names)), rows)]
        if moved:
            listed = tuple(
                (b.name, b.kind, _cell(rounded(own[b.name])), _cell(rounded(b.distance)))
                for b in moved[:LISTED]
            )
            caption = f"Largest excesses ({len(listed)} of {len(moved)})"
            tables.append(Table(caption, ("Block", "Kind", "Excess", "Distance"), listed))
        return Section(
            id=self.name,
            title=title,
            notes=() if moved else ("No block changed.",),
            facts=(
                ("Blocks compared", str(section.get("blocks_compared", "-"))),
                ("Blocks that only one run has", str(section.get("blocks_missing", "-"))),
                ("Same measurement in both runs", yes(section.get("measurement_contract_match"))),
            ),
            plots=_plot(seen, own, {k: number(r.get("limit")) for k, r in _kinds(section).items()}),
            tables=tuple(tables),
        )


def _kinds(section: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = sorted(block(section, "kinds").items())
    return {str(kind): row for kind, row in found if isinstance(row, Mapping)}


def _shown(section: Mapping[str, Any]) -> list[SeenBlock]:
    """The blocks of a report that a page shows, whatever it holds."""
    table = columns(block(section, "blocks"), (*HEAD, "distance"))
    return [
        SeenBlock(
            name=str(name),
            kind=str(kind),
            layer=layer if isinstance(layer, int) else None,
            tokens=tokens if isinstance(tokens, int) else 0,
            order=order if isinstance(order, int) else at,
            distance=math.inf if (found := number(far)) is None else found,
        )
        for at, (name, kind, layer, tokens, order, far) in enumerate(table)
    ]


def _cell(value: object) -> str:
    return str(value) if isinstance(value, str | int) else fixed(value)


def _distances(seen: Sequence[SeenBlock]) -> tuple[Plot, ...]:
    """How far each block is from the baseline's, by layer; none where none moved."""
    placed = [b for b in seen if b.layer is not None and math.isfinite(b.distance)]
    if not any(b.distance for b in placed):
        return ()
    last = max(b.layer or 0 for b in placed)
    high = max(b.distance for b in placed)
    x = scale(-0.5, last + 0.5, LEFT, RIGHT)
    y = scale(0.0, high * 1.08, BOTTOM, TOP)
    canvas = Canvas()
    linear_axis(canvas, (0.0, high * 1.08), y)
    canvas.draw("axis", f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}")
    for layer in range(0, last + 1, max(1, math.ceil((last + 1) / 16))):
        canvas.write("tick", x(layer), BOTTOM + 14, str(layer), "middle")
    for row, (kind, family) in enumerate(FAMILIES.items()):
        mine = sorted((b.layer or 0, b.distance) for b in placed if b.kind == kind)
        points = [(x(layer), y(distance)) for layer, distance in mine]
        if points:
            canvas.draw("zero", "M" + "L".join(f"{a:g} {b:g}" for a, b in points))
            canvas.draw("within", "".join(MARKERS[family](a, b, MARK) for a, b in points))
        at = LEFT + 10 + 130 * row
        canvas.draw("within", MARKERS[family](at, BOTTOM + 29, MARK))
        canvas.write("tick", at + 9, BOTTOM + 33, f"{kind} blocks")
    canvas.write("label", RIGHT, BOTTOM + 33, "layer", "end")
    canvas.write_upwards((TOP + BOTTOM) / 2, "Gram distance")
    worst = max(placed, key=lambda b: (b.distance, b.name))
    first = min((b for b in placed if b.distance >= high / 2), key=lambda b: b.order)
    words = (
        f"0: as the baseline; {math.sqrt(2):.3f}: nothing in common. The largest is "
        f"{fixed(worst.distance)} in {worst.name}; the first block that reaches half of that is "
        f"{first.name}."
    )
    title = "Distance of each block from the baseline, by layer"
    return (canvas.plot("distances", title, words, BOTTOM + 40),)


def _plot(
    seen: Sequence[SeenBlock], own: Mapping[str, float], limits: Mapping[str, float | None]
) -> tuple[Plot, ...]:
    """The excess of every block, a panel a kind, with its limit; none without blocks."""
    if not seen:
        return ()
    points = [Point(b.name, b.kind, b.layer, min(own[b.name], LARGEST)) for b in seen]
    drawn = {kind: (-math.inf, limit) for kind, limit in limits.items() if limit is not None}
    ticks = [0.4, 1.0, 0.2, 0.1, 0.05, 0.8, 0.6, 1.4, 0.3, 0.02, 0.01]
    panels = Panels(points, drawn, lambda value: f"{value:.3g}", ticks, "excess Gram distance")
    worst = max(points, key=lambda p: (p.value, p.name))
    beyond = sum(map(panels.beyond, points))
    words = (
        f"{counted(len(points), 'block')}, {beyond} beyond the limit of their kind; the largest "
        f"excess is {worst.value:.3g} in {worst.name}. 0 means that it moved no further than "
        "blocks before it."
    )
    title = "What each block's output moved beyond those before it, per layer"
    return (draw_panels(panels).plot("representation", title, words, panels.height()),)
