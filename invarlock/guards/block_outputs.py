"""Where guards watch a forward pass: what attention and feed-forward blocks write to the stream.

Inside a block, outputs belong to a parametrization: value heads may be turned, neurons scaled. What
a block writes is the same in all of them, but for an orthogonal change of the basis of the stream
and its scale; behind a LayerNorm the mean over the features is no part of the function either, and
is taken away. A guard that watches it judges the function.

Of each window some evenly spaced tokens are kept. The first one of a longer window is none of them:
its activations can be hundreds of times the others' (Sun et al., COLM 2024), and then all that is
seen.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from invarlock.guards.guard import CheckpointRun, Probe
from invarlock.modalities import is_for_more_than_text
from invarlock.roles import Role, is_token_table, layer_of, role_of

if TYPE_CHECKING:
    import torch

    from invarlock.formats.execution import Engine, Written

ATTENTION, FFN, MIXER = "attention", "ffn", "mixer"
EMBED, STREAM = "embed", "stream"  # what enters the stream, and what is read at its end
ROUTER = "router"  # what an engine shows of one; of modules the guard of mixtures looks itself
# What a block that writes a constant leaves after centring, in units of what it writes, is rounding
# of float32.
CONSTANT = 1e-6
# The family of guards that a kind of place belongs to, where the model is no mixture of experts.
FAMILIES = {ATTENTION: "attn", FFN: "ffn", MIXER: "other", EMBED: "embed", STREAM: "other"}
# of a module that has parameters of several, the first
_BLOCK_ROLES = (Role.ROUTER, Role.ATTN, Role.EXPERT, Role.FFN, Role.MIXER)
WINDOW_TOKENS = 64  # of each calibration window, evenly spaced; of a shorter one all


class Place(NamedTuple):
    """A module at which the stream is written or read."""

    name: str
    module: torch.nn.Module | None  # None: an engine shows it
    kind: str
    layer: int | None
    family: str  # of the guards
    reads: bool = False  # what goes into the module counts, not what comes out
    # Of several projections the one that runs last writes to the stream. Modules may be registered
    # in another order (Phi-3's output projection comes first), so the pass itself says which.
    among: tuple[tuple[str, torch.nn.Module], ...] = ()
    within: torch.nn.Module | None = None  # the layer, which returns after all of them


def block_outputs(model: torch.nn.Module, config: Mapping[str, Any]) -> list[Place]:
    """The projections of every attention and feed-forward block, of which the last one that runs
    counts; the last of a mixer's, and a mixture of experts as a whole.

    Blocks follow from the roles of the parameters: of a layer's attention projections, in the
    order of the modules, one ends where the name of its first projection comes again (a decoder
    has two); its feed-forward projections are one block, and so are its mixer's. A mixture is the
    smallest module that holds a router and experts; where that is the layer, its last projection
    stands for it.
    """
    modules = dict(model.named_modules())
    layers: dict[str, dict[Role, list[str]]] = {}  # of each layer, its modules by role
    for name, module in modules.items():
        own = dict(module.named_parameters(prefix=name, recurse=False))
        roles = {role_of(parameter, config) for parameter in own}
        if layer_of(name + ".") is None:
            continue
        layer = layers.setdefault(_layer_prefix(name), {role: [] for role in _BLOCK_ROLES})
        role = next((role for role in _BLOCK_ROLES if role in roles), None)
        if role is not None and (role != Role.MIXER or any(p.dim() == 2 for p in own.values())):
            layer[role].append(name)
    found = []
    for prefix, layer in layers.items():
        blocks = [(ATTENTION, "attn", block) for block in _blocks(layer[Role.ATTN])]
        blocks += [(MIXER, "other", block) for block in (layer[Role.MIXER],) if block]
        # a mixture's sum over its experts is what leaves it
        mixtures = [_mixture(router, layer[Role.EXPERT]) for router in layer[Role.ROUTER]]
        inside = list(dict.fromkeys(m for m in mixtures if m.startswith(prefix + ".")))
        forward = [name for name in modules if name in {*layer[Role.FFN], *layer[Role.EXPERT]}]
        family = "expert" if mixtures else "ffn"
        blocks += [(FFN, family, [name]) for name in inside]
        if forward and not inside:
            blocks.append((FFN, family, _together(forward)))
        found += [
            Place(
                name=block[-1],
                module=modules[block[-1]],
                kind=kind,
                layer=layer_of(block[-1] + "."),
                family=family_of_block,
                among=tuple((n, modules[n]) for n in block) if len(block) > 1 else (),
                within=modules[prefix],
            )
            for kind, family_of_block, block in blocks
        ]
    return sorted(found, key=lambda place: place.name)


def stream_ends(model: torch.nn.Module, config: Mapping[str, Any]) -> list[Place]:
    """Token embeddings, and the norms outside the layers, by what they read."""
    found = []
    for name, module in model.named_modules():
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if any(is_token_table(parameter, config) for parameter in own):
            found.append(Place(name, module, EMBED, None, "embed"))
        elif layer_of(name + ".") is None and Role.NORM in {role_of(p, config) for p in own}:
            found.append(Place(name, module, STREAM, None, "other", reads=True))
    return found


def module_shown(name: str, config: Mapping[str, Any]) -> str:
    """The name in transformers of a module that an engine shows of a language model, which may be
    part of a model for images and text there."""
    if is_for_more_than_text(config):
        return name.replace("model.", "model.language_model.", 1)
    return name


def _mixture(router: str, experts: Sequence[str]) -> str:
    """The smallest module that holds a router and the experts nearest to it."""
    above = router.rpartition(".")[0]
    if not experts:
        return above
    pairs = [zip(router.split("."), name.split("."), strict=False) for name in experts]
    shared = [".".join(a for a, _ in takewhile(lambda two: two[0] == two[1], p)) for p in pairs]
    return max(shared, key=len)


def _layer_prefix(name: str) -> str:
    """The part of a module's name that says which layer of which stack it is in."""
    parts = name.split(".")
    ends = range(1, len(parts) + 1)
    return next(p for n in ends if layer_of((p := ".".join(parts[:n])) + ".") is not None)


def _blocks(projections: Sequence[str]) -> Iterator[list[str]]:
    """A layer's attention blocks: one ends where the name of its first projection comes again."""
    first, block = projections[0].rpartition(".")[2] if projections else "", list[str]()
    for name in projections:
        if block and name.rpartition(".")[2] == first:
            yield block
            block = []
        block.append(name)
    if block:
        yield block


def _together(projections: Sequence[str]) -> list[str]:
    """Those of the module that holds most of them: a layer may have small maps of its own beside
    its feed-forward block (Gemma 3n). All, where no module holds two."""
    parents = Counter(name.rpartition(".")[0] for name in projections)
    parent, most = parents.most_common(1)[0]
    chosen = [name for name in projections if name.rpartition(".")[0] == parent]
    return chosen if most > 1 else list(projections)


def sees_no_mean(model: torch.nn.Module, config: Mapping[str, Any]) -> bool:
    """Whether the norms that read the stream take the mean over the features away (LayerNorm), so
    that it is no part of the function: by what they do, since classes have names of their own."""
    import torch

    table = next((p for n, p in model.named_parameters() if is_token_table(n, config)), None)
    if table is None:
        return False
    width, found = table.shape[-1], dict[type, bool]()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        named = "norm" in type(module).__name__.lower() and not list(module.children())
        if named and type(module) not in found and all(p.shape == (width,) for p in own):
            like = own[0] if own else table
            x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)[None]
            with torch.no_grad():
                plain, shifted = module(x), module(x + 1)
            far = (plain - shifted).abs().max()
            found[type(module)] = bool(far <= 0.05 * plain.abs().max())  # bfloat16 moves by 0.01
    return bool(found) and all(found.values())


class RowsProbe(Probe):
    """Hooks that only read, and keep some rows of each place until all windows went through.

    Windows may come in one batch or in several. A place is done, and its activations are let go,
    once it has seen all windows; until then it holds at most ``WINDOW_TOKENS`` rows a window, on
    the device where the module is.
    """

    kinds: ClassVar[tuple[str, ...]] = (ATTENTION, FFN, MIXER, EMBED, STREAM)

    def __init__(self) -> None:
        self.bytes = 0  # most that the hooks held at a time, by the sizes of their arrays
        self.seconds = 0.0  # wall time spent in the hooks
        self._rows: dict[str, list[torch.Tensor]] = {}
        self.seen: list[Place] = []  # where rows were kept, by the modules that ran last
        self._done: set[str] = set()
        self._pending: dict[str, tuple[Place, Any]] = {}  # what ran last in a block so far
        self._batch: tuple[int, ...] = ()  # windows and tokens of the pass that runs
        self._centred = False

    def places(self, model: torch.nn.Module, config: Mapping[str, Any]) -> Sequence[Place]:
        """Where to look."""
        raise NotImplementedError

    def saw(self, place: Place, x: torch.Tensor) -> None:
        """Take what was seen at a place.

        Args:
            place: where.
            x: (tokens, features) float32, a copy; without the mean over the features where the
                model takes it away.
        """
        raise NotImplementedError

    @contextmanager
    def attached(self, run: CheckpointRun) -> Iterator[None]:
        """Watch the pass over the calibration windows."""
        windows = len(run.calibration)
        if run.engine is not None:
            watching = self.shown_by(run.engine, run.checkpoint.config, windows)
        else:
            watching = self.watching(run.model, run.checkpoint.config, windows)
        with watching:
            yield
        run.seconds += self.seconds
        run.probe_bytes += self.bytes

    @contextmanager
    def watching(
        self, model: torch.nn.Module, config: Mapping[str, Any], windows: int
    ) -> Iterator[None]:
        """Watch the forward passes made inside the block, over this many windows together."""
        places = self.places(model, config)
        self._centred = sees_no_mean(model, config)
        hooks = [hook for each in places for hook in self._hooks(each, windows)]
        hooks.append(model.register_forward_pre_hook(self._see_batch, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._end()

    @contextmanager
    def shown_by(self, engine: Engine, config: Mapping[str, Any], windows: int) -> Iterator[None]:
        """Watch what an engine shows of the windows that it runs inside the block, this many."""
        import torch

        self._centred = engine.centred

        def take(written: Written) -> None:
            if written.kind in self.kinds:
                family = "expert" if written.mixture else FAMILIES[written.kind]
                name = module_shown(written.name, config)
                place = Place(name, None, written.kind, written.layer, family)
                self._look(place, torch.from_numpy(written.values)[None], windows)

        with engine.watching(take):
            yield
        self._end()

    def _end(self) -> None:
        """Take what was seen of fewer windows than were announced."""
        for each in self.seen:
            if each.name in self._rows:
                self._finish(each)

    def _hooks(self, place: Place, windows: int) -> Iterator[Any]:
        assert place.module is not None
        if place.reads:
            yield place.module.register_forward_pre_hook(self._before(place, windows))
        elif not place.among or place.within is None:
            yield place.module.register_forward_hook(self._after(place, windows))
        else:
            for name, module in place.among:
                one = place._replace(name=name, module=module)
                yield module.register_forward_hook(self._candidate(place.name, one))
            yield place.within.register_forward_hook(lambda *_: self._settle(windows))

    def _before(self, place: Place, windows: int) -> Any:
        return lambda _module, inputs: self._look(place, inputs[0], windows) if inputs else None

    def _after(self, place: Place, windows: int) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            self._settle(windows)  # what ran before, so that places are seen in their order
            self._look(place, output[0] if isinstance(output, tuple | list) else output, windows)

        return hook

    def _candidate(self, block: str, place: Place) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            self._pending.pop(block, None)  # the order is that of the last ones
            self._pending[block] = place, output[0] if isinstance(output, tuple | list) else output

        return hook

    def _settle(self, windows: int) -> None:
        for block in list(self._pending):
            self._look(*self._pending.pop(block), windows)

    def _see_batch(self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._batch = tuple(ids.shape) if ids is not None else ()

    def _by_window(self, output: Any) -> torch.Tensor | None:
        """An output as (windows, tokens, features), which some classes flatten or have tokens
        first; None where its rows are no tokens of the windows."""
        shape: tuple[int, ...] = tuple(getattr(output, "shape", ()))
        if len(shape) == 2 and len(self._batch) == 2 and shape[0] == math.prod(self._batch):
            flat: torch.Tensor = output.reshape(*self._batch, -1)
            return flat
        if len(shape) != 3 or not output.numel():
            return None
        if shape[:2] == self._batch[::-1] != self._batch:
            output = output.transpose(0, 1)
        by_window: torch.Tensor = output
        return by_window if len(by_window) == (self._batch or shape)[0] else None

    def _look(self, place: Place, output: Any, windows: int) -> None:
        # a module that two layers share is looked at once
        values = None if place.name in self._done else self._by_window(output)
        if values is None:
            return
        wait_for(values.device)  # else the forward pass so far would count as the probe's
        started = time.perf_counter()
        length = values.shape[1]
        wanted = min(length, WINDOW_TOKENS)
        skipped = int(length > wanted)  # the first one
        at = [skipped + (2 * i + 1) * (length - skipped) // (2 * wanted) for i in range(wanted)]
        if place.name not in self._rows:
            self.seen.append(place)
        rows = self._rows.setdefault(place.name, [])
        rows.append(values.detach()[:, at])  # a copy: (windows, tokens, features)
        if sum(map(len, rows)) >= windows:
            self._finish(place)
        wait_for(values.device)
        self.seconds += time.perf_counter() - started

    def _finish(self, place: Place) -> None:
        import torch

        held = sum(t.nbytes for rows in self._rows.values() for t in rows)
        x = torch.cat(self._rows.pop(place.name)).flatten(0, -2).float()
        self._done.add(place.name)
        if self._centred:
            x -= x.mean(dim=1, keepdim=True)
        self.bytes = max(self.bytes, held + x.nbytes + 4 * len(x) ** 2)
        self.saw(place, x)


def wait_for(device: torch.device) -> None:
    """Let a CUDA device finish what it was given; a CPU has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
