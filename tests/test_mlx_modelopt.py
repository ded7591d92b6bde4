"""MLX and ModelOpt: what the weights stand for, what runs, what is damage, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama, weights
from makers import gptq_awq, mlx_modelopt
from packed_factory import (
    NOTHING,
    Change,
    Tensors,
    changed,
    comes_back,
    cut,
    each_once,
    fatal,
    put,
    without,
)
from safetensors.torch import load_file, save_file

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError, NotACheckpointError
from invarlock.formats.kinds.mlx import Mlx
from invarlock.guards.invariants import check_checkpoint
from invarlock.model_folder import open_model
from invarlock.run.loading import Target, load_model
from invarlock.shards import TensorInfo

LAYER = "model.layers.1.mlp.down_proj"
TARGET = Target("cpu", "float32")
KNOWN = Path(__file__).with_name("known") / "mlx.safetensors"
WAYS = {
    **{f"mlx affine {bits} 32": f"int{bits}, groups of 32" for bits in (2, 3, 4, 5, 6, 8)},
    "mlx affine 4 64": "int4, groups of 64",
    "mlx mxfp4 4 32": "MXFP4, groups of 32",
    "mlx mxfp8 8 32": "MXFP8, groups of 32",
    "mlx nvfp4 4 16": "NVFP4, groups of 16",
    "modelopt FP8": "FP8 E4M3, one scale",
    "modelopt FP8_PER_CHANNEL_PER_TOKEN": "FP8 E4M3, a scale per row",
    "modelopt FP8_PB_WO": "FP8 E4M3, blocks of 128x128",
    "modelopt MXFP8": "MXFP8, groups of 32",
    "modelopt MXFP4": "MXFP4, groups of 32",
    "modelopt NVFP4": "NVFP4, groups of 16",
    "modelopt W4A16_NVFP4": "NVFP4, groups of 16",
    "modelopt W8A8_SQ_PER_CHANNEL": "int8, a scale per row",
}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its matrices are larger than a block of 128, and do not divide by it."""
    return make_llama(tmp_path_factory.mktemp("dense") / "baseline", hidden=64)


@pytest.fixture(scope="module")
def made(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return each_once(mlx_modelopt.make, baseline, tmp_path_factory.mktemp("made"))


# --- what the weights stand for ------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
def test_what_was_packed_comes_back(baseline: Path, tmp_path: Path, name: str) -> None:
    """Every weight is the product that the packer meant, in the dtype of the model; no finding."""
    stood = mlx_modelopt.make(baseline, tmp_path / "s", name)
    comes_back(baseline, tmp_path / "s", stood, WAYS[name])


@pytest.mark.parametrize("way", sorted({name.rpartition(".")[0] for name in load_file(KNOWN)}))
def test_mlx_itself_unpacks_to_the_same(way: str) -> None:
    """Bit for bit, of matrices that it packed."""
    mode, bits, group = way.split()
    tensors = load_file(KNOWN)
    config = {
        "dtype": "float32",
        "quantization": {"mode": mode, "bits": int(bits), "group_size": int(group)},
    }
    parts = {
        f"a.{end}": tensors[f"{way}.{end}"]
        for end in ("weight", "scales", "biases")
        if f"{way}.{end}" in tensors
    }
    codes = {torch.uint32: "U32", torch.bfloat16: "BF16", torch.uint8: "U8"}
    infos = {
        name: TensorInfo(name, codes[t.dtype], tuple(t.shape), "f", 0, t.nbytes)
        for name, t in parts.items()
    }
    (tensor,) = Mlx().layout(infos, config, "here")
    found = Mlx().values(tensor, parts, config)
    assert torch.equal(found, tensors[f"{way}.stands for"].to(found.dtype))


def test_a_module_may_be_packed_in_a_way_of_its_own(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """As recipes of mixed bits are; which modules are packed at all, the files say alone."""
    dense = weights(baseline)
    other, stood = mlx_modelopt.mlx("affine", 8, 64)(dense[f"{LAYER}.weight"])

    def mix(tensors: Tensors) -> None:
        tensors |= {f"{LAYER}.{end}": part for end, part in other.items()}
        for part in [n for n in tensors if "layers.0.mlp.up_proj" in n]:
            del tensors[part]
        tensors["model.layers.0.mlp.up_proj.weight"] = dense["model.layers.0.mlp.up_proj.weight"]

    rule = {LAYER: {"group_size": None, "bits": 8, "mode": "affine"}}
    subject = changed(made("mlx affine 4 64"), tmp_path / "s", mix, rule)
    assert fatal(baseline, subject) == []
    assert torch.equal(Checkpoint.open(subject).load(f"{LAYER}.weight"), stood.to(torch.bfloat16))
    with pytest.raises(InputError, match="do not fit together"):
        Checkpoint.open(changed(made("mlx affine 4 64"), tmp_path / "u", mix))


@pytest.mark.parametrize(
    ("holder", "theirs"),
    [("mlp", "gate_proj"), ("block_sparse_moe", "w1")],
)
def test_experts_are_taken_apart(holder: str, theirs: str) -> None:
    """MLX stacks them, and calls some matrices otherwise than transformers does."""
    torch.manual_seed(0)
    pack = mlx_modelopt.mlx("affine", 4, 32)
    experts = [pack(torch.randn(6, 64, dtype=torch.bfloat16)) for _ in range(3)]
    stacked = {
        f"model.layers.0.{holder}.switch_mlp.gate_proj.{end}": torch.stack(
            [parts[end] for parts, _ in experts]
        )
        for end in ("weight", "scales", "biases")
    }
    infos, begin = {}, 100
    for name, tensor in stacked.items():
        code = "U32" if tensor.dtype == torch.uint32 else "BF16"
        end = begin + tensor.nbytes
        infos[name] = TensorInfo(name, code, tuple(tensor.shape), "f", begin, end)
        begin = end
    whole = b"".join(t.view(torch.uint8).numpy().tobytes() for t in stacked.values())
    config = {
        "quantization": {
            "bits": 8, "group_size": 32,
            # of the stack, by the name that MLX has for it
            f"model.layers.0.{holder}.switch_mlp.gate_proj": {"bits": 4, "group_size": 32},
        }
    }  # fmt: skip
    held = Mlx().stored(infos)
    found = {t.name: t for t in Mlx().layout(held, config, "here")}
    assert list(found) == [f"model.layers.0.{holder}.experts.{n}.{theirs}.weight" for n in range(3)]
    for (_, stood), tensor in zip(experts, found.values(), strict=True):
        parts = {}
        for name in tensor.parts:
            piece = whole[held[name].begin - 100 : held[name].end - 100]
            dtype = torch.uint32 if held[name].dtype == "U32" else torch.bfloat16
            parts[name] = torch.frombuffer(bytearray(piece), dtype=dtype).view(held[name].shape)
        assert torch.equal(Mlx().values(tensor, parts, config), stood.to(torch.bfloat16))


def test_modelopt_may_pack_each_module_otherwise(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """MIXED_PRECISION: what is not among quantized_layers is dense, and must not be packed."""
    parts, _ = mlx_modelopt.modelopt("FP8")(weights(baseline)[f"{LAYER}.weight"])

    def mix(tensors: Tensors) -> None:
        for part in [n for n in tensors if n.startswith(f"{LAYER}.")]:
            del tensors[part]
        tensors |= {f"{LAYER}.{end}": part for end, part in parts.items()}
        tensors[f"{LAYER}.input_scale"] = torch.tensor(0.05)

    packed = [n.removesuffix(".weight") for n in Checkpoint.open(made("modelopt NVFP4")).packed]
    layers = {name: {"quant_algo": "NVFP4", "group_size": 16} for name in packed}
    layers[LAYER] = {"quant_algo": "FP8"}
    said = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    subject = changed(made("modelopt NVFP4"), tmp_path / "s", mix, said)
    (subject / "hf_quant_config.json").unlink()
    assert fatal(baseline, subject) == []
    assert len(Checkpoint.open(subject).packing()["schemes"]) == 2
    del layers[LAYER]
    unsaid = changed(subject, tmp_path / "t", NOTHING, said)
    with pytest.raises(InputError, match="quantized_layers does not say how"):
        Checkpoint.open(unsaid)


def test_older_exports_say_it_in_a_file_of_their_own(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    subject = changed(made("modelopt NVFP4"), tmp_path / "s")
    config = json.loads((subject / "config.json").read_text())
    del config["quantization_config"]
    (subject / "config.json").write_text(json.dumps(config))
    assert fatal(baseline, subject) == []
    named, other = (Checkpoint.open(path) for path in (made("modelopt NVFP4"), subject))
    assert torch.equal(named.load(f"{LAYER}.weight"), other.load(f"{LAYER}.weight"))
    loaded = load_model(other, TARGET)
    assert "NVFP4" in loaded.describe().detail["activations"]


# --- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlx affine 4 64", "modelopt W4A16_NVFP4"])
def test_dense_kernels_run_the_effective_weights(
    made: Callable[[str], Path], baseline: Path, tmp_path: Path, name: str
) -> None:
    """The logits of the dense folder that holds these weights, and a report that says so."""
    subject = Checkpoint.open(made(name))
    shutil.copytree(baseline, tmp_path / "dense")
    tensors = {n: subject.load(n) for n in subject.tensors}
    save_file(tensors, tmp_path / "dense/model.safetensors", {"format": "pt"})
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        loaded = load_model(subject, TARGET)
        found = loaded.model(ids).logits
        expected = load_model(Checkpoint.open(tmp_path / "dense"), TARGET).model(ids).logits
    assert torch.equal(found, expected)
    assert (loaded.missing, loaded.unexpected) == ([], [])
    said = loaded.describe().detail
    assert said["weights"] == "dequantized"
    assert "has no kernels for the weights of" in said["because"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("modelopt FP8", "FP8 E4M3, one scale, static: 14 products"),
        ("modelopt FP8_PER_CHANNEL_PER_TOKEN", "FP8 E4M3, a scale per token: 14 products"),
        ("modelopt NVFP4", "NVFP4, groups of 16, one scale: 14 products"),
        ("modelopt W8A8_SQ_PER_CHANNEL", "int8, one scale, static: 14 products"),
    ],
)
def test_inputs_are_rounded_as_the_format_says(
    made: Callable[[str], Path], name: str, words: str
) -> None:
    """It moves the logits, and without it they are those of the weights alone."""
    loaded = load_model(Checkpoint.open(made(name)), TARGET)
    assert words in loaded.describe().detail["activations"]
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        rounded = loaded.model(ids).logits
        for part in loaded.model.modules():
            part._forward_pre_hooks.clear()
        plain = loaded.model(ids).logits
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).norm() < 0.3 * plain.norm()


# --- damage --------------------------------------------------------------------------------------


NAN = float("nan")
DAMAGE: dict[str, tuple[str, Change, str, str]] = {
    "MLX, NaN": ("mlx affine 4 64", put(f"{LAYER}.scales", NAN), "non_finite_tensor", LAYER),
    "MLX, NaN bias": ("mlx affine 4 64", put(f"{LAYER}.biases", NAN), "non_finite_tensor", LAYER),
    "MLX, zero": ("mlx affine 4 64", put(f"{LAYER}.scales", 0), "packing", "64 weights away"),
    "MLX, no power": ("mlx mxfp4 4 32", put(f"{LAYER}.scales", 255), "non_finite_tensor", LAYER),
    "FP8, NaN": (
        "modelopt FP8", put(f"{LAYER}.weight_scale", NAN), "non_finite_tensor", LAYER),
    "FP8, zero": (
        "modelopt FP8", put(f"{LAYER}.weight_scale", 0), "packing", "weights away"),
    "NVFP4, zero": (
        "modelopt NVFP4", put(f"{LAYER}.weight_scale", 0), "packing", "16 weights away"),
    "NVFP4, zero over all": (
        "modelopt NVFP4", put(f"{LAYER}.weight_scale_2", 0), "packing", "away"),
    "inputs, none": (
        "modelopt NVFP4", without(f"{LAYER}.input_scale"), "packing",
        "the inputs of 1 packed matrix has no scale"),
    "inputs, zero": (
        "modelopt FP8", put(f"{LAYER}.input_scale", 0), "packing", "no positive number"),
    "columns, zero": (
        "modelopt W8A8_SQ_PER_CHANNEL", put(f"{LAYER}.pre_quant_scale", 0), "packing",
        "is no positive number, and inputs are lost"),
    "columns, NaN": (
        "modelopt W8A8_SQ_PER_CHANNEL", put(f"{LAYER}.pre_quant_scale", NAN),
        "non_finite_tensor", LAYER),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_rejects(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    name, change, kind, words = DAMAGE[case]
    found = fatal(baseline, changed(made(name), tmp_path / "s", change))
    told = [failure["message"] for failure in found if failure["type"] == kind]
    assert any(words in message for message in told), found


def test_nvfp4_of_mlx_rounds_small_groups_to_nothing(baseline: Path, tmp_path: Path) -> None:
    """It has no scale over the E4M3 ones: a group of less than 0.006 is zero, and no damage."""
    dense = shutil.copytree(baseline, tmp_path / "dense")
    tensors = weights(baseline)
    tensors[f"{LAYER}.weight"][5, :16] = 0.005
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    mlx_modelopt.make(dense, tmp_path / "s", "mlx nvfp4 4 16")
    assert not Checkpoint.open(tmp_path / "s").load(f"{LAYER}.weight")[5, :16].any()
    assert fatal(dense, tmp_path / "s") == []
    lost = put(f"{LAYER}.scales", 0)
    (found,) = fatal(dense, changed(tmp_path / "s", tmp_path / "c", lost))
    assert "weights away" in found["message"]


def test_files_that_contradict_each_other_reject(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Servers read ModelOpt's own file, loaders config.json."""
    subject = changed(made("modelopt NVFP4"), tmp_path / "s")
    said = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (subject / "hf_quant_config.json").write_text(json.dumps(said))
    (found,) = fatal(baseline, subject)
    assert "quant_algo: NVFP4, and hf_quant_config.json says FP8" in found["message"]


@pytest.mark.parametrize("pattern", [LAYER, "model.layers.1.mlp*", "model.layers.1"])
def test_a_module_that_is_packed_and_said_to_be_dense_rejects(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path, pattern: str
) -> None:
    subject = changed(made("modelopt FP8"), tmp_path / "s", said={"ignore": ["lm_head", pattern]})
    (found,) = fatal(baseline, subject)
    assert "the file holds packed weights" in found["message"]


# --- what is refused -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Change, dict[str, object], list[str]]] = {
    "MLX bits in words": ("mlx affine 4 64", NOTHING, {"bits": "4"}, ["bits '4'"]),
    "MLX, said to be dense": ("mlx affine 4 64", NOTHING, {LAYER: False}, ["is not packed, and"]),
    "MLX convolutions": (
        "mlx affine 4 64", lambda t: t.update({"model.conv1d.weight": torch.ones(4, 2, 1)}), {},
        ["convolutions", "not read here"]),
    "MLX experts of others": (
        "mlx affine 4 64",
        lambda t: t.update({n: t[n][None].clone() for n in list(t) if LAYER in n}), {},
        ["all experts of a layer in one packed tensor"]),
    "MLX group size": ("mlx affine 4 64", NOTHING, {"group_size": 32}, ["do not fit", "of 32"]),
    "MLX bits": ("mlx affine 4 64", NOTHING, {"bits": 8}, ["do not fit together", "8 bits"]),
    "MLX no such bits": ("mlx affine 4 64", NOTHING, {"bits": 7}, ["no way of packing", "bits 7"]),
    "MLX mode": ("mlx mxfp4 4 32", NOTHING, {"mode": "affine"}, ["scales of BF16", "U8"]),
    "MLX no such mode": ("mlx affine 4 64", NOTHING, {"mode": "codebook"}, ["mode codebook"]),
    "MLX no weight": (
        "mlx affine 4 64", without(f"{LAYER}.weight"), {}, ["is there without", "weight"]),
    "MLX no scales": ("mlx affine 4 64", without(f"{LAYER}.scales"), {}, ["not packed as config"]),
    "MLX no biases": ("mlx affine 4 64", without(f"{LAYER}.biases"), {}, ["biases", "none"]),
    "MLX short": ("mlx affine 4 64", cut(f"{LAYER}.scales"), {}, ["do not fit together"]),
    "ModelOpt of another kind": (
        "modelopt FP8", NOTHING, {"quant_algo": "NVFP4"}, ["do not fit", "NVFP4", "F8_E4M3"]),
    "ModelOpt no scale": (
        "modelopt NVFP4", without(f"{LAYER}.weight_scale"), {}, ["has no scales", "weight_scale"]),
    "ModelOpt no scale over all": (
        "modelopt NVFP4", without(f"{LAYER}.weight_scale_2"), {}, ["do not fit together"]),
    "ModelOpt experts in one": (
        "modelopt FP8", lambda t: t.update({"e.gate_up_proj_weight_scale": torch.ones(2)}), {},
        ["e.gate_up_proj holds all experts"]),
    "ModelOpt half of the groups": (
        "modelopt NVFP4",
        lambda t: t.update({f"{LAYER}.weight_scale": t[f"{LAYER}.weight_scale"][:, ::2].clone()}),
        {}, ["do not fit together"]),
    "ModelOpt, rules that are none": (
        "modelopt NVFP4", NOTHING,
        {"quant_algo": "MIXED_PRECISION", "quantized_layers": {LAYER: "FP8"}},
        ["modelopt MIXED_PRECISION", "not read"]),
    "ModelOpt short": ("modelopt NVFP4", cut(f"{LAYER}.weight_scale"), {}, ["do not fit together"]),
    "ModelOpt unknown": (
        "modelopt NVFP4", NOTHING, {"quant_algo": "W4A8_AWQ"}, ["modelopt W4A8_AWQ", "not read"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_do_not_fit_are_one_line(
    made: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    name, change, said, words = REFUSED[case]
    with pytest.raises(InputError) as caught:
        open_model(changed(made(name), tmp_path / "s", change, said))
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name", ["mlx affine 4 64", "modelopt NVFP4"])
def test_packed_weights_without_a_word_are_named(
    made: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    subject = changed(made(name), tmp_path / "s")
    config = json.loads((subject / "config.json").read_text())
    kept = {k: v for k, v in config.items() if not k.startswith("quantization")}
    (subject / "config.json").write_text(json.dumps(kept))
    (subject / "hf_quant_config.json").unlink(missing_ok=True)
    like = "" if name.startswith("mlx") else ", but look like .*ModelOpt"
    with pytest.raises(NotACheckpointError, match=f"does not say how{like}"):
        open_model(subject)


@pytest.mark.parametrize(
    ("maker", "words"), [("gptq", "set quant_method"), ("awq", "set quant_method")]
)
def test_packed_by_others_that_are_not_named_are_not_taken_for_mlx(
    baseline: Path, tmp_path: Path, maker: str, words: str
) -> None:
    gptq_awq.make(baseline, tmp_path / "s", maker)
    config = json.loads((tmp_path / "s/config.json").read_text())
    del config["quantization_config"]["quant_method"]
    (tmp_path / "s/config.json").write_text(json.dumps(config))
    with pytest.raises(NotACheckpointError, match=words):
        open_model(tmp_path / "s")


def test_a_null_method_is_none(baseline: Path, made: Callable[[str], Path], tmp_path: Path) -> None:
    said = {"quant_method": None}
    assert fatal(baseline, changed(made("mlx affine 4 64"), tmp_path / "s", said=said)) == []


def test_a_dense_model_may_have_a_tensor_called_biases(baseline: Path, tmp_path: Path) -> None:
    subject = changed(
        baseline, tmp_path / "s", lambda t: t.update({"model.layers.0.biases": torch.zeros(4)})
    )
    assert [f["type"] for f in fatal(baseline, subject)] == ["extra_tensors"]


@pytest.mark.parametrize("file", ["config.json", "hf_quant_config.json"])
def test_caches_alone_may_be_rounded(baseline: Path, tmp_path: Path, file: str) -> None:
    """ModelOpt says so of dense weights: they are judged as they are, and the scales are told."""

    def scales(tensors: Tensors) -> None:
        for layer in (0, 1):
            for part in ("k", "v"):
                name = f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale"
                tensors[name] = torch.tensor(0.5)

    subject = changed(baseline, tmp_path / "s", scales)
    if file == "config.json":
        config = json.loads((subject / file).read_text())
        said = {"quant_method": "modelopt", "quant_algo": None, "kv_cache_scheme": {"num_bits": 8}}
        (subject / file).write_text(json.dumps({**config, "quantization_config": said}))
    else:
        said = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
        (subject / file).write_text(json.dumps(said))
    assert fatal(baseline, subject) == []
    found = check_checkpoint(Checkpoint.open(baseline), open_model(subject))
    assert any("caches of keys and values" in failure["message"] for failure in found)
    loaded = load_model(open_model(subject), TARGET)
    assert (loaded.missing, loaded.unexpected) == ([], [])


def test_modelopt_s_file_may_say_it_flat(baseline: Path, tmp_path: Path) -> None:
    subject = changed(baseline, tmp_path / "s")
    (subject / "hf_quant_config.json").write_text(json.dumps({"quant_algo": "FP8"}))
    with pytest.raises(NotACheckpointError, match="left beside dense weights"):
        open_model(subject)


def test_inputs_of_experts_are_told(tmp_path: Path) -> None:
    """transformers runs the experts of a layer as one module, whose inputs no hook sees."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(0)
    dense = make_llama(tmp_path / "dense", hidden=64)
    config = Qwen3MoeConfig(
        vocab_size=len(weights(dense)["model.embed_tokens.weight"]), hidden_size=64,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        intermediate_size=64, moe_intermediate_size=64, num_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(dense)
    mlx_modelopt.make(dense, tmp_path / "s", "modelopt NVFP4")
    subject = open_model(tmp_path / "s")
    told = [f["message"] for f in check_checkpoint(Checkpoint.open(dense), subject)]
    assert any("inputs of 6 matrices of experts are not rounded" in line for line in told), told
    loaded = load_model(subject, TARGET)
    assert (loaded.missing, loaded.unexpected) == ([], [])
    said = loaded.describe().detail["activations"]
    assert "4 products" in said
    assert said.endswith("; as they are in 7 others")  # the router among them
