"""One run of a tiny model: what goes through it, how often, and what is taken from it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import leaves
import numpy as np
import pytest
import torch
from checkpoint_factory import make_llama
from measuring_factory import change, write_tiny_windows

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.metrics.perplexity import Bootstrap
from invarlock.policy import load_policy
from invarlock.reporting.evaluation import evaluation_report
from invarlock.reporting.replay import replay
from invarlock.reporting.runs import Comparison
from invarlock.run import measure
from invarlock.run.loading import Target, load_checkpoint, load_model
from invarlock.run.measure import RunWindows, measure_checkpoint
from invarlock.run.report import RunSettings, run_report, token_shift
from invarlock.windows import WindowPlan

TARGET = Target("cpu", "float32")
POLICY = load_policy("none")
DOWN = "model.layers.1.mlp.down_proj"
SETTINGS = RunSettings("acme/tiny", 43, 512, "dev", "none")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a baseline, a subject whose last projection is halved, and windows."""
    root = tmp_path_factory.mktemp("passes")
    make_llama(root / "baseline", hidden=32, seed=1)
    write_tiny_windows(root / "baseline", root / "windows.json", WindowPlan(48, 30, 20, 43))
    shutil.copytree(root / "baseline", root / "halved")
    change(root / "halved", lambda t: t[DOWN + ".weight"].mul_(0.5))
    return root


@pytest.fixture(scope="module")
def windows(place):
    """30 + 20 windows of 48 tokens."""
    return RunWindows.read(place / "windows.json", tokenizer_digest(place / "baseline"))


def reference(place, baseline):
    """What a subject's run needs of the baseline's."""
    arrays = baseline.reference_arrays()
    return dataclasses.replace(arrays, checkpoint=Checkpoint.open(place / "baseline"))


def run(folder, windows, against=None, policy=None):
    """One measurement."""
    return measure_checkpoint(
        Checkpoint.open(folder),
        windows,
        TARGET,
        token_budget=512,
        against=against,
        policy=policy,
    )


@pytest.fixture(scope="module")
def baseline(place, windows):
    """The baseline's run."""
    return run(place / "baseline", windows)


@pytest.fixture(scope="module")
def halved(place, windows, baseline):
    """The run of the damaged subject, with its trial."""
    return run(place / "halved", windows, reference(place, baseline), POLICY)


def report_of(place, windows, baseline, subject, folder):
    """The evaluation report of two measurements."""
    runs = [
        run_report(
            SETTINGS,
            Checkpoint.open(place / f).identity(),
            windows,
            [],
            m,
            {"level": "strict", "seeds": {}},
            POLICY,
        )
        for f, m in (("baseline", baseline), (folder, subject))
    ]
    shift = token_shift(baseline.reference_arrays(), subject.arms["final"])
    comparison = Comparison(*runs, Bootstrap(500, 0.05, 43), "dev", shift=shift)
    return json.loads(json.dumps(evaluation_report(comparison, POLICY), allow_nan=False))


class Counter:
    """Counts how often each sequence of tokens goes through a model."""

    def __init__(self, monkeypatch):
        self.rows = []

        def load(*arguments):
            loaded = load_checkpoint(*arguments)
            loaded.model.get_input_embeddings().register_forward_pre_hook(
                lambda _module, inputs: self.rows.extend(map(tuple, inputs[0].tolist()))
            )
            return loaded

        monkeypatch.setattr(measure, "load_checkpoint", load)

    def count(self, window):
        """How often a window was run."""
        return self.rows.count(tuple(window.tokens))


def windows_ids(windows):
    """Ids of the preview arm."""
    return [window.window_id for window in windows.arm("preview")]


@pytest.mark.parametrize("folder", ["baseline", "halved"])
def test_every_window_is_run_once(place, windows, baseline, monkeypatch, folder):
    """Beyond the pass: the calibration windows without hooks, and the trial on others."""
    counter = Counter(monkeypatch)
    against = baseline.reference_arrays() if folder == "halved" else None
    measured = run(place / folder, windows, against, POLICY if against else None)
    trial, work = measured.records["variance"]["trial"], measured.records["guard_overhead"]
    calibration = measured.records["rmt"]["calibration"]["window_ids"]
    tried = set(trial["window_ids"]) if trial else set()
    for arm in ("preview", "final"):
        for window in windows.arm(arm):
            again = {*tried, *calibration} if arm == "preview" else set()
            assert counter.count(window) == 1 + (window.window_id in again)
    probes = [row for row in counter.rows if len(row) != 48]
    assert [len(row) for row in probes] == [16, 16]  # the head against the whole model
    assert work["trial_tokens"] == 47 * len(tried)
    losses = dict(zip(windows_ids(windows), measured.arms["preview"].losses(), strict=True))
    assert work["bare_nll"] == [losses[i] for i in calibration]  # hooks only read


def test_losses_are_those_of_a_plain_forward(place, windows, halved):
    """Nats of every window, calibration windows included, against transformers' own loss."""
    model = load_model(place / "halved", TARGET).model
    for arm in ("preview", "final"):
        for window, loss in zip(windows.arm(arm), halved.arms[arm].losses(), strict=True):
            ids = torch.tensor([window.tokens])
            with torch.inference_mode():
                expected = float(model(input_ids=ids, labels=ids).loss) * 47
            assert loss == pytest.approx(expected, rel=1e-5)


def test_calibration_windows_are_evenly_spaced(windows, halved):
    """Eight of the preview arm, one from the middle of each part."""
    ids = [window.window_id for window in windows.arm("preview")]
    calibration = halved.records["rmt"]["calibration"]
    assert [ids.index(i) for i in calibration["window_ids"]] == [1, 5, 9, 13, 16, 20, 24, 28]
    assert calibration["tokens"] == 8 * 48


def test_held_out_windows_are_not_calibration_windows(windows, halved):
    """A fifth of all windows, from the rest of the preview arm, as measured in the pass."""
    trial = halved.records["variance"]["trial"]
    calibration = halved.records["rmt"]["calibration"]["window_ids"]
    ids = [window.window_id for window in windows.arm("preview")]
    assert set(trial["window_ids"]) <= set(ids) - set(calibration)
    assert len(set(trial["window_ids"])) == 10
    losses = dict(zip(ids, halved.arms["preview"].losses(), strict=True))
    assert trial["plain_nll"] == [losses[i] for i in trial["window_ids"]]


def test_a_planted_shrink_is_proposed_with_its_scale(place, windows, baseline, halved):
    """Outputs halved: scale 2 for that module alone; the trial is the undamaged model."""
    report = report_of(place, windows, baseline, halved, "halved")
    assert report["variance"]["proposed_scales"] == {DOWN: pytest.approx(2.0, rel=1e-5)}
    ids = [window.window_id for window in windows.arm("preview")]
    undamaged = dict(zip(ids, baseline.arms["preview"].losses(), strict=True))
    trial = halved.records["variance"]["trial"]
    expected = [undamaged[i] for i in trial["window_ids"]]
    assert trial["scaled_nll"] == pytest.approx(expected, rel=1e-6)


def test_weights_are_as_loaded_after_the_trial(place, windows, halved):
    """The digest of all parameters is that of a run without a trial."""
    assert halved.loaded_sha256 == run(place / "halved", windows).loaded_sha256


def test_identical_weights_shift_nothing(place, windows, baseline):
    """Divergence, flips and changes of probability are exactly 0, and nothing is tried."""
    same = run(place / "baseline", windows, reference(place, baseline), POLICY)
    shift = token_shift(baseline.reference_arrays(), same.arms["final"])
    assert not shift.kl.any()
    assert not shift.flips.any()
    assert not shift.probability_change.any()
    assert same.records["variance"]["trial"] is None
    assert same.activations == baseline.activations


def test_predictions_of_a_damaged_model_shift(place, windows, baseline, halved):
    """Divergence over the top 64 and changes of probability, against whole distributions."""
    shift = token_shift(baseline.reference_arrays(), halved.arms["final"])
    logprob = []
    for folder in ("baseline", "halved"):
        model = load_model(place / folder, TARGET).model
        ids = torch.tensor([list(window.tokens) for window in windows.arm("final")])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, :-1].double()
        logprob.append(torch.log_softmax(logits, dim=-1).reshape(-1, logits.shape[-1]))
    base, mine = logprob
    full = (base.exp() * (base - mine)).sum(dim=-1).numpy()
    assert 0 < shift.kl.sum() <= full.sum()  # lumping tokens together never raises it
    assert shift.kl.sum() > 0.1 * full.sum()
    right = ids[:, 1:].reshape(-1, 1)
    moved = (mine.exp() - base.exp()).gather(1, right)[:, 0].numpy()
    assert shift.probability_change == pytest.approx(moved, abs=1e-6)
    flips = (mine.argmax(dim=-1) != base.argmax(dim=-1)).numpy()
    assert np.mean(shift.flips != flips) < 0.01  # ties


def test_a_second_run_gives_the_same_bytes(place, windows, baseline, halved):
    """Everything but timings and memory."""
    again = run(place / "halved", windows, reference(place, baseline), POLICY)
    first, second = (
        json.dumps(report_of(place, windows, baseline, m, "halved")) for m in (halved, again)
    )
    assert first == second


def test_a_real_report_follows_from_its_evidence(place, windows, baseline, halved):
    """Replay finds nothing in what a run has written, and any leaf of it that was changed."""
    report = json.loads(json.dumps(report_of(place, windows, baseline, halved, "halved")))
    assert replay(report) == []
    assert [where for where in leaves.unnoticed(report) if not leaves.believed(where)] == []


def test_time_and_memory_are_kept_apart(halved):
    """Seconds by part and peaks; they go to the manifest, not into the report."""
    parts = {"load_model", "forward", "spectral", "rmt", "variance", "invariants"}
    assert parts <= set(halved.timings)
    assert halved.memory_mb["with_guards"] >= halved.memory_mb["forward"] > 0
