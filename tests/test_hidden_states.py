"""Passes that start at the first changed block: the bits of the whole pass, or the whole pass."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from architecture_factory import ARCHITECTURES, make_architecture
from causal_models import make_causal
from checkpoint_factory import make_llama, make_t5
from measuring_factory import change, write_tiny_windows
from safetensors.torch import load_file, save_file
from test_run_passes import report_of

from invarlock.begin_of_text import begin_token
from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.metrics.started import Started
from invarlock.policy import load_policy
from invarlock.reporting.replay import replay
from invarlock.roles import layer_of
from invarlock.run import measure
from invarlock.run.hidden_states import (
    FOLDER,
    LAST,
    LISTING,
    Place,
    Source,
    boundaries_of,
    first_changed,
)
from invarlock.run.loading import Target, load_checkpoint
from invarlock.run.measure import Looks, RunWindows, measure_checkpoint
from invarlock.windows import WindowPlan

POLICY = load_policy("none")
LAYERS = 4
DOWN = "model.layers.{}.mlp.down_proj.weight"
ENOUGH = 10**9  # bytes
# Two widths, so that batches are of several shapes.
PLAN = WindowPlan(48, 30, 20, 43)
SMALL = WindowPlan(24, 16, 16, 43)


class Models:
    """A baseline with windows and a run that kept its hidden states."""

    def __init__(self, root, dtype="float32", plan=PLAN, budget=200):
        self.root, self.dtype, self.budget = root, dtype, budget
        folder = root / "baseline"
        write_tiny_windows(
            folder, root / "windows.json", dataclasses.replace(plan, bos=begin_token(folder))
        )
        self.baseline = Checkpoint.open(folder)
        self.measured = self.measure("baseline", keep=self.place())

    def place(self, most=ENOUGH, folder="run"):
        return Place(self.root / folder, self.baseline.digest(), most)

    @property
    def windows(self):
        folder = self.root / "baseline"
        return RunWindows.read(self.root / "windows.json", tokenizer_digest(folder))

    @property
    def listing(self):
        return json.loads((self.root / "run" / FOLDER / LISTING).read_text())

    def measure(self, name, **more):
        options = {"against": None, "token_budget": self.budget, **more}
        checkpoint = Checkpoint.open(self.root / name, self.root / "baseline")
        return measure_checkpoint(
            checkpoint, options.pop("windows", self.windows), Target("cpu", self.dtype), **options
        )

    def subject(self, name, edit):
        """A copy of the baseline whose tensors ``edit`` changes."""
        shutil.copytree(self.root / "baseline", self.root / name)
        change(self.root / name, edit)
        return name

    def against(self, start=None):
        reference = self.measured.reference_arrays()
        return dataclasses.replace(reference, checkpoint=self.baseline, start=start)

    def source(self, changed):
        return Source(self.root / "run", self.baseline.digest(), changed)

    def changed(self, name):
        return first_changed(self.baseline, Checkpoint.open(self.root / name))

    def both(self, name, changed=None, **more):
        """A subject's run whole, and from where it may start."""
        start = self.source(self.changed(name) if changed is None else changed)
        return (
            self.measure(name, against=self.against(), policy=POLICY, **more),
            self.measure(name, against=self.against(start), policy=POLICY, **more),
        )


def recorded(measured):
    """Everything that a run records but time, memory, and from where it ran."""
    arms = {
        (arm, field.name): {
            row: value if isinstance(value, float) else value.tobytes()
            for row, value in getattr(result, field.name).items()
        }
        for arm, result in measured.arms.items()
        for field in dataclasses.fields(result)
    }
    return arms, measured.records, measured.loaded_sha256, measured.columns


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("states")
    make_llama(root / "baseline", layers=LAYERS, hidden=32, seed=1)
    made = Models(root)
    made.subject("late", lambda t: t[DOWN.format(2)].mul_(0.5))
    made.subject("early", lambda t: t[DOWN.format(0)].mul_(0.5))
    return made


def copied(models, root):
    """The same with states of its own, to be damaged."""
    shutil.copytree(models.root, root)
    other = copy.copy(models)
    other.root = root
    return other


# --- the same bits -------------------------------------------------------------------------------


def late(folder: Path) -> Path:
    """Scale a matrix in the last block of a checkpoint."""
    stored = {f: load_file(f) for f in folder.glob("*.safetensors")}
    layers = {n: layer_of(n) for tensors in stored.values() for n in tensors}
    last = max(layer for layer in layers.values() if layer is not None)
    for file, tensors in stored.items():
        for name in sorted(tensors):
            if layers[name] == last and tensors[name].dim() > 1 and "attn.bias" not in name:
                tensors[name] = tensors[name] * 1.1
                save_file(tensors, file, {"format": "pt"})
                return folder
    raise AssertionError("no matrix in the last block")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_architectures_give_the_same_bits(tmp_path, name, dtype) -> None:
    """Of every architecture of the suites: losses, tokens, divergences and all that guards record,
    from the last block on as whole; and what keeps states changes nothing of the baseline's."""
    make_architecture(name, tmp_path / "baseline")
    models = Models(tmp_path, dtype, SMALL, 100)
    assert recorded(models.measured) == recorded(models.measure("baseline"))
    shutil.copytree(tmp_path / "baseline", tmp_path / "late")
    late(tmp_path / "late")
    whole, started = models.both("late")
    assert started.started == Started(block=1, blocks=2, windows=24, checked=8)
    assert recorded(started) == recorded(whole)


@pytest.mark.parametrize(
    "kind", ["gemma2", "gemma3_text", "phi", "opt", "falcon", "mamba", "deepseek_v3", "gpt_oss"]
)
def test_other_classes_give_the_same_bits(tmp_path, kind) -> None:
    """Sliding windows, parallel blocks, states and mixtures, of classes that no table names."""
    make_causal(kind, tmp_path / "baseline", 3)
    models = Models(tmp_path, plan=SMALL, budget=100)
    shutil.copytree(tmp_path / "baseline", tmp_path / "late")
    late(tmp_path / "late")
    whole, started = models.both("late")
    assert started.started is not None
    assert started.started.block == 2
    assert recorded(started) == recorded(whole)


@pytest.mark.parametrize("make", [make_t5, lambda folder: make_causal("bloom", folder, 3)])
def test_nothing_is_kept_of_blocks_that_share_more(tmp_path, make) -> None:
    """An encoder beside a decoder, and blocks that hand on more than a tensor: the reason is
    said, and subjects run whole."""
    make(tmp_path / "baseline")
    models = Models(tmp_path, plan=SMALL)
    assert models.listing["none_because"]
    assert [p.name for p in (tmp_path / "run" / FOLDER).iterdir()] == [LISTING]
    models.subject("same", lambda _tensors: None)
    whole, started = models.both("same", changed=LAST)
    assert started.started is None
    assert recorded(started) == recorded(whole)


class Rows:
    """The windows that went through each block of a model."""

    def __init__(self, monkeypatch):
        self.count = Counter()

        def load(*arguments):
            loaded = load_checkpoint(*arguments)
            for number, block in enumerate(loaded.model.model.layers):
                block.mlp.register_forward_hook(
                    lambda _m, inputs, _o, number=number: self._add(number, inputs[0])
                )
            return loaded

        monkeypatch.setattr(measure, "load_checkpoint", load)

    def _add(self, number, states):
        self.count[number] += len(states)


def test_earlier_blocks_are_not_run(models, monkeypatch) -> None:
    """Through them go the calibration windows, once, what the head is compared on, and of the
    trial a batch of each shape that the pass had none of."""
    rows = Rows(monkeypatch)
    start = models.against(models.source(2))
    measured = models.measure("late", against=start, policy=POLICY)
    tried = measured.records["variance"]["trial"]
    probes = 2
    assert len(tried["window_ids"]) == 10
    assert rows.count[2] == rows.count[3] == 50 + 8 + 10 + probes
    assert rows.count[0] == rows.count[1] == 8 + probes + 4 + 2  # 10 windows: 4, 4 and 2
    assert measured.started == Started(block=2, blocks=4, windows=42, checked=8)


def test_the_trial_gives_the_same_bits(models) -> None:
    """What is tried is tried on other batches than those that are kept."""
    whole, started = models.both("late")
    assert whole.records["variance"]["trial"] is not None
    assert recorded(started) == recorded(whole)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_looks_give_the_same_bits(models, share) -> None:
    """The windows of a look are in other batches than the baseline's were: one of each shape runs
    whole first, and at an early look there is no more."""
    looks = Looks((0.1, 0.25, 0.5, 1.0), lambda _measured, at: at >= share)
    whole, started = models.both("late", looks=looks)
    assert (started.started is not None) == (share == 1.0)
    assert recorded(started) == recorded(whole)


def test_smaller_batches_give_the_same_bits(models) -> None:
    """As those of another attempt, after memory ran out."""
    start = models.against(models.source(2))
    whole = models.measure("late", against=models.against(), policy=POLICY, token_budget=100)
    started = models.measure("late", against=start, policy=POLICY, token_budget=100)
    assert started.started is not None
    assert recorded(started) == recorded(whole)


# --- where a pass may start ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "block"),
    [
        (lambda _tensors: None, None),  # the no-op runs whole
        (lambda t: t[DOWN.format(3)].mul_(0.5), 3),
        (lambda t: [t[DOWN.format(n)].mul_(0.5) for n in (3, 1)], 1),
        (lambda t: t[DOWN.format(0)].mul_(0.5), None),
        (lambda t: t["model.norm.weight"].mul_(0.5), LAST),
        (lambda t: t["model.embed_tokens.weight"].mul_(0.5), None),
        (lambda t: t.update({"model.layers.3.more.weight": torch.ones(2)}), None),
        (lambda t: t.pop(DOWN.format(3)), None),
        (lambda t: t.update({DOWN.format(3): t[DOWN.format(3)].float()}), None),
    ],
)
def test_the_first_changed_block(models, tmp_path, edit, block) -> None:
    """By the bytes of all tensors; what stands before the blocks, and another set of tensors, is
    the beginning."""
    shutil.copytree(models.root / "baseline", tmp_path / "subject")
    change(tmp_path / "subject", edit)
    assert first_changed(models.baseline, Checkpoint.open(tmp_path / "subject")) == block


def test_a_head_of_its_own_lies_behind_the_blocks(tmp_path) -> None:
    """Where it is not the embedding."""
    make_llama(tmp_path / "baseline", tied=False)
    shutil.copytree(tmp_path / "baseline", tmp_path / "subject")
    change(tmp_path / "subject", lambda t: t["lm_head.weight"].mul_(0.5))
    two = (Checkpoint.open(tmp_path / name) for name in ("baseline", "subject"))
    assert first_changed(*two) == LAST


@pytest.mark.parametrize(
    ("key", "value", "block"),
    [("rms_norm_eps", 1e-4, None), ("rope_theta", 1e3, None), ("_name_or_path", "mine", 3)],
)
def test_a_configuration_that_differs_runs_whole(models, tmp_path, key, value, block) -> None:
    """But for a key that no pass reads."""
    shutil.copytree(models.root / "baseline", tmp_path / "subject")
    change(tmp_path / "subject", lambda t: t[DOWN.format(3)].mul_(0.5))
    path = tmp_path / "subject/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert first_changed(models.baseline, Checkpoint.open(tmp_path / "subject")) == block


@pytest.mark.parametrize(("changed", "block"), [(1, 1), (3, 3), (LAST, 4)])
def test_the_last_boundary_before_it(models, changed, block) -> None:
    """Where the subject is said to begin to differ; this one is the baseline."""
    start = models.against(models.source(changed))
    assert models.measure("baseline", against=start, policy=POLICY).started.block == block


# --- what is kept, and what does not count -------------------------------------------------------


def test_boundaries_are_spread_and_bounded(models, tmp_path) -> None:
    """The end of the last block first; never more bytes than allowed."""
    assert [boundaries_of(30, most) for most in (1, 2, 4)] == [[30], [15, 30], [8, 15, 22, 30]]
    assert boundaries_of(2, 4) == [1, 2]
    tokens = 50 * 48
    for boundaries in (0, 1, 3):
        most = boundaries * tokens * 32 * 4 + 100
        models.measure("baseline", keep=dataclasses.replace(models.place(most), folder=tmp_path))
        listing = json.loads((tmp_path / FOLDER / LISTING).read_text())
        assert len(listing.get("boundaries", [])) == boundaries
        assert bool(listing["none_because"]) == (boundaries == 0)
        files = list((tmp_path / FOLDER).glob("*.safetensors"))
        states = [t for file in files for t in load_file(file).values()]
        assert sum(t.nbytes for t in states) == boundaries * tokens * 32 * 4


def test_damage_in_an_early_block_is_not_skipped(models) -> None:
    """Even if somebody says that the subject differs later only: its own states are others."""
    whole, started = models.both("early", changed=2)
    assert started.started is None
    assert recorded(started) == recorded(whole)


def test_states_that_somebody_changed_are_not_used(models, tmp_path) -> None:
    """The batches that they are of run whole, and the report counts the others."""
    own = copied(models, tmp_path / "own")
    number = next(i for i, b in enumerate(own.listing["batches"]) if b["arm"] == "final")
    file = own.root / "run" / FOLDER / f"{number:05}.2.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    whole, started = own.both("late")
    assert started.started == Started(block=2, blocks=4, windows=38, checked=8)
    assert recorded(started) == recorded(whole)


def test_states_of_another_model_are_not_used(models, tmp_path) -> None:
    """Whatever their listing says: the calibration windows have others."""
    own = copied(models, tmp_path / "own")
    shutil.rmtree(own.root / "run")
    own.measure("early", keep=own.place())
    whole, started = own.both("late")
    assert started.started is None
    assert recorded(started) == recorded(whole)


def test_states_of_other_inputs_are_not_used(models, tmp_path) -> None:
    """Another baseline, other windows, another dtype, another number of threads."""
    own = copied(models, tmp_path / "own")
    path = own.root / "run" / FOLDER / LISTING
    listing = own.listing
    assert own.both("late")[1].started is not None
    for key in ("baseline_sha256", "windows_sha256", "dtype", "device", "threads", "versions"):
        path.write_text(json.dumps({**listing, "inputs": {**listing["inputs"], key: "other"}}))
        start = own.against(own.source(2))
        assert own.measure("late", against=start, policy=POLICY).started is None, key


# --- reports -------------------------------------------------------------------------------------


def test_a_report_says_where_its_pass_began(models) -> None:
    """It is the report of the whole pass beside that, and what contradicts it is found."""
    place, windows = models.root, models.windows
    whole, started = models.both("late")
    two = [report_of(place, windows, models.measured, m, "late") for m in (whole, started)]
    said = two[1]["meta"].pop("started")
    assert said == {"block": 2, "blocks": 4, "windows": 42, "checked": 8}
    assert two[0] == two[1]
    assert replay({**two[1], "meta": {**two[1]["meta"], "started": said}}) == []
    for false in (
        {**said, "windows": 50},
        {**said, "block": 5},
        {**said, "checked": 0},
        {**said, "block": 3},  # the guards saw changes in block 2
        {"block": 2},
        True,
    ):
        report = {**two[1], "meta": {**two[1]["meta"], "started": false}}
        assert any("before the block" in line or "/meta/started" in line for line in replay(report))


def test_a_no_op_does_not_say_that_it_began_later(models) -> None:
    """It is the control of the whole pass."""
    start = models.against(models.source(2))
    measured = models.measure("baseline", against=start, policy=POLICY)
    report = report_of(models.root, models.windows, models.measured, measured, "baseline")
    assert any(line.startswith("/meta/started: no weight") for line in replay(report))
