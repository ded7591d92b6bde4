"""The output head: run once on every position that predicts, and on no other, in all kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from architecture_factory import ARCHITECTURES, make_architecture
from checkpoint_factory import make_bert, make_t5
from measuring_factory import write_tiny_windows

from invarlock.metrics.kind import Example
from invarlock.metrics.kinds.accuracy import continuation
from invarlock.run import forward
from invarlock.run.forward import ArmResult, Keep, batches, logits_function, merge, run_batch
from invarlock.run.loading import Target, load_model
from invarlock.run.tasks import task_for
from invarlock.windows import WindowPlan, read_windows

BUDGET = 100  # tokens of a batch: several windows of 24 tokens, and a rest
BF16, FP32 = "bfloat16", "float32"


def one_position(
    model: torch.nn.Module, head: torch.nn.Module, inputs: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """What goes into the head while the head is run on a position of every row: an older way."""
    seen: list[torch.Tensor] = []

    def narrow(_: object, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.append(arguments[0])
        return (arguments[0][..., :1, :],)

    hook = head.register_forward_pre_hook(narrow)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return seen


@contextmanager
def rows_of(head: torch.nn.Module) -> Iterator[list[int]]:
    """Positions that every call of the head worked on."""
    counts: list[int] = []

    def count(_: object, __: object, logits: torch.Tensor) -> None:
        counts.append(logits.shape[:-1].numel())

    hook = head.register_forward_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


def record(model: torch.nn.Module, examples: list[Example]) -> ArmResult:
    """A baseline's pass, then a subject's against it, as one result."""
    start = examples[0].start(16)
    logits = logits_function(
        model, {name: torch.tensor([ids]) for name, ids in start.inputs.items()}
    )
    groups = list(batches(examples, range(len(examples)), BUDGET))
    return merge(run_batch(logits, examples, rows, Keep(top=True), "cpu") for rows in groups)


def assert_same_bits(
    model: torch.nn.Module, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number recorded is that of the older way, and the head saw what predicts only."""
    with rows_of(model.get_output_embeddings()) as counts:
        mine = record(model, examples)
    predicted = sum(len(example.targets) for example in examples)
    inputs = sum(example.shape[-1] for example in examples)
    probe = min(16, examples[0].shape[-1])
    calls = {"by_chunks": 2 * probe + predicted, "whole": 2 * probe + inputs}
    start = {name: torch.tensor([ids]) for name, ids in examples[0].start(16).inputs.items()}
    assert sum(counts) == calls[logits_function(model, start).__name__]
    monkeypatch.setattr(forward, "before_head", one_position)
    old = record(model, examples)
    for part in fields(ArmResult):
        a, b = getattr(mine, part.name), getattr(old, part.name)
        assert a.keys() == b.keys()
        for window in a:
            assert np.asarray(a[window]).tobytes() == np.asarray(b[window]).tobytes(), part.name


def examples_of(folder: Path) -> list[Example]:
    """The examples of ten windows of 24 tokens."""
    write_tiny_windows(folder, folder.with_name("windows.json"), WindowPlan(24, 10, 10, 43))
    content = read_windows(folder.with_name("windows.json"))
    return task_for(folder, content).examples(content.final)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_keeps_its_bits(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, log-probabilities and most likely tokens, causal and masked."""
    folder = make_architecture(name, tmp_path / "model")
    adapter = "hf_mlm" if name == "bert" else "hf_causal"
    model = load_model(folder, Target("cpu", dtype), adapter).model
    assert_same_bits(model, examples_of(folder), monkeypatch)


@pytest.mark.parametrize(("make", "adapter"), [(make_bert, "hf_mlm"), (make_t5, "hf_seq2seq")])
def test_other_kinds_keep_their_bits(
    make: Callable[[Path], Path], adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head with a bias, and one behind a decoder."""
    folder = make(tmp_path / "model")
    model = load_model(folder, Target("cpu", BF16), adapter).model
    assert_same_bits(model, examples_of(folder), monkeypatch)


def test_answers_keep_their_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few positions of every row, of several shapes."""
    folder = make_architecture("llama", tmp_path / "model")
    model = load_model(folder, Target("cpu", BF16), "hf_causal").model
    rng = np.random.default_rng(2)
    lengths = [(20, 3), (20, 3), (20, 3), (12, 1), (17, 5)]
    examples = [continuation(*(rng.integers(2, 90, n).tolist() for n in pair)) for pair in lengths]
    assert_same_bits(model, examples, monkeypatch)


@pytest.mark.parametrize(
    ("library", "more"),
    [
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}),
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.0625}),
        ("Phi", {}),  # a head with a bias
        ("GPTNeoX", {}),
        ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
        ("Falcon", {}),
        ("Bloom", {}),
    ],
)
def test_heads_that_others_have_keep_their_bits(
    library: str, more: Mapping[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits capped, scaled or shifted; another part of the model behind its head."""
    import transformers

    sizes = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = getattr(transformers, f"{library}Config")(
        **sizes, **more, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    name = next(n for n in ("ForCausalLM", "LMHeadModel") if hasattr(transformers, library + n))
    torch.manual_seed(4)
    model = getattr(transformers, library + name)(config).bfloat16().eval()
    windows = np.random.default_rng(6).integers(3, 320, (7, 24)).tolist()
    examples = [Example({"input_ids": w}, range(len(w) - 1), w[1:]) for w in windows]
    assert_same_bits(model, examples, monkeypatch)
