"""What the hooks see: edge risk against random-matrix theory and against brute force."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from checkpoint_factory import make_llama

from invarlock.files import read_json_object
from invarlock.guards import rmt
from invarlock.guards.rmt import ActivationProbe
from invarlock.guards.variance import scaled_outputs
from invarlock.policy import load_policy
from invarlock.run.loading import Target, load_model

LLAMA = {"model_type": "llama"}
NAME = "model.layers.0.mlp.down_proj"


def projection(features):
    """A model of one feed-forward projection that passes its input through."""
    linear = torch.nn.Linear(features, features, bias=False)
    torch.nn.init.eye_(linear.weight)
    tree = linear
    for name in reversed(NAME.split(".")):
        tree = torch.nn.ModuleDict({name: tree})
    return tree.requires_grad_(False), linear


def seen(x):
    """What a probe records of a block that writes ``x`` (tokens, features), windows of 64."""
    model, linear = projection(x.shape[-1])
    probe = ActivationProbe()
    with probe.watching(model, LLAMA, len(x) // 64):
        linear(x.unflatten(0, (-1, 64)))
    (found,) = probe.activations
    return found


def gaussian(seed, tokens=512, features=576):
    """Independent standard normal numbers."""
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed))


def brute_force(x):
    """Edge risk and variance of (windows, tokens, features) by NumPy's SVD in float64."""
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    centred = x - x.mean(axis=0)
    variance = (centred**2).mean()
    sigma = np.linalg.svd(centred / math.sqrt(variance), compute_uv=False)[0]
    return sigma / (math.sqrt(x.shape[0]) + math.sqrt(x.shape[1])), variance


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny transformer and its configuration."""
    folder = make_llama(tmp_path_factory.mktemp("probe") / "llama", hidden=32, seed=4)
    return load_model(folder, Target("cpu", "float32")).model, read_json_object(
        folder / "config.json"
    )


def watch(model, config, tokens=40):
    """A probe after one batch of two windows."""
    probe = ActivationProbe()
    ids = torch.randint(0, 64, (2, tokens), generator=torch.Generator().manual_seed(6))
    with probe.watching(model, config, 2), torch.inference_mode():
        model(input_ids=ids)
    return probe, ids


@pytest.mark.parametrize("seed", range(5))
def test_independent_entries_lie_at_the_edge(seed):
    """512 x 576 standard normal numbers: sigma_max over the Marchenko-Pastur edge is 1 +- 0.02."""
    assert seen(gaussian(seed)).edge == pytest.approx(1.0, abs=0.02)


def test_another_basis_another_scale_and_a_shift_do_not_matter():
    """An orthogonal change of basis, a scale, and a constant in every column leave it alone."""
    generator = torch.Generator().manual_seed(1)
    common = 3 * torch.randn(512, 1, generator=generator) * torch.randn(576, generator=generator)
    basis = torch.linalg.qr(torch.randn(576, 576, generator=generator)).Q
    x = gaussian(0) + common
    plain, moved = seen(x), seen(20 * x @ basis + 100 * torch.rand(576, generator=generator))
    assert moved.edge == pytest.approx(plain.edge, rel=1e-5)
    assert moved.variance == pytest.approx(400 * plain.variance, rel=1e-4)
    assert plain.edge > 1.5


@pytest.mark.parametrize(("strength", "least"), [(0.2, 1.1), (0.5, 2.0)])
def test_a_planted_correlation_is_seen(strength, least):
    """One direction that all features share lifts the edge risk."""
    common = torch.randn(512, 1, generator=torch.Generator().manual_seed(9))
    assert seen(gaussian(0) + strength * common).edge > least * seen(gaussian(0)).edge


def test_what_never_varies_has_no_edge():
    """A block that writes one vector for every token: what centring leaves of it is rounding."""
    found = seen(gaussian(0)[:1].expand(512, -1).contiguous())
    assert found.edge == 0.0
    assert found.variance < 1e-12
    x = gaussian(0)
    x[:, 7] = 3.0  # a feature that never varies is left at 0
    assert seen(x).edge == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_violate(value):
    """One bad number is recorded as infinity and is a violation against any baseline."""
    x = gaussian(0, 128, 32)
    good = seen(x.clone())
    x[3, 5] = value
    bad = seen(x)
    assert (bad.edge, bad.variance) == (math.inf, math.inf)
    recorded = rmt.from_table(rmt.to_table([bad]))
    block = rmt.judge([good], recorded, load_policy("balanced").rmt)
    assert (block["stable"], len(block["epsilon_violations"])) == (False, 1)


def test_some_tokens_of_each_window_are_looked_at(llama):
    """64 evenly spaced ones, the first of a window not among them; of a shorter one all."""
    model, config = llama
    long, _ = watch(model, config, tokens=100)
    short, _ = watch(model, config, tokens=40)
    assert (long.tokens, short.tokens) == (128, 80)
    x = torch.zeros(2, 3000, 8)
    x[:, 0] = 1e6
    x[0], x[1] = x[0] + 1, x[1] - 1
    model, linear = projection(8)
    probe = ActivationProbe()
    with probe.watching(model, LLAMA, 2):
        linear(x)
    assert probe.activations[0].variance == pytest.approx(1.0)
    assert probe.bytes == 2 * 128 * 8 * 4 + 4 * 128**2


def test_windows_may_come_in_batches_or_as_one_list_of_tokens():
    """The same numbers: two windows together, one after the other, or without a window axis."""
    x, found = gaussian(4, 2 * 90, 16), []
    batches = ([x.unflatten(0, (2, 90))], [x[None, :90], x[None, 90:]], [x])
    for batch, ids in zip(batches, ((2, 90), (1, 90), (2, 90)), strict=True):
        model, linear = projection(16)
        probe = ActivationProbe()
        with probe.watching(model, LLAMA, 2):
            probe._batch = ids  # as the model's hook takes it from what the model is given
            for part in batch:
                linear(part)
        found.append((probe.tokens, probe.activations))
    assert found[0] == found[1] == found[2]


def test_every_place_of_a_transformer_equals_brute_force(llama):
    """All watched outputs of a real model: SVD in float64 to the estimator's 1e-3."""
    model, config = llama
    outputs = {}

    def keep(name):
        return lambda _module, _inputs, output: outputs.update({name: output.numpy()})

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name.endswith(("o_proj", "down_proj", "embed_tokens"))
    ]
    hooks.append(
        model.model.norm.register_forward_pre_hook(
            lambda _module, inputs: outputs.update({"model.norm": inputs[0].numpy()})
        )
    )
    probe, _ = watch(model, config)
    for hook in hooks:
        hook.remove()
    assert [(a.name, a.family, a.layer) for a in probe.activations] == [
        ("model.embed_tokens", "embed", None),
        ("model.layers.0.mlp.down_proj", "ffn", 0),
        ("model.layers.0.self_attn.o_proj", "attn", 0),
        ("model.layers.1.mlp.down_proj", "ffn", 1),
        ("model.layers.1.self_attn.o_proj", "attn", 1),
        ("model.norm", "other", None),
    ]
    for found in probe.activations:
        edge, variance = brute_force(outputs[found.name])
        assert found.edge == pytest.approx(edge, rel=1e-3), found.name
        assert found.variance == pytest.approx(variance, rel=1e-4), found.name


def test_places_of_mixers_and_mixtures():
    """A state-space mixer writes by its last projection, a mixture of experts as a whole; the
    stream is read by the last norm."""
    from transformers import AutoModelForCausalLM, MambaConfig, MixtralConfig

    small = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    sizes = {"intermediate_size": 32, "num_local_experts": 4}
    for config, wanted in (
        (
            MambaConfig(**small, state_size=4),
            [
                ("backbone.embeddings", "embed", None),
                ("backbone.layers.0.mixer.out_proj", "other", 0),
                ("backbone.norm_f", "other", None),
            ],
        ),
        (
            MixtralConfig(**small, **heads, **sizes),
            [
                ("model.embed_tokens", "embed", None),
                ("model.layers.0.mlp", "expert", 0),
                ("model.layers.0.self_attn.o_proj", "attn", 0),
                ("model.norm", "other", None),
            ],
        ),
    ):
        model = AutoModelForCausalLM.from_config(config).eval()
        probe, _ = watch(model, config.to_dict())
        assert [(a.name, a.family, a.layer) for a in probe.activations] == wanted
    ids = torch.arange(10)[None]  # the mixture, whose block gives more than one thing
    with scaled_outputs(model, {"model.layers.0.mlp": 0.0}), torch.inference_mode():
        gone = model(input_ids=ids).logits
    assert not torch.equal(gone, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("qwen3_5_text", "linear_attn.out_proj"), ("bailing_hybrid", "self_attn.o_proj"),
     ("mamba2", "mixer.out_proj")],
)  # fmt: skip
def test_of_a_mixer_the_projection_that_runs_last_is_watched(kind: str, wanted: str) -> None:
    """Qwen3.5 registers small maps behind its output projection, Bailing a gate."""
    from causal_models import small_model

    model = small_model(kind)
    probe, _ = watch(model, model.config.to_dict())
    mixers = [a.name for a in probe.activations if a.family == "other" and a.layer is not None]
    assert mixers
    assert all(name.endswith(wanted) for name in mixers), mixers


def test_no_hook_stays_behind(llama):
    """Neither after a pass nor after one that failed, and the model gives the same as before."""
    model, config = llama
    _, ids = watch(model, config)
    before = model(input_ids=ids).logits
    with pytest.raises(ZeroDivisionError), ActivationProbe().watching(model, config, 2):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), scaled_outputs(model, {NAME: 2.0}):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with ActivationProbe().watching(model, config, 2):
        assert torch.equal(model(input_ids=ids).logits, before)  # hooks only read


def test_a_second_look_gives_the_same_bytes(llama):
    """Nothing is random but what is seeded."""
    first, second = (rmt.to_table(watch(*llama)[0].activations) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_scaled_outputs_multiply_and_leave_weights(llama):
    """The scaled model is the one whose weights were scaled, and is itself again afterwards."""
    model, config = llama
    _, ids = watch(model, config)
    before = model(input_ids=ids).logits
    with scaled_outputs(model, {NAME: 0.5}):
        scaled = model(input_ids=ids).logits
    weight = model.get_submodule(NAME).weight
    weight.mul_(0.5)
    expected = model(input_ids=ids).logits
    weight.mul_(2.0)
    assert torch.allclose(scaled, expected, atol=1e-6)
    assert not torch.equal(scaled, before)
    assert torch.equal(model(input_ids=ids).logits, before)
