"""Write ``tests/known/quark.safetensors``: what Quark makes of weights and inputs, and folders.

    python -m venv maker
    maker/bin/pip install torch==2.13.0 amd-quark==0.13 transformers accelerate
    maker/bin/python tests/makers/quark_known.py DENSE FOLDER tests/known/quark.safetensors

DENSE is a Llama folder in bfloat16; FOLDER/SCHEME is what a command judges. The file has rows of
one matrix of each, by SCHEME: what is stored, and ``stands for``; and, where the inputs of the
module are rounded, numbers before and after (``input``, ``rounded``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from quark.torch import LLMTemplate, ModelQuantizer, export_safetensors
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

SCHEMES = (
    "fp8", "ptpc_fp8", "int8", "mxfp4", "mxfp4_weight_only", "mxfp4_fp8", "mxfp6_e2m3",
    "mxfp6_e3m2",
)  # fmt: skip
MODULE, ROWS, COLUMNS = "model.layers.0.self_attn.k_proj", 3, 64
TEXT = "The quick brown fox jumps over the lazy dog. " * 60


def make(dense: Path, out: Path, scheme: str) -> None:
    """A folder, with scales of inputs from one text."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[0][:512]
    quantizer = ModelQuantizer(LLMTemplate.get("llama").get_config(scheme=scheme))
    model = quantizer.quantize_model(model, DataLoader(ids.split(128), batch_size=1))
    export_safetensors(quantizer.freeze(model), str(out))
    tokenizer.save_pretrained(out)


def known(folder: Path, scheme: str) -> dict[str, torch.Tensor]:
    """Rows of one matrix, and inputs, as Quark itself reads the folder."""
    found: dict[str, torch.Tensor] = {}
    with safe_open(folder / "model.safetensors", "pt") as stored:
        names = [name for name in list(stored.keys()) if name.startswith(f"{MODULE}.")]
        parts = {name.rpartition(".")[2]: stored.get_tensor(name) for name in names}
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_submodule(MODULE)
    stood = module.weight_quantizer(module.weight)
    share = parts["weight"].shape[1] / stood.shape[1]  # of a byte
    wide = {"weight": int(COLUMNS * share), "weight_scale": COLUMNS // 32}
    for name, part in parts.items():
        cut = part[:ROWS, : wide[name]] if part.dim() == 2 else part[:ROWS] if part.dim() else part
        found[f"{scheme}.{name}"] = cut.contiguous()
    found[f"{scheme}.stands for"] = stood[:ROWS, :COLUMNS].detach().contiguous()
    if module.input_quantizer is not None:
        spread = torch.logspace(-3, 2, 5)[:, None]
        given = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1)) * spread
        found[f"{scheme}.input"] = given
        found[f"{scheme}.rounded"] = module.input_quantizer(given).detach()
    return found


if __name__ == "__main__":
    dense, out, file = map(Path, sys.argv[1:])
    everything: dict[str, torch.Tensor] = {}
    for which in SCHEMES:
        if not (out / which / "config.json").exists():
            make(dense, out / which, which)
        everything |= known(out / which, which)
    save_file(everything, file)
