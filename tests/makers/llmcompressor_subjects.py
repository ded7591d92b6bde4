"""Subjects in the compressed-tensors format, made of a dense folder by llmcompressor itself.

    python -m venv maker && maker/bin/pip install llmcompressor==0.14.0.1
    maker/bin/python tests/makers/llmcompressor_subjects.py DENSE windows.json OUT [NAME ...]

It needs an environment of its own, since it pins other versions of transformers and of
compressed-tensors than the ones that judge; the tests make theirs with compressed-tensors alone.
Rounding to nearest, no calibration but of static scales of activations, for which it takes windows.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

SAMPLES = 16  # windows that static scales of activations are taken from


def groups(size: int, symmetric: bool, strategy: str = "group") -> dict[str, Any]:
    """Four-bit integers in groups of ``size`` columns, or one group a row."""
    grouped = {"group_size": size} if strategy == "group" else {}
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": strategy}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights | grouped}}}


# 576 columns do not divide by 128, which the preset W4A16 asks for
RECIPES: dict[str, dict[str, Any]] = {
    "fp8_dynamic": {"scheme": "FP8_DYNAMIC", "targets": "Linear"},
    "fp8_static": {"scheme": "FP8", "targets": "Linear"},
    "fp8_kv": {
        "scheme": "FP8",
        "targets": "Linear",
        "kv_cache_scheme": {
            "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False,
            "symmetric": True,
        },
    },
    "w8a8": {"scheme": "W8A8", "targets": "Linear"},
    "w4a16_g64": groups(64, True),
    "w4a16_g64_asym": groups(64, False),
    "w4a16_channel": groups(0, True, "channel"),
    "nvfp4a16": {"scheme": "NVFP4A16", "targets": "Linear"},
    "nvfp4": {"scheme": "NVFP4", "targets": "Linear"},
    "mxfp4a16": {"scheme": "MXFP4A16", "targets": "Linear"},
    "mxfp4": {"scheme": "MXFP4", "targets": "Linear"},
}  # fmt: skip
CALIBRATED = ("fp8_static", "fp8_kv", "nvfp4")


def make(dense: Path, windows: Path, out: Path, name: str) -> None:
    """Write ``out``/``name``."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto", local_files_only=True)
    options: dict[str, Any] = {}
    if name in CALIBRATED:
        cut = json.loads(windows.read_bytes())["preview"][:SAMPLES]
        rows = [{"input_ids": w["tokens"], "attention_mask": [1] * len(w["tokens"])} for w in cut]
        options = {"dataset": Dataset.from_list(rows), "num_calibration_samples": len(rows)}
    oneshot(
        model=model, recipe=QuantizationModifier(ignore=["lm_head"], **RECIPES[name]), **options
    )
    model.save_pretrained(out / name, save_compressed=True)
    for file in dense.glob("tokenizer*"):
        shutil.copy(file, out / name)


if __name__ == "__main__":
    source, text, target = map(Path, sys.argv[1:4])
    for which in sys.argv[4:] or RECIPES:
        make(source, text, target, which)
