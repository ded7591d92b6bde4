"""Ties: unchanged weights never look changed because two tokens are equally likely."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_factory import make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring_factory import write_tiny_windows
from safetensors.torch import load_file, save_file

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.metrics.kind import Example
from invarlock.metrics.kinds.accuracy import Answered
from invarlock.run.forward import Keep, TopTokens, most_likely, run_batch
from invarlock.run.loading import Target
from invarlock.run.measure import Measurement, ReferenceArrays, RunWindows, measure_checkpoint
from invarlock.run.report import REPORT_NAME, SCHEMA, Reference, token_shift, write_reference
from invarlock.windows import WindowPlan

PERIOD = 40  # of the vocabulary's 320 tokens: each has seven doubles


@pytest.fixture(scope="module")
def doubled(tmp_path_factory) -> Path:
    """A checkpoint in which every token has doubles: equal rows of embedding and head."""
    folder = make_llama(tmp_path_factory.mktemp("ties") / "model", seed=3)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            table = tensors[name]
            tensors[name] = table[torch.arange(len(table)) % PERIOD].contiguous()
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def windows(doubled, tmp_path_factory) -> RunWindows:
    """A dozen windows of each arm."""
    path = tmp_path_factory.mktemp("ties") / "windows.json"
    write_tiny_windows(doubled, path, WindowPlan(seq_len=24, preview=12, final=12, seed=1))
    return RunWindows.read(path, tokenizer_digest(doubled))


def measured(folder: Path, windows: RunWindows, against=None) -> Measurement:
    """One run on the CPU in bfloat16, where ties are common anyway."""
    target = Target("cpu", "bfloat16")
    return measure_checkpoint(
        Checkpoint.open(folder), windows, target, token_budget=512, against=against
    )


def test_a_noop_flips_nothing_where_every_token_has_doubles(doubled, windows, tmp_path):
    """Through the stored record of the baseline, as the workflow does it."""
    baseline = measured(doubled, windows)
    write_reference(tmp_path, baseline)
    rows = {"final": {"token_counts": baseline.arms["final"].n_tokens()}}
    from invarlock.guards import rmt

    guards = [{"name": "rmt", "modules": rmt.to_table(baseline.activations)}]
    report = {"schema": SCHEMA, "evaluation_windows": rows, "guards": guards}
    (tmp_path / REPORT_NAME).write_text(json.dumps(report))
    arrays = Reference.read(tmp_path).arrays()
    subject = measured(doubled, windows, arrays)
    shift = token_shift(arrays, subject.arms["final"])
    assert (arrays.top.top1 < PERIOD).all()  # the lowest of eight equal ids
    assert not shift.flips.any()
    assert not shift.kl.any()
    assert not shift.probability_change.any()


def fixed(values: torch.Tensor):
    """A model that gives these logits, whatever it reads."""

    def logits(_inputs, at):
        yield values[at]

    return logits


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_both_sides_take_the_lowest_of_equal_ids(seed, levels):
    """Logits of few values: most rows have several best tokens, also more than are kept."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (7, 200)).astype(np.float32)
    rows = torch.from_numpy(values).to(torch.bfloat16)
    example = Example({"input_ids": [0] * 7}, range(7), [0] * 7)
    result = run_batch(fixed(rows), [example], [0], Keep(top=True), "cpu")
    wanted = [row.index(max(row)) for row in values.tolist()]
    assert result.top1[0].tolist() == wanted
    assert most_likely(rows.float()).tolist() == wanted
    assert rows.float().argmax(dim=-1).tolist() == wanted  # what other devices use
    kept = TopTokens(
        starts=[0, 7],
        top1=result.joined("top1"),
        ids=result.joined("top_ids"),
        logprob=result.joined("top_logprob").astype(np.float16),
        correct=result.joined("logprob"),
    )
    again = run_batch(fixed(rows), [example], [0], Keep(against=kept), "cpu")
    shift = token_shift(ReferenceArrays(kept, []), again)
    assert not shift.flips.any()  # also where more tokens tie than are kept
    assert not shift.kl.any()


def test_an_exact_answer_follows_the_same_rule():
    """Of equal tokens greedy decoding takes the lowest id, so only that answer is right."""
    logits = torch.zeros(1, 50)
    logits[0, [4, 9]] = 2.0
    for answer, right in ((4, True), (9, False)):
        example = Example({"input_ids": [0]}, range(1), [answer])
        found = run_batch(fixed(logits), [example], [0], Keep(), "cpu")
        assert (found.top1[0].tolist() == [answer]) is right


def test_a_choice_that_ties_is_wrong_for_both():
    """Equal losses of two choices: neither order of the choices makes the record right."""
    assert not Answered(1.25, False, [1.25, 3.0]).correct
    assert not Answered(1.25, False, [3.0, 1.25]).correct
    assert Answered(1.25, False, [np.nextafter(1.25, 2), 3.0]).correct
