"""Make a Quark folder of a dense one, rounded to the nearest: what the tests judge.

    python tests/makers/quark_packer.py BASELINE OUT mxfp4

The packers know nothing of how the package unpacks: they look for the nearest of all numbers that a
code can stand for, and write out every bit. Scales of inputs are made up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from makers.gptq_awq import small_files, words
from makers.mlx_modelopt import INPUT_SCALE, Parts, halves, power_codes
from safetensors.torch import load_file, save_file

# name: dtype, what shares a scale; of weights, and of inputs with whether it is their own
Way = tuple[str, str]
WAYS: dict[str, tuple[Way, tuple[str, str, bool] | None]] = {
    "fp8": (("fp8_e4m3", "per_tensor"), ("fp8_e4m3", "per_tensor", False)),
    "ptpc_fp8": (("fp8_e4m3", "per_channel"), ("fp8_e4m3", "per_channel", True)),
    "int8": (("int8", "per_tensor"), ("int8", "per_tensor", False)),
    "int8 rows": (("int8", "per_channel"), None),
    "mxfp4": (("fp4", "per_group"), ("fp4", "per_group", True)),
    "mxfp4_weight_only": (("fp4", "per_group"), None),
    "mxfp4_fp8": (("fp4", "per_group"), ("fp8_e4m3", "per_tensor", False)),
    "mxfp6_e2m3": (("fp6_e2m3", "per_group"), ("fp6_e2m3", "per_group", True)),
    "mxfp6_e3m2": (("fp6_e3m2", "per_group"), ("fp6_e3m2", "per_group", True)),
}
SMALL = {"fp4": (1, 1), "fp6_e2m3": (3, 1), "fp6_e3m2": (2, 3)}  # bits of mantissa; bias


def codes_of(dtype: str) -> torch.Tensor:
    """What the codes of a short floating format stand for, by their bits."""
    mantissa, bias = SMALL[dtype]
    found = []
    bits = 4 if dtype == "fp4" else 6
    for code in range(1 << bits):
        sign, rest = code >> (bits - 1), code & ((1 << (bits - 1)) - 1)
        exponent, part = rest >> mantissa, (rest & ((1 << mantissa) - 1)) / (1 << mantissa)
        size = part * 2.0 ** (1 - bias) if exponent == 0 else (1 + part) * 2.0 ** (exponent - bias)
        found.append(-size if sign else size)
    return torch.tensor(found)


def pack(weight: torch.Tensor, dtype: str, shared: str) -> Parts:
    """What is stored of a matrix, and what it stands for."""
    numbers = weight.float()
    if shared == "per_group":
        table = codes_of(dtype)
        groups = numbers.unflatten(-1, (-1, 32))
        exponents = power_codes(groups, float(table.max()))
        wide = 2.0 ** (exponents.unsqueeze(-1) - 127.0)
        codes = ((groups / wide).unsqueeze(-1) - table).abs().argmin(-1)
        flat = codes.flatten(-2)
        six = words(flat.long().numpy(), 6) if dtype != "fp4" else None
        packed = halves(flat) if six is None else six.view(torch.uint8)
        parts = {"weight": packed, "weight_scale": exponents.to(torch.uint8)}
        return parts, (table[codes] * wide).flatten(-2)
    largest = (
        numbers.abs().amax(-1, keepdim=True) if shared == "per_channel" else numbers.abs().max()
    )
    scale = largest / (448 if dtype == "fp8_e4m3" else 127)
    if dtype == "fp8_e4m3":
        stored = (numbers / scale).to(torch.float8_e4m3fn)
    else:
        stored = (numbers / scale).round().to(torch.int8)
    parts = {"weight": stored, "weight_scale": scale.reshape(-1) if scale.dim() else scale}
    if dtype == "int8":
        parts["weight_zero_point"] = torch.zeros_like(parts["weight_scale"], dtype=torch.int8)
    return parts, stored.float() * scale


def rule(dtype: str, shared: str, dynamic: bool) -> dict[str, object]:
    """How ``config.json`` says it, as far as it matters."""
    group = 32 if shared == "per_group" else None
    return {"dtype": dtype, "qscheme": shared, "group_size": group, "is_dynamic": dynamic,
            "symmetric": None if group else True, "ch_axis": None}  # fmt: skip


def make(baseline: Path, out: Path, name: str) -> dict[str, torch.Tensor]:
    """Write the folder; returns what each packed weight stands for, float32, by its name."""
    way, inputs = WAYS[name]
    small_files(baseline, out)
    tensors: dict[str, torch.Tensor] = {}
    stood: dict[str, torch.Tensor] = {}
    for tensor, weight in load_file(baseline / "model.safetensors").items():
        if weight.dim() != 2 or ".layers." not in tensor:
            tensors[tensor] = weight
            continue
        parts, stood[tensor] = pack(weight, *way)
        if inputs and not inputs[2]:
            parts["input_scale"] = torch.tensor(INPUT_SCALE)
        module = tensor.removesuffix(".weight")
        tensors |= {f"{module}.{end}": part for end, part in parts.items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "quark", "exclude": ["lm_head"], "layer_quant_config": {},
        "layer_type_quant_config": {}, "algo_config": None, "softmax_quant_spec": None,
        "export": {"weight_format": "real_quantized", "pack_method": "reorder"},
        "global_quant_config": {
            "weight": rule(*way, False), "bias": None, "output_tensors": None,
            "input_tensors": rule(*inputs) if inputs else None,
        },
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return stood


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
