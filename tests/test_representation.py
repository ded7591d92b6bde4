"""Gram distances of blocks: known answers, brute force, the error of sketches, judgement."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import report_factory as factory
import torch
from architecture_factory import ARCHITECTURES, make_architecture
from hypothesis import given, settings
from hypothesis import strategies as st

from invarlock.errors import ConfigError
from invarlock.guards import GUARDS, representation
from invarlock.guards.block_outputs import _mixture, sees_no_mean
from invarlock.guards.representation import (
    ATTENTION,
    FFN,
    SKETCH,
    WINDOW_TOKENS,
    GramProbe,
    Representation,
    SeenBlock,
    block_outputs,
    distance,
    excesses,
    from_table,
    judge,
    signs,
    sketch,
    to_table,
)
from invarlock.policy import load_policy
from invarlock.reporting import signals
from invarlock.reporting.replay import replay

POLICY = load_policy("balanced").representation
HALF = 2.0**-11  # relative error of a number in float16


def exact(x: np.ndarray, y: np.ndarray) -> float:
    """The distance by its definition, in float64."""

    def normalized(z: np.ndarray) -> np.ndarray:
        n = len(z)
        centre = np.eye(n) - np.ones((n, n)) / n
        gram = centre @ (z @ z.T) @ centre
        return gram / np.linalg.norm(gram)

    return float(np.linalg.norm(normalized(x) - normalized(y)))


def estimated(x: np.ndarray, y: np.ndarray) -> float:
    """The same from sketches."""
    return distance(*(sketch(torch.tensor(z, dtype=torch.float32)) for z in (x, y)))


def drawn(seed: int, tokens: int, features: int) -> np.ndarray:
    """A matrix whose features differ in size, as activations do."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(0, 1, features))
    return rng.normal(0.3, 1, (tokens, features)) * size


@pytest.mark.parametrize(("tokens", "features"), [(2, 3), (40, 8), (SKETCH, 300), (30, 30)])
@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_few_tokens_are_exact(tokens: int, features: int, noise: float) -> None:
    """With at most SKETCH tokens the distance is that of the definition, but for float16."""
    x = drawn(1, tokens, features)
    y = x + noise * drawn(2, tokens, features)
    assert estimated(x, y) == pytest.approx(exact(x, y), abs=2 * HALF)


@pytest.mark.parametrize("features", [24, 600])  # less and more than the tokens
@pytest.mark.parametrize("noise", [0.02, 0.3, 3.0])
def test_a_sketch_is_close_to_the_exact_distance(features: int, noise: float) -> None:
    """Within three of the largest standard deviations that the module states, on either path."""
    x = drawn(3, 512, features)
    y = x + noise * drawn(4, 512, features)
    spread = math.sqrt(1 / (2 * SKETCH))
    assert estimated(x, y) == pytest.approx(exact(x, y), rel=3 * spread, abs=2 * HALF)


def test_the_spread_of_the_estimate_is_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 200 seeds: the mean of d^2 is right, and d varies by at most sqrt(1 / (2 SKETCH)), a
    difference of one direction most, of many directions several times less."""
    rng = np.random.default_rng(0)
    direction = rng.normal(0, 1, (512, 1))
    one = direction @ direction.T
    many = rng.normal(0, 1, (512, 40))
    found = {}
    for name, change in (("one", one), ("many", many @ many.T)):
        truth = np.linalg.norm(change)
        squares = []
        for seed in range(200):
            monkeypatch.setattr(representation, "SEED", seed)
            squares.append(np.square(change @ signs(512)).sum() / SKETCH)
        ratios = np.sqrt(squares) / truth
        assert np.mean(squares) / truth**2 == pytest.approx(1, abs=4 * 0.134 / 14)
        found[name] = float(ratios.std())
    assert found["one"] == pytest.approx(math.sqrt(1 / (2 * SKETCH)), rel=0.15)
    assert found["many"] < found["one"] / 4


def test_signs_are_the_same_for_ever() -> None:
    """Baselines of an older NumPy are compared with subjects of a newer one."""
    r = signs(512)
    assert r.shape == (512, SKETCH)
    assert set(np.unique(r)) == {-1.0, 1.0}
    assert abs(r.mean()) < 4 / math.sqrt(r.size)
    assert np.array_equal(signs(300), r[:300])
    assert r[0, :12].tolist() == FIRST


FIRST = [1, 1, -1, 1, -1, -1, -1, -1, -1, -1, -1, -1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.sampled_from([20, 150]),
    features=st.integers(2, 40),
    scale=st.floats(1e-4, 1e4),
)
def test_spellings_of_one_function_are_no_distance_apart(
    seed: int, tokens: int, features: int, scale: float
) -> None:
    """Rotations and permutations of the features, their scale and a constant added to them."""
    rng = np.random.default_rng(seed)
    x = drawn(seed, tokens, features)
    rotation, _ = np.linalg.qr(rng.normal(0, 1, (features, features)))
    y = scale * (x[:, rng.permutation(features)] @ rotation + rng.normal(0, 1, features))
    assert estimated(x, y) < 5 * HALF
    assert estimated(x, x) == 0.0


def test_what_is_not_finite_or_constant() -> None:
    """NaN and overflow have no distance; two constants none to one another; one of them 1."""
    x = drawn(5, 150, 7)
    broken = x.copy()
    broken[3, 2] = np.nan
    assert estimated(x, broken) == estimated(broken, x) == math.inf
    broken[3, 2] = np.inf
    assert estimated(broken, broken) == math.inf
    large = x * 1e30  # its squares are beyond float32
    assert estimated(x, large) < 5 * HALF
    constant = np.tile(x[:1], (150, 1)) * 1.37
    assert estimated(constant, 3 * constant) == 0.0
    assert estimated(x, constant) == pytest.approx(1, abs=0.2)
    assert estimated(x, x[:140]) == math.inf  # other tokens


# --- a probe -----------------------------------------------------------------------------------

IDS = torch.randint(32, (6, 80), generator=torch.Generator().manual_seed(3))


def llama(**changes: Any) -> Any:
    """A small random Llama and its configuration as a checkpoint has it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    return model, model.config.to_dict()


def probed(model: Any, config: Any, *batches: torch.Tensor) -> GramProbe:
    """A probe around forward passes of these batches."""
    probe = GramProbe()
    with torch.inference_mode(), probe.watching(model, config, sum(map(len, batches))):
        for ids in batches:
            model(input_ids=ids)
    return probe


def test_the_statistic_of_a_model_by_brute_force() -> None:
    """Of the outputs of two models, evenly spaced tokens of each window, by the definition."""
    model, config = llama()
    seen: dict[str, torch.Tensor] = {}
    at = [1 + (2 * i + 1) * 79 // (2 * WINDOW_TOKENS) for i in range(WINDOW_TOKENS)]

    def see(name: str) -> Any:
        return lambda _m, _i, out: seen.__setitem__(name, out[:, at].flatten(0, 1))

    hooks = [b.module.register_forward_hook(see(b.name)) for b in block_outputs(model, config)]
    before = probed(model, config, IDS)
    first = dict(seen)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight += 0.02 * torch.randn(24, 16)
    after = probed(model, config, IDS)
    assert len(first) == 4
    for name, x in first.items():
        found = distance(before.sketches[name], after.sketches[name])
        truth = exact(x.double().numpy(), seen[name].double().numpy())
        assert found == pytest.approx(truth, rel=0.2, abs=2 * HALF), name
    for hook in hooks:
        hook.remove()
    assert not any(m._forward_hooks for m in model.modules())


def test_batches_make_no_difference() -> None:
    """Windows in one batch, in two and one by one give the same; nothing is kept when all came."""
    model, config = llama()
    whole = probed(model, config, IDS)
    for parts in ((IDS[:4], IDS[4:]), tuple(IDS.split(1))):
        probe = probed(model, config, *parts)
        assert not probe._rows
        for name, values in whole.sketches.items():
            assert distance(values, probe.sketches[name]) < 5 * HALF, name
    assert probed(model, config, IDS).arrays().keys() == whole.arrays().keys()
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            probed(model, config, IDS).arrays().values(), whole.arrays().values(), strict=True
        )
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_its_blocks(name: str, tmp_path: Any) -> None:
    """An attention and a feed-forward block a layer, each of the width of the residual stream."""
    import transformers

    folder = make_architecture(name, tmp_path / name)
    config = json.loads((tmp_path / name / "config.json").read_text())
    kind = {"bert": "AutoModelForMaskedLM"}.get(config["model_type"], "AutoModelForCausalLM")
    model = getattr(transformers, kind).from_pretrained(folder or tmp_path / name).eval()
    found = block_outputs(model, config)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    for wanted in (ATTENTION, FFN):
        assert [b.layer for b in found if b.kind == wanted] == list(range(layers)), wanted
    probe = probed(model, config, IDS[:2, :20])
    assert probe.sketches.keys() == {b.name for b in found}
    assert all(v.shape == (40, 40) and np.isfinite(v).all() for v in probe.sketches.values())


def test_a_decoder_has_two_attention_blocks() -> None:
    """Of T5 self-attention and cross-attention; encoder and decoder are apart."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    model = T5ForConditionalGeneration(config)
    names = [b.name for b in block_outputs(model, config.to_dict())]
    assert [n for n in names if n.startswith("decoder.block.1")] == [
        "decoder.block.1.layer.0.SelfAttention.o",
        "decoder.block.1.layer.1.EncDecAttention.o",
        "decoder.block.1.layer.2.DenseReluDense.wo",
    ]
    assert len(names) == 2 * 2 + 2 * 3


@pytest.mark.parametrize("kind", ["phi3", "afmoe", "llama"])
def test_the_projection_that_runs_last_is_watched(kind: str) -> None:
    """Phi-3 registers its output projection first, and afmoe a gate behind it."""
    from causal_models import small_model

    model = small_model(kind)
    probe = probed(model, model.config.to_dict(), IDS[:2, :20])
    attention = [b for b in probe.blocks if b.kind == ATTENTION]
    assert [b.name.rpartition(".")[2] for b in attention] == ["o_proj"] * len(attention)
    written = [(b.layer, b.kind) for name in probe.sketches for b in probe.blocks if b.name == name]
    layers = range(len(attention))
    assert written == [(layer, kind) for layer in layers for kind in (ATTENTION, FFN)]


@pytest.mark.parametrize(
    ("kind", "taken"), [("llama", False), ("gemma", False), ("gpt2", True), ("olmo", True),
                        ("cohere", True), ("opt", True)]
)  # fmt: skip
def test_norms_are_known_by_what_they_do(kind: str, taken: bool) -> None:
    """OLMo's and Cohere's LayerNorms are classes of their own."""
    from causal_models import small_model

    model = small_model(kind)
    assert sees_no_mean(model, model.config.to_dict()) is taken


def test_rows_are_tokens_of_windows_however_a_class_arranges_them() -> None:
    """Flattened, as OPT's, or tokens first, as XLNet's; what has other rows is not looked at."""
    probe, x = GramProbe(), torch.randn(2, 3, 4)
    probe._batch = (2, 3)
    for output in (x, x.flatten(0, 1), x.transpose(0, 1)):
        seen = probe._by_window(output)
        assert seen is not None
        assert torch.equal(seen, x)
    for other in (torch.randn(5, 4), torch.randn(7, 3, 4), torch.randn(2, 4, 3, 4), None):
        assert probe._by_window(other) is None


@pytest.mark.parametrize(
    ("router", "expert", "found"),
    [
        ("layers.1.mlp.gate", "layers.1.mlp.experts.0.up_proj", "layers.1.mlp"),
        ("layers.1.mlp.router.gate", "layers.1.mlp.experts", "layers.1.mlp"),
        ("layers.1.router.proj", "layers.1.experts", "layers.1"),
    ],
)
def test_a_mixture_is_what_holds_a_router_and_experts(router: str, expert: str, found: str) -> None:
    """However deep the router's matrix is, and not the experts of another block."""
    assert _mixture(router, ["layers.1.attn.experts", expert, "layers.0.mlp.experts"]) == found
    assert _mixture("layers.1.mlp.gate", []) == "layers.1.mlp"


def test_layers_without_attention_have_feed_forward_blocks() -> None:
    """A hybrid's first layer mixes by a state; OPT's feed-forward block flattens its input."""
    from causal_models import small_model

    for kind in ("granitemoehybrid", "opt"):
        model = small_model(kind)
        model.config.use_cache = False
        probe = probed(model, model.config.to_dict(), IDS[:2, :20])
        kinds = [(b.layer, b.kind) for b in probe.blocks]
        attention = [layer for layer, kind in kinds if kind == ATTENTION]
        assert attention == ([1] if kind == "granitemoehybrid" else [0, 1])
        assert [layer for layer, kind in kinds if kind == FFN] == [0, 1]
        assert all(v.shape == (40, 40) and np.isfinite(v).all() for v in probe.sketches.values())


def test_means_over_features_are_no_part_of_a_function_with_layer_norms() -> None:
    """GPT-2 with its output projections centred computes the same, and moves by rounding only."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2)).eval()
    config = model.config.to_dict()
    before = probed(model, config, IDS)
    with torch.inference_mode():
        expected = model(IDS).logits
        for module in [b.module for b in block_outputs(model, config)]:
            module.weight += 0.3 * torch.randn(
                module.weight.shape[0], 1
            )  # the same to all features
        assert torch.allclose(model(IDS).logits, expected, atol=1e-4)
    after = probed(model, config, IDS)
    assert max(distance(v, after.sketches[k]) for k, v in before.sketches.items()) < 5 * HALF


def test_a_7b_baseline_keeps_at_most_8_mb() -> None:
    """32 layers, two blocks each, 8 windows."""
    tokens = 8 * WINDOW_TOKENS
    x = torch.randn(tokens, 64)
    assert 2 * 32 * sketch(x).nbytes <= 8e6


# --- judgement ---------------------------------------------------------------------------------

BLOCKS = [
    SeenBlock("model.layers.0.mlp.down_proj", FFN, 0, 512, 1, 0.3),
    SeenBlock("model.layers.0.self_attn.o_proj", ATTENTION, 0, 512, 0, 0.2),
]
BASE = [b._replace(distance=0.0) for b in BLOCKS]
LIMIT = 0.40  # of attention in every tier


def runs_of(baseline: Any, subject: Any = None) -> Any:
    """Two runs that recorded these tables and nothing else."""
    tables = {"baseline": baseline, "subject": baseline if subject is None else subject}
    runs = {side: {"representation": {"blocks": table}} for side, table in tables.items()}
    return SimpleNamespace(**runs, ran=True, reason_not_run="", separate=False, served=False)


def moved(*distances: float) -> list[SeenBlock]:
    """Blocks in the order of a pass, attention and feed-forward in turn."""
    kinds = (ATTENTION, FFN)
    return [SeenBlock(f"{i}", kinds[i % 2], i, 512, i, far) for i, far in enumerate(distances)]


def test_an_excess_is_what_no_earlier_block_has() -> None:
    """Known answers, in the order of a pass and not of the list."""
    found = excesses(moved(0.3, 0.5, 0.4, 1.3))
    assert list(found.values()) == pytest.approx([0.3, 0.4, 0.0, 1.2])
    assert excesses(moved(0.3, 0.5, 0.4, 1.3)[::-1]) == found
    assert list(excesses(moved(0.3, math.inf, 0.5)).values()) == [0.3, math.inf, 0.4]
    assert list(excesses(moved(math.nan, 0.5)).values()) == [math.inf, 0.5]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, math.sqrt(2)), min_size=1, max_size=9))
def test_an_excess_is_no_more_than_its_distance(distances: list[float]) -> None:
    """Squares of the excesses add up to that of the largest distance."""
    found = list(excesses(moved(*distances)).values())
    assert all(0 <= own <= far for own, far in zip(found, distances, strict=True))
    assert math.fsum(own**2 for own in found) == pytest.approx(max(distances) ** 2, abs=1e-12)


def test_limits_decide() -> None:
    """At the limit a block passes, beyond it not; a lost number and a lost block never do."""
    assert POLICY.limit(ATTENTION) == LIMIT
    at = [BLOCKS[0], BLOCKS[1]._replace(distance=LIMIT)]
    assert judge(BASE, at, POLICY)["decision"] == "allow"
    for far in (math.nextafter(LIMIT, 2), math.inf, math.nan):
        found = judge(BASE, [BLOCKS[0], BLOCKS[1]._replace(distance=far)], POLICY)
        assert (found["passed"], found["decision"]) == (False, "block")
        assert [v["module"] for v in found["violations"]] == [BLOCKS[1].name]
        assert found["violations"][0]["blocks"] is True
        assert json.dumps(found, allow_nan=False)
    assert judge(BASE, BLOCKS[:1], POLICY)["blocks_missing"] == 1
    assert judge(BASE, BLOCKS[:1], POLICY)["passed"] is False
    other = [BLOCKS[0], BLOCKS[1]._replace(tokens=511)]
    assert judge(BASE, other, POLICY)["passed"] is False


def test_a_feed_forward_block_is_named_and_does_not_block() -> None:
    """However far it moved, unless its distance is lost; attention behind it is no finding."""
    far = [BLOCKS[0]._replace(distance=1.4), BLOCKS[1]]
    found = judge(BASE, far, POLICY)
    assert (found["passed"], found["decision"]) == (True, "monitor")
    assert [(v["module"], v["blocks"]) for v in found["violations"]] == [(BLOCKS[0].name, False)]
    assert judge(BASE, [far[0]._replace(distance=math.inf), far[1]], POLICY)["passed"] is False
    behind = moved(0.1, 0.7, 0.7, 0.7)
    none = [b._replace(distance=0.0) for b in behind]
    assert judge(none, behind, POLICY)["passed"] is True
    assert judge(none, moved(0.1, 0.1, 0.7, 0.7), POLICY)["passed"] is False


def test_a_table_reads_back() -> None:
    """What is recorded is what is judged."""
    lost = [BLOCKS[0]._replace(distance=math.inf), BLOCKS[1]]
    assert from_table(to_table(lost)) == lost


def test_a_report_fails_by_this_guard_alone() -> None:
    """The flag of activations is false, RMT has not fired, and the reason names this guard."""
    block = "model.layers.2.self_attn.o_proj"
    report = factory.make_report("custom", 1.01, moved={block: 0.6})
    assert replay(report) == []
    assert report["validation"]["rmt_stable"] is False
    assert report["rmt"]["passed"] is True
    fired = signals.guard_flags(report)
    assert (fired["representation"], fired["rmt"]) == (True, False)
    assert signals.pass_reasons(report) == ["representation_fail"]
    rows = {r.name: r.status for r in [g.check(report) for g in GUARDS]}
    assert (rows["Representation (blocks)"], rows["RMT (activations)"]) == ("fail", "pass")
    (found,) = [w for w in report["guard_warnings"]["warnings"] if w["guard"] == "representation"]
    assert (found["module"], found["policy_gate"]) == (block, "fail")


def test_rmt_alone_names_rmt() -> None:
    """A grown edge risk is no distance of blocks."""
    report = factory.make_report("custom", 1.01, edge={factory.DOWN: 1.5})
    fired = signals.guard_flags(report)
    assert (fired["representation"], fired["rmt"]) == (False, True)
    assert signals.pass_reasons(report) == ["rmt_fail"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda r: r["representation"].update(passed=True), "/representation"),
        (lambda r: r["representation"]["blocks"]["distance"].__setitem__(0, -0.1), "no run can"),
        (lambda r: r["representation"]["blocks"]["distance"].__setitem__(0, 3.0), "no run can"),
        (lambda r: r["representation"]["blocks"]["tokens"].__setitem__(0, 4096), "no run can"),
        (lambda r: r["representation"]["blocks"]["kind"].__setitem__(0, "other"), "no run can"),
        (lambda r: r["representation"]["blocks"]["order"].__setitem__(0, 7), "no run can"),
        (lambda r: r["representation"]["violations"].clear(), "/representation/violations"),
        (lambda r: r.pop("representation"), "/policy_provenance"),
        (lambda r: r["validation"].update(rmt_stable=True), "/validation/rmt_stable"),
    ],
)
def test_a_changed_report_is_refused(change: Any, found: str) -> None:
    """The verifier judges again by what is recorded, and finds what no run can have recorded."""
    report = factory.make_report("custom", 1.01, moved={"model.layers.2.self_attn.o_proj": 0.6})
    change(report)
    assert any(found in line for line in replay(report)), replay(report)


def test_statistic_and_limits_of_a_preset() -> None:
    """The kind closest to its limit is the number of the sweep; a preset sets that of attention."""
    overrides = factory.preset_overrides({"representation.limit.attention": 0.45})
    block = "model.layers.2.self_attn.o_proj"
    report = factory.make_report(
        "custom", 1.01, moved={block: 0.42}, overrides=overrides, preset_sha256=factory.PRESET,
    )  # fmt: skip
    assert replay(report) == []
    assert report["representation"]["passed"] is True
    found = Representation().statistic(report["representation"])
    assert found is not None
    assert (found.name, found.value, found.threshold) == ("gram_excess:attention", 0.42, 0.45)
    with pytest.raises(ConfigError):
        factory.make_report(
            "custom", 1.01, preset_sha256=factory.PRESET,
            overrides=factory.preset_overrides({"representation.limit.ffn": 0.45}),
        )  # fmt: skip


def test_a_model_without_such_blocks_is_not_judged_by_them() -> None:
    """Nothing to look at in either run is no evidence against the subject, and no flag."""
    found = Representation().judged(runs_of(to_table([])), load_policy("balanced"))
    assert found["evaluated"] is False
    assert Representation().flags(found) == {}
    one = runs_of(to_table([]), to_table(BLOCKS))
    assert Representation().judged(one, load_policy("balanced"))["passed"] is False


def test_a_report_cannot_say_that_a_model_has_no_blocks() -> None:
    """Where rmt saw attention or feed-forward modules; of a model of mixers alone it can."""
    report = factory.make_report("custom", 1.01)
    assert replay(report) == []
    held = report["representation"]
    contract = {key: value for key, value in held.items() if "contract" in key}
    said = {"evaluated": False, "reason": representation.NO_BLOCKS, "blocks": to_table([])}
    report["representation"] = {**contract, **said}
    assert any("rmt saw modules of such blocks" in line for line in replay(report))
