"""Make a bitsandbytes or torchao folder of a dense one, by its own package through transformers.

    python tests/makers/bitsandbytes_torchao.py BASELINE OUT nf4

On the CPU; transformers 5.23, bitsandbytes 0.50.2, torchao 0.18.0.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch


def packing(name: str, group: int) -> Any:
    """The configuration of a way to pack."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name in ("nf4", "nf4-double", "fp4", "fp4-double"):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=name.partition("-")[0],
            bnb_4bit_use_double_quant=name.endswith("-double"),
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )

    if name == "torchao-int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    if name == "torchao-int8-dynamic":
        return TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group)))


BITSANDBYTES = ("nf4", "nf4-double", "fp4", "fp4-double", "int8")
TORCHAO = ("torchao-int8", "torchao-int8-dynamic", "torchao-int4")


def make(baseline: Path, out: Path, name: str, group: int = 32) -> None:
    """Write the folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        baseline,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=packing(name, group),
    )
    model.save_pretrained(out)
    for path in baseline.glob("tokenizer*"):
        shutil.copy(path, out / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("packing", choices=(*BITSANDBYTES, *TORCHAO))
    parser.add_argument("--group", type=int, default=32)
    given = parser.parse_args()
    make(given.baseline, given.out, given.packing, given.group)


if __name__ == "__main__":
    main()
