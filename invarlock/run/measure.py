"""Measure one checkpoint: weights first, then one pass over all windows.

The result is everything the comparison needs, so that no model is ever run twice.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from invarlock import progress
from invarlock.checkpoints import Checkpoint
from invarlock.documents.windows import PicturedWindows, Record, Window, WindowSet
from invarlock.errors import InputError
from invarlock.files import digest_json, sha256_file
from invarlock.formats.execution import Described
from invarlock.guards import GUARDS
from invarlock.guards.findings import Failure
from invarlock.guards.guard import CheckpointRun
from invarlock.guards.invariants import check_engine_tokens, check_loaded
from invarlock.guards.operators import Weights
from invarlock.guards.representation import GramProbe
from invarlock.guards.rmt import CALIBRATION_WINDOWS, Activation, ActivationProbe
from invarlock.metrics import ARMS
from invarlock.metrics.kind import Example
from invarlock.metrics.looks import rows_of
from invarlock.metrics.started import Started
from invarlock.pictures import Pictures, folder_of
from invarlock.policy import Policy
from invarlock.run.forward import (
    ArmResult,
    Keep,
    TopTokens,
    as_batch,
    batches,
    logits_function,
    logits_of,
    merge,
    run_batch,
)
from invarlock.run.hidden_states import (
    Place,
    Source,
    States,
    kept_by,
    starting,
)
from invarlock.run.loading import Loaded, Target, device_name, load_checkpoint
from invarlock.run.packed_weights import packed_weights
from invarlock.run.tasks import Task, commonest_shape, task_for
from invarlock.windows import read_windows

if TYPE_CHECKING:
    import torch

SERVER = "server"  # the device of what a running server has
PROBE_TOKENS = 16  # tokens on which the output head is compared with the whole model


@dataclass(frozen=True)
class RunWindows:
    """The windows of a run with the digest of the file they came from."""

    content: WindowSet
    sha256: str
    pictures: Pictures | None = None

    @classmethod
    def read(cls, path: Path, tokenizer_sha256: str | None) -> RunWindows:
        """Read and check ``windows.json``; the tokenizer must be the one it was cut with.

        Raises:
            InputError: see :func:`invarlock.windows.read_windows`.
        """
        content = read_windows(path, tokenizer_sha256)
        pictures = None
        if isinstance(content, PicturedWindows):
            pictures = Pictures(folder_of(path), content.processor)
        return cls(content, sha256_file(path), pictures)

    def token_ids(self) -> Iterator[Sequence[int]]:
        """The tokens of every window, or of every record."""
        for window in (*self.content.preview, *self.content.final):
            yield window.tokens

    def arm(self, name: str) -> Sequence[Window] | Sequence[Record]:
        """The windows of ``preview`` or ``final``."""
        return self.content.preview if name == "preview" else self.content.final

    def look(self, arm: str, share: float) -> list[int]:
        """The windows of an arm that a look sees."""
        clusters = [window.cluster for window in self.arm(arm)]
        return rows_of(share, clusters, self.slice_names(arm))

    def slice_names(self, arm: str) -> list[str]:
        """The slice of each window of an arm; empty where there are none."""
        slices = self.content.of_slices
        return [part.name for part in slices for _ in range(getattr(part.counts, arm))]

    @property
    def guarded(self) -> int:
        """The first so many warm-up windows are those that guards look at: all, or those of the
        first slice."""
        slices = self.content.of_slices
        return slices[0].counts.preview if slices else len(self.content.preview)


@dataclass(frozen=True)
class ReferenceArrays:
    """What a subject's run needs of the baseline's run."""

    top: TopTokens
    activations: Sequence[Activation]
    checkpoint: Checkpoint | None = None  # its rows are compared where it is given
    arrays: Mapping[str, Any] = field(default_factory=dict)  # what its probes kept, by name
    start: Source | None = None  # its hidden states; None: the subject's pass runs whole
    weights: Weights | None = None  # statistics of its weights, as they were recorded


@dataclass
class Measurement:
    """What one run recorded."""

    dtype: str
    device: str
    records: Mapping[str, Mapping[str, Any]]  # of the guards that looked at something, by name
    activations: Sequence[Activation]  # as they were before they were rounded for the record
    arms: dict[str, ArmResult]
    loaded_failures: list[Failure]
    loaded_sha256: str  # of the parameters as they were in memory at the end
    timings: dict[str, float] = field(default_factory=dict)  # wall seconds per phase
    memory_mb: dict[str, float] = field(default_factory=dict)  # peak without and with guards
    # of the windows of an arm, what the metric takes beside their losses
    columns: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)  # what probes keep for subjects' runs
    ran: Described | None = None  # what executed the model
    share: float | None = None  # of the look that ended it; None: nobody looked
    started: Started | None = None  # from which block on it ran; None: from the first

    def reference_arrays(self) -> ReferenceArrays:
        """This run as the reference of another; it has to be a baseline run."""
        final = self.arms["final"]
        starts = np.cumsum([0, *final.n_tokens()]).tolist()
        top = TopTokens(
            starts=starts,
            top1=final.joined("top1"),
            ids=final.joined("top_ids"),
            logprob=final.joined("top_logprob").astype(np.float16),
            correct=final.joined("logprob"),
        )
        return ReferenceArrays(top, self.activations, arrays=self.arrays)


def measure_checkpoint(
    checkpoint: Checkpoint,
    windows: RunWindows,
    target: Target,
    *,
    token_budget: int,
    against: ReferenceArrays | None,
    policy: Policy | None = None,
    looks: Looks | None = None,
    keep: Place | None = None,
) -> Measurement:
    """Load the checkpoint, run it over the windows once and take the guards' statistics.

    Args:
        checkpoint: the folder; its tensors must be finite.
        windows: what to run it on.
        target: device and dtype.
        token_budget: tokens per batch.
        against: the baseline's run; None where this is the baseline.
        policy: when given, what guards propose is tried on held-out windows.
        looks: when given, the run ends at the first look that decides. Guards see all of their
            windows whatever it is.
        keep: of a baseline: where hidden states are kept for its subjects; None: nowhere.

    Raises:
        InputError: the folder cannot be loaded, or the states cannot be written.
    """
    shares = iter(looks.shares if looks else (1.0,))
    clock = _Clock()
    task = task_for(checkpoint.folder, windows.content, windows.pictures)
    if checkpoint.form.language_only and windows.pictures is not None:
        raise InputError(
            f"{checkpoint.form.title} models are run on text alone, and the windows have pictures",
            where=str(checkpoint.source),
        )
    loaded = load_checkpoint(checkpoint, target, windows.content.longest, task.metric.adapter)
    clock.lap("load_model")
    the_pass = _Pass(loaded, checkpoint.config, windows, token_budget, against, task)
    share = next(shares)
    with the_pass.keeping(keep):
        preview, final = the_pass.plain(share)
        clock.lap("forward")
        memory = {"forward": peak_memory_mb(loaded.device)}
        run = CheckpointRun(
            checkpoint=checkpoint,
            model=loaded.model,
            device=loaded.device,
            calibration=[windows.arm("preview")[i].window_id for i in the_pass.calibration],
            limits=policy,
            baseline_activations=against.activations if against else None,
            baseline_arrays=against.arrays if against else None,
            baseline_checkpoint=against.checkpoint if against else None,
            baseline_weights=against.weights if against else None,
            engine=loaded.engine,
        )
        probes = {guard.name: guard.probe() for guard in GUARDS}
        for probe in probes.values():
            probe.weigh(run)
        clock.lap("spectral")
        # 8 windows twice: do hooks only read?
        bare = the_pass.batch("preview", the_pass.calibration)
    clock.lap("bare_batch")
    with ExitStack() as hooks:
        for probe in probes.values():
            hooks.enter_context(probe.attached(run))
        hooked = the_pass.batch("preview", the_pass.calibration, again=True)
    if not the_pass.states.hold(_alike(bare, hooked)):
        the_pass.forget()
        preview, final = the_pass.plain(share)
        bare = the_pass.batch("preview", the_pass.calibration)
    preview.append(hooked)
    run.bare_nll = bare.losses()
    clock.lap("calibration_batch")
    clock.move("calibration_batch", "forward", "rmt", run.seconds)
    failures = check_loaded(loaded.missing, loaded.unexpected, loaded.dense_because)
    if loaded.engine is not None:
        failures += check_engine_tokens(loaded.engine, checkpoint.folder, windows.token_ids())
    clock.lap("invariants")

    def found(digest: str = "") -> Measurement:
        """What was measured so far; ``digest`` of the weights in memory once nothing more runs."""
        records = {name: probe.record(run) for name, probe in probes.items()}
        memory["with_guards"] = peak_memory_mb(loaded.device)
        arms = {"preview": merge(preview), "final": merge(final)}
        return Measurement(
            dtype=loaded.dtype,
            device=device_name(loaded.device),
            records={name: record for name, record in records.items() if record is not None},
            activations=run.activations,
            arms=arms,
            loaded_failures=failures,
            loaded_sha256=digest,
            timings=clock.seconds,
            memory_mb=memory,
            columns={arm: the_pass.columns(arm, result) for arm, result in arms.items()},
            arrays={k: v for probe in probes.values() for k, v in probe.arrays().items()},
            ran=loaded.describe(),
            share=share if looks else None,
            started=the_pass.states.told(),
        )

    while looks and share < 1.0 and not looks.decides(found(), share):
        more = the_pass.plain(share := next(shares))
        preview += more[0]
        final += more[1]
        clock.lap("forward")
    if loaded.engine is None:  # an engine's modules cannot be scaled
        run.again = partial(the_pass.again, merge(preview))
    for probe in probes.values():
        probe.after(run)
    clock.lap("variance")
    digest = digest_json(checkpoint.stored) if loaded.engine else loaded_digest(loaded.model)
    clock.lap("invariants")
    return found(digest)


@dataclass(frozen=True)
class Looks:
    """When a run may end before all windows ran (:mod:`invarlock.metrics.looks`)."""

    shares: Sequence[float]  # of the windows, increasing; the last is 1
    decides: Callable[[Measurement, float], bool]  # whether what was measured so far is enough


@dataclass(frozen=True)
class Observation:
    """What a pass alone says of a checkpoint, without weights, trials and token-wise records."""

    arms: Mapping[str, ArmResult]
    activations: Sequence[Activation]
    columns: Mapping[str, Mapping[str, list[Any]]]  # as of a Measurement
    arrays: Mapping[str, Any] = field(default_factory=dict)  # as of a Measurement


def observe(
    loaded: Loaded, checkpoint: Checkpoint, windows: RunWindows, token_budget: int
) -> Observation:
    """One pass of a loaded checkpoint over the windows, in the batches of a run."""
    task = task_for(checkpoint.folder, windows.content, windows.pictures)
    the_pass = _Pass(loaded, checkpoint.config, windows, token_budget, None, task, False)
    preview, final = the_pass.plain(1.0)
    probe, grams = ActivationProbe(), GramProbe()
    seen = loaded.model, checkpoint.config, len(the_pass.calibration)
    with probe.watching(*seen), grams.watching(*seen):
        preview.append(the_pass.batch("preview", the_pass.calibration))
    arms = {"preview": merge(preview), "final": merge(final)}
    columns = {arm: the_pass.columns(arm, result) for arm, result in arms.items()}
    return Observation(arms, probe.activations, columns, grams.arrays())


@dataclass
class _Pass:
    """The one pass of a run: which windows go through the model together, and for what."""

    loaded: Loaded
    config: Mapping[str, Any]
    windows: RunWindows
    token_budget: int
    against: ReferenceArrays | None
    task: Task
    to_compare: bool = True  # a baseline's: its most likely tokens are kept for its subjects

    def __post_init__(self) -> None:
        self.examples = {arm: self.task.examples(self.windows.arm(arm)) for arm in ARMS}
        probe = as_batch([self.examples["final"][0].start(PROBE_TOKENS)], self.loaded.device)
        engine = self.loaded.engine
        self.logits = (
            logits_of(engine) if engine else logits_function(self.loaded.model, probe.inputs)
        )
        guarded = self.examples["preview"][: self.windows.guarded]
        self.calibration = evenly_spaced(commonest_shape(guarded), CALIBRATION_WINDOWS)
        self.others: dict[str, dict[int, list[float]]] = {}
        self.done: dict[str, set[int]] = {arm: set() for arm in ARMS}  # windows that ran
        self.states = self._starting()

    def _starting(self) -> States:
        """What runs a subject from its first changed block on, where that can be."""
        start = self.against.start if self.against else None
        if start is None:
            return States()
        return starting(start, self._inputs, self.config, self.loaded.model)

    @property
    def _inputs(self) -> dict[str, Any]:
        """All that hidden states depend on, but for the checkpoint and the machine."""
        import torch

        return {
            "windows_sha256": self.windows.sha256,
            "dtype": self.loaded.dtype,
            "device": device_name(self.loaded.device),
            "threads": torch.get_num_threads(),
            "versions": dict(self.loaded.describe().versions),
        }

    @contextmanager
    def keeping(self, place: Place | None) -> Iterator[None]:
        """Keep the hidden states of what runs inside."""
        if place is None:
            yield
            return
        examples = [e for arm in ARMS for e in (*self.examples[arm], *self._choices(arm)[0])]
        tokens = sum(example.shape[-1] for example in examples)
        with kept_by(place, self._inputs, self.loaded.model, self._shown, tokens) as self.states:
            yield
        self.states = States()

    def _shown(self) -> torch.Tensor:
        """The logits of a short input."""
        import torch

        example = self.examples["final"][0].start(PROBE_TOKENS)
        inputs = as_batch([example], self.loaded.device).inputs
        positions = torch.arange(example.shape[-1], device=self.loaded.device)
        return torch.cat([*self.logits(inputs, positions)])

    def forget(self) -> None:
        """Begin again, whole."""
        self.states = States()
        self.done = {arm: set() for arm in ARMS}
        self.others = {}

    def batch(self, arm: str, rows: Sequence[int], again: bool = False) -> ArmResult:
        """These windows of an arm as one batch; ``again``: they ran before."""
        top = self.against is None and self.to_compare
        keep = Keep()
        if arm == "final":
            keep = Keep(top=top, against=self.against.top if self.against else None)
        with self.states.repeated(arm, rows) if again else self.states.around(arm, rows):
            found = run_batch(self.logits, self.examples[arm], rows, keep, self.loaded.device)
        progress.done(len(rows), self._tokens(arm, rows))
        return found

    def _tokens(self, arm: str, rows: Iterable[int]) -> int:
        return sum(self.examples[arm][row].shape[-1] for row in rows)

    def batches(self, arm: str, rows: Sequence[int]) -> list[ArmResult]:
        """These windows of an arm in batches that fit the budget."""
        groups = batches(self.examples[arm], rows, self.token_budget)
        return [self.batch(arm, group) for group in groups]

    def plain(self, share: float) -> tuple[list[ArmResult], list[ArmResult]]:
        """The windows of a share that did not run yet, but for those of the calibration: no guard
        has a hand in them. All windows are the share of 1."""
        with self._packed():
            if not self.others:
                self.others = {arm: self._others(arm) for arm in ARMS}
            wanted = {arm: self.windows.look(arm, share) for arm in ARMS}
            wanted["preview"] = [i for i in wanted["preview"] if i not in self.calibration]
            preview, final = (self._not_yet(arm, wanted[arm]) for arm in ARMS)
            return preview, final

    def _not_yet(self, arm: str, rows: Sequence[int]) -> list[ArmResult]:
        """Those of these windows that did not run yet."""
        new = [i for i in rows if i not in self.done[arm]]
        self.done[arm].update(new)
        progress.expect(len(new), self._tokens(arm, new))
        return self.batches(arm, new)

    def _packed(self) -> AbstractContextManager[None]:
        model = self.loaded.model
        return nullcontext() if model is None else packed_weights(model, self.token_budget)

    def _others(self, arm: str) -> dict[int, list[float]]:
        """Losses of what else the metric asks, such as wrong choices: nats, by window."""
        examples, owners = self._choices(arm)
        parts = []
        for group in batches(examples, range(len(examples)), self.token_budget):
            with self.states.around(f"{arm} others", group):
                parts.append(run_batch(self.logits, examples, group, Keep(), self.loaded.device))
        done = merge(parts)
        found: dict[int, list[float]] = {}
        for number, owner in enumerate(owners):
            found.setdefault(owner, []).append(done.nll_sum[number])
        return found

    def _choices(self, arm: str) -> tuple[Sequence[Example], Sequence[int]]:
        """What else the metric asks, and of which window."""
        return self.task.metric.others(self.windows.arm(arm), self.task.example)

    def columns(self, arm: str, found: ArmResult) -> dict[str, list[Any]]:
        """What the metric takes of each window beside its loss."""
        return self.task.metric.recorded(
            self.examples[arm], found.nll_sum, found.top1, self.others[arm]
        )

    def again(
        self, preview: ArmResult, changed: AbstractContextManager[Any], share: float
    ) -> dict[str, list[Any]] | None:
        """Held-out windows once more inside a context, with their losses of the pass, nats.

        Args:
            preview: the arm as it came out of the pass.
            changed: what is different this time.
            share: of the windows that ran, how many.

        Returns:
            columns of the windows; None where none was held out.
        """
        everything = sum(map(len, self.done.values())) + len(self.calibration)
        held_out = [i for i in sorted(self.done["preview"]) if i < self.windows.guarded]
        rows = evenly_spaced(held_out, int(share * everything))
        if not rows:
            return None
        self.states.anew()
        # packed, as these windows were in the pass: only what is changed may make a difference
        with self._packed(), changed:
            parts = self.batches("preview", rows)
        scaled, windows = merge(parts), self.windows.arm("preview")
        return {
            "window_ids": [windows[i].window_id for i in rows],
            "clusters": [windows[i].cluster for i in rows],
            "token_counts": [len(preview.logprob[i]) for i in rows],
            "plain_nll": [preview.nll_sum[i] for i in rows],
            "scaled_nll": [scaled.nll_sum[i] for i in rows],
        }


def _alike(one: ArmResult, two: ArmResult) -> bool:
    """Whether every token has the same log-probability, bit for bit."""
    mine, theirs = one.joined("logprob"), two.joined("logprob")
    return bool(np.array_equal(mine.view(np.uint32), theirs.view(np.uint32)))


def evenly_spaced(items: Sequence[int], count: int) -> list[int]:
    """``count`` of the items, one from the middle of each equal part; all if there are fewer."""
    n = len(items)
    return [items[(2 * k + 1) * n // (2 * count)] for k in range(count)] if n > count else [*items]


def loaded_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters in memory, in sorted order.

    Of packed ones too: by the parts of a tensor that is of a class of its own, and by what a module
    saves beside its parameters, such as scales.
    """
    kept = {
        *dict(model.named_parameters(remove_duplicate=False)),
        *dict(model.named_buffers(remove_duplicate=False)),
    }
    beside = {name: value for name, value in model.state_dict().items() if name not in kept}
    digest = hashlib.sha256()
    for name, parameter in sorted({**dict(model.named_parameters()), **beside}.items()):
        for part, tensor in _plain_tensors(name, parameter):
            _digest_tensor(digest, part, tensor)
    return digest.hexdigest()


def _plain_tensors(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of bytes that one is made of: itself, but where a class of its own packs it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(f"{name}.{part}", getattr(tensor, part))


def _digest_tensor(digest: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    import torch

    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    digest.update(raw.cpu().numpy().data)


class _Clock:
    """Wall seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 3)
        self._last = now

    def move(self, lap: str, rest: str, part: str, seconds: float) -> None:
        """Book ``seconds`` of a lap as ``part``, and add what is left of it to ``rest``."""
        whole = self.seconds.pop(lap)
        self.seconds[part] = round(seconds, 3)
        self.seconds[rest] = round(self.seconds[rest] + whole - seconds, 3)


def peak_memory_mb(device: str = "cpu") -> float:
    """Peak memory so far, MB: of the CUDA devices, else resident memory of this process."""
    if device.startswith("cuda"):
        import torch

        used = range(torch.cuda.device_count()) if device == "cuda" else [device]
        return round(sum(map(torch.cuda.max_memory_allocated, used)) / 1e6, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)  # kB on Linux
