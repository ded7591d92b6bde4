"""Hidden states between the blocks of a model: a subject's pass starts where its edit starts.

In the blocks before the first one that differs from the baseline's a subject computes what the
baseline computed. The baseline's run therefore keeps what leaves some of its blocks, for every
window, in the arithmetic of the run (``hidden_states/`` beside its report), and a subject's pass
goes on from there: the modules of the earlier blocks are not run, and everything around the blocks
stays the model's own code. Kept are at most ``MOST`` boundaries within the bytes that are allowed:
the end of the last block first, the others evenly between it and the first.

That this gives the bits of the whole pass is tried and not taken for granted. The baseline's run
keeps nothing unless a short input gives the same logits from each boundary. A subject's run puts
the calibration windows through the whole model, as its guards need them, and compares bit for bit
the states at the boundary with those that are kept, and the log-probabilities with those of the
same windows from the boundary on. Where a bit differs, everything runs whole. States of other
batches than the kept ones serve where a batch of the same shape gave the same states before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError
from invarlock.files import atomic_directory, free_bytes, read_json_object, write_json
from invarlock.metrics import ARMS
from invarlock.metrics.started import Started
from invarlock.roles import Role, architecture_of, layer_of, role_of
from invarlock.run.spread import stacks_of

if TYPE_CHECKING:
    import torch

FOLDER, LISTING = "hidden_states", "states.json"
MOST = 4  # boundaries that are kept
DISK_SHARE = 10  # they take at most this part of the free disk: nothing else waits for room
LAST = 1 << 30  # of what lies behind the last block: the last norm and the head
# Configuration keys that no forward pass reads.
NAMES = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")

Run = Callable[[], "torch.Tensor"]


# --- the first block that differs ----------------------------------------------------------------


def first_changed(baseline: Checkpoint, subject: Checkpoint) -> int | None:
    """The first block of a subject that differs from its baseline's.

    :data:`LAST` where only the last norm or the head does. None where the pass runs whole: nothing
    differs (a control of the whole run), or something before or beside the blocks does.
    """
    if not (baseline.form.dense and subject.form.dense):
        return None
    if _read(baseline) != _read(subject) or "auto_map" in subject.config:
        return None
    changed = subject.changed_tensors(baseline) or ()
    at = [_block_of(name, baseline.config) for name in changed]
    return min(at, default=0) or None


def _read(checkpoint: Checkpoint) -> dict[str, Any]:
    """What of a configuration a forward pass may read."""
    return {key: value for key, value in checkpoint.config.items() if key not in NAMES}


def _block_of(name: str, config: Mapping[str, Any]) -> int:
    """The block of a tensor; 0 where it may be read before the blocks."""
    block = layer_of(name)
    if block is not None:
        return block
    known = architecture_of(config)
    behind = known is not None and (
        role_of(name, config) is Role.HEAD
        or bool(known.last_norm and re.fullmatch(known.last_norm, name))
    )
    return LAST if behind else 0


# --- blocks of a loaded model --------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model, each of which hands one tensor to the next."""

    modules: Sequence[torch.nn.Module]
    items: int | None  # of the tuple that a block returns, the first being the tensor; None: none

    @contextmanager
    def watched(self, boundaries: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
        """What leaves the blocks before these boundaries, in the pass that is made inside."""
        seen: dict[int, torch.Tensor] = {}

        def hook(at: int) -> Callable[..., None]:
            def keep(_module: object, _inputs: object, output: Any) -> None:
                # what a later block might write into is not what was handed on
                seen[at] = (output if self.items is None else output[0]).clone()

            return keep

        with ExitStack() as hooks:
            for at in boundaries:
                handle = self.modules[at - 1].register_forward_hook(hook(at))
                hooks.callback(handle.remove)
            yield seen

    @contextmanager
    def started(self, at: int, states: torch.Tensor) -> Iterator[None]:
        """A pass that is made inside runs no block before ``at``, from which it has ``states``."""
        rest = () if self.items is None else (None,) * (self.items - 1)
        given = states if self.items is None else (states, *rest)

        def forward(*_args: object, **_options: object) -> object:
            return given

        before = [vars(module).get("forward") for module in self.modules[:at]]
        try:
            for module in self.modules[:at]:
                # an attribute of the instance hides the method, and hooks stay where they are
                vars(module)["forward"] = forward
            yield
        finally:
            for module, own in zip(self.modules, before, strict=False):
                vars(module).pop("forward")
                if own is not None:
                    vars(module)["forward"] = own


def blocks_of(model: Any, items: int | None) -> Blocks | None:
    """The blocks of a model; None where it has not one list of them, or lies on several devices."""
    stacks = [] if model is None else stacks_of(model)
    if len(stacks) != 1 or len({parameter.device for parameter in model.parameters()}) != 1:
        return None
    return Blocks(list(stacks[0]), items)


def _form(blocks: Blocks, run: Run) -> tuple[int | None, int] | str:
    """Items of the tuples that blocks return, and bytes of the states of a token; or why the blocks
    are not of the plain kind."""
    seen: list[list[Any]] = [[] for _ in blocks.modules]
    with ExitStack() as hooks:
        for module, outputs in zip(blocks.modules, seen, strict=True):

            def keep(_m: object, _i: object, output: Any, outputs: list[Any] = outputs) -> None:
                outputs.append(output)

            hooks.callback(module.register_forward_hook(keep).remove)
        run()
    if any(len(outputs) != 1 for outputs in seen):
        return "its blocks do not run once each"
    forms = {_items(outputs[0]) for outputs in seen}
    if len(forms) != 1 or 0 in forms:
        return "its blocks hand on more than one tensor"
    (items,) = forms
    states = seen[-1][0] if items is None else seen[-1][0][0]
    if states.dim() < 3 or states.shape[0] != 1:
        return "its states are not listed by window and token"
    return items, states.nbytes // states.shape[1]


def _items(output: Any) -> int | None:
    """Items of the tuple in which a block hands on one tensor; None: none; 0: it is not alone."""
    import torch

    if isinstance(output, torch.Tensor):
        return None
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor):
        return len(output) if all(item is None for item in output[1:]) else 0
    return 0


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Bit for bit, so that what is not a number equals itself."""
    import torch

    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(-1).view(torch.uint8)

    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(raw(one), raw(two))


def _differs(blocks: Blocks, run: Run, boundaries: Sequence[int]) -> str:
    """From which boundary on the logits are others; empty: from none."""
    with blocks.watched(boundaries) as seen:
        whole = run()
    for at in boundaries:
        with blocks.started(at, seen[at]):
            if not _same(run(), whole):
                return f"it gives other logits from block {at} on"
    return ""


def boundaries_of(blocks: int, most: int) -> list[int]:
    """Where states are kept: behind the last block, and evenly before it."""
    return sorted({max(1, round(blocks * part / most)) for part in range(1, most + 1)})


# --- what a pass does with them ------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a baseline's run keeps its states."""

    folder: Path  # of the run
    baseline_sha256: str
    most_bytes: int


@dataclass(frozen=True)
class Source:
    """What a subject may start from."""

    folder: Path  # of the baseline's run
    baseline_sha256: str
    changed: int  # the first block of the subject that differs, or :data:`LAST`


class States:
    """What stands around the batches of a pass: nothing, unless states are kept or used."""

    def around(self, arm: str, rows: Sequence[int]) -> AbstractContextManager[object]:
        """These windows of an arm run inside as one batch."""
        return nullcontext()

    def repeated(self, arm: str, rows: Sequence[int]) -> AbstractContextManager[object]:
        """A batch that ran before runs inside once more, and whole."""
        return nullcontext()

    def anew(self) -> None:
        """Forget which shapes were compared: the model changes, wherever that may be."""

    def hold(self, alike: bool) -> bool:
        """Whether what ran so far may stand; ``alike``: the repeated batch came out the same."""
        return True

    def told(self) -> Started | None:
        """What reports say of it; None: the pass ran whole."""
        return None


class _Keeping(States):
    """A baseline's pass: what leaves the blocks is written batch by batch."""

    def __init__(self, stage: Path, blocks: Blocks, boundaries: Sequence[int]) -> None:
        self.stage, self.blocks, self.boundaries = stage, blocks, boundaries
        self.batches: list[dict[str, Any]] = []

    @contextmanager
    def around(self, arm: str, rows: Sequence[int]) -> Iterator[None]:
        """Keep what leaves the blocks in the batch that runs inside."""
        from safetensors.torch import save_file

        with self.blocks.watched(self.boundaries) as seen:
            yield
        number = len(self.batches)
        digests = {}
        for at, states in seen.items():
            kept = states.cpu()
            digests[str(at)] = [_digest(row) for row in kept]
            save_file({"states": kept}, self.stage / _name(number, at))
        self.batches.append({"arm": arm, "rows": list(rows), "sha256": digests})


@contextmanager
def kept_by(
    place: Place, inputs: Mapping[str, Any], model: Any, run: Run, tokens: int
) -> Iterator[States]:
    """What keeps the states of the pass that is made inside; the folder is there in any case.

    Args:
        place: where.
        inputs: all that the states depend on beside the baseline.
        model: the model; None where an engine runs it.
        run: the logits of one short input, (1, tokens).
        tokens: of all windows of the pass.
    """
    with atomic_directory(place.folder / FOLDER) as stage:
        most = min(place.most_bytes, free_bytes(stage) // DISK_SHARE)
        states, reason = _states(stage, most, model, run, tokens)
        yield states
        of = {**inputs, "baseline_sha256": place.baseline_sha256}
        listing: dict[str, Any] = {"inputs": of, "none_because": reason}
        if isinstance(states, _Keeping):
            listing |= {
                "blocks": len(states.blocks.modules),
                "items": states.blocks.items,
                "boundaries": list(states.boundaries),
                "batches": states.batches,
            }
        write_json(stage / LISTING, listing)


def _states(stage: Path, most_bytes: int, model: Any, run: Run, tokens: int) -> tuple[States, str]:
    """What keeps states in a folder, or why nothing does."""
    import torch

    found = blocks_of(model, None)
    if found is None:
        return States(), "the model has not one list of blocks on one device"
    with torch.inference_mode():
        form = _form(found, run)
        if isinstance(form, str):
            return States(), form
        blocks = Blocks(found.modules, form[0])
        needed = tokens * form[1]
        most = min(MOST, most_bytes // needed)
        if not most:
            return States(), f"one boundary takes {needed} bytes, and {most_bytes} are allowed"
        boundaries = boundaries_of(len(blocks.modules), most)
        reason = _differs(blocks, run, boundaries)
    return (States(), reason) if reason else (_Keeping(stage, blocks, boundaries), "")


def _name(number: int, at: int) -> str:
    return f"{number:05}.{at}.safetensors"


def _digest(states: torch.Tensor) -> str:
    import torch

    raw = states.contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


@dataclass
class Kept:
    """The states that a baseline's run kept."""

    folder: Path
    blocks: int
    items: int | None
    boundaries: Sequence[int]
    batches: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        self.exact: dict[tuple[str, tuple[int, ...]], int] = {}
        self.places: dict[tuple[str, int], tuple[int, int]] = {}  # batch and row in it
        for number, batch in enumerate(self.batches):
            self.exact[batch["arm"], tuple(batch["rows"])] = number
            for place, row in enumerate(batch["rows"]):
                self.places[batch["arm"], row] = number, place

    @classmethod
    def read(cls, run: Path, inputs: Mapping[str, Any]) -> Kept | None:
        """The states beside a run; None where there are none, or of other inputs."""
        try:
            listing = read_json_object(run / FOLDER / LISTING)
        except InputError:
            return None
        if listing.get("inputs") != inputs or not listing.get("boundaries"):
            return None
        return cls(
            run / FOLDER,
            listing["blocks"],
            listing["items"],
            listing["boundaries"],
            listing["batches"],
        )

    def states(self, arm: str, rows: Sequence[int], at: int) -> tuple[torch.Tensor | None, bool]:
        """What left the blocks before a boundary for these windows, and whether they were a batch
        of their own; None where a window is not there, or somebody changed it."""
        import torch

        number = self.exact.get((arm, tuple(rows)))
        if number is not None:
            places = [(number, place) for place in range(len(rows))]
        else:
            places = [self.places[arm, row] for row in rows if (arm, row) in self.places]
        found = [self._row(*place, at) for place in places]
        parts = [part for part in found if part is not None]
        if len(parts) < len(rows) or len({part.shape for part in parts}) != 1:
            return None, False
        return torch.cat(parts), number is not None

    def _row(self, number: int, place: int, at: int) -> torch.Tensor | None:
        from safetensors import SafetensorError, safe_open

        digests = self.batches[number]["sha256"][str(at)]
        try:
            with safe_open(self.folder / _name(number, at), "pt") as file:
                row: torch.Tensor = file.get_slice("states")[place : place + 1]
        except (OSError, SafetensorError):
            return None
        return row if _digest(row[0]) == digests[place] else None


class Starting(States):
    """A subject's pass: batches run from a boundary on."""

    def __init__(self, kept: Kept, blocks: Blocks, at: int, alone: bool) -> None:
        """
        Args:
            kept: by the baseline's run.
            blocks: of the subject.
            at: the boundary.
            alone: whether a window's states are its own, whatever it shares a batch with. Not in a
                mixture: how many tokens an expert gets, and so the shape of its product, depends
                on the others.
        """
        self.kept, self.blocks, self.at, self.alone = kept, blocks, at, alone
        self.shapes: dict[tuple[int, ...], bool] = {}  # that were compared: whether they agreed
        self.ran: set[tuple[str, int]] = set()
        self.checked: set[tuple[str, int]] = set()
        self.counting, self.equal = True, False

    @contextmanager
    def around(self, arm: str, rows: Sequence[int]) -> Iterator[None]:
        """Run the batch from the boundary on, or whole and compared, or whole."""
        states, own = self.kept.states(arm, rows, self.at)
        shape = (len(rows), *states.shape[1:]) if states is not None else ()
        with ExitStack() as stack:
            seen: dict[int, torch.Tensor] = {}
            if states is not None and (own or self.shapes.get(shape)):
                device = next(self.blocks.modules[0].parameters()).device
                stack.enter_context(self.blocks.started(self.at, states.to(device)))
                if self.counting:
                    self.ran.update((arm, row) for row in rows)
            elif states is not None and self.alone and shape not in self.shapes:
                seen = stack.enter_context(self.blocks.watched([self.at]))
            yield
        if states is not None and seen:
            self.shapes[shape] = _same(seen[self.at].cpu(), states)

    @contextmanager
    def repeated(self, arm: str, rows: Sequence[int]) -> Iterator[None]:
        """Run the batch whole and compare what it hands on at the boundary."""
        states, own = self.kept.states(arm, rows, self.at)
        with self.blocks.watched([self.at]) as seen:
            yield
        self.equal = states is not None and own and _same(seen[self.at].cpu(), states)
        self.checked = {(arm, row) for row in rows}

    def anew(self) -> None:
        """What is changed may lie before the boundary, and what runs again is counted already."""
        self.shapes.clear()
        self.counting = False

    def hold(self, alike: bool) -> bool:
        """Whether the subject's own states are those that are kept, and nothing else is passed."""
        return self.equal and alike

    def told(self) -> Started | None:
        """The windows of the arms that ran from the boundary on."""
        ran = self.ran - self.checked
        windows = sum(arm in ARMS for arm, _ in ran)
        if not windows:
            return None
        return Started(self.at, len(self.blocks.modules), windows, len(self.checked))


def starting(
    source: Source, inputs: Mapping[str, Any], config: Mapping[str, Any], model: Any
) -> States:
    """What runs a subject from the last boundary before its first changed block on.

    Args:
        source: the baseline's run, and that block.
        inputs: all that the states depend on beside the baseline.
        config: of the subject.
        model: the same, loaded.
    """
    kept = Kept.read(source.folder, {**inputs, "baseline_sha256": source.baseline_sha256})
    before = [at for at in kept.boundaries if at <= source.changed] if kept else []
    blocks = blocks_of(model, kept.items) if kept else None
    if kept is None or blocks is None or not before or len(blocks.modules) != kept.blocks:
        return States()
    names = [name for name, _ in model.named_parameters()]
    alone = not any(role_of(name, config) is Role.ROUTER for name in names)
    return Starting(kept, blocks, before[-1], alone)
