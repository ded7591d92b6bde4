"""Make an MLX or ModelOpt folder of a dense one, rounded to the nearest: what the tests judge.

    python tests/makers/mlx_modelopt.py BASELINE OUT "mlx affine 4 64"
    python tests/makers/mlx_modelopt.py BASELINE OUT "modelopt NVFP4"

The packers know nothing of how the package unpacks: they look for the nearest of all numbers that a
code can stand for, write out every bit, and let numpy gather them. Scales of inputs are made up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from makers.gptq_awq import small_files, words
from safetensors.torch import load_file, save_file

Parts = tuple[dict[str, torch.Tensor], torch.Tensor]  # stored, and what they stand for
ALGORITHMS = (
    "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8", "MXFP4", "NVFP4", "W4A16_NVFP4",
    "W8A8_SQ_PER_CHANNEL",
)  # fmt: skip
INPUT_SCALE = 0.05


def e2m1() -> torch.Tensor:
    """What the sixteen codes stand for: sign, two bits of exponent, one of mantissa."""
    found = []
    for code in range(16):
        exponent, mantissa = code >> 1 & 3, code & 1
        size = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
        found.append(-size if code >> 3 else size)
    return torch.tensor(found)


def nearest(numbers: torch.Tensor) -> torch.Tensor:
    """The code of the nearest FP4 number, by looking at all."""
    return (numbers.unsqueeze(-1) - e2m1()).abs().argmin(-1)


def power_codes(groups: torch.Tensor, largest: float) -> torch.Tensor:
    """The exponents, plus 127, of powers of two by which no number of a group is too large."""
    own = groups.abs().amax(-1).clamp(min=1e-30) / largest
    return own.log2().ceil().clamp(-127, 127).int() + 127


def halves(codes: torch.Tensor) -> torch.Tensor:
    """Two codes of four bits in a byte, the first in the low half."""
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)


def as_words(stored: torch.Tensor) -> torch.Tensor:
    """Bytes as the words of a file of MLX."""
    return torch.from_numpy(stored.view(torch.uint8).numpy().view("<u4").copy())


def mlx(mode: str, bits: int, group: int) -> Callable[[torch.Tensor], Parts]:
    """A packer of matrices whose columns the group divides."""

    def affine(weight: torch.Tensor) -> Parts:
        groups = weight.float().unflatten(-1, (-1, group))
        low, high = groups.amin(-1), groups.amax(-1)
        scales = ((high - low) / (2**bits - 1)).clamp(min=1e-7).to(weight.dtype)
        biases = low.to(weight.dtype)
        wide = scales.float().unsqueeze(-1), biases.float().unsqueeze(-1)
        codes = ((groups - wide[1]) / wide[0]).round().clamp(0, 2**bits - 1)
        packed = words(codes.flatten(-2).long().numpy(), bits).view(torch.uint32)
        stood = (codes * wide[0] + wide[1]).flatten(-2)
        return {"weight": packed, "scales": scales, "biases": biases}, stood

    def floating(weight: torch.Tensor) -> Parts:
        groups = weight.float().unflatten(-1, (-1, group))
        if mode == "nvfp4":
            scales = (groups.abs().amax(-1) / 6).to(torch.float8_e4m3fn)
            wide, stored = scales.float().unsqueeze(-1), scales.view(torch.uint8)
        else:
            exponents = power_codes(groups, 448.0 if bits == 8 else 6.0)
            wide, stored = 2.0 ** (exponents.unsqueeze(-1) - 127.0), exponents.to(torch.uint8)
        scaled = groups / wide.clamp(min=1e-30)
        if bits == 8:
            numbers = scaled.to(torch.float8_e4m3fn)
            packed, stood = as_words(numbers.flatten(-2).contiguous()), numbers.float()
        else:
            codes = nearest(scaled)
            packed, stood = as_words(halves(codes.flatten(-2))), e2m1()[codes]
        return {"weight": packed, "scales": stored}, (stood * wide).flatten(-2)

    return affine if mode == "affine" else floating


def modelopt(algorithm: str) -> Callable[[torch.Tensor], Parts]:
    """A packer by what ``quant_algo`` says."""

    def e4m3(weight: torch.Tensor) -> Parts:
        rows, columns = weight.shape
        size = {"FP8": weight.shape, "FP8_PB_WO": (128, 128), "MXFP8": (1, 32)}
        high, wide = size.get(algorithm, (1, columns))
        down, across = -(-rows // high), -(-columns // wide)
        scales, stood = torch.zeros(down, across), torch.zeros(rows, columns)
        packed = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
        for i in range(down):
            for j in range(across):
                part = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
                scale = weight[part].float().abs().max() / 448
                scales[i, j] = 2.0 ** scale.log2().ceil() if algorithm == "MXFP8" else scale
                packed[part] = (weight[part].float() / scales[i, j]).to(torch.float8_e4m3fn)
                stood[part] = packed[part].float() * scales[i, j]
        shapes = {"FP8": (), "FP8_PB_WO": (down, 1, across, 1), "MXFP8": (down, across)}
        stored = scales.reshape(shapes.get(algorithm, (rows,)))
        if algorithm == "MXFP8":
            stored = (stored.log2() + 127).to(torch.uint8)
        return {"weight": packed, "weight_scale": stored}, stood

    def e2m1_bytes(weight: torch.Tensor) -> Parts:
        group = 32 if algorithm == "MXFP4" else 16
        groups = weight.float().unflatten(-1, (-1, group))
        parts: dict[str, torch.Tensor] = {}
        if group == 32:
            exponents = power_codes(groups, 6.0)
            wide, stored = 2.0 ** (exponents - 127.0), exponents.to(torch.uint8)
        else:
            over = groups.abs().max() / 6 / 448
            stored = (groups.abs().amax(-1) / 6 / over).to(torch.float8_e4m3fn)
            wide, parts["weight_scale_2"] = stored.float() * over, over
        codes = nearest(groups / wide.unsqueeze(-1).clamp(min=1e-30))
        parts |= {"weight": halves(codes.flatten(-2)), "weight_scale": stored}
        return parts, (e2m1()[codes] * wide.unsqueeze(-1)).flatten(-2)

    def int8(weight: torch.Tensor) -> Parts:
        """With columns that the inputs are multiplied by first."""
        before = torch.linspace(0.5, 2, weight.shape[1]).to(torch.bfloat16)
        divided = weight.float() / before.float()
        scales = divided.abs().amax(-1) / 127
        codes = (divided / scales[:, None]).round()
        stored = {"weight": codes.to(torch.int8), "weight_scale": scales, "pre_quant_scale": before}
        return stored, codes * scales[:, None] * before.float()

    if algorithm.startswith("W8A8"):
        return int8
    return e4m3 if "FP8" in algorithm else e2m1_bytes


def make(baseline: Path, out: Path, name: str) -> dict[str, torch.Tensor]:
    """Write the folder; returns what each packed weight stands for, float32, by its name."""
    maker, how, *sizes = name.split()
    pack = mlx(how, *map(int, sizes)) if maker == "mlx" else modelopt(how)
    small_files(baseline, out)
    tensors: dict[str, torch.Tensor] = {}
    stood: dict[str, torch.Tensor] = {}
    for tensor, weight in load_file(baseline / "model.safetensors").items():
        # MLX packs embeddings too
        if weight.dim() != 2 or (maker != "mlx" and ".layers." not in tensor):
            tensors[tensor] = weight
            continue
        parts, stood[tensor] = pack(weight)
        module = tensor.removesuffix(".weight")
        if how in ("FP8", "NVFP4", "W8A8_SQ_PER_CHANNEL"):
            parts["input_scale"] = torch.tensor(INPUT_SCALE)
        tensors |= {f"{module}.{end}": part for end, part in parts.items()}
    save_file(tensors, out / "model.safetensors", {"format": "mlx" if maker == "mlx" else "pt"})
    config = json.loads((out / "config.json").read_text())
    if maker == "mlx":
        said = {"group_size": int(sizes[1]), "bits": int(sizes[0]), "mode": how}
        config |= {"quantization": said, "quantization_config": said}
    else:
        said = {"quant_algo": how, "producer": {"name": "modelopt", "version": "0.47.0"}}
        config["quantization_config"] = {**said, "quant_method": "modelopt", "ignore": ["lm_head"]}
        beside = {"quantization": {"quant_algo": how, "exclude_modules": ["lm_head"]}}
        (out / "hf_quant_config.json").write_text(json.dumps(beside))
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return stood


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
