"""Deliberate damage: exactly the published change, recorded, and never a silent nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_models import make_causal
from checkpoint_factory import (
    VOCABULARY,
    make_folder,
    make_gpt2,
    make_llama,
    make_mixtral,
    make_varied_llama,
    weights,
)

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.damage.inject import inject
from invarlock.damage.kinds import DAMAGES
from invarlock.damage.kinds.layers import layers_in, shortened
from invarlock.damage.kinds.matrices import outer_of_first_, two_bits_
from invarlock.damage.specs import parse_damage
from invarlock.errors import ConfigError, InputError, InvarlockError
from invarlock.severity import NOTHING_EDITED

BLOCK = "model.layers.{}.{}.weight"

BESIDE_THE_WEIGHTS = {NOTHING_EDITED, "chat_template_lost"}  # they need no tensor


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama of three layers in two shards."""
    return make_llama(tmp_path_factory.mktemp("base") / "model", layers=3, shards=2)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama in one shard."""
    return make_llama(tmp_path_factory.mktemp("base") / "model", tied=False)


def damaged(baseline: Path, out: Path, error_type: str, **parameters: object) -> dict[str, object]:
    """Run the command as a user does; returns the metadata."""
    words = ["inject", "--baseline", str(baseline), "--error-type", error_type]
    words += ["--parameters", json.dumps(parameters), "--out", str(out)]
    metadata = out.parent / "error_metadata.json"
    assert main([*words, "--metadata", str(metadata)]) == 0
    document: dict[str, object] = json.loads(metadata.read_text())
    return document


def config(folder: Path) -> dict[str, object]:
    """The configuration."""
    document: dict[str, object] = json.loads((folder / "config.json").read_text())
    return document


def changed(before: Path, after: Path) -> set[str]:
    """Names of tensors that differ or are in one folder only."""
    a, b = weights(before), weights(after)
    return {n for n in a | b if n not in a or n not in b or not _same(a[n], b[n])}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("error_type", DAMAGES)
def test_an_injection_repeated_gives_the_same_bytes(tmp_path: Path, error_type: str) -> None:
    """Every file of two runs is identical."""
    base = make_varied_llama(tmp_path / "base")
    for name in ("a", "b"):
        damaged(base, tmp_path / name, error_type)
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("a", "b")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("error_type", "value"), [("nan_injection", "nan"), ("inf_injection", "inf")]
)
def test_one_element_becomes_non_finite(
    llama: Path, tmp_path: Path, error_type: str, value: str
) -> None:
    """Element [0, 0] of the first query projection, and no other element of the model."""
    damaged(llama, tmp_path / "out", error_type)
    name = BLOCK.format(0, "self_attn.q_proj")
    assert changed(llama, tmp_path / "out") == {name}
    after, before = weights(tmp_path / "out")[name], weights(llama)[name]
    assert str(float(after[0, 0])) == value
    after[0, 0] = before[0, 0]
    assert torch.equal(after, before)


def test_shape_mismatch_adds_eight_zero_rows(untied: Path, tmp_path: Path) -> None:
    """Embedding and untied head grow by eight, vocab_size does not; the old rows stay."""
    damaged(untied, tmp_path / "out", "shape_mismatch")
    before, after = weights(untied), weights(tmp_path / "out")
    assert changed(untied, tmp_path / "out") == {"model.embed_tokens.weight", "lm_head.weight"}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert after[name].shape[0] == before[name].shape[0] + 8
        assert torch.equal(after[name][:-8], before[name])
        assert not after[name][-8:].any()
    assert config(tmp_path / "out")["vocab_size"] == 320


def test_shape_mismatch_rewrites_the_index(llama: Path, tmp_path: Path) -> None:
    """The total size in the index is that of the new tensors."""
    damaged(llama, tmp_path / "out", "shape_mismatch")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == Checkpoint.open(tmp_path / "out").weight_bytes


def test_missing_tensors_drops_the_last_block(tmp_path: Path) -> None:
    """Its tensors, one layer of the count and the end of per-layer lists go; the rest stays."""
    base = make_llama(tmp_path / "base", layers=3)
    settings = config(base) | {"layer_types": ["full_attention"] * 3, "sliding_window": 64}
    settings["eos_token_id"] = [1, 2, 3]
    (base / "config.json").write_text(json.dumps(settings))
    damaged(base, tmp_path / "out", "missing_tensors")
    gone = {n for n in weights(base) if ".layers.2." in n}
    assert changed(base, tmp_path / "out") == gone
    expected = settings | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    assert config(tmp_path / "out") == expected


def test_missing_tensors_shortens_the_decoder_too(tmp_path: Path) -> None:
    """Blocks of one number are one layer: encoder and decoder lose theirs, in both counts."""
    settings = {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2}
    names = [f"{s}.block.{i}.layer.0.SelfAttention.q.weight" for s in ("encoder", "decoder")
             for i in (0, 1)]  # fmt: skip
    base = make_folder(tmp_path / "base", settings, {n: torch.ones(4, 4) for n in names})
    damaged(base, tmp_path / "out", "missing_tensors")
    assert set(weights(tmp_path / "out")) == {names[0], names[2]}
    assert config(tmp_path / "out") == settings | {"num_layers": 1, "num_decoder_layers": 1}


def test_missing_tensors_leaves_a_tower_for_images_alone(tmp_path: Path) -> None:
    """Of Gemma 3, the text loses a block and its section of config.json the number."""
    base = make_causal("gemma3", tmp_path / "base")
    damaged(base, tmp_path / "out", "missing_tensors")
    gone = changed(base, tmp_path / "out")
    assert gone == {n for n in weights(base) if "language_model" in n and ".layers.1." in n}
    before, after = config(base), config(tmp_path / "out")
    assert after.pop("text_config")["num_hidden_layers"] == 1
    before.pop("text_config")
    assert after == before


@pytest.mark.parametrize(
    ("said", "shorter"),
    [
        ({"layers_block_type": ["a", "b"]}, {"layers_block_type": ["a"]}),
        ({"num_hidden_layers": 16, "num_layers_per_stack": 2}, {"num_layers_per_stack": 1}),
        ({"a": {"num_layers": 1}, "b": {"num_layers": 2}}, {"b": {"num_layers": 1}}),
    ],
)
def test_where_a_number_of_layers_stands(said: dict[str, Any], shorter: dict[str, Any]) -> None:
    """In a list with an item for each, per stack that is run several times, in a section."""
    sections = layers_in(said, 2, "num_hidden_layers")
    left = {name: shortened(values, 2, 1, "num_hidden_layers") for name, values in sections.items()}
    top = left.pop("", {})
    assert {**said, **top, **left} == {**said, **shorter}


def test_scale_explosion_hits_the_first_of_stacked_experts(tmp_path: Path) -> None:
    """One matrix, however the experts are stored."""
    base = make_mixtral(tmp_path / "base")
    (name,) = damaged(base, tmp_path / "out", "scale_explosion")["targets"]  # type: ignore[misc]
    before, after = weights(base)[name], weights(tmp_path / "out")[name]
    assert torch.equal(after[0], before[0] * 100)
    assert torch.equal(after[1:], before[1:])


def test_missing_tensors_drops_a_shard_that_is_left_empty(tmp_path: Path) -> None:
    """A shard that held only the last block is not written, and the index agrees."""
    base = make_llama(tmp_path / "base", layers=2, shards=7)
    damaged(base, tmp_path / "out", "missing_tensors")
    before, after = Checkpoint.open(base), Checkpoint.open(tmp_path / "out")
    assert set(after.shards) < set(before.shards)


def test_extreme_quant_leaves_four_levels_everywhere(untied: Path, tmp_path: Path) -> None:
    """Every matrix, embeddings and head too, has levels -2 to 1 of half its maximum."""
    damaged(untied, tmp_path / "out", "extreme_quant")
    before = weights(untied)
    assert changed(untied, tmp_path / "out") == {n for n, t in before.items() if t.dim() == 2}
    for name, tensor in weights(tmp_path / "out").items():
        if tensor.dim() == 2:
            scale = before[name].float().abs().max() / 2
            expected = (before[name].float() / scale).round().clamp(-2, 1) * scale
            assert torch.equal(tensor, expected.bfloat16())


def test_two_bits_cut_the_positive_maximum_to_half() -> None:
    """Scale 1: 2 becomes 1, -2 stays, and the rest rounds."""
    matrix = torch.tensor([[2.0, -2.0, 0.7, -0.2, -1.6]])
    two_bits_(matrix)
    assert matrix.tolist() == [[1.0, -2.0, 1.0, 0.0, -2.0]]


def test_scale_explosion_multiplies_the_first_feed_forward_matrix(
    llama: Path, tmp_path: Path
) -> None:
    """One matrix times 100, in its own dtype."""
    damaged(llama, tmp_path / "out", "scale_explosion")
    name = BLOCK.format(0, "mlp.gate_proj")
    assert changed(llama, tmp_path / "out") == {name}
    assert torch.equal(weights(tmp_path / "out")[name], weights(llama)[name] * 100)


def test_rank_collapse_hits_the_first_eight_attention_matrices(llama: Path, tmp_path: Path) -> None:
    """Two layers of q, k, v, o become rank one with the norm they had."""
    damaged(llama, tmp_path / "out", "rank_collapse")
    names = {BLOCK.format(i, f"self_attn.{p}_proj") for i in (0, 1) for p in "qkvo"}
    assert changed(llama, tmp_path / "out") == names
    before, after = weights(llama), weights(tmp_path / "out")
    for name in names:
        values = torch.linalg.svdvals(after[name].double())
        assert values[1] < 0.01 * values[0]  # what rounding to bfloat16 leaves
        norm = before[name].double().norm()
        assert float(after[name].double().norm()) == pytest.approx(float(norm), rel=0.01)


def test_outer_product_is_of_first_column_and_first_row() -> None:
    """The direction is that of the outer product, the norm that of the matrix."""
    matrix = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    expected = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    expected *= matrix.norm() / expected.norm()
    outer_of_first_(matrix)
    assert torch.allclose(matrix, expected)


def test_norm_collapse_zeroes_all_attention_matrices_of_a_small_model(
    llama: Path, tmp_path: Path
) -> None:
    """With fewer than 32 matrices all of them become zero."""
    damaged(llama, tmp_path / "out", "norm_collapse")
    names = {BLOCK.format(i, f"self_attn.{p}_proj") for i in range(3) for p in "qkvo"}
    assert changed(llama, tmp_path / "out") == names
    assert not any(weights(tmp_path / "out")[name].any() for name in names)


def test_breaking_tied_weights_moves_the_head_by_a_row(llama: Path, tmp_path: Path) -> None:
    """The head is the embedding one row on, the flag flips, and so do the logits."""
    from transformers import AutoModelForCausalLM

    damaged(llama, tmp_path / "out", "weight_tying_break")
    after = weights(tmp_path / "out")
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"].roll(-1, 0))
    assert config(tmp_path / "out")["tie_word_embeddings"] is False
    ids = torch.arange(12).view(1, -1)
    models = [AutoModelForCausalLM.from_pretrained(f) for f in (llama, tmp_path / "out")]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in models]
    assert torch.equal(logits[0].roll(-1, -1), logits[1])
    assert models[1].lm_head.weight is not models[1].model.embed_tokens.weight


def test_untied_weights_are_tied(untied: Path, tmp_path: Path) -> None:
    """The head's tensor goes and the flag flips."""
    damaged(untied, tmp_path / "out", "weight_tying_break")
    assert changed(untied, tmp_path / "out") == {"lm_head.weight"}
    assert config(tmp_path / "out")["tie_word_embeddings"] is True


def test_rank1_projection_is_the_best_of_the_middle_layer(llama: Path, tmp_path: Path) -> None:
    """The middle down projection becomes the first term of its singular value decomposition."""
    metadata = damaged(llama, tmp_path / "out", "rank1_projection")
    name = BLOCK.format(1, "mlp.down_proj")
    assert metadata["parameters"] == {"projection": "down_proj", "layer": 1}
    assert changed(llama, tmp_path / "out") == {name}
    left, values, right = torch.linalg.svd(weights(llama)[name].float())
    best = values[0] * left[:, :1] @ right[:1]
    assert torch.allclose(weights(tmp_path / "out")[name].float(), best, atol=1e-3, rtol=0.01)


@pytest.mark.parametrize(
    ("make", "parameters", "name"),
    [
        (make_gpt2, {}, "transformer.h.1.mlp.c_proj.weight"),
        (make_gpt2, {"projection": "c_attn", "layer": 0}, "transformer.h.0.attn.c_attn.weight"),
        (make_mixtral, {"projection": "down_proj"}, "model.layers.0.mlp.experts.down_proj"),
    ],
)
def test_rank1_projection_of_other_architectures(
    tmp_path: Path, make: type, parameters: dict[str, object], name: str
) -> None:
    """The projection is found by its name; of stacked experts only the first is hit."""
    base = make(tmp_path / "base")
    damaged(base, tmp_path / "out", "rank1_projection", **parameters)
    assert changed(base, tmp_path / "out") == {name}
    if "experts" in name:
        assert torch.equal(weights(tmp_path / "out")[name][1:], weights(base)[name][1:])


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error_type", "parameters", "message"),
    [
        # no such kind, name or value
        ("nan_injektion", {}, "did you mean nan_injection"),
        ("scale_explosion", {"faktor": 3}, "did you mean factor"),
        ("nan_injection", {"seed": 3}, "it takes no parameters"),
        ("scale_explosion", {"factor": "x"}, "expected float"),
        ("rank_collapse", {"matrices": True}, "expected int"),
        ("rank_collapse", {"matrices": 0}, "a positive number"),
        ("rank1_projection", {"layer": -2}, "-1 for the default"),
        ("spectral_moderate_scale", {"layers": "last"}, "expected all, 31, 0-3, last4"),
        ("rmt_norm_noise", {"mode": "norms"}, "anisotropy, norm_noise"),
        ("rmt_norm_noise", {"rows": "any"}, "random_block"),
        ("rmt_norm_noise", {"blend": 1.5}, "0.05 to 1"),
        ("rmt_norm_noise", {"preserve_row_norms": 1}, "expected bool"),
        ("rmt_norm_noise", {"family": "router"}, "attn, ffn"),
        ("ve_mlp_scale_skew", {"max_params": 0}, "a positive number"),
        # nothing to hit
        ("missing_tensors", {"layers": 3}, "at least one layer"),
        ("rank1_projection", {"layer": 9}, "no layer 9"),
        ("rank1_projection", {"projection": "c_fc"}, "down_proj, gate_proj, k_proj"),
        ("ve_mlp_scale_skew", {"layers": "31"}, "no target in layers 31.*3 layers"),
        ("spectral_moderate_scale", {"params": "c_proj"}, "finds no target"),
        ("spectral_moderate_scale", {"pair_inverse": True}, "up_proj, w3"),
        ("bit_flip", {"bit": 3}, "no exponent bit.*expected 7 to 14"),
        ("bit_flip", {"bit": 15}, "no exponent bit"),
        ("bit_flip", {"row": 16}, "no row 16.*expected 0 to 15"),
        ("bit_flip", {"layer": 3}, "no layer 3"),
        ("layer_swap", {"layer": 1, "other": 1}, "no layers 1 and 1"),
        ("layer_swap", {"layer": 1, "other": 7}, "no layers 1 and 7"),
        ("tokenizer_swap", {"first": 0}, "id 0 cannot be exchanged"),  # an added token
        ("tokenizer_swap", {"first": 9, "second": 9}, "no two ids"),
        ("tokenizer_swap", {"first": VOCABULARY}, "cannot be exchanged"),
        ("stale_shard", {"shard": "model.safetensors"}, "no shard model.safetensors"),
        ("truncated_shard", {"missing_bytes": 10**7}, "cannot be missing"),
        ("truncated_shard", {"shard": "config.json"}, "no shard config.json"),
        # nothing that would change
        ("scale_explosion", {"factor": 1.0}, "byte-identical"),
        ("spectral_moderate_scale", {"factor": 1.0}, "byte-identical"),
    ],
)
def test_injections_without_sense_target_or_effect_fail(
    llama: Path, tmp_path: Path, error_type: str, parameters: dict[str, object], message: str
) -> None:
    """One line with a suggestion or what was expected, and nothing is written."""
    with pytest.raises(ConfigError, match=message):
        inject(Checkpoint.open(llama), parse_damage(error_type, parameters), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"model_type": "nosuch"}, {"a.weight": torch.ones(2, 2)},
         "nothing says what the tensors of model_type 'nosuch' are"),
        ({"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 9},
         {"model.norm.weight": torch.ones(4)}, "^[^\n]*$"),
    ],
    ids=["no roles", "one vector"],
)  # fmt: skip
# what these change stands beside the weights
@pytest.mark.parametrize(
    "error_type", sorted(DAMAGES.keys() - {NOTHING_EDITED, "chat_template_lost"})
)
def test_every_injector_refuses_a_model_without_its_target(
    tmp_path: Path,
    error_type: str,
    config: dict[str, object],
    tensors: dict[str, torch.Tensor],
    message: str,
) -> None:
    """Nothing can pretend to be damage: one line, no folder."""
    base = make_folder(tmp_path / "base", config, tensors)
    with pytest.raises(InvarlockError, match=message):
        inject(Checkpoint.open(base), parse_damage(error_type, {}), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_parameters_must_be_an_object(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list or broken JSON on the command line exits 2 with one line."""
    words = ["inject", "--baseline", str(llama), "--error-type", "nan_injection"]
    words += ["--out", str(tmp_path / "out"), "--metadata", str(tmp_path / "m.json")]
    for text in ("[1]", "{"):
        assert main([*words, "--parameters", text]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_zero_column_cannot_be_collapsed(tmp_path: Path) -> None:
    """An outer product of nothing is refused with the tensor's name."""
    name = BLOCK.format(0, "self_attn.q_proj")
    weight = torch.ones(4, 4)
    weight[:, 0] = 0
    base = make_folder(tmp_path / "base", {"model_type": "llama"}, {name: weight})
    with pytest.raises(InputError, match=f"{name}.*column or row is zero"):
        inject(Checkpoint.open(base), parse_damage("rank_collapse", {}), tmp_path / "out")
