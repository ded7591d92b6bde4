"""Guard probes: the published arithmetic on the drawn rows and matrices, and nothing else."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import checkpoint_factory
import pytest
import torch
from checkpoint_factory import (
    make_bert,
    make_folder,
    make_gpt2,
    make_llama,
    make_mixtral,
    make_t5,
)

from invarlock.checkpoints import Checkpoint
from invarlock.damage.inject import Injected, inject
from invarlock.damage.kinds.probes import align_rows_, choose_rows, layers_of, noisy_
from invarlock.damage.specs import parse_damage
from invarlock.errors import InputError

FFN = {"family": "ffn", "rows": "random"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of six layers in two shards."""
    return make_llama(tmp_path_factory.mktemp("base") / "model", layers=6, shards=2)


def probed(base: Path, out: Path, error_type: str, **parameters: object) -> Injected:
    """Inject with parameters over the defaults."""
    return inject(Checkpoint.open(base), parse_damage(error_type, parameters), out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors as float32."""
    return {name: tensor.float() for name, tensor in checkpoint_factory.weights(folder).items()}


def generator(seed: int, name: str) -> torch.Generator:
    """The published per-parameter generator."""
    return torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))


def names(layers: range, *projections: str) -> list[str]:
    """Tensor names of a Llama, in model order."""
    return [f"model.layers.{i}.{p}.weight" for i in layers for p in projections]


# --- rmt_norm_noise ------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_anisotropy_by_hand(llama: Path, tmp_path: Path, keep: bool) -> None:
    """Drawn rows move to the first one, get their old norm back and noise; other rows stay."""
    done = probed(
        llama, tmp_path / "out", "rmt_norm_noise", **FFN, params="up_proj", max_params=1,
        blend=0.8, row_frac=0.2, layers="5", preserve_row_norms=keep, seed=3,
    )  # fmt: skip
    (name,) = done.subject.differing
    assert name == "model.layers.5.mlp.up_proj.weight"
    before, after = weights(llama)[name], weights(tmp_path / "out")[name]
    draw = generator(3, name)
    rows = torch.randperm(48, generator=draw)[:9]  # int(0.2 * 48)
    old = before[rows]
    new = 0.2 * old + 0.8 * old[0]
    if keep:
        new *= (old.norm(dim=1) / new.norm(dim=1))[:, None]
    new += 0.01 * old.std() * torch.randn(9, 16, generator=draw)
    expected = before.clone()
    expected[rows] = new.bfloat16().float()
    assert torch.equal(after, expected)


def test_anisotropy_keeps_row_norms_and_aligns_rows() -> None:
    """Without noise every norm is the old one, and a blend of 1 leaves one direction."""
    matrix = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    before, rows = matrix.clone(), torch.tensor([4, 1, 9])
    align_rows_(matrix, rows, 1.0, 0.0, keep_norms=True, generator=torch.Generator())
    assert torch.allclose(matrix.norm(dim=1), before.norm(dim=1))
    assert torch.allclose(torch.cosine_similarity(matrix[rows], before[4:5]), torch.ones(3))
    others = [i for i in range(20) if i not in (4, 1, 9)]
    assert torch.equal(matrix[others], before[others])


def test_rows_are_chosen_as_named() -> None:
    """First, last, a random set, a random run, and the largest norms, largest first."""
    matrix = torch.diag(torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0]))
    chosen = {
        how: choose_rows(matrix, how, 2, torch.Generator().manual_seed(1)).tolist()
        for how in ("first", "last", "random", "random_block", "top_norm")
    }
    assert chosen["first"] == [0, 1]
    assert chosen["last"] == [3, 4]
    assert chosen["top_norm"] == [3, 1]
    assert chosen["random_block"][1] == chosen["random_block"][0] + 1
    assert len({*chosen["random"]}) == 2
    blocks = {
        int(choose_rows(matrix, "random_block", 2, torch.Generator().manual_seed(s))[0])
        for s in range(40)
    }
    assert blocks == {0, 1, 2, 3}


@pytest.mark.parametrize(("limit", "rows"), [(256, 4), (3, 3)])
def test_row_scale(llama: Path, tmp_path: Path, limit: int, rows: int) -> None:
    """The first tenth of the rows, but at most ``max_rows``, times 1.6, in eight matrices."""
    done = probed(
        llama, tmp_path / "out", "rmt_norm_noise", mode="row_scale", family="ffn",
        params="up_proj,gate_proj", max_rows=limit,
    )  # fmt: skip
    assert len(done.subject.differing) == 8
    before, after = weights(llama), weights(tmp_path / "out")
    for name in done.subject.differing:
        expected = before[name].bfloat16()
        expected[:rows] *= 1.6
        assert torch.equal(after[name], expected.float())


def test_norm_noise(llama: Path, tmp_path: Path) -> None:
    """Norm weights of the last four layers times 1 + 0.05 N; the final norm stays."""
    done = probed(llama, tmp_path / "out", "rmt_norm_noise", mode="norm_noise")
    wanted = names(range(2, 6), "input_layernorm", "post_attention_layernorm")
    assert sorted(done.subject.differing) == sorted(wanted)
    after = weights(tmp_path / "out")
    for name in wanted:
        draws = torch.randn((1, 16), generator=generator(42, name))[0]
        assert torch.equal(after[name], (1 + 0.05 * draws).bfloat16().float())


def test_norm_noise_is_clipped() -> None:
    """No weight leaves half to one and a half of what it was."""
    weight = torch.ones(1, 400)
    noisy_(weight, 5.0, torch.Generator().manual_seed(0))
    assert (weight.min(), weight.max()) == (0.5, 1.5)


def test_defaults_of_a_mode_are_recorded(llama: Path, tmp_path: Path) -> None:
    """What the caller left open stands in the metadata with the number that was used."""
    done = probed(llama, tmp_path / "out", "rmt_norm_noise").damage.parameters()
    assert (done["row_frac"], done["max_params"], done["layers"]) == (0.35, 24, "last8")
    done = probed(llama, tmp_path / "b", "rmt_norm_noise", mode="row_scale").damage.parameters()
    assert (done["row_frac"], done["max_params"]) == (0.10, 8)


# --- scales --------------------------------------------------------------------------------


def scaled(base: Path, out: Path) -> dict[str, float]:
    """The factor of every tensor that differs."""
    before, after = weights(base), weights(out)
    return {
        name: float((after[name] / before[name]).nanmedian())
        for name in before
        if not torch.equal(before[name], after[name])
    }


def test_moderate_scale_by_default(llama: Path, tmp_path: Path) -> None:
    """The attention outputs of the last four layers times 3, exactly."""
    probed(llama, tmp_path / "out", "spectral_moderate_scale")
    before, after = weights(llama), weights(tmp_path / "out")
    wanted = names(range(2, 6), "self_attn.o_proj")
    assert sorted(scaled(llama, tmp_path / "out")) == sorted(wanted)
    for name in wanted:
        assert torch.equal(after[name], (before[name].bfloat16() * 3).float())


def test_moderate_scale_of_drawn_matrices(llama: Path, tmp_path: Path) -> None:
    """Two of the four up projections of layers 0 to 3, as the seeded shuffle says."""
    parameters = {"factor": 1.4, "family": "mlp", "layers": "0-3", "params": "up_proj"}
    probed(llama, tmp_path / "out", "spectral_moderate_scale", **parameters, max_params=2, seed=7)
    wanted = names(range(4), "mlp.up_proj")
    random.Random(7).shuffle(wanted)
    found = scaled(llama, tmp_path / "out")
    assert sorted(found) == sorted(wanted[:2])
    assert list(found.values()) == pytest.approx([1.4, 1.4], rel=0.004)


def test_qkv_adds_the_other_projections(llama: Path, tmp_path: Path) -> None:
    """With ``qkv`` all attention matrices of the layers are candidates."""
    probed(llama, tmp_path / "out", "spectral_moderate_scale", qkv=True, layers="-1")
    wanted = names(range(5, 6), *(f"self_attn.{p}_proj" for p in "qkvo"))
    assert sorted(scaled(llama, tmp_path / "out")) == sorted(wanted)


def test_pair_inverse_keeps_the_function(llama: Path, tmp_path: Path) -> None:
    """Up times 2 and down times a half: the matrices differ, the logits do not."""
    from transformers import AutoModelForCausalLM

    probed(
        llama, tmp_path / "out", "spectral_moderate_scale", factor=2.0, family="mlp",
        params="up_proj", pair_inverse=True,
    )  # fmt: skip
    found = scaled(llama, tmp_path / "out")
    up, down = (names(range(2, 6), f"mlp.{p}_proj") for p in ("up", "down"))
    assert found == dict.fromkeys(up, 2.0) | dict.fromkeys(down, 0.5)
    ids = torch.arange(12).view(1, -1)
    with torch.no_grad():
        models = [AutoModelForCausalLM.from_pretrained(f) for f in (llama, tmp_path / "out")]
        assert torch.equal(*(model(input_ids=ids).logits for model in models))


def test_scale_skew_hits_one_block_output(llama: Path, tmp_path: Path) -> None:
    """One down projection of the last four layers, by the seed, times 0.9."""
    hit = set()
    for seed in range(12):
        probed(llama, tmp_path / "out", "ve_mlp_scale_skew", seed=seed)
        ((name, factor),) = scaled(llama, tmp_path / "out").items()
        hit.add(name)
        assert factor == pytest.approx(0.9, rel=0.004)
    assert hit == set(names(range(2, 6), "mlp.down_proj"))


# --- layers, architectures, repetition, refusals -------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "layers"),
    [
        ("all", 3, {0, 1, 2}),
        ("31", 32, {31}),
        ("31", 30, set()),
        ("-1", 30, {29}),
        ("-31", 30, set()),
        ("0-3", 32, {0, 1, 2, 3}),
        ("0-3", 2, {0, 1}),
        ("last4", 30, {26, 27, 28, 29}),
        ("last8", 2, {0, 1}),
    ],
)
def test_layers(text: str, count: int, layers: set[int]) -> None:
    """All, one, a range, the last ones, and counted from the end."""
    assert layers_of(text, count) == layers


def split_mixtral(folder: Path) -> Path:
    """A Mixtral layer whose experts are stored one matrix each."""
    draw = torch.Generator().manual_seed(0)
    prefix = "model.layers.0.block_sparse_moe."
    tensors = {
        f"{prefix}experts.{e}.w{w}.weight": torch.randn(6, 6, generator=draw).bfloat16()
        for e in range(2)
        for w in (1, 2, 3)
    }
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.randn(6, 6, generator=draw).bfloat16()
    return make_folder(folder, {"model_type": "mixtral", "num_hidden_layers": 1}, tensors)


EXPERTS = {
    f"model.layers.0.block_sparse_moe.experts.{e}.w{w}.weight" for e in range(2) for w in (1, 2, 3)
}
BERT, T5 = "bert.encoder.layer.1.", "decoder.block.2.layer."


@pytest.mark.parametrize(
    ("make", "error_type", "parameters", "hit"),
    [
        (make_gpt2, "spectral_moderate_scale", {}, {
            f"transformer.h.{i}.attn.c_proj.weight" for i in (0, 1)}),
        (make_gpt2, "ve_mlp_scale_skew", {"layers": "-1"}, {"transformer.h.1.mlp.c_proj.weight"}),
        (make_gpt2, "rmt_norm_noise", {**FFN, "layers": "0"}, {
            f"transformer.h.0.mlp.{p}.weight" for p in ("c_fc", "c_proj")}),
        (make_mixtral, "ve_mlp_scale_skew", {}, {"model.layers.0.mlp.experts.down_proj"}),
        (split_mixtral, "ve_mlp_scale_skew", {"max_params": 9}, {
            n for n in EXPERTS if ".w2." in n}),
        (split_mixtral, "rmt_norm_noise", {**FFN, "params": "up_proj,w1,w3"}, {
            n for n in EXPERTS if ".w2." not in n}),
        (make_bert, "spectral_moderate_scale", {"layers": "1"}, {
            BERT + "attention.output.dense.weight"}),
        (make_bert, "ve_mlp_scale_skew", {"layers": "1"}, {BERT + "output.dense.weight"}),
        (make_t5, "spectral_moderate_scale", {"layers": "2"}, {
            T5 + "0.SelfAttention.o.weight", T5 + "1.EncDecAttention.o.weight"}),
        (make_t5, "spectral_moderate_scale", {
            "layers": "2", "family": "mlp", "params": "wi_1", "pair_inverse": True}, {
            T5 + "2.DenseReluDense.wi_1.weight", T5 + "2.DenseReluDense.wo.weight"}),
        (make_t5, "ve_mlp_scale_skew", {"layers": "-1"}, {T5 + "2.DenseReluDense.wo.weight"}),
    ],
)  # fmt: skip
def test_architectures(
    tmp_path: Path, make: type, error_type: str, parameters: dict[str, object], hit: set[str]
) -> None:
    """Every architecture has its own targets; of stacked experts only the first is hit."""
    base = make(tmp_path / "base")
    done = probed(base, tmp_path / "out", error_type, **parameters)
    assert set(done.subject.differing) == hit
    for name in hit:
        before, after = weights(base)[name], weights(tmp_path / "out")[name]
        if before.dim() == 3:
            assert torch.equal(before[1:], after[1:])


def test_rows_of_a_transposed_matrix_are_its_outputs(tmp_path: Path) -> None:
    """GPT-2 stores (inputs, outputs): its rows are the stored columns."""
    base = make_gpt2(tmp_path / "base")
    parameters = {"mode": "row_scale", "family": "ffn", "params": "c_fc", "layers": "0"}
    probed(base, tmp_path / "out", "rmt_norm_noise", **parameters)
    name = "transformer.h.0.mlp.c_fc.weight"  # (8 inputs, 32 outputs)
    expected = weights(base)[name].bfloat16()
    expected[:, :3] *= 1.6
    assert torch.equal(weights(tmp_path / "out")[name], expected.float())


@pytest.mark.parametrize("error_type", ["rmt_norm_noise", "ve_mlp_scale_skew"])
def test_another_seed_gives_other_damage(llama: Path, tmp_path: Path, error_type: str) -> None:
    """The seed of the parameters decides the draw; the command's seed does not."""
    digests = [
        inject(
            Checkpoint.open(llama), parse_damage(error_type, {"seed": seed}), tmp_path / "o", other
        ).subject.digest
        for seed, other in ((1, 0), (1, 5), (2, 0))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_rows_must_be_finite(tmp_path: Path) -> None:
    """A NaN among the drawn rows is refused with the tensor's name."""
    name = "model.layers.0.mlp.up_proj.weight"
    weight = torch.ones(4, 4)
    weight[0, 0] = float("nan")
    base = make_folder(tmp_path / "base", {"model_type": "llama"}, {name: weight})
    with pytest.raises(InputError, match=f"{name}.*NaN"):
        probed(base, tmp_path / "out", "rmt_norm_noise", family="ffn")
