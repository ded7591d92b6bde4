"""Weights that compressed-tensors packs: ours against the package's own, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_factory import make_llama, weights, write_weights

from invarlock.checkpoints import Checkpoint
from invarlock.errors import InputError, NotACheckpointError
from invarlock.formats.kinds.compressed_tensors import CompressedTensors
from invarlock.formats.patterns import require_patterns
from invarlock.guards.invariants import check_checkpoint, check_loaded, open_subject
from invarlock.model_folder import open_model, refuse_unusable
from invarlock.run.loading import Loaded, Target, load_model

pytestmark = pytest.mark.skipif(
    find_spec("compressed_tensors") is None and not os.environ.get("CI"),
    reason="compressed-tensors is not installed",
)
HIDDEN = 64


def ints(bits: int, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    """Arguments of whole numbers."""
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, **more}


def floats(bits: int, **more: Any) -> dict[str, Any]:
    """Arguments of small floats."""
    return {"num_bits": bits, "type": "float", "symmetric": True, **more}


GROUPS = {"strategy": "group", "group_size": 16}
ROWS = {"strategy": "channel"}
ONE = {"strategy": "tensor"}
TOKENS = {"strategy": "token", "dynamic": True}
NV = {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
MX = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
# name: weights, activations, what people call it
SCHEMES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {
    "FP8 dynamic": (
        floats(8, **ROWS), floats(8, **TOKENS), "FP8 E4M3, a scale per row"),
    "FP8 static": (floats(8, **ONE), floats(8, **ONE), "FP8 E4M3, one scale"),
    "FP8 blocks": (
        floats(8, strategy="block", block_structure=[48, 32]),
        floats(8, strategy="group", group_size=32, dynamic=True),
        "FP8 E4M3, blocks of 48x32",
    ),
    "W8A8": (ints(8, **ROWS), ints(8, **TOKENS), "int8, a scale per row"),
    "W8A8 asymmetric": (
        ints(8, False, **ROWS), ints(8, **TOKENS), "int8, a scale per row, zero points"),
    "W4A16 groups": (ints(4, **GROUPS), None, "int4, groups of 16"),
    "W4A16 rows": (ints(4, **ROWS), None, "int4, a scale per row"),
    "W4A16 asymmetric": (ints(4, False, **GROUPS), None, "int4, groups of 16, zero points"),
    "W3A16": (ints(3, **GROUPS), None, "int3, groups of 16"),
    "W8A16": (ints(8, **GROUPS), None, "int8, groups of 16"),
    "NVFP4": (
        floats(4, **NV), floats(4, dynamic="local", **NV), "NVFP4, groups of 16"),
    "NVFP4A16": (floats(4, **NV), None, "NVFP4, groups of 16"),
    "MXFP4": (floats(4, **MX), floats(4, dynamic=True, **MX), "MXFP4, groups of 32"),
    "MXFP4A16": (floats(4, **MX), None, "MXFP4, groups of 32"),
    "MXFP8": (floats(8, **MX), None, "FP8 E4M3, groups of 32"),
}  # fmt: skip


def scheme_of(name: str) -> Any:
    """The package's own record of a scheme."""
    from compressed_tensors.quantization import QuantizationScheme

    own, inputs, _ = SCHEMES[name]
    return QuantizationScheme.model_validate(
        {"targets": ["Linear"], "weights": own, "input_activations": inputs}
    )


def compressor_of(scheme: Any) -> Any:
    """The class that packs and unpacks for a scheme."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format

    scheme.format = infer_module_format(torch.nn.Linear, scheme)
    return BaseCompressor.get_value_from_registry(scheme.format.value)


def scales_for(weight: torch.Tensor, args: Any) -> dict[str, torch.Tensor]:
    """Scales, and zero points, of the smallest and largest value of each group."""
    from compressed_tensors.quantization.utils import calculate_qparams

    rows, columns = weight.shape
    values = weight.float()
    if args.strategy == "block":
        high, wide = args.block_structure
        values = torch.nn.functional.pad(values, (0, -columns % wide, 0, -rows % high))
        across = values.shape[1] // wide
        blocks = values.view(-1, high, across, wide).transpose(1, 2).flatten(2)
    elif args.group_size:
        blocks = values.view(rows, -1, args.group_size)
    else:
        blocks = values.view(1 if args.strategy == "tensor" else rows, 1, -1)
    low, top = blocks.amin(-1), blocks.amax(-1)
    made: dict[str, torch.Tensor] = {}
    whole = None
    if args.strategy == "tensor_group":
        whole = (448.0 * 6.0 / values.abs().max()).view(1)
        made["weight_global_scale"] = whole
    scale, zero = calculate_qparams(low, top, args, global_scale=whole)
    if args.strategy == "tensor":
        scale, zero = scale.view(1), zero.view(1)
    kept = scale.dtype if args.scale_dtype else torch.bfloat16
    made["weight_scale"] = scale.to(kept)
    if not args.symmetric:
        made["weight_zero_point"] = zero.to(torch.int8)
    return made


def pack(source: Path, folder: Path, name: str) -> Path:
    """Pack the matrices of a Llama with the package's own compressor, but for its head."""
    scheme = scheme_of(name)
    compressor = compressor_of(scheme)
    shutil.copytree(source, folder)
    packed: dict[str, torch.Tensor] = {}
    for tensor, value in weights(source).items():
        module = tensor.removesuffix(".weight")
        if not module.endswith("_proj"):
            packed[tensor] = value
            continue
        parts = {"weight": value} | scales_for(value, scheme.weights)
        if scheme.input_activations is not None and scheme.input_activations.dynamic is False:
            packed[f"{module}.input_scale"] = torch.tensor([0.05], dtype=torch.bfloat16)
        if scheme.input_activations is not None and scheme.input_activations.dynamic == "local":
            packed[f"{module}.input_global_scale"] = torch.tensor([400.0])
        made = compressor.compress(parts, scheme)
        packed |= {f"{module}.{part}": t.detach().contiguous() for part, t in made.items()}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    write_weights(folder, packed)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": scheme.format.value,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose sizes divide by 32."""
    return make_llama(tmp_path_factory.mktemp("dense") / "model", hidden=HIDDEN, tied=False)


@pytest.fixture(scope="module")
def packed(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Its packed subjects, each made once; tests that change one copy it."""
    made: dict[str, Path] = {}

    def subject(name: str) -> Path:
        if name not in made:
            made[name] = pack(dense, tmp_path_factory.mktemp("packed") / "model", name)
        return made[name]

    return subject


def load(folder: Path, dtype: str = "bfloat16") -> Loaded:
    """Loaded for a run."""
    return load_model(Checkpoint.open(folder), Target("cpu", dtype))


@pytest.mark.parametrize("name", SCHEMES)
def test_values_are_the_package_s_own(packed: Callable[[str], Path], name: str) -> None:
    """To the last bit: what it unpacks, in the dtype of the model."""
    scheme = scheme_of(name)
    compressor = compressor_of(scheme)
    subject = Checkpoint.open(packed(name))
    stored = weights(packed(name))
    assert len(subject.packed) == 14
    for tensor in subject.packed.values():
        module = tensor.name.removesuffix("weight")
        parts = {n.removeprefix(module): t for n, t in stored.items() if n.startswith(module)}
        theirs = compressor.decompress(parts, scheme)["weight"].to(torch.bfloat16)
        assert torch.equal(subject.load(tensor.name), theirs), tensor.name
    assert list(subject.packing()["schemes"]) == [SCHEMES[name][2]]


@pytest.mark.parametrize("name", SCHEMES)
def test_a_whole_subject_has_no_finding(
    dense: Path, packed: Callable[[str], Path], name: str
) -> None:
    """Scales of activations are no new tensors, and what was not packed is as it was."""
    baseline, subject = Checkpoint.open(dense), open_model(packed(name), dense)
    assert check_checkpoint(baseline, subject) == []
    assert set(subject.tensors) == set(baseline.tensors)


@pytest.mark.parametrize("name", SCHEMES)
def test_what_runs_holds_these_values(packed: Callable[[str], Path], name: str) -> None:
    """transformers with the package multiplies by the weights that are judged, in either dtype."""
    subject = Checkpoint.open(packed(name))
    rounds = SCHEMES[name][1] is not None
    for dtype in ("bfloat16", "float32"):
        loaded = load(packed(name), dtype)
        assert check_loaded(loaded.missing, loaded.unexpected) == []
        parameters = dict(loaded.model.named_parameters())
        for tensor in subject.packed:
            held = parameters[tensor]
            assert str(held.dtype) == f"torch.{dtype}"
            assert torch.equal(held.bfloat16(), subject.load(tensor)), tensor
        said = loaded.describe()
        assert said.kernels == {"torch.nn.modules.linear.Linear": 15}
        assert said.versions["compressed_tensors"]
        assert said.detail["weights"] == f"unpacked into dense {dtype} when loaded"
        assert ("rounded" in said.detail["activations"]) == rounds
        # and so it does: a product differs from the dense one where activations are rounded
        layer = loaded.model.model.layers[0].mlp.up_proj
        inputs = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1)).to(held.dtype)
        plain = torch.nn.functional.linear(inputs, layer.weight)
        assert torch.equal(layer(inputs), plain) != rounds
        loaded.model(torch.arange(5).view(1, 5))  # nothing is left to unpack


def test_one_module_that_is_dense_has_to_be_ignored(dense: Path, tmp_path: Path) -> None:
    """Loaders look for the scales of what is packed in other layers."""

    def leave(stored: dict[str, torch.Tensor]) -> None:
        for part in [part for part in stored if part.startswith(f"{MODULE}.")]:
            del stored[part]
        stored[f"{MODULE}.weight"] = weights(dense)[f"{MODULE}.weight"]

    folder = change(pack(dense, tmp_path / "subject", "W4A16 groups"), leave)
    (found,) = check_checkpoint(Checkpoint.open(dense), Checkpoint.open(folder))
    assert found["severity"] == "fatal"
    assert f"first {MODULE}.weight" in found["message"]
    for ignored in (MODULE, "re:.*layers.1.mlp.up"):
        configure(folder, lambda c, name=ignored: c["quantization_config"].update(ignore=[name]))
        assert check_checkpoint(Checkpoint.open(dense), Checkpoint.open(folder)) == []


PEOPLE_S = (
    r"(?:.*?(?:vision|language|text).*?(?:self_attn|attention|mlp).*?(?:k_proj|v_proj|up_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj|v_proj|up_proj)))",
    r".*\.(q|k|v|o|gate|up|down)_proj$",
    r"model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+_)+proj",
)


@pytest.mark.parametrize("pattern", PEOPLE_S)
def test_patterns_that_people_write_are_read(pattern: str) -> None:
    """Of language models of 200 layers, too."""
    layers = [f"model.layers.{n}" for n in range(200)]
    parts = ("self_attn.q_proj", "mlp.experts.127.down_proj", "mlp.gate_proj")
    require_patterns([pattern], [f"{layer}.{part}" for layer in layers for part in parts], "here")


def test_columns_of_a_group_may_stand_anywhere(dense: Path, tmp_path: Path) -> None:
    """``g_idx`` names the group of each column: by hand, since the package unpacks it no longer."""
    folder = pack(dense, tmp_path / "model", "W4A16 asymmetric")
    name = "model.layers.0.self_attn.q_proj.weight"
    before = Checkpoint.open(folder).load(name)
    stored = weights(folder)
    module = name.removesuffix(".weight")
    order = torch.arange(HIDDEN).flip(0) // 16  # the first columns are of the last group
    stored[f"{module}.weight_g_idx"] = order.int()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_weights(folder, stored)
    words = stored[f"{module}.weight_packed"].long() & 0xFFFFFFFF
    rows = words.shape[0]
    codes = torch.stack([(words >> 4 * i) & 15 for i in range(8)], -1).view(rows, HIDDEN)
    zeros = stored[f"{module}.weight_zero_point"].long() & 0xFFFFFFFF
    zeros = torch.stack([(zeros >> 4 * i) & 15 for i in range(8)], 1).view(rows, HIDDEN // 16)
    scales = stored[f"{module}.weight_scale"].float()
    expected = torch.empty(rows, HIDDEN)
    for row in range(rows):
        for column in range(HIDDEN):
            group = int(order[column])
            code = int(codes[row, column]) - int(zeros[row, group])
            expected[row, column] = code * float(scales[row, group])
    after = Checkpoint.open(folder).load(name)
    assert torch.equal(after, expected.bfloat16())
    assert not torch.equal(after, before)


# --- damage, and what cannot be read ------------------------------------------------------------

MODULE = "model.layers.1.mlp.up_proj"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the stored tensors of a folder."""
    stored = weights(folder)
    edit(stored)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_weights(folder, stored)
    return folder


def configure(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Change ``config.json``."""
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def group(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the packed weights."""
    found: dict[str, Any] = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    return found


Stored = dict[str, torch.Tensor]


def filled(part: str, value: float) -> Callable[[Stored], object]:
    """One number of a part is another."""

    def edit(stored: Stored) -> None:
        stored[f"{MODULE}.{part}"].view(-1)[0] = value

    return edit


FINDINGS: dict[str, tuple[str, Callable[[Stored], object], str, str]] = {
    "scale is not a number": (
        "FP8 dynamic", filled("weight_scale", torch.nan), "non_finite_tensor", "up_proj"),
    "power is not a number": (
        "MXFP4A16", filled("weight_scale", 255), "non_finite_tensor", "up_proj"),
    "scale of zero": ("W4A16 groups", filled("weight_scale", 0), "packing", "16 weights"),
    "row of zero": ("W8A8", filled("weight_scale", 0), "packing", "64 weights"),
    "scale of a small float is zero": (
        "NVFP4A16", filled("weight_scale", 0), "packing", "16 weights"),
    "power is the smallest": ("MXFP4A16", filled("weight_scale", 0), "packing", "32 weights"),
    "global scale of infinity": (
        "NVFP4A16", filled("weight_global_scale", torch.inf), "packing", "weights away"),
    "global scale of zero": (
        "NVFP4A16", filled("weight_global_scale", 0), "non_finite_tensor", "up_proj"),
    "input scale is not a number": (
        "FP8 static", filled("input_scale", torch.nan), "packing", f"{MODULE}.input_scale"),
    "input scale of zero": (
        "FP8 static", filled("input_scale", 0), "packing", f"{MODULE}.input_scale"),
    "one module is dense": (
        "W4A16 groups",
        lambda s: [s.pop(f"{MODULE}.weight_{part}") for part in ("packed", "scale", "shape")],
        "missing_tensors",
        f"{MODULE}.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINDINGS)
def test_damage_rejects(
    dense: Path, packed: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    """Before anything runs, and as one finding that names the place."""
    name, edit, kind, words = FINDINGS[case]
    folder = change(shutil.copytree(packed(name), tmp_path / "subject"), edit)
    (found,) = check_checkpoint(Checkpoint.open(dense), open_model(folder, dense))
    assert (found["type"], found["severity"]) == (kind, "fatal")
    assert words in found["message"]


def test_a_group_that_the_baseline_has_of_zeros_may_have_a_scale_of_zero(
    dense: Path, tmp_path: Path
) -> None:
    """A maker rounds nothing by nothing."""
    source = shutil.copytree(dense, tmp_path / "dense")
    change(source, lambda s: s[f"{MODULE}.weight"][0, :16].zero_())
    folder = pack(source, tmp_path / "subject", "W4A16 groups")
    change(folder, filled("weight_scale", 0))
    assert check_checkpoint(Checkpoint.open(source), Checkpoint.open(folder)) == []


def without(part: str) -> Callable[[Stored], object]:
    """A module lacks a part."""
    return lambda stored: stored.pop(f"{MODULE}.{part}")


def cut(part: str) -> Callable[[Stored], object]:
    """A part lacks its last row."""

    def edit(stored: Stored) -> None:
        stored[f"{MODULE}.{part}"] = stored[f"{MODULE}.{part}"][:-1].clone()

    return edit


def put(part: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Stored], object]:
    """A part of a module is another."""
    name = f"{MODULE}.{part}"
    return lambda stored: stored.update({name: make(stored[name]).clone()})


def same(_: object) -> None:
    """Nothing is changed."""


Config = dict[str, Any]
UNREADABLE: dict[str, tuple[str, Callable[[Stored], object], Callable[[Config], object], str]] = {
    "a group size that does not divide": (
        "W4A16 groups", same, lambda c: group(c).update(group_size=40), "groups of 40 do not"),
    "another group size": (
        "W4A16 groups", same, lambda c: group(c).update(group_size=32), "do not fit together"),
    "another width": ("W4A16 groups", same, lambda c: group(c).update(num_bits=8), "fit together"),
    "no scales": ("FP8 dynamic", lambda s: [s.pop(n) for n in list(s) if n.endswith("_scale")],
                  same, "not packed as config.json says"),
    "a module without scales": ("W4A16 groups", without("weight_scale"), same, "weight_scale"),
    "scales without a weight": ("FP8 dynamic", without("weight"), same, "one packed weight"),
    "words without a shape": ("W4A16 groups", without("weight_shape"), same, "no weight_shape"),
    "no zero points": ("W4A16 asymmetric", without("weight_zero_point"), same, "zero points"),
    "scales of fewer rows": ("W8A8", cut("weight_scale"), same, "scales"),
    "no group": ("W8A8", same, lambda c: c["quantization_config"].update(config_groups={}),
                 "no group of quantization_config"),
    "a shape that is none": (
        "W4A16 groups", put("weight_shape", lambda t: t[:0]), same, "two or three sizes"),
    "words that are one number": (
        "W4A16 groups", put("weight_packed", lambda t: t.view(-1)[0]), same, "a matrix"),
    "several global scales": (
        "NVFP4", put("weight_global_scale", lambda t: torch.cat([t, t])), same, "one global scale"),
    "powers that are numbers": (
        "MXFP4A16", put("weight_scale", lambda t: t.half()), same, "scales of F8_E8M0 or U8"),
    "zero points that are no words": (
        "W4A16 asymmetric", put("weight_zero_point", lambda t: t.double()), same, "points of I32"),
    "no pattern": (
        "W8A8", same, lambda c: c["quantization_config"].update(ignore=["re:("]), "not a pattern"),
    "a pattern without end": (
        "W8A8", same, lambda c: c["quantization_config"].update(ignore=["re:(.*)*y"]),
        "takes longer than"),
    "a pattern that repeats itself": (
        "W8A8", same, lambda c: c["quantization_config"].update(ignore=["re:(.|[a-z])+x"]),
        "takes longer than"),
    "a long pattern": (
        "W8A8", same, lambda c: c["quantization_config"].update(ignore=["re:" + "a?" * 9000]),
        "takes longer than"),
    "packed and ignored": (
        "W4A16 groups", same, lambda c: c["quantization_config"].update(ignore=["re:.*down_proj"]),
        "quantization_config ignores it"),
    "a number that is a word": (
        "W8A8", same, lambda c: group(c).update(num_bits="eight"), "num_bits"),
}  # fmt: skip


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", UNREADABLE)
def test_parts_that_do_not_fit_are_one_line(
    dense: Path, packed: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    """Damage that is a finding about the subject: it cannot be read as a checkpoint, and why."""
    name, edit, setting, words = UNREADABLE[case]
    folder = change(shutil.copytree(packed(name), tmp_path / "subject"), edit)
    configure(folder, setting)
    with pytest.raises(InputError) as caught:
        open_model(folder, dense)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


REFUSED: dict[str, tuple[Callable[[Stored], object], Callable[[Config], object], str]] = {
    "dense weights": (same, same, "remove quantization_config"),
    "sparse": (
        same,
        lambda c: c["quantization_config"].update(sparsity_config={"format": "sparse-24-bitmask"}),
        "sparse-24-bitmask",
    ),
    "rotated": (
        same,
        lambda c: c["quantization_config"].update(transform_config={"config_groups": {"u": {}}}),
        "rotated",
    ),
    "two configurations": (
        same,
        lambda c: c.update(compression_config={"quant_method": "gptq", "bits": 4}),
        "says twice",
    ),
    "another format beside": (
        lambda s: s.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 4).int()}),
        same,
        "qweight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_subject_is_refused(
    dense: Path, packed: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    """Nothing is said about an edit; one line says what to do."""
    edit, setting, words = REFUSED[case]
    folder = shutil.copytree(packed("W8A8"), tmp_path / "subject")
    if case == "dense weights":
        shutil.copy(dense / "model.safetensors", folder)
    change(folder, edit)
    configure(folder, setting)
    with pytest.raises(NotACheckpointError) as caught:
        refuse_unusable(folder, dense)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_may_be_packed_in_several_ways(
    dense: Path, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    """Groups are told apart by pattern and class; what runs agrees."""
    folder = shutil.copytree(packed("FP8 dynamic"), tmp_path / "subject")
    other = weights(packed("W4A16 groups"))

    def mix(stored: Stored) -> None:
        for name in [n for n in stored if ".mlp." in n]:
            del stored[name]
        stored.update({name: tensor for name, tensor in other.items() if ".mlp." in name})

    change(folder, mix)
    four = json.loads((packed("W4A16 groups") / "config.json").read_text())
    own = four["quantization_config"]["config_groups"]["group_0"]

    def say(config: Config) -> None:
        quantization = config["quantization_config"]
        quantization["format"] = "mixed-precision"
        quantization["config_groups"]["group_1"] = own | {"targets": ["re:.*mlp.*"]}

    configure(folder, say)
    subject = Checkpoint.open(folder)
    for name in subject.packed:
        source = packed("W4A16 groups" if ".mlp." in name else "FP8 dynamic")
        assert torch.equal(subject.load(name), Checkpoint.open(source).load(name))
    assert check_checkpoint(Checkpoint.open(dense), subject) == []
    loaded = load(folder)
    assert check_loaded(loaded.missing, loaded.unexpected) == []
    held = dict(loaded.model.named_parameters())
    assert all(torch.equal(held[name], subject.load(name)) for name in subject.packed)
    assert "8 products" in loaded.describe().detail["activations"]


def test_caches_with_scales_are_told(dense: Path, tmp_path: Path) -> None:
    """They are no tensors of the model, and no pass without a cache rounds by them."""
    folder = pack(dense, tmp_path / "model", "FP8 static")
    scheme = floats(8, **ONE, dynamic=False)
    configure(folder, lambda c: c["quantization_config"].update(kv_cache_scheme=scheme))

    def add(stored: Stored) -> None:
        for layer in range(2):
            for kind in "kv":
                name = f"model.layers.{layer}.self_attn.{kind}_scale"
                stored[name] = torch.tensor([0.1], dtype=torch.bfloat16)

    change(folder, add)
    subject = open_model(folder, dense)
    assert check_checkpoint(Checkpoint.open(dense), subject) == []
    loaded = load(folder)
    assert check_loaded(loaded.missing, loaded.unexpected) == []
    assert "2 layers" in loaded.describe().detail["cache"]
    change(folder, lambda s: s["model.layers.0.self_attn.k_scale"].zero_())
    (found,) = check_checkpoint(Checkpoint.open(dense), Checkpoint.open(folder))
    assert "self_attn.k_scale" in found["message"]


def test_a_package_that_is_missing_is_one_line(
    packed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it."""
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: None if name == "compressed_tensors" else find_spec(name, *more),
    )
    with pytest.raises(InputError, match=r'pip install "invarlock\[compressed-tensors\]"'):
        open_model(packed("W8A8"))


def test_a_truncated_file_is_a_finding(packed: Callable[[str], Path], tmp_path: Path) -> None:
    """As of any other checkpoint."""
    folder = shutil.copytree(packed("W8A8"), tmp_path / "subject")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9])
    subject, found = open_subject(folder)
    assert subject is None
    assert found[0]["type"] == "unreadable_checkpoint"


def test_the_format_is_told_by_its_configuration() -> None:
    assert CompressedTensors().packs({"compression_config": {"quant_method": "compressed-tensors"}})
    assert not CompressedTensors().packs({"quantization_config": {"quant_method": "fp8"}})
