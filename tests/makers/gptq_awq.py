"""Make a GPTQ or AWQ folder of a dense one, rounded to the nearest: the recipe of our subjects.

    python tests/makers/gptq_awq.py BASELINE OUT --layout awq --group 32

The packers know nothing of how the package unpacks: they write out every bit and let numpy gather
the bits into words. Neither is calibrated; what is tried is the packing, and an honest loss of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

SKIPPED = ("embed_tokens", "lm_head", "norm")
# AutoAWQ puts the outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight into a word, from the lowest bits up.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AUTO_ROUND = ("auto_round", "auto_round:auto_gptq", "auto_round:auto_awq")
LAYOUTS = ("gptq", "gptq_v2", "awq", *AUTO_ROUND)


def words(integers: NDArray[np.int64], bits: int) -> torch.Tensor:
    """Pack integers of some bits along the last side, end to end, lowest bit first, into int32."""
    every_bit = (integers[..., None] >> np.arange(bits)) & 1
    stream = every_bit.reshape(*integers.shape[:-1], -1).astype(np.uint8)
    packed = np.packbits(stream, axis=-1, bitorder="little")
    return torch.from_numpy(np.ascontiguousarray(packed).view("<i4").copy())


def rounded(
    weight: torch.Tensor, bits: int, group: int, symmetric: bool, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers (outputs, inputs), scales and zero points (outputs, groups), group of each input."""
    outputs, inputs = weight.shape
    most = 2**bits - 1
    group_of = torch.empty(inputs, dtype=torch.int32)
    group_of[order] = torch.arange(inputs, dtype=torch.int32) // group
    grouped = weight.float()[:, order].reshape(outputs, -1, group)
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    if symmetric:
        scales = 2 * torch.maximum(-low, high) / most
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        scales = (high - low) / most
        zeros = (-low / scales.clamp(min=1e-9)).round().clamp(1, most)
    scales = scales.clamp(min=1e-7).half()
    each = group_of.long()
    integers = (weight.float() / scales.float()[:, each]).round() + zeros[:, each]
    return integers.clamp(0, most).long(), scales, zeros.long(), group_of


def gptq_parts(
    weight: torch.Tensor,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    act_order: bool = False,
    layout: str = "gptq",
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The stored tensors of a layer, by the ends of their names, and what they stand for."""
    order = torch.arange(weight.shape[1])
    if act_order:
        order = weight.float().norm(dim=0).argsort(descending=True)
    integers, scales, zeros, group_of = rounded(weight, bits, group, symmetric, order)
    stored = zeros - 1 if layout in ("gptq", "auto_round:auto_gptq") else zeros
    parts = {
        "qweight": words(integers.numpy(), bits).T.contiguous(),
        "qzeros": words(stored.T.numpy(), bits),
        "scales": scales.T.contiguous(),
        "g_idx": group_of,
    }
    each = group_of.long()
    return parts, (integers - zeros[:, each]) * scales[:, each].float()


def awq_parts(
    weight: torch.Tensor, group: int = 32, symmetric: bool = False
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same in AWQ's layout, version GEMM."""
    order = torch.arange(weight.shape[1])
    integers, scales, zeros, group_of = rounded(weight, 4, group, symmetric, order)
    outputs = np.arange(weight.shape[0]).reshape(-1, 8)[:, AWQ_ORDER].reshape(-1)
    parts = {
        "qweight": words(integers.T.numpy()[:, outputs], 4),
        "qzeros": words(zeros.T.numpy()[:, outputs], 4),
        "scales": scales.T.contiguous(),
    }
    each = group_of.long()
    return parts, (integers - zeros[:, each]) * scales[:, each].float()


def small_files(baseline: Path, out: Path) -> None:
    """A new folder with what stands beside the weights."""
    out.mkdir(parents=True)
    for path in baseline.iterdir():
        if path.suffix in (".json", ".txt", ".jinja") and "index" not in path.name:
            shutil.copy(path, out / path.name)


def make(
    baseline: Path,
    out: Path,
    layout: str,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    act_order: bool = False,
) -> dict[str, torch.Tensor]:
    """Write the folder; returns what each packed weight stands for, float32, by its name."""
    small_files(baseline, out)
    tensors: dict[str, torch.Tensor] = {}
    stood: dict[str, torch.Tensor] = {}
    for shard in sorted(baseline.glob("*.safetensors")):
        for name, weight in load_file(shard).items():
            if weight.dim() != 2 or any(word in name for word in SKIPPED):
                tensors[name] = weight
                continue
            if layout.endswith("awq"):
                parts, stood[name] = awq_parts(weight, group, symmetric)
            else:
                parts, stood[name] = gptq_parts(weight, bits, group, symmetric, act_order, layout)
            if layout in AUTO_ROUND:
                parts.pop("g_idx", None)  # its groups lie in order
            module = name.removesuffix(".weight")
            tensors |= {f"{module}.{end}": part for end, part in parts.items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    said: dict[str, object] = {"bits": bits, "group_size": group}
    if layout.startswith("auto_round"):
        said |= {"quant_method": "auto-round", "packing_format": layout, "sym": symmetric}
        said |= {"data_type": "int", "block_name_to_quantize": "model.layers"}
    elif layout == "awq":
        said |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
    else:
        said |= {"quant_method": "gptq", "checkpoint_format": layout}
        said |= {"desc_act": act_order, "sym": symmetric}
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = said
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return stood


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, default="gptq")
    parser.add_argument("--bits", type=int, choices=(2, 3, 4, 8), default=4)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--act-order", action="store_true")
    given = parser.parse_args()
    make(
        given.baseline, given.out, given.layout, given.bits, given.group,
        not given.asymmetric, given.act_order,
    )  # fmt: skip


if __name__ == "__main__":
    main()
