"""Measuring: losses of the chunked forward pass, loading, and the weights that are looked at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_factory import make_folder, make_gpt2, make_llama, make_mixtral

from invarlock.checkpoints import Checkpoint
from invarlock.errors import ConfigError, MeasurementError
from invarlock.guards.invariants import check_loaded
from invarlock.guards.operators import measure_weights
from invarlock.metrics.distribution import TOP_K
from invarlock.run import forward
from invarlock.run.forward import Keep, batches, logits_function, merge, run_batch
from invarlock.run.loading import Target, load_model, resolve_target
from invarlock.run.tasks import Example

CPU32 = Target("cpu", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random Llama in float32."""
    folder = make_llama(tmp_path_factory.mktemp("forward") / "llama", seed=3)
    return load_model(folder, CPU32).model


@pytest.fixture
def windows():
    """Nine windows of 24 seeded random tokens."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 320, (9, 24)).tolist()


def causal(windows):
    """Every token but the first, predicted from those before it."""
    return [Example({"input_ids": w}, range(len(w) - 1), w[1:]) for w in windows]


def probe(tokens):
    """A short input."""
    return {"input_ids": torch.tensor([tokens])}


def run(model, windows, *, budget=1024, keep_top=False):
    """One arm through the model."""
    logits, examples = logits_function(model, probe(windows[0][:8])), causal(windows)
    groups = batches(examples, range(len(examples)), budget)
    return merge(run_batch(logits, examples, rows, Keep(keep_top), "cpu") for rows in groups)


def plain_losses(model, windows, scale=1.0):
    """Summed cross-entropy per window in float64, token by token."""
    losses = []
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            logits = model(input_ids=ids).logits[0].double() * scale
            loss = 0.0
            for position, target in enumerate(window[1:]):
                loss -= float(torch.log_softmax(logits[position], dim=-1)[target])
            losses.append(loss)
    return losses


class Scaled(torch.nn.Module):
    """A model whose forward divides its logits, as some architectures do, after the head."""

    base_model_prefix = "model"

    def __init__(self, inner, divisor):
        super().__init__()
        self.inner, self.model, self.divisor = inner, inner.model, divisor

    def get_output_embeddings(self):
        """The head, which alone does not give the model's logits."""
        return self.inner.get_output_embeddings()

    def forward(self, **inputs):
        """Logits of the whole model."""
        return SimpleNamespace(logits=self.inner(**inputs).logits / self.divisor)


def test_losses_are_the_plain_cross_entropy(model, windows):
    """Each window's sum equals a float64 loop over the model's own logits."""
    result = run(model, windows)
    assert result.losses() == pytest.approx(plain_losses(model, windows), rel=1e-5)
    assert result.n_tokens() == [23] * 9


def test_token_log_probabilities_add_up(model, windows):
    """What is kept per token sums to what is kept per window."""
    result = run(model, windows)
    rows = [result.logprob[i] for i in range(9)]
    sums = [-float(row.astype(np.float64).sum()) for row in rows]
    assert sums == pytest.approx(result.losses(), rel=1e-9)
    assert [row.shape for row in rows] == [(23,)] * 9


@pytest.mark.parametrize("budget", [1, 24, 50, 100, 10_000])
def test_batch_size_does_not_change_losses(model, windows, budget):
    """One window at a time, odd batches, or all at once."""
    reference, other = run(model, windows), run(model, windows, budget=budget)
    np.testing.assert_allclose(other.losses(), reference.losses(), rtol=1e-5)
    assert other.n_tokens() == reference.n_tokens()


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (4 * 320 * 5, 4 * 320 * 2), (4 * 320 * 7, 1)])
def test_chunks_and_blocks_do_not_change_losses(model, windows, monkeypatch, chunk, block):
    """Chunks of one token, chunks that do not divide the batch, blocks smaller than chunks."""
    reference = run(model, windows, keep_top=True)
    monkeypatch.setitem(forward.CHUNK_BYTES, "cpu", chunk)
    monkeypatch.setitem(forward.BLOCK_BYTES, "cpu", block)
    other = run(model, windows, keep_top=True)
    np.testing.assert_allclose(other.losses(), reference.losses(), rtol=1e-5)
    assert other.n_tokens() == reference.n_tokens()
    np.testing.assert_array_equal(other.joined("top1"), reference.joined("top1"))


@pytest.mark.parametrize(("device", "rows"), [("cpu", 81), ("cuda", 871), ("mps", 871)])
def test_chunks_of_a_large_head_are_large_on_a_gpu(device, rows):
    """Rows of 154,000 logits in bfloat16 that go through the head at a time."""
    found = forward.rows_within(forward.CHUNK_BYTES, torch.device(device), 2 * 154_000)
    assert found == rows
    assert forward.rows_within(forward.CHUNK_BYTES, torch.device(device), 1 << 40) == 1


def test_batches_fill_the_budget_and_lose_nothing():
    """Complete, never empty, and of one length."""
    examples = causal([[0] * 10] * 7)
    assert list(batches(examples, range(7), 35)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(rows) for rows in batches(examples, range(7), 1)] == [1] * 7
    assert list(batches([], [], 35)) == []
    mixed = causal([[0] * 10, [0] * 4] * 3)
    assert list(batches(mixed, [0, 1, 2, 3, 5], 20)) == [[0, 2], [1, 3, 5]]


def test_the_head_is_used_in_chunks_where_that_is_exact(model):
    """A Llama's logits are its head's: no whole batch of logits is made."""
    chosen = logits_function(model, probe([1, 2, 3]))
    assert chosen.__name__ == "by_chunks"


def test_scaled_logits_fall_back_to_whole_batches(model, windows):
    """A model that divides its logits is found out, and measured right."""
    scaled = Scaled(model, 4.0)
    assert logits_function(scaled, probe(windows[0][:8])).__name__ == "whole"
    result = run(scaled, windows)
    assert result.losses() == pytest.approx(plain_losses(model, windows, 0.25), rel=1e-5)
    assert result.losses() != pytest.approx(plain_losses(model, windows), rel=1e-3)


def test_granite_scales_its_logits(tmp_path, windows):
    """A real architecture whose head alone is wrong (logits_scaling) gives its own logits' loss."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(1)
    config = GraniteConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=8.0,
    )
    granite = GraniteForCausalLM(config).eval()
    assert run(granite, windows).losses() == pytest.approx(plain_losses(granite, windows), rel=1e-5)


def test_most_likely_tokens_are_torch_topk(model, windows):
    """top-1 and top-64 ids and log-probabilities of every position."""
    result = run(model, windows, keep_top=True)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(windows)).logits[:, :-1].double()
    values, ids = torch.log_softmax(logits, dim=-1).topk(TOP_K, dim=-1)
    for i in range(len(windows)):
        np.testing.assert_array_equal(result.top1[i], ids[i, :, 0].numpy())
        assert result.top_ids[i].shape == (23, TOP_K)
        np.testing.assert_allclose(result.top_logprob[i], values[i].numpy(), rtol=1e-5)
        found = torch.log_softmax(logits[i], dim=-1).gather(
            1, torch.from_numpy(result.top_ids[i].astype(np.int64))
        )
        np.testing.assert_allclose(result.top_logprob[i], found.numpy(), rtol=1e-5)


def test_top_tokens_are_kept_only_when_asked(model, windows):
    """A subject's run holds no top-64."""
    result = run(model, windows)
    assert result.top_ids == {}
    assert result.top_logprob == {}


def test_windows_of_different_lengths_are_refused(model):
    """A mixture in one batch is an error, not padding."""
    logits, examples = logits_function(model, probe([1, 2])), causal([[1, 2, 3, 4], [1, 2, 3]])
    with pytest.raises(MeasurementError, match="different lengths"):
        run_batch(logits, examples, [0, 1], Keep(), "cpu")


def test_a_loss_is_not_a_number_when_the_model_says_so(model, windows, monkeypatch):
    """NaN weights give NaN losses, not a number that hides them."""
    broken = Scaled(model, float("nan"))
    assert all(np.isnan(run(broken, windows[:2]).losses()))


# --- loading --------------------------------------------------------------------------------


def rewrite(folder, change):
    """Rewrite the folder's only shard with its dict of tensors changed in place."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_a_complete_checkpoint_reports_nothing(tmp_path):
    """A tied head that is not in the file is not missing."""
    loaded = load_model(make_llama(tmp_path / "m"), CPU32)
    assert (loaded.missing, loaded.unexpected) == ([], [])
    assert (loaded.device, loaded.dtype) == ("cpu", "float32")
    assert not loaded.model.training


def test_a_missing_tensor_is_not_initialized(tmp_path):
    """What transformers fills with random values is a fatal finding that names it."""
    folder = make_llama(tmp_path / "m")
    rewrite(folder, lambda t: t.pop("model.layers.1.mlp.down_proj.weight"))
    loaded = load_model(folder, CPU32)
    assert loaded.missing == ["model.layers.1.mlp.down_proj.weight"]
    failure = check_loaded(loaded.missing, loaded.unexpected)[0]
    assert (failure["type"], failure["severity"]) == ("not_initialized", "fatal")
    assert "model.layers.1.mlp.down_proj.weight" in failure["message"]


def test_a_missing_head_of_an_untied_model_is_not_initialized(tmp_path):
    """Only a tied configuration may leave the head out."""
    folder = make_llama(tmp_path / "m", tied=False)
    rewrite(folder, lambda t: t.pop("lm_head.weight"))
    assert load_model(folder, CPU32).missing == ["lm_head.weight"]


def test_an_unused_tensor_is_a_warning(tmp_path):
    """What nobody read is said, and does not block."""
    folder = make_llama(tmp_path / "m")
    rewrite(folder, lambda t: t.update({"model.extra.weight": torch.ones(2, 2)}))
    loaded = load_model(folder, CPU32)
    assert (loaded.missing, loaded.unexpected) == ([], ["model.extra.weight"])
    failure = check_loaded(loaded.missing, loaded.unexpected)[0]
    assert (failure["type"], failure["severity"]) == ("unused_tensors", "warning")


def test_cuda_that_is_not_there_is_a_configuration_error(monkeypatch):
    """Asked for by name, a device is not silently replaced."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda") as caught:
        resolve_target(Target("cuda", "auto"))
    assert caught.value.exit_code == 2


def test_an_unknown_dtype_is_a_configuration_error():
    """The line names those that exist."""
    with pytest.raises(ConfigError, match="bfloat16"):
        resolve_target(Target("cpu", "float8"))


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_follows_the_processor(monkeypatch, native, expected):
    """bfloat16 only where it is multiplied natively."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("invarlock.run.loading._native_bfloat16", lambda: native)
    assert resolve_target(Target("auto", "auto")) == ("cpu", expected)


def test_the_requested_dtype_is_the_one_that_runs(tmp_path):
    """float32 of a bfloat16 file, and the reverse."""
    folder = make_llama(tmp_path / "m")
    for name in ("float32", "bfloat16"):
        loaded = load_model(folder, Target("cpu", name))
        assert loaded.dtype == name
        assert {str(p.dtype) for p in loaded.model.parameters()} == {f"torch.{name}"}


# --- which weights are measured -------------------------------------------------------------


def largest(weight):
    """Exact largest singular value."""
    return float(torch.linalg.svdvals(weight.double())[0])


def test_every_matrix_is_measured(tmp_path):
    """All 2-D weights of a Llama, embedding and untied head too, no norms, in name order."""
    checkpoint = Checkpoint.open(make_llama(tmp_path / "m", tied=False))
    modules = measure_weights(checkpoint, "cpu").modules
    names = [module.name for module in modules]
    assert names == sorted(n for n, t in checkpoint.tensors.items() if len(t.shape) == 2)
    assert len(names) == 2 * 7 + 2
    assert {m.family for m in modules if ".mlp." in m.name} == {"ffn"}
    assert {m.layer for m in modules if ".layers.1." in m.name} == {1}
    for module in modules:
        exact = largest(checkpoint.load(module.name))
        assert module.stats.sigma_max == pytest.approx(exact, rel=1e-3)


def test_every_expert_of_a_fused_tensor_is_measured(tmp_path):
    """Mixtral's 3-D tensors give one module an expert, and the router is one more."""
    checkpoint = Checkpoint.open(make_mixtral(tmp_path / "m"))
    modules = {module.name: module for module in measure_weights(checkpoint, "cpu").modules}
    for part in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{part}"
        fused = checkpoint.load(name)
        for i in range(3):
            module = modules[f"{name}[{i}]"]
            assert module.family == "expert"
            assert module.stats.sigma_max == pytest.approx(largest(fused[i]), rel=1e-3)
    assert modules["model.layers.0.mlp.gate.weight"].family == "router"


def test_gpt2_is_read_as_outputs_by_inputs(tmp_path):
    """Projections stored transposed have their row and column statistics the right way round."""
    folder = make_gpt2(tmp_path / "m")
    name = "transformer.h.0.mlp.c_fc.weight"

    def weaken_one_output(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][:, 3] *= 1e-3  # stored (inputs, outputs): a column is an output feature

    rewrite(folder, weaken_one_output)
    modules = {m.name: m for m in measure_weights(Checkpoint.open(folder), "cpu").modules}
    assert modules[name].stats.row_min < 0.01
    assert modules[name].stats.column_min > 0.1
    assert {"transformer.h.1.attn.c_attn.weight", "transformer.wte.weight"} <= set(modules)
    assert not any(".bias" in label for label in modules)


def test_integer_tensors_are_no_weights(tmp_path: Path):
    """A buffer of integers has no singular values."""
    tensors = {"a.weight": torch.ones(3, 2), "b.index": torch.zeros(2, 2, dtype=torch.int64)}
    folder = make_folder(tmp_path / "m", {"model_type": "llama"}, tensors)
    assert [m.name for m in measure_weights(Checkpoint.open(folder), "cpu").modules] == ["a.weight"]
