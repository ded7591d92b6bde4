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
from invarlock.guards.rmt import DEVIATION_FLOOR, HOOKED, ActivationProbe, hooked_modules
from invarlock.guards.variance import scaled_outputs
from invarlock.policy import load_policy
from invarlock.roles import Role, role_of
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
    """What a probe records of a module whose output is ``x`` (tokens, features)."""
    model, linear = projection(x.shape[-1])
    probe = ActivationProbe(LLAMA)
    with probe.watching(model):
        linear(x)
    (found,) = probe.activations
    return found


def gaussian(seed, tokens=512, features=576):
    """Independent standard normal numbers."""
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed))


def brute_force(x):
    """Edge risk and variance of (tokens, features) by NumPy's SVD in float64."""
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    centred = x - x.mean(axis=0)
    variance = (centred**2).mean()
    deviation = np.maximum(centred.std(axis=0), DEVIATION_FLOOR * math.sqrt(variance))
    sigma = np.linalg.svd(centred / deviation, compute_uv=False)[0]
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
    probe = ActivationProbe(config)
    ids = torch.randint(0, 320, (2, tokens), generator=torch.Generator().manual_seed(6))
    with probe.watching(model), torch.inference_mode():
        model(input_ids=ids)
    return probe, ids


@pytest.mark.parametrize("seed", range(5))
def test_independent_entries_lie_at_the_edge(seed):
    """512 x 576 standard normal numbers: sigma_max over the Marchenko-Pastur edge is 1 +- 0.02."""
    assert seen(gaussian(seed)).edge == pytest.approx(1.0, abs=0.02)


def test_scale_and_shift_of_columns_do_not_matter():
    """Standardization leaves correlations only."""
    generator = torch.Generator().manual_seed(1)
    scale, shift = torch.rand(2, 576, generator=generator) * torch.tensor([[4.0], [100.0]])
    plain, moved = seen(gaussian(0)), seen(gaussian(0) * (scale + 0.5) + shift)
    assert moved.edge == pytest.approx(plain.edge, rel=2e-3)
    assert moved.variance == pytest.approx(float((gaussian(0) * (scale + 0.5)).var(0).mean()), 0.01)


@pytest.mark.parametrize(("strength", "least"), [(0.2, 1.1), (0.5, 2.0)])
def test_a_planted_correlation_is_seen(strength, least):
    """One direction that all features share lifts the edge risk."""
    common = torch.randn(512, 1, generator=torch.Generator().manual_seed(9))
    assert seen(gaussian(0) + strength * common).edge > least * seen(gaussian(0)).edge


def test_a_constant_column_is_no_infinity():
    """A feature that never varies is left at 0 instead of being divided by nothing."""
    x = gaussian(0)
    x[:, 7] = 3.0
    assert seen(x).edge == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_violate(value):
    """One bad number is recorded as infinity and is a violation against any baseline."""
    x = gaussian(0, 64, 32)
    good = seen(x.clone())
    x[3, 5] = value
    bad = seen(x)
    assert (bad.edge, bad.variance) == (math.inf, math.inf)
    recorded = rmt.from_table(rmt.to_table([bad]))
    block = rmt.judge([good], recorded, load_policy("balanced").rmt)
    assert (block["stable"], len(block["epsilon_violations"])) == (False, 1)


def test_many_tokens_are_thinned_evenly():
    """Of 3000 tokens 1024 are looked at, the first and the last among them."""
    x = torch.zeros(3000, 8)
    x[0], x[-1] = 1.0, -1.0
    model, linear = projection(8)
    probe = ActivationProbe(LLAMA)
    with probe.watching(model):
        linear(x)
    assert probe.tokens == 1024
    assert probe.activations[0].variance == pytest.approx(2 / 1024)
    assert probe.bytes == 2 * 1024 * 8 * 4


def test_every_module_of_a_transformer_equals_brute_force(llama):
    """All hooked outputs of a real model: SVD in float64 to the estimator's 1e-3."""
    model, config = llama
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: outputs.update({name: o.numpy()}))
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False))
    ]
    probe, _ = watch(model, config)
    for hook in hooks:
        hook.remove()
    assert len(probe.activations) == 1 + 2 * 9 + 1  # embedding, two blocks, last norm
    for found in probe.activations:
        edge, variance = brute_force(outputs[found.name])
        assert found.edge == pytest.approx(edge, rel=1e-3), found.name
        assert found.variance == pytest.approx(variance, rel=1e-4), found.name


def test_modules_are_those_with_a_role(llama):
    """Names are module names; the head, which is as large as the vocabulary, is not looked at."""
    model, config = llama
    found = hooked_modules(model, config)
    assert all(role_of(name + ".weight", config) in HOOKED for name, _, _ in found)
    assert Role.HEAD not in HOOKED


def test_no_hook_stays_behind(llama):
    """Neither after a pass nor after one that failed, and the model gives the same as before."""
    model, config = llama
    _, ids = watch(model, config)
    before = model(input_ids=ids).logits
    with pytest.raises(ZeroDivisionError), ActivationProbe(config).watching(model):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), scaled_outputs(model, {NAME: 2.0}):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())
    with ActivationProbe(config).watching(model):
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
