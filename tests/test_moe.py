"""Router statistics of mixtures: known answers, a collapse is caught, the unchanged is not."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_factory import make_mixtral
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from invarlock.guards.moe import (
    Moe,
    RouterProbe,
    RouterStats,
    experts_per_token,
    from_table,
    judge,
    to_table,
)
from invarlock.policy import MoePolicy
from invarlock.roles import Role, role_of

POLICY = MoePolicy(entropy_drop_max=0.10, new_dead_experts_max=0)
ROUTER = "model.layers.0.mlp.gate"
IDS = torch.randint(32, (6, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a mixture with one router and three experts, in float32."""
    folder = make_mixtral(tmp_path_factory.mktemp("base"))
    return {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}


def mixture(tensors: dict[str, torch.Tensor]) -> Any:
    """The model of these weights; two of three experts per token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, num_local_experts=3,
        num_experts_per_tok=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    return model


def observe(model: Any, **inputs: torch.Tensor) -> RouterProbe:
    """A probe around one forward pass."""
    with torch.inference_mode(), RouterProbe().attach(model, model.config.to_dict()) as probe:
        model(**({"input_ids": IDS} | inputs))
    return probe


def by_hand(model: Any, keep: torch.Tensor) -> tuple[float, list[float]]:
    """Entropy and utilization of the kept tokens, from the input of the router itself."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(ROUTER).register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    with torch.inference_mode():
        model(input_ids=IDS, attention_mask=keep.long())
    hook.remove()
    hidden = seen[0].reshape(-1, 8)[keep.reshape(-1)]
    logits = hidden.double() @ model.get_submodule(ROUTER).weight.double().T
    entropy, counts = 0.0, [0, 0, 0]
    for row in logits.tolist():
        top = max(row)
        total = sum(math.exp(x - top) for x in row)
        p = [math.exp(x - top) / total for x in row]
        entropy -= sum(x * math.log(x) for x in p)
        for expert in sorted(range(3), key=row.__getitem__)[1:]:
            counts[expert] += 1
    return entropy / len(logits), [c / sum(counts) for c in counts]


def test_statistics_by_hand(tensors: dict[str, torch.Tensor]) -> None:
    """Entropy and shares are those of logits recomputed token by token in float64."""
    model = mixture(tensors)
    probe = observe(model)
    (router,) = probe.results()
    entropy, shares = by_hand(model, torch.ones_like(IDS, dtype=torch.bool))
    assert (router.name, router.layer, router.tokens, probe.top_k) == (ROUTER, 0, 120, 2)
    assert router.entropy == pytest.approx(entropy, rel=1e-6)
    assert router.utilization == pytest.approx(tuple(shares), abs=1e-12)
    assert 0 < entropy < math.log(3)


def test_padding_is_not_counted(tensors: dict[str, torch.Tensor]) -> None:
    """Tokens outside the attention mask change neither sums nor counts."""
    model = mixture(tensors)
    keep = torch.ones_like(IDS, dtype=torch.bool)
    keep[::2, 13:] = False
    (router,) = observe(model, attention_mask=keep.long()).results()
    entropy, shares = by_hand(model, keep)
    assert router.tokens == int(keep.sum()) == 99
    assert router.entropy == pytest.approx(entropy, rel=1e-6)
    assert router.utilization == pytest.approx(tuple(shares), abs=1e-12)


def test_passes_add_up(tensors: dict[str, torch.Tensor]) -> None:
    """Two halves give what one pass over all gives, and hooks are gone afterwards."""
    model, probe = mixture(tensors), RouterProbe()
    with torch.inference_mode():
        with probe.attach(model, model.config.to_dict()):
            model(input_ids=IDS[:2])
            model(input_ids=IDS[2:])
        model(input_ids=IDS)
    (one,), (two,) = observe(model).results(), probe.results()
    assert two.entropy == pytest.approx(one.entropy, rel=1e-6)
    assert (two.tokens, two.utilization) == (one.tokens, one.utilization)


def test_a_dense_model_has_no_routers() -> None:
    """Without routers no hook is set and there is nothing to judge."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
    with RouterProbe().attach(model, model.config.to_dict()) as probe:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (probe.results(), probe.top_k) == ([], 0)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"moe_topk": [1, 2, 2]}, 2),
        ({"moe_topk": 3}, 3),
        ({"moe_topk": []}, 0),
        ({"num_experts_per_tok": None, "text_config": SimpleNamespace(top_k=(4, 1))}, 4),
        ({}, 0),
    ],
)
def test_experts_of_a_token_may_differ_by_layer(config: dict[str, Any], most: int) -> None:
    """The largest number counts; a list made the routers vanish."""
    assert experts_per_token(SimpleNamespace(**config)) == most


def collapsed(tensors: dict[str, torch.Tensor], expert: int) -> dict[str, torch.Tensor]:
    """Every token to one expert: all hidden states are shifted along one direction it reads."""
    changed = {k: v.clone() for k, v in tensors.items()}
    direction = torch.ones(8)
    changed["model.embed_tokens.weight"] += 3 * direction
    gate = changed[f"{ROUTER}.weight"].zero_()
    gate[expert] = 20 * direction
    return changed


def test_a_collapsed_router_is_caught(tensors: dict[str, torch.Tensor]) -> None:
    """With one expert for all tokens the entropy is gone and an expert is dead."""
    before = observe(mixture(tensors)).results()
    after = observe(mixture(collapsed(tensors, 1))).results()
    assert after[0].utilization[1] == 0.5  # chosen first by every token
    assert after[0].entropy < 1e-6
    block = judge(before, after, POLICY, 2)
    assert (block["passed"], block["decision"]) == (False, "block")
    assert {v["type"] for v in block["violations"]} == {"entropy_drop", "dead_expert"}
    assert block["max_entropy_drop"] == pytest.approx(1.0, abs=1e-5)
    assert Moe().flags(block) == {"moe_observed": True, "moe_identity_ok": False}


def test_an_unchanged_router_is_not(tensors: dict[str, torch.Tensor]) -> None:
    """The same weights give the same block twice, without a violation."""
    runs = [observe(mixture(tensors)).results() for _ in range(2)]
    block = judge(*runs, POLICY, 2)
    assert (block["passed"], block["decision"], block["violations"]) == (True, "allow", [])
    assert block["delta_router_entropy"] == block["max_entropy_drop"] == 0.0
    assert Moe().flags(block) == {"moe_observed": True, "moe_identity_ok": True}
    assert json.dumps(block, allow_nan=False) == json.dumps(judge(*runs, POLICY, 2))


# --- the decision alone --------------------------------------------------------------------


def router(entropy: float = 1.0, shares: tuple[float, ...] = (0.5, 0.3, 0.2)) -> RouterStats:
    """A router that saw 100 tokens."""
    return RouterStats(ROUTER, 0, entropy, 100, shares)


@pytest.mark.parametrize(
    ("subject", "passed"),
    [
        (router(0.901), True),
        (router(0.899), False),
        (router(1.5), True),
        (router(math.nan), False),
        (router(1.0, (0.5, 0.5, 0.0)), False),
        (router(1.0, (0.5, 0.499, 0.001)), True),
    ],
)
def test_limits(subject: RouterStats, passed: bool) -> None:
    """A tenth less entropy is the limit, and no used expert may vanish."""
    assert judge([router()], [subject], POLICY, 2)["passed"] is passed


@pytest.mark.parametrize(("choices", "new"), [(9, 0), (10, 1)])
def test_an_expert_that_was_hardly_used_cannot_die(choices: int, new: int) -> None:
    """Ten of the baseline's choices make an expert a used one."""
    share = choices / 200  # 100 tokens, two experts each
    block = judge([router(1, (0.5, 0.5 - share, share))], [router(1, (0.5, 0.5, 0))], POLICY, 2)
    assert block["new_dead_experts"] == new
    assert block["passed"] is (new == 0)


def test_allowed_deaths_are_monitored() -> None:
    """Within the limit a dead expert is reported and does not block."""
    allowed = MoePolicy(entropy_drop_max=0.1, new_dead_experts_max=1)
    block = judge([router()], [router(1, (0.5, 0.5, 0))], allowed, 2)
    assert (block["passed"], block["decision"]) == (True, "monitor")
    assert block["violations"] == [{"type": "dead_expert", "router": ROUTER, "expert": 2}]


@pytest.mark.parametrize(
    "subject",
    [
        [],
        [dataclasses.replace(router(), name="model.layers.1.mlp.gate")],
        [router(1.0, (0.5, 0.5))],
        [dataclasses.replace(router(), tokens=99)],
    ],
)
def test_what_cannot_be_compared_blocks(subject: list[RouterStats]) -> None:
    """A missing router, other experts or other tokens are no evidence of health."""
    block = judge([router()], subject, POLICY, 2)
    assert (block["passed"], block["decision"]) == (False, "block")
    assert Moe().flags(block)["moe_identity_ok"] is False


STATS = st.builds(
    RouterStats,
    st.just(ROUTER),
    st.integers(0, 40),
    st.floats(0, 5) | st.just(math.nan),
    st.integers(1, 4000),
    st.lists(st.sampled_from([0.0, 0.125, 0.25]), min_size=2, max_size=6).map(tuple),
)


@given(st.lists(STATS, max_size=4), st.lists(STATS, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_block_can_be_judged_again(
    baseline: list[RouterStats], subject: list[RouterStats]
) -> None:
    """What the block records of recorded routers gives the same block; a violation never passes."""
    before, after = (
        from_table(to_table([dataclasses.replace(r, name=f"r{i}") for i, r in enumerate(routers)]))
        for routers in (baseline, subject)
    )
    block = json.loads(json.dumps(judge(before, after, POLICY, 2), allow_nan=False))
    assert not (block["passed"] and block["violations"])
    if len(before) != len(after):
        assert not block["passed"]
        return
    table = block["routers"]
    again = judge(from_table(table, "baseline_"), from_table(table), POLICY, 2)
    assert json.loads(json.dumps(again)) == block


def test_table_round_trip() -> None:
    """Columns and back, sorted by name, not-finite entropy as null."""
    rows = [dataclasses.replace(router(), name=n) for n in "ba"] + [router(math.inf)]
    table = to_table(rows)
    assert table["entropy"][-1] is None
    assert [r.name for r in from_table(table)] == ["a", "b", ROUTER]


@pytest.mark.parametrize("model_type", ["llama4_text", "inkling_text", "deepseek_v3", "gpt_oss"])
def test_logits_are_found_among_what_routers_return(model_type: str) -> None:
    """Alone, first, after scores as wide as they are, or fewer than the matrix has rows."""
    from causal_models import small_model

    model = small_model(model_type)
    config = model.config.to_dict()
    routers = {
        name: module
        for name, module in model.named_modules()
        if role_of(f"{name}.weight", config) is Role.ROUTER
    }
    given: dict[str, torch.Tensor] = {}
    for name, module in routers.items():
        module.register_forward_hook(
            lambda _module, inputs, _output, name=name: given.update({name: inputs[0]})
        )
    probe = RouterProbe()
    with torch.inference_mode(), probe.attach(model, config):
        model(input_ids=IDS)
        found = {stats.name: stats for stats in probe.results()}
        assert found.keys() == routers.keys()
        assert found
        for name, module in routers.items():
            tokens = given[name].reshape(-1, given[name].shape[-1])
            bias = getattr(module, "bias", None)
            stated = torch.nn.functional.linear(tokens, module.weight, bias)
            if model_type == "inkling_text":  # one row is the expert that all tokens go to
                stated = stated[:, :-1]
            expected = torch.special.entr(stated.softmax(-1)).sum(-1).mean()
            assert found[name].entropy == pytest.approx(float(expected), rel=1e-4)
