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

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from invarlock.guards.guard import CheckpointRun, Probe
from invarlock.roles import Role, is_token_table, layer_of, role_of

if TYPE_CHECKING:
    import torch

ATTENTION, FFN, MIXER = "attention", "ffn", "mixer"
EMBED, STREAM = "embed", "stream"  # what enters the stream, and what is read at its end
# What a block that writes a constant leaves after centring, in units of what it writes, is rounding
# of float32.
CONSTANT = 1e-6
WINDOW_TOKENS = 64  # of each calibration window, evenly spaced; of a shorter one all


class Place(NamedTuple):
    """A module at which the stream is written or read."""

    name: str
    module: torch.nn.Module
    kind: str
    layer: int | None
    family: str  # of the guards
    reads: bool = False  # what goes into the module counts, not what comes out


def block_outputs(model: torch.nn.Module, config: Mapping[str, Any]) -> list[Place]:
    """The last projection of every attention, mixer and feed-forward block; of a mixture of experts
    the whole block.

    Blocks follow from the roles of the parameters: of a layer's attention projections, in the
    order of the modules, one ends where the name of its first projection comes again (a decoder
    has two); its feed-forward projections are one block, and so are its mixer's.
    """
    modules = dict(model.named_modules())
    layers: dict[str, dict[str, list[str]]] = {}  # of each layer, its modules by kind
    for name, module in modules.items():
        own = dict(module.named_parameters(prefix=name, recurse=False))
        roles = {role_of(parameter, config) for parameter in own}
        if layer_of(name + ".") is None:
            continue
        kinds = (ATTENTION, FFN, MIXER, "mixture")
        layer = layers.setdefault(_layer_prefix(name), {kind: [] for kind in kinds})
        if Role.ROUTER in roles:
            layer["mixture"].append(name.rpartition(".")[0])
        elif Role.ATTN in roles:
            layer[ATTENTION].append(name)
        elif roles & {Role.FFN, Role.EXPERT}:
            layer[FFN].append(name)
        elif Role.MIXER in roles and any(p.dim() == 2 for p in own.values()):
            layer[MIXER].append(name)
    found = []
    for layer in layers.values():
        ends = [(ATTENTION, "attn", name) for name in _ends(layer[ATTENTION])]
        ends += [(MIXER, "other", name) for name in layer[MIXER][-1:]]
        # a mixture's sum over its experts is what leaves it
        mixture = layer["mixture"]
        ends += [(FFN, "expert" if mixture else "ffn", name)
                 for name in mixture or layer[FFN][-1:]]  # fmt: skip
        found += [Place(n, modules[n], kind, layer_of(n + "."), f) for kind, f, n in ends]
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


def _layer_prefix(name: str) -> str:
    """The part of a module's name that says which layer of which stack it is in."""
    parts = name.split(".")
    ends = range(1, len(parts) + 1)
    return next(p for n in ends if layer_of((p := ".".join(parts[:n])) + ".") is not None)


def _ends(projections: Sequence[str]) -> Iterator[str]:
    """The last projection of each attention block among those of a layer."""
    first = projections[0].rpartition(".")[2] if projections else ""
    for this, following in itertools.zip_longest(projections, projections[1:]):
        if following is None or following.rpartition(".")[2] == first:
            yield this


class RowsProbe(Probe):
    """Hooks that only read, and keep some rows of each place until all windows went through.

    Windows may come in one batch or in several. A place is done, and its activations are let go,
    once it has seen all windows; until then it holds at most ``WINDOW_TOKENS`` rows a window, on
    the device where the module is.
    """

    def __init__(self) -> None:
        self.bytes = 0  # most that the hooks held at a time, by the sizes of their arrays
        self.seconds = 0.0  # wall time spent in the hooks
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._done: set[str] = set()
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
        with self.watching(run.model, run.checkpoint.config, len(run.calibration)):
            yield
        run.seconds += self.seconds
        run.probe_bytes += self.bytes

    @contextmanager
    def watching(
        self, model: torch.nn.Module, config: Mapping[str, Any], windows: int
    ) -> Iterator[None]:
        """Watch the forward passes made inside the block, over this many windows together."""
        from torch.nn import LayerNorm

        places = self.places(model, config)
        # LayerNorm takes the mean over the features away, so that it is no part of the function
        self._centred = any(isinstance(module, LayerNorm) for module in model.modules())
        hooks = [
            each.module.register_forward_pre_hook(self._before(each, windows))
            if each.reads
            else each.module.register_forward_hook(self._after(each, windows))
            for each in places
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for each in places:
            if each.name in self._rows:
                self._finish(each)

    def _before(self, place: Place, windows: int) -> Any:
        return lambda _module, inputs: self._look(place, inputs[0], windows) if inputs else None

    def _after(self, place: Place, windows: int) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            self._look(place, output[0] if isinstance(output, tuple | list) else output, windows)

        return hook

    def _look(self, place: Place, values: torch.Tensor, windows: int) -> None:
        # a module that two layers share is looked at once
        if place.name in self._done or not hasattr(values, "device") or not values.numel():
            return
        wait_for(values.device)  # else the forward pass so far would count as the probe's
        started = time.perf_counter()
        if values.dim() == 2:  # some blocks see all tokens of a batch as one list
            together = windows if len(values) % windows == 0 else 1
            values = values.reshape(together, -1, values.shape[1])
        length = values.shape[1]
        wanted = min(length, WINDOW_TOKENS)
        at = [(2 * i + 1) * length // (2 * wanted) for i in range(wanted)]
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
