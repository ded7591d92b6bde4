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
from invarlock.guards.invariants import check_checkpoint, check_loaded
from invarlock.model_folder import open_model
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
