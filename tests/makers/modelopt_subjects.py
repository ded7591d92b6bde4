"""Subjects in ModelOpt's formats, made of a dense folder by ModelOpt itself.

    python -m venv maker && maker/bin/pip install torch==2.13.0 nvidia-modelopt==0.47.0 \
        transformers accelerate requests datasets
    maker/bin/python tests/makers/modelopt_subjects.py DENSE OUT [NAME ...]

An environment of its own, since it is tried with other versions of transformers. Scales of inputs
come from one text of a hundred tokens, which is enough to try a format and not to judge a recipe.
The recipes of MLX and AutoRound are single commands of theirs:

    mlx_lm.convert --hf-path DENSE --mlx-path OUT -q --q-bits 4
    auto-round --model DENSE --output_dir OUT --bits 4 --group_size 64 --iters 0 --format auto_round
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = (
    "FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "MXFP8_DEFAULT_CFG", "MXFP4_DEFAULT_CFG", "NVFP4_DEFAULT_CFG", "NVFP4_MLP_ONLY_CFG",
    "W4A16_NVFP4_CFG", "W4A8_NVFP4_FP8_CFG", "INT8_DEFAULT_CFG", "INT8_SMOOTHQUANT_CFG",
)  # fmt: skip
TEXT = "The quick brown fox jumps over the lazy dog. " * 12


def make(dense: Path, out: Path, name: str) -> None:
    """Write ``out``/``name``."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(dense, local_files_only=True)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    model = mtq.quantize(model, copy.deepcopy(getattr(mtq, name)), lambda own: own(ids))
    export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=str(out / name))
    tokenizer.save_pretrained(out / name)


if __name__ == "__main__":
    for which in sys.argv[3:] or NAMES:
        make(Path(sys.argv[1]), Path(sys.argv[2]), which)
