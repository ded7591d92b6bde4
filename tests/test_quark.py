"""Quark: what the weights stand for, what runs, what is damage, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama
from makers import quark_packer as maker
from packed_factory import NOTHING, Change, changed, comes_back, cut, each_once, fatal, put, without
from safetensors.torch import load_file

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError
from invarlock.formats.kinds.quark import Quark
from invarlock.model_folder import open_model
from invarlock.run.loading import Target, load_model
from invarlock.shards import TensorInfo

LAYER = "model.layers.1.mlp.down_proj"
KNOWN = load_file(Path(__file__).with_name("known") / "quark.safetensors")
SCHEMES = sorted({name.partition(".")[0] for name in KNOWN})
CODES = {
    torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8", torch.uint8: "U8",
    torch.bfloat16: "BF16", torch.float32: "F32",
}  # fmt: skip
WORDS = {
    "fp8": "FP8 E4M3, one scale",
    "ptpc_fp8": "FP8 E4M3, a scale per row",
    "int8": "int8, one scale",
    "int8 rows": "int8, a scale per row",
    "mxfp4": "MXFP4, groups of 32",
    "mxfp4_weight_only": "MXFP4, groups of 32",
    "mxfp4_fp8": "MXFP4, groups of 32",
    "mxfp6_e2m3": "MXFP6 E2M3, groups of 32",
    "mxfp6_e3m2": "MXFP6 E3M2, groups of 32",
}
INPUTS = {
    "fp8": "FP8 E4M3, one scale, static: 14 products",
    "ptpc_fp8": "FP8 E4M3, a scale per token: 14 products",
    "int8": "int8, one scale, static: 14 products",
    "mxfp4": "MXFP4, groups of 32: 14 products",
    "mxfp4_fp8": "FP8 E4M3, one scale, static: 14 products",
    "mxfp6_e2m3": "MXFP6 E2M3, groups of 32: 14 products",
    "mxfp6_e3m2": "MXFP6 E3M2, groups of 32: 14 products",
}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("dense") / "baseline", hidden=64)


@pytest.fixture(scope="module")
def made(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return each_once(maker.make, baseline, tmp_path_factory.mktemp("made"))


# --- what the numbers are ------------------------------------------------------------------------


@pytest.mark.parametrize("name", maker.WAYS)
def test_what_was_packed_comes_back(baseline: Path, tmp_path: Path, name: str) -> None:
    """Every weight is the product that the packer meant, in the dtype of the model; no finding."""
    stood = maker.make(baseline, tmp_path / "s", name)
    comes_back(baseline, tmp_path / "s", stood, WORDS[name])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quark_itself_reads_the_same(scheme: str) -> None:
    """Bit for bit, of a matrix that it packed and of inputs that it rounded."""
    way, inputs = maker.WAYS[scheme]
    said = {"weight": maker.rule(*way, False)}
    said |= {"input_tensors": maker.rule(*inputs)} if inputs else {}
    config = {
        "dtype": "float32",
        "quantization_config": {"quant_method": "quark", "global_quant_config": said},
    }
    own = {n.partition(".")[2]: t for n, t in KNOWN.items() if n.startswith(f"{scheme}.")}
    parts = {f"a.{n}": t for n, t in own.items() if n.startswith("weight")}
    infos = {
        name: TensorInfo(name, CODES[t.dtype], tuple(t.shape), "f", 0, t.nbytes)
        for name, t in parts.items()
    }
    (tensor,) = Quark().layout(infos, config, "here")
    assert torch.equal(Quark().values(tensor, parts, config), own["stands for"])
    how = Quark().inputs("a.weight", config)
    assert (how is None) is (inputs is None)
    if how is not None:
        scale = own.get("input_scale")
        assert how.stored is (scale is not None)
        rounded = how.rounding(own["input"], scale if scale is None else scale.float())
        assert torch.equal(rounded, own["rounded"])
        assert not torch.equal(rounded, own["input"])


def test_rules_for_some_modules(baseline: Path, made: Made, tmp_path: Path) -> None:
    """By patterns of their names; caches of keys and values are named, and rounded by nobody."""
    folder = made("fp8")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    rule = said["global_quant_config"] | {"output_tensors": said["global_quant_config"]["weight"]}

    def scales(tensors: dict[str, torch.Tensor]) -> None:
        for layer in (0, 1):
            tensors[f"model.layers.{layer}.self_attn.k_proj.output_scale"] = torch.tensor(0.1)

    subject = changed(folder, tmp_path / "s", scales, {"layer_quant_config": {"*k_proj": rule}})
    assert fatal(baseline, subject) == []
    (note,) = Quark().notes(subject, baseline)
    assert "caches of keys and values" in note
    assert list(Quark().notes(folder, baseline)) == []
    rules = {"*down_proj": {"weight": maker.rule("int8", "per_tensor", False)}}
    other = changed(folder, tmp_path / "t", NOTHING, {"layer_quant_config": rules})
    with pytest.raises(InputError, match="do not fit together"):
        Checkpoint.open(other)


@pytest.mark.parametrize(("name", "told"), [("fp8", True), ("mxfp4_weight_only", False)])
def test_inputs_of_experts_are_a_note(
    baseline: Path, made: Made, tmp_path: Path, name: str, told: bool
) -> None:
    """Where the format rounds inputs: transformers runs experts as one module."""

    def move(tensors: dict[str, torch.Tensor]) -> None:
        for part in [n for n in tensors if n.startswith(f"{LAYER}.")]:
            tensors[part.replace(".mlp.", ".mlp.experts.0.")] = tensors.pop(part)

    notes = list(Quark().notes(changed(made(name), tmp_path / "s", move), baseline))
    assert ["experts are not rounded" in note for note in notes] == [True] * told


# --- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", maker.WAYS)
def test_dense_kernels_multiply_inputs_as_they_are_rounded(made: Made, name: str) -> None:
    """It moves the logits where the format says so, and is said."""
    loaded = load_model(Checkpoint.open(made(name)), Target("cpu", "float32"))
    said = loaded.describe().detail
    assert said["weights"] == "dequantized"
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        rounded = loaded.model(ids).logits
        for part in loaded.model.modules():
            part._forward_pre_hooks.clear()
        plain = loaded.model(ids).logits
    if name in INPUTS:
        assert INPUTS[name] in said["activations"]
        assert not torch.equal(rounded, plain)
        assert (rounded - plain).norm() < 0.3 * plain.norm()
    else:
        assert said["activations"] == "as they are"
        assert torch.equal(rounded, plain)


# --- damage --------------------------------------------------------------------------------------

NAN = float("nan")
DAMAGE: dict[str, tuple[str, Change, str, str]] = {
    "NaN": ("fp8", put(f"{LAYER}.weight_scale", NAN), "non_finite_tensor", LAYER),
    "zero": ("ptpc_fp8", put(f"{LAYER}.weight_scale", 0), "packing", "weights away"),
    "no power": ("mxfp4", put(f"{LAYER}.weight_scale", 255), "non_finite_tensor", LAYER),
    "zero of a group": (
        "mxfp6_e2m3", put(f"{LAYER}.weight_scale", 0), "packing", "32 weights away"),
    "inputs, none": (
        "int8", without(f"{LAYER}.input_scale"), "packing",
        "the inputs of 1 packed matrix has no scale"),
    "zero points": (
        "int8", put(f"{LAYER}.weight_zero_point", 3), "packing", "says that int8 is symmetric"),
    "inputs, zero": ("fp8", put(f"{LAYER}.input_scale", 0), "packing", "no positive number"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_rejects(baseline: Path, made: Made, tmp_path: Path, case: str) -> None:
    name, change, kind, words = DAMAGE[case]
    found = fatal(baseline, changed(made(name), tmp_path / "s", change))
    told = [failure["message"] for failure in found if failure["type"] == kind]
    assert any(words in message for message in told), found


@pytest.mark.parametrize("pattern", [LAYER, "*.down_proj", "down_proj", r"re:.*\.1\.mlp\."])
def test_a_module_that_is_packed_and_said_to_be_dense_rejects(
    baseline: Path, made: Made, tmp_path: Path, pattern: str
) -> None:
    subject = changed(made("fp8"), tmp_path / "s", said={"exclude": ["lm_head", pattern]})
    (found,) = fatal(baseline, subject)
    assert "the file holds packed weights" in found["message"]


@pytest.mark.parametrize(
    "pattern", [r"re:model\.layers\.1\.mlp\.down", "model.layers.1.mlp.down_proj",
                "language_model.model.layers.1.mlp.down_proj", "*.1.mlp.down_proj"],
)  # fmt: skip
def test_a_dense_module_has_to_be_listed(
    baseline: Path, made: Made, tmp_path: Path, pattern: str
) -> None:
    """By its name, whatever the models around it are called, or by either kind of pattern."""

    def dense(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith(f"{LAYER}.")]:
            del tensors[name]
        tensors[f"{LAYER}.weight"] = Checkpoint.open(baseline).load(f"{LAYER}.weight")

    listed = changed(made("fp8"), tmp_path / "s", dense, {"exclude": ["lm_head", pattern]})
    assert fatal(baseline, listed) == []
    (found,) = fatal(baseline, changed(made("fp8"), tmp_path / "t", dense))
    assert "not among those that config.json says" in found["message"]


# --- what is refused -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, Change, dict[str, object], list[str]]] = {
    "no scale": ("mxfp4", without(f"{LAYER}.weight_scale"), {}, ["has no scales"]),
    "short": ("mxfp4", cut(f"{LAYER}.weight_scale"), {}, ["do not fit together"]),
    "another kind": (
        "fp8", NOTHING,
        {"global_quant_config": {"weight": maker.rule("int8", "per_tensor", False)}},
        ["do not fit together", "int8", "F8_E4M3"]),
    "experts in one": (
        "fp8", lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][None].clone()}), {},
        ["all experts of a layer in one packed tensor"]),
    "four bits": (
        "fp8", NOTHING, {"global_quant_config": {"weight": maker.rule("int4", "per_group", False)}},
        ["quark", "not read"]),
    "powers of inputs that are taken otherwise": (
        "mxfp4", NOTHING,
        {"global_quant_config": {
            "weight": maker.rule("fp4", "per_group", False),
            "input_tensors": maker.rule("fp4", "per_group", True)
            | {"scale_calculation_mode": "floor"}}},
        ["quark", "not read"]),
    "scales that are no powers": (
        "mxfp4", NOTHING,
        {"global_quant_config": {
            "weight": maker.rule("fp4", "per_group", False) | {"scale_format": "float32"}}},
        ["quark", "not read"]),
    "int8 that is not said to be symmetric": (
        "int8", NOTHING,
        {"global_quant_config": {
            "weight": maker.rule("int8", "per_tensor", False) | {"symmetric": None}}},
        ["quark", "not read"]),
    "rounded outputs of a layer": (
        "fp8", NOTHING,
        {"layer_quant_config": {"*down_proj": {
            "weight": maker.rule("fp8_e4m3", "per_tensor", False),
            "output_tensors": maker.rule("fp8_e4m3", "per_tensor", True)}}},
        ["quark", "not read"]),
    "a pattern that does not end": (
        "fp8", NOTHING, {"exclude": ["re:(.*)*(.*)*(.*)*x"]}, ["longer than"]),
    "scales of columns": (
        "int8 rows", NOTHING,
        {"global_quant_config": {
            "weight": maker.rule("int8", "per_channel", False) | {"ch_axis": 1}}},
        ["quark", "not read"]),
    "rounded outputs": (
        "fp8", NOTHING,
        {"global_quant_config": {
            "weight": maker.rule("fp8_e4m3", "per_tensor", False),
            "output_tensors": maker.rule("fp8_e4m3", "per_tensor", True)}},
        ["quark", "not read"]),
    "rules that are a list": (
        "fp8", NOTHING, {"layer_quant_config": [["*", {}]]}, ["quark", "not read"]),
    "a list that is a word": ("fp8", NOTHING, {"exclude": "lm_head"}, ["quark", "not read"]),
    "rules by class": (
        "fp8", NOTHING, {"layer_type_quant_config": {"Linear": {}}}, ["quark", "not read"]),
    "rounded attention": (
        "fp8", NOTHING, {"softmax_quant_spec": {"dtype": "fp8_e4m3"}}, ["quark", "not read"]),
    "rotated inputs": (
        "fp8", NOTHING, {"algo_config": [{"name": "rotation"}]}, ["quark", "not read"]),
    "weights that are dense": (
        "fp8", NOTHING, {"export": {"weight_format": "fake_quantized"}}, ["quark", "not read"]),
    "rules that are none": ("fp8", NOTHING, {"global_quant_config": 7}, ["quark", "not read"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_do_not_fit_are_one_line(made: Made, tmp_path: Path, case: str) -> None:
    name, change, said, words = REFUSED[case]
    with pytest.raises(InputError) as caught:
        open_model(changed(made(name), tmp_path / "s", change, said))
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line
