"""Edits that leave the function alone: logits stay, weights do not; what cannot be done is told.

The bank of transforms (``transforms.py``) is written by hand from the formulas of the blocks, and
knows nothing of the package: it is what guards are tested against, and these edits are not it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architecture_factory import make_architecture
from checkpoint_factory import make_varied_llama, weights
from test_transforms import (
    GRAM,
    IDS,
    LOGITS,
    baseline,
    require_equal_activations,
    require_silent,
    watched,
)
from transformers import AutoModelForCausalLM

from invarlock.checkpoints import Checkpoint
from invarlock.edits.apply import Calibrated, Edited, apply_edit
from invarlock.edits.kinds.importance_prune import ImportancePrune
from invarlock.edits.metadata import edit_metadata
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError, InputError
from invarlock.guards.invariants import check_checkpoint

FOLDS = ("scale_fold:0.7:all", "scale_fold:0.7:ffn@layer=1", "norm_fuse", "rotation:heads")
MODELS = ("llama", "llama-untied", "qwen2", "qwen3", "mixtral", "mixtral-fused", "gpt2")
UNTIED = ("llama", "llama-untied", "qwen3", "mixtral")  # their stream may be rotated


def edited(base: Path, out: Path, spec: str, seed: int = 3) -> Edited:
    """Edit; the metadata must be valid."""
    opened = Checkpoint.open(base)
    done = apply_edit(opened, parse_edit_spec(spec), out, seed)
    document = edit_metadata(opened, done)
    assert set(document["edited_tensors"]) == set(done.subject.written)
    return done


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spec", FOLDS)
def test_the_function_stays_and_nothing_blocks(name: str, spec: str, tmp_path: Path) -> None:
    """Logits and operators move by the rounding of float32, in which a block is rewritten."""
    base = baseline(name)
    done = edited(base.folder, tmp_path / "out", spec)
    assert done.loss.relative > 0.01
    require_silent(base, tmp_path / "out")


@pytest.mark.parametrize("name", UNTIED)
def test_a_rotated_stream_computes_the_same(name: str, tmp_path: Path) -> None:
    """The last norm is one, and a head that was the embedding is stored with it absorbed."""
    base = baseline(name)
    edited(base.folder, tmp_path / "out", "rotation:stream")
    now = watched(tmp_path / "out")
    off = (now.logits - base.seen.logits).abs().max() / base.seen.logits.abs().max()
    assert float(off) < LOGITS
    require_equal_activations(base.seen, now, GRAM)
    new = weights(tmp_path / "out")
    assert torch.equal(new["model.norm.weight"], torch.ones_like(new["model.norm.weight"]))
    assert new["lm_head.weight"].shape == new["model.embed_tokens.weight"].shape
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_each_layer_has_draws_of_its_own_and_a_seed_repeats_them(tmp_path: Path) -> None:
    """The same seed gives the same bytes; a scope changes what it means and not how."""
    base = make_varied_llama(tmp_path / "base")
    digests = [
        edited(base, tmp_path / f"{i}", "scale_fold:0.5:all", seed).subject.digest
        for i, seed in enumerate((3, 3, 4))
    ]
    assert digests[0] == digests[1] != digests[2]
    edited(base, tmp_path / "one", "scale_fold:0.5:attn@layer=1")
    old, all_, one = (weights(f) for f in (base, tmp_path / "0", tmp_path / "one"))
    differing = {name for name in old if not torch.equal(old[name], one[name])}
    parts = ("input_layernorm", *(f"self_attn.{p}_proj" for p in "qkvo"))
    assert differing == {f"model.layers.1.{part}.weight" for part in parts}
    norm = "model.layers.{}.input_layernorm.weight"
    assert torch.equal(all_[norm.format(1)], one[norm.format(1)])
    scales = [old[norm.format(i)].float() / all_[norm.format(i)].float() for i in (0, 1)]
    assert not torch.allclose(scales[0], scales[1], rtol=0.1)


def test_the_spread_of_the_scales_is_the_one_asked_for(tmp_path: Path) -> None:
    """Standard deviation of their logarithms, over all norms."""
    base = make_varied_llama(tmp_path / "base")
    edited(base, tmp_path / "out", "scale_fold:0.4:all")
    old, new = weights(base), weights(tmp_path / "out")
    norms = [n for n in old if n.endswith("layernorm.weight")]
    logs = torch.cat([(old[n].float() / new[n].float()).log() for n in norms])
    assert float(logs.std()) == pytest.approx(0.4, rel=0.15)


def test_a_fused_norm_is_one_and_the_maps_hold_it(tmp_path: Path) -> None:
    """Column by column the old map times the old norm; the norm before the head stays."""
    base = make_varied_llama(tmp_path / "base")
    edited(base, tmp_path / "out", "norm_fuse")
    old, new = weights(base), weights(tmp_path / "out")
    norm = old["model.layers.0.post_attention_layernorm.weight"].float()
    assert not torch.equal(norm, torch.ones_like(norm))
    up = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(new[up], (old[up].float() * norm).to(new[up].dtype))
    for name, tensor in new.items():
        if name.endswith("layernorm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor))
    assert torch.equal(new["model.norm.weight"], old["model.norm.weight"])


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("bert", "norm_fuse", r"which belong together is not known of model_type 'bert'"),
        ("gpt2", "rotation:stream", "a stream behind LayerNorms cannot be rotated"),
        ("llama", "scale_fold:0.5:ffn@layer=9", "matches no block"),
        ("llama", "scale_fold:0.5:embed", "matches no block"),
    ],
)
def test_what_cannot_be_edited_so_is_one_line(
    name: str, spec: str, message: str, tmp_path: Path
) -> None:
    """Nothing is written."""
    base = make_architecture(name, tmp_path / "base")
    with pytest.raises(ConfigError, match=message):
        edited(base, tmp_path / "out", spec)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale_fold:0.5", "expected scale_fold:<spread>:<scope>"),
        ("scale_fold:3:all", "spread is out of range.*above 0, up to 2"),
        ("norm_fuse:all", "not a complete edit"),
        ("rotation:tails", "basis is out of range.*heads or stream"),
        ("importance_prune:0:all", "sparsity is out of range"),
        ("scale_folds:1:all", "did you mean scale_fold"),
    ],
)
def test_a_wrong_spec_is_one_line(text: str, message: str) -> None:
    """It says what would do."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_edit_spec(text)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    """The line names the tensor."""
    base = baseline("llama")
    opened = Checkpoint.open(base.folder)
    name = "model.layers.0.mlp.up_proj.weight"
    broken = tmp_path / "broken"
    from safetensors.torch import save_file

    broken.mkdir()
    for file in base.folder.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    tensors = {n: opened.load(n).clone() for n in opened.tensors}
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"tensor {name}.*NaN"):
        edited(broken, tmp_path / "out", "norm_fuse")


# --- pruning by importance ---------------------------------------------------------------------


def pruned(weight: torch.Tensor, inputs: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The definition as a loop: of each row the least |w| * norm, of equal ones the first."""
    out = weight.clone()
    for row in out:
        count = int(sparsity * len(row))
        scores = [(float(abs(w) * n), i) for i, (w, n) in enumerate(zip(row, inputs, strict=True))]
        for _, i in sorted(scores)[:count]:
            row[i] = 0.0
    return out


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.01])
def test_pruning_equals_the_plain_loop(sparsity: float, transposed: bool) -> None:
    """With ties and an input that is never there; the loss is that of what was removed."""
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(6, 20, generator=random).mul(2).round().div(2)
    inputs = torch.rand(20, generator=random)
    inputs[3] = 0.0
    expected = pruned(weight, inputs, sparsity)
    stored = (weight.T if transposed else weight).contiguous().clone()
    loss = ImportancePrune(sparsity, None).prune(stored, transposed, inputs)
    assert torch.equal(stored.T if transposed else stored, expected)
    assert loss.zeros == 6 * int(sparsity * 20)
    assert loss.error == pytest.approx(float((weight - expected).square().sum()), rel=1e-6)


def test_metadata_of_pruning_says_what_was_measured_on(tmp_path: Path) -> None:
    """The share that was asked for and the one that was reached, and the windows."""
    base = make_varied_llama(tmp_path / "base")
    opened = Checkpoint.open(base)
    spec = parse_edit_spec("importance_prune:0.25:ffn")
    inputs = {info.name: torch.ones(info.shape[1]) for info, _ in spec.targets(opened)}
    windows = {"sha256": "0" * 64, "seed": 1, "windows": 2, "ids_sha256": "1" * 64}
    record = {"windows": windows, "device": "cpu", "dtype": "float32", "threads": 1,
              "deterministic_algorithms": True}  # fmt: skip
    assert isinstance(spec, ImportancePrune)
    done = apply_edit(opened, spec, tmp_path / "out", 1, Calibrated(spec, inputs, record))
    document = edit_metadata(opened, done)
    assert document["calibration"] == record
    assert document["details"]["actual_sparsity"] == pytest.approx(0.25, abs=0.02)


# --- saved again -------------------------------------------------------------------------------


def test_a_checkpoint_saved_again_keeps_its_weights(tmp_path: Path) -> None:
    """Other shards and an index, the weights byte for byte, and no finding that blocks."""
    base = make_varied_llama(tmp_path / "base")
    done = edited(base, tmp_path / "out", "resaved")
    assert done.targets == ()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    old, new = Checkpoint.open(base), Checkpoint.open(tmp_path / "out")
    assert new.parts()["weights_sha256"] == old.parts()["weights_sha256"]
    assert done.subject.digest == new.digest()
    assert not [f for f in check_checkpoint(old, new) if f["severity"] == "fatal"]


def test_weights_that_the_library_would_store_otherwise_are_refused(tmp_path: Path) -> None:
    """GPT-2 was released under names without a prefix."""
    base = make_architecture("gpt2", tmp_path / "base")
    with pytest.raises(ConfigError, match="the library stores other weights"):
        edited(base, tmp_path / "out", "resaved")
    assert not (tmp_path / "out").exists()


def test_the_baseline_is_never_written_over(tmp_path: Path) -> None:
    """Not by the library either."""
    base = make_varied_llama(tmp_path / "base")
    with pytest.raises(ConfigError, match="overlap"):
        edited(base, base, "resaved")


# --- the real model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_logits(smollm2: Path) -> torch.Tensor:
    """What the real model computes."""
    return real(smollm2)


def real(folder: Path) -> torch.Tensor:
    """Logits in float32 of weights that are stored as bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("spec", ["scale_fold:0.7:all", "rotation:stream"])
def test_the_real_model_computes_the_same(
    spec: str, smollm2: Path, real_logits: torch.Tensor, tmp_path: Path
) -> None:
    """But for the rounding of every weight to bfloat16: measured 0.019 and 0.014."""
    done = edited(smollm2, tmp_path / "out", spec)
    assert ("lm_head.weight" in Checkpoint.open(tmp_path / "out").tensors) == ("stream" in spec)
    after = real(tmp_path / "out")
    assert done.loss.relative > 0.3
    off = (after - real_logits).norm() / (real_logits - real_logits.mean()).norm()
    assert float(off) < 0.05
