"""GPTQ, AWQ, bitsandbytes and torchao: what the weights stand for, what runs, what is damage."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest
import torch
from checkpoint_factory import make_llama, weights
from makers import bitsandbytes_torchao, gptq_awq
from packed_factory import NOTHING, Change, changed, cut, fatal, put, without
from safetensors import safe_open
from safetensors.torch import save_file

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError, NotACheckpointError
from invarlock.formats.kinds.awq import Awq
from invarlock.formats.kinds.bitsandbytes import Bitsandbytes
from invarlock.formats.kinds.gptq import Gptq
from invarlock.formats.kinds.torchao import Torchao
from invarlock.formats.packed import unpacked
from invarlock.run.loading import Loaded, Target, load_model
from invarlock.run.measure import loaded_digest

LAYER = "model.layers.1.mlp.down_proj"
TARGET = Target("cpu", "float32")


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where an optional package is not installed, but not where CI is set."""
    missing = importlib.util.find_spec(package) is None and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


MAKERS = {
    **{name: needs("bitsandbytes") for name in bitsandbytes_torchao.BITSANDBYTES},
    **{name: needs("torchao") for name in bitsandbytes_torchao.TORCHAO},
}
BY_MAKERS = [pytest.param(name, marks=mark) for name, mark in MAKERS.items()]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("dense") / "baseline", hidden=64)


@pytest.fixture(scope="module")
def made(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder that the maker of a name wrote, made once."""
    root = tmp_path_factory.mktemp("made")

    def folder(name: str) -> Path:
        path = root / name
        if not path.is_dir():
            if name in MAKERS:
                bitsandbytes_torchao.make(baseline, path, name)
            else:
                layout, _, more = name.partition(" ")
                symmetric = layout in ("gptq", "auto_round:auto_gptq")
                gptq_awq.make(
                    baseline, path, layout, symmetric=symmetric, act_order=more == "ordered"
                )
        return path

    return folder


# --- what the weights stand for -----------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integers_lie_end_to_end_in_words(bits: int) -> None:
    """Against one large number, of which the words are the digits."""
    generator = torch.Generator().manual_seed(bits)
    integers = torch.randint(0, 2**bits, (64,), generator=generator).tolist()
    number = reduce(lambda whole, pair: whole | pair[1] << bits * pair[0], enumerate(integers), 0)
    words = [number >> 32 * place & 0xFFFFFFFF for place in range(2 * bits)]
    stored = torch.tensor(words, dtype=torch.int64).to(torch.int32)[:, None]
    assert unpacked(stored, bits)[:, 0].tolist() == integers


def test_known_words() -> None:
    """By hand: AWQ's order of eight outputs, and the zero point of GPTQ that is stored less one."""
    config = {"dtype": "float32", "quantization_config": {"bits": 4, "quant_method": "gptq"}}
    word = torch.tensor([[0x75316420]], dtype=torch.int32)
    ones = torch.ones(1, 8)
    none = torch.zeros(1, 1, dtype=torch.int32)
    (tensor,) = Awq().layout(
        _infos({"a.qweight": word, "a.qzeros": none, "a.scales": ones}), config, "here"
    )
    found = Awq().values(tensor, {"a.qweight": word, "a.qzeros": none, "a.scales": ones}, config)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]

    down = torch.tensor([[0x76543210] + [0] * 7], dtype=torch.int32)
    parts = {"a.qweight": down, "a.qzeros": torch.full((1, 1), 0x77777777), "a.scales": ones}
    parts["a.qzeros"] = parts["a.qzeros"].to(torch.int32)
    for layout, first in (("gptq", -8), ("gptq_v2", -7)):
        config["quantization_config"]["checkpoint_format"] = layout  # type: ignore[index]
        (tensor,) = Gptq().layout(_infos(parts), config, "here")
        assert Gptq().values(tensor, parts, config)[0].tolist() == [first + n for n in range(8)]


def _infos(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    from invarlock.shards import TensorInfo

    codes = {torch.int32: "I32", torch.float32: "F32"}
    return {
        name: TensorInfo(name, codes[t.dtype], tuple(t.shape), "f", 0, t.nbytes)
        for name, t in tensors.items()
    }


@pytest.mark.parametrize(
    ("layout", "bits", "symmetric", "act_order"),
    [
        ("gptq", 2, True, False), ("gptq", 3, True, True), ("gptq", 4, False, True),
        ("gptq", 8, True, False), ("gptq_v2", 2, False, True), ("gptq_v2", 3, False, False),
        ("gptq_v2", 4, True, True), ("gptq_v2", 8, False, False), ("awq", 4, True, False),
        ("awq", 4, False, False), ("auto_round", 2, False, False),
        ("auto_round", 8, True, False), ("auto_round:auto_gptq", 3, True, False),
        ("auto_round:auto_gptq", 4, False, False), ("auto_round:auto_awq", 4, False, False),
    ],
)  # fmt: skip
def test_what_was_packed_comes_back(
    baseline: Path, tmp_path: Path, layout: str, bits: int, symmetric: bool, act_order: bool
) -> None:
    """Every weight is the product that the packer meant, in the dtype of the model; no finding."""
    stood = gptq_awq.make(baseline, tmp_path / "s", layout, bits, 32, symmetric, act_order)
    subject = Checkpoint.open(tmp_path / "s")
    assert subject.tensors.keys() == Checkpoint.open(baseline).tensors.keys()
    assert set(subject.packed) == set(stood)
    for name, values in stood.items():
        assert torch.equal(subject.load(name), values.to(torch.bfloat16)), name
    assert subject.packing()["schemes"].keys() == {f"int{bits}, groups of 32"}
    assert fatal(baseline, tmp_path / "s") == []


def test_a_bias_of_zeros_that_a_maker_adds_is_no_tensor(baseline: Path, tmp_path: Path) -> None:
    """One for every layer; where a layer has none, they are the model's own."""
    gptq_awq.make(baseline, tmp_path / "s", "gptq")

    def biases(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith(".scales")]:
            tensors[name.replace(".scales", ".bias")] = torch.zeros(tensors[name].shape[1])

    subject = changed(tmp_path / "s", tmp_path / "all", biases, {})
    assert fatal(baseline, subject) == []
    one = changed(
        tmp_path / "s", tmp_path / "one", lambda t: t.update({f"{LAYER}.bias": torch.zeros(64)}), {}
    )
    assert [f["type"] for f in fatal(baseline, one)] == ["extra_tensors"]


@pytest.mark.parametrize("name", BY_MAKERS)
def test_ours_are_the_values_of_the_maker(
    baseline: Path, made: Callable[[str], Path], name: str
) -> None:
    """Bit for bit what the package itself makes of every weight that it packed; no finding."""
    import bitsandbytes.functional as bnb
    from transformers import AutoModelForCausalLM

    subject = Checkpoint.open(made(name))
    assert subject.tensors.keys() == Checkpoint.open(baseline).tensors.keys()
    assert fatal(baseline, made(name)) == []
    model = AutoModelForCausalLM.from_pretrained(made(name), dtype=torch.bfloat16, device_map="cpu")
    assert len(subject.packed) == 14
    for packed in subject.packed:
        weight = model.get_submodule(packed.removesuffix(".weight")).weight
        if getattr(weight, "quant_state", None) is not None:
            expected = bnb.dequantize_4bit(weight.data, weight.quant_state)
        elif hasattr(weight, "SCB"):
            expected = bnb.int8_vectorwise_dequant(weight.CB, weight.SCB).to(torch.bfloat16)
        else:
            expected = weight.dequantize()
        assert torch.equal(subject.load(packed), expected), packed


# --- what runs -----------------------------------------------------------------------------------


def run(subject: Path) -> tuple[Loaded, torch.Tensor]:
    loaded = load_model(Checkpoint.open(subject), TARGET)
    with torch.inference_mode():
        return loaded, loaded.model(torch.arange(40)[None]).logits.float()


@pytest.mark.parametrize("name", ["gptq", "gptq_v2 ordered", "awq", "auto_round:auto_gptq"])
def test_dense_kernels_run_the_effective_weights(
    made: Callable[[str], Path], baseline: Path, tmp_path: Path, name: str
) -> None:
    """The logits of the dense folder that holds these weights, and a report that says so."""
    subject = Checkpoint.open(made(name))
    shutil.copytree(baseline, tmp_path / "dense")
    tensors = {n: subject.load(n) for n in subject.tensors}
    save_file(tensors, tmp_path / "dense/model.safetensors", {"format": "pt"})
    loaded, found = run(made(name))
    _, expected = run(tmp_path / "dense")
    assert torch.equal(found, expected)
    assert (loaded.missing, loaded.unexpected) == ([], [])
    said = loaded.describe()
    assert said.kernels == {"torch.nn.modules.linear.Linear": 15}
    assert said.detail["weights"] == "dequantized"
    assert "dense float32" in said.detail["kernels"]
    assert "not installed" in said.detail["because"]


@pytest.mark.parametrize("name", BY_MAKERS)
def test_the_maker_s_kernels_run(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In the dtype that it serves in, by its own classes; near what the weights stand for."""
    loaded, found = run(made(name))
    assert (loaded.missing, loaded.unexpected, loaded.dtype) == ([], [], "bfloat16")
    said = loaded.describe()
    package = "torchao" if name.startswith("torchao") else "bitsandbytes"
    counts = [count for kind, count in said.kernels.items() if package in kind]
    assert counts == [14]
    assert said.versions[package]
    assert said.detail == {}
    monkeypatch.setattr(Bitsandbytes, "dense_because", lambda *_: "to compare")
    monkeypatch.setattr(Torchao, "dense_because", lambda *_: "to compare")
    _, dense = run(made(name))
    assert (found - dense).norm() < 0.03 * dense.norm()


@pytest.mark.parametrize("name", BY_MAKERS)
def test_the_digest_of_what_is_loaded_sees_scales(made: Callable[[str], Path], name: str) -> None:
    """Also those that a package keeps beside the parameters, or inside a class of its own."""
    loaded = load_model(Checkpoint.open(made(name)), TARGET)
    before = loaded_digest(loaded.model)
    assert loaded_digest(loaded.model) == before
    weight = loaded.model.get_submodule(LAYER).weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        scale = state.state2.absmax if state.nested else state.absmax
    else:
        scale = weight.SCB if name == "int8" else weight.scale
    scale.view(-1)[0] *= 2
    assert loaded_digest(loaded.model) != before


# --- damage --------------------------------------------------------------------------------------


def wrong_group(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.g_idx"][3] = 99


def crowded_group(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.g_idx"][3] = 1


def next_zero(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.qzeros"] += 0x11111111


def mixed_up(tensors: dict[str, torch.Tensor]) -> None:
    names = [f"model.layers.{layer}.mlp.down_proj.g_idx" for layer in (0, 1)]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]].clone(), tensors[names[0]].clone()


DAMAGE: dict[str, tuple[str, Change, str, str]] = {
    "GPTQ, NaN": ("gptq", put(f"{LAYER}.scales", float("nan")), "non_finite_tensor", LAYER),
    "GPTQ, zero": ("gptq", put(f"{LAYER}.scales", 0), "packing", "32 weights away"),
    "GPTQ, no such group": ("gptq", wrong_group, "packing", "names groups that are not there"),
    "GPTQ, uneven groups": ("gptq", crowded_group, "packing", "31 to 33 inputs"),
    "GPTQ, zero points": ("gptq", next_zero, "packing", "zero points not 8"),
    "AutoRound, zero": (
        "auto_round", put(f"{LAYER}.scales", 0), "packing", "32 weights away"),
    "AutoRound, zero points": (
        "auto_round:auto_gptq", next_zero, "packing", "zero points not 8"),
    "AWQ, NaN": ("awq", put(f"{LAYER}.scales", float("nan")), "non_finite_tensor", LAYER),
    "AWQ, zero": ("awq", put(f"{LAYER}.scales", 0), "packing", "32 weights away"),
    "nf4, NaN": (
        "nf4", put(f"{LAYER}.weight.absmax", float("nan")), "non_finite_tensor", LAYER),
    "nf4, zero": ("nf4", put(f"{LAYER}.weight.absmax", 0), "packing", "64 weights away"),
    "int8, zero": ("int8", put(f"{LAYER}.SCB", 0), "packing", "192 weights away"),
    "torchao, NaN": (
        "torchao-int8", put(f"{LAYER}._weight_scale", float("nan")), "non_finite_tensor", LAYER),
    "torchao, zero": ("torchao-int4", put(f"{LAYER}._weight_scale", 0), "packing", "32 weights"),
}  # fmt: skip


def _with_marks(cases: dict[str, tuple[str, Change, str, str]]) -> list[object]:
    return [
        pytest.param(case, marks=MAKERS.get(row[0], ()))  # type: ignore[arg-type]
        for case, row in cases.items()
    ]


@pytest.mark.parametrize("case", _with_marks(DAMAGE))
def test_damage_of_scales_and_groups_rejects(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    name, change, kind, words = DAMAGE[case]
    found = fatal(baseline, changed(made(name), tmp_path / "s", change, {}))
    told = [failure["message"] for failure in found if failure["type"] == kind]
    assert any(words in message for message in told), found
    assert all("\n" not in failure["message"] for failure in found)


def test_a_zero_scale_of_weights_that_were_zero_is_no_damage(
    baseline: Path, tmp_path: Path
) -> None:
    """As a packer writes it for an expert, or a row, that was pruned."""
    dense = tmp_path / "dense"
    shutil.copytree(baseline, dense)
    tensors = weights(baseline)
    tensors[f"{LAYER}.weight"][5, :32] = 0
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    gptq_awq.make(dense, tmp_path / "s", "gptq")
    subject = changed(tmp_path / "s", tmp_path / "c", put(f"{LAYER}.scales", 0, 5), {})
    assert fatal(dense, subject) == []


def test_another_order_than_config_says(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    subject = changed(made("gptq ordered"), tmp_path / "s", lambda t: None, {"desc_act": False})
    assert "desc_act: false" in fatal(baseline, subject)[0]["message"]


@pytest.mark.parametrize(
    ("name", "change", "config"),
    [
        ("gptq_v2 ordered", mixed_up, {}),
        ("gptq_v2", lambda t: None, {"checkpoint_format": "gptq"}),
        ("auto_round", lambda t: None, {"packing_format": "auto_round:auto_gptq"}),
        ("auto_round", lambda t: None, {"packing_format": None}),
        ("awq", next_zero, {}),
    ],
)
def test_damage_that_fits_is_left_to_the_metric(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path, name: str, change: Change,
    config: dict[str, object],
) -> None:  # fmt: skip
    """A map of another layer, zero points off by one: no rule is broken, and the weights are far
    from the baseline's."""
    subject = changed(made(name), tmp_path / "s", change, config)
    assert fatal(baseline, subject) == []
    dense, before, after = (
        Checkpoint.open(path).load(f"{LAYER}.weight").float()
        for path in (baseline, made(name), subject)
    )
    assert (after - dense).norm() > 1.3 * (before - dense).norm()


# --- what is refused -----------------------------------------------------------------------------


def aside(name: str) -> Change:
    """A vector as the one row of a matrix."""
    return lambda tensors: tensors.update({name: tensors[name][None].clone()})


def garbled(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}.weight.quant_state.bitsandbytes__nf4"][0] = 0


REFUSED: dict[str, tuple[str, Change, dict[str, object], list[str]]] = {
    "group size": ("gptq", NOTHING, {"group_size": 40}, ["group size 40 does not divide the"]),
    "other group size": ("gptq", NOTHING, {"group_size": 16}, ["scales for 6 groups", "12, by"]),
    "bits": ("gptq", NOTHING, {"bits": 8}, ["bits that config.json says", "8", "4"]),
    "no zeros": ("gptq", without(f"{LAYER}.qzeros"), {}, ["is there without", "qzeros"]),
    "no weight": ("awq", without(f"{LAYER}.qweight"), {}, ["is there without", "qweight"]),
    "short": ("gptq", cut(f"{LAYER}.qweight"), {}, ["fit"]),
    "short map": ("gptq", cut(f"{LAYER}.g_idx"), {}, ["does not say the group of each input"]),
    "as AWQ": ("awq", NOTHING, {"quant_method": "gptq"}, ["as AWQ does", "says GPTQ"]),
    "as GPTQ": ("gptq", NOTHING, {"quant_method": "awq", "version": "gemm"},
                ["as GPTQ does", "says AWQ"]),
    "AWQ group size": ("awq", NOTHING, {"group_size": 40}, ["group size 40 does not divide"]),
    "AWQ bits": ("awq", NOTHING, {"bits": 8}, ["AWQ with 8 bits"]),
    "AutoRound bits": ("auto_round", NOTHING, {"bits": 8}, ["bits that config.json says", "8"]),
    "AutoRound, a rule": ("auto_round", NOTHING, {"extra_config": {"down_proj": {"bits": 8}}},
                          ["down_proj", "bits that config.json says"]),
    "AutoRound, no end": ("auto_round", NOTHING, {"extra_config": {"(.*)*x": {"bits": 8}}},
                          ["takes longer than"]),
    "AutoRound as AWQ": (
        "auto_round:auto_awq", NOTHING, {"packing_format": "auto_round"}, ["as AWQ does"]),
    "4 bits for 8": ("nf4", NOTHING, {"load_in_8bit": True, "load_in_4bit": False},
                     ["of 4 bits, and config.json says 8"]),
    "no state": ("nf4", garbled, {}, ["not JSON"]),
    "no table": ("nf4", without(f"{LAYER}.weight.quant_map"), {}, ["without", "quant_map"]),
    "a table of two sides": ("nf4", aside(f"{LAYER}.weight.quant_map"), {}, ["F32 [1, 16]"]),
    "short blocks": ("nf4", cut(f"{LAYER}.weight.absmax"), {}, ["does not fit a weight"]),
    "short rows": ("int8", cut(f"{LAYER}.SCB"), {}, ["not the scale of each row"]),
    "no scale": ("torchao-int8", without(f"{LAYER}._weight_scale"), {}, ["scale is missing"]),
    "short scale": ("torchao-int4", cut(f"{LAYER}._weight_scale"), {}, ["do not tile"]),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=MAKERS.get(r[0], ())) for c, r in REFUSED.items()]
)
def test_parts_that_do_not_fit_are_one_line(
    made: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    name, change, config, words = REFUSED[case]
    with pytest.raises(InputError) as caught:
        Checkpoint.open(changed(made(name), tmp_path / "s", change, config))
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_two_configurations_are_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    """The same twice is one."""
    shutil.copytree(made("gptq"), tmp_path / "s")
    path = tmp_path / "s/config.json"
    document = json.loads(path.read_text())
    document["quantization"] = document["quantization_config"]
    path.write_text(json.dumps(document))
    assert Checkpoint.open(tmp_path / "s").form.name == "gptq"
    document["compression_config"] = {"quant_method": "compressed-tensors"}
    path.write_text(json.dumps(document))
    with pytest.raises(NotACheckpointError, match="says twice how the weights are packed"):
        Checkpoint.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "file", "said", "other"),
    [
        ("gptq", "quantize_config.json", {"group_size": 32}, {"group_size": 128}),
        ("awq", "quant_config.json", {"group_size": 32}, {"q_group_size": 128}),
        # zero points that one stores less one
        ("gptq", "quantize_config.json", {"checkpoint_format": "gptq"},
         {"checkpoint_format": "gptq_v2"}),
        ("awq", "quant_config.json", {"zero_point": True}, {"zero_point": False}),
        ("auto_round", "quantization_config.json", {"group_size": 32}, {"group_size": 128}),
    ],
)  # fmt: skip
def test_a_second_file_that_says_otherwise_rejects(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path, name: str, file: str,
    said: dict[str, object], other: dict[str, object],
) -> None:  # fmt: skip
    """Some loaders read that one."""
    subject = changed(made(name), tmp_path / "s", NOTHING, said)
    (subject / file).write_text(json.dumps({"bits": 4, "version": "GEMM", **other}))
    (found,) = fatal(baseline, subject)
    ((key, value),) = said.items()
    assert f"{key}: {value}" in found["message"]
    assert f"says {next(iter(other.values()))}" in found["message"]


@needs("torchao")
def test_another_class_of_torchao_is_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(made("torchao-int8"), tmp_path / "s")
    file = tmp_path / "s/model.safetensors"
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    metadata[f"{LAYER}.weight"] = '{"_type": "Int4TilePackedTo4dTensor", "_data": {}}'
    save_file(weights(tmp_path / "s"), file, metadata)
    with pytest.raises(NotACheckpointError, match="torchao's Int4TilePackedTo4dTensor"):
        Checkpoint.open(tmp_path / "s")


# --- which modules are packed --------------------------------------------------------------------

LISTS = {
    "gptq": "modules_to_not_convert",
    "awq": "modules_to_not_convert",
    "nf4": "llm_int8_skip_modules",
    "int8": "llm_int8_skip_modules",
    "torchao-int8": "modules_to_not_convert",
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("auto_round:auto_gptq", None), ("auto_round:auto_gptq", "auto_round:gptq:exllamav2"),
        ("auto_round", "auto_round:exllamav2"), ("auto_round:auto_awq", "auto_round:awq"),
    ],
)  # fmt: skip
def test_older_exports_of_autoround_name_the_layout_otherwise(
    made: Callable[[str], Path], tmp_path: Path, name: str, backend: str | None
) -> None:
    said = {"packing_format": None, "quant_method": "intel/auto-round", "backend": backend}
    old = Checkpoint.open(changed(made(name), tmp_path / "s", NOTHING, said))
    new = Checkpoint.open(made(name))
    assert old.form.name == new.form.name
    assert torch.equal(old.load(f"{LAYER}.weight"), new.load(f"{LAYER}.weight"))


def test_what_is_no_pattern_in_extra_config_is_passed_over(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """As AutoRound does."""
    rules = {"extra_config": {"*.mlp.*": {"bits": 8}}}
    assert fatal(baseline, changed(made("auto_round"), tmp_path / "s", NOTHING, rules)) == []


def test_autoround_says_of_single_modules_how_they_are_packed(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """By name before a pattern that is found in it; 16 bits are dense, and have to be said."""
    dense = weights(baseline)[f"{LAYER}.weight"]
    wide, _ = gptq_awq.gptq_parts(
        weights(baseline)["model.layers.0.mlp.down_proj.weight"], 8, layout="auto_round"
    )
    wide.pop("g_idx")

    def mix(tensors: dict[str, torch.Tensor]) -> None:
        for part in [part for part in tensors if part.startswith(f"{LAYER}.")]:
            del tensors[part]
        tensors[f"{LAYER}.weight"] = dense
        first = "model.layers.0.mlp.down_proj"
        tensors |= {f"{first}.{end}": part for end, part in wide.items()}

    rules = {"down_proj": {"bits": 8}, LAYER: {"bits": 16, "data_type": "float"}}
    subject = changed(made("auto_round"), tmp_path / "s", mix, {"extra_config": rules})
    assert fatal(baseline, subject) == []
    assert set(Checkpoint.open(subject).packing()["schemes"]) == {
        "int4, groups of 32", "int8, groups of 32",
    }  # fmt: skip
    unsaid = {"down_proj": {"bits": 8}}
    (found,) = fatal(
        baseline, changed(made("auto_round"), tmp_path / "u", mix, {"extra_config": unsaid})
    )
    assert "1 module is dense, packed in other layers" in found["message"]
    packed = {LAYER: {"bits": 16}}
    with pytest.raises(InputError, match="does not hold the bits that"):
        Checkpoint.open(
            changed(made("auto_round"), tmp_path / "p", NOTHING, {"extra_config": packed})
        )


def with_lists(names: dict[str, str]) -> list[object]:
    """The layouts with the member that lists what is left dense."""
    return [
        pytest.param(name, key, marks=[MAKERS[name]] if name in MAKERS else [])
        for name, key in names.items()
    ]


@pytest.mark.parametrize(("name", "key"), with_lists(LISTS))
@pytest.mark.parametrize("named", [LAYER, "down_proj", "model.layers.1", "model.*mlp"])
def test_a_module_that_is_packed_and_said_to_be_dense_rejects(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path, name: str, key: str, named: str
) -> None:
    """By its name, the end of it, what it is part of, or a pattern: loaders take it for dense."""
    subject = changed(made(name), tmp_path / "subject", lambda _: None, {key: ["lm_head", named]})
    (found,) = fatal(baseline, subject)
    assert found["type"] == "packing"
    assert "the file holds packed weights" in found["message"]
    assert "mlp.down_proj" in found["message"] or "layers.1" in found["message"]


@pytest.mark.parametrize(("name", "key"), with_lists(LISTS))
def test_modules_that_are_dense_have_to_be_said_to_be(
    baseline: Path, made: Callable[[str], Path], tmp_path: Path, name: str, key: str
) -> None:
    """One of a layer, packed in the others: loaders look for its scales, or pack it themselves."""
    dense = weights(baseline)[f"{LAYER}.weight"]

    def leave(tensors: dict[str, torch.Tensor]) -> None:
        for part in [part for part in tensors if part.startswith(f"{LAYER}.")]:
            del tensors[part]
        tensors[f"{LAYER}.weight"] = dense

    if name.startswith("torchao"):
        pytest.skip("the metadata of a file says of each tensor what it is")
    subject = changed(made(name), tmp_path / "subject", leave, {key: ["lm_head"]})
    (found,) = fatal(baseline, subject)
    assert "1 module is dense, packed in other layers, and not among" in found["message"]
    said = changed(subject, tmp_path / "said", lambda _: None, {key: ["lm_head", LAYER]})
    assert fatal(baseline, said) == []
    other = f"language_model.{LAYER}"
    prefixed = changed(subject, tmp_path / "prefixed", lambda _: None, {key: ["lm_head", other]})
    assert fatal(baseline, prefixed) == []
    rules = changed(subject, tmp_path / "rules", lambda _: None, {"dynamic": {f"-:{LAYER}": {}}})
    assert fatal(baseline, rules) == []


def test_a_skip_list_without_end_is_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Loaders take each name for a pattern, and would not come back."""
    lists = {"modules_to_not_convert": ["lm_head", "(.*)*x"]}
    subject = changed(made("gptq"), tmp_path / "subject", lambda _: None, lists)
    with pytest.raises(InputError, match="takes longer than"):
        Checkpoint.open(subject)


@pytest.mark.parametrize(
    ("layout", "name"), [("gptq", "quantize_config.json"), ("awq", "quant_config.json")]
)
def test_the_file_that_says_again_how_weights_are_packed_is_of_the_digest(
    made: Callable[[str], Path], tmp_path: Path, layout: str, name: str
) -> None:
    """Some loaders read it first: another one is another subject."""
    subject = changed(made(layout), tmp_path / "subject", lambda _: None, {})
    digests = set()
    for document in (None, {"bits": 4}, {"bits": 4, "damp_percent": 0.1}):
        if document is not None:
            (subject / name).write_text(json.dumps(document))
        digests.add(Checkpoint.open(subject).digest())
    assert len(digests) == 3
