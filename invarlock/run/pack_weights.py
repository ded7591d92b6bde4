"""Pack a dense checkpoint by a deployment backend's own code, and break one if that is asked for.

transformers packs for bitsandbytes and torchao and saves what it packed; llama.cpp's quantizer
packs a GGUF file of the same weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.checkpoints import Checkpoint
from invarlock.deployment import BACKENDS, SCALES, PackingSpec
from invarlock.errors import InputError
from invarlock.files import atomic_directory
from invarlock.formats.execution import require_package
from invarlock.formats.packed import DENSE, stored_tensor
from invarlock.library_log import quiet
from invarlock.loading_faults import library
from invarlock.roles import layer_of
from invarlock.shards import ShardEntry, TensorInfo, write_shard

if TYPE_CHECKING:
    import torch

GGUF_NAME = "model.gguf"
# What the parts of a packed tensor that scale its values are called.
SCALE_PARTS = ("absmax", "scales", "scale", "weight_scale", "SCB", "weight_scale_inv")


def pack_weights(baseline: Checkpoint, spec: PackingSpec, out: Path) -> None:
    """Write the packed model to the folder ``out``, whole or not at all.

    Args:
        baseline: a dense checkpoint.
        spec: backend, form, and what is broken afterwards.
        out: replaced where it exists.

    Raises:
        InputError: the backend is not installed, or does not take this model.
    """
    backend = BACKENDS[spec.backend]
    require_package(backend.module, backend.extra, f"{spec.backend} weights", str(out))
    with atomic_directory(out) as folder:
        if spec.backend == "llama_cpp":
            _llama_cpp(baseline, spec.form, folder / GGUF_NAME)
        else:
            _transformers(baseline, spec, folder)
            _copy_others(baseline, folder)
        if spec.damage == SCALES:
            (_break_gguf if backend.single_file else _break_folder)(folder)


def _transformers(baseline: Checkpoint, spec: PackingSpec, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    quiet()
    with library(baseline.folder):
        model = AutoModelForCausalLM.from_pretrained(
            baseline.folder, quantization_config=_quantization(spec), device_map="cpu",
            dtype=torch.bfloat16, local_files_only=True, use_safetensors=True,
        )  # fmt: skip
        model.save_pretrained(folder)


def _quantization(spec: PackingSpec) -> Any:
    """What transformers calls the form."""
    import torch

    if spec.backend == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    import transformers

    BitsAndBytesConfig: Any = transformers.BitsAndBytesConfig  # has no annotations

    if spec.form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=spec.form, bnb_4bit_compute_dtype=torch.bfloat16
    )


def _copy_others(baseline: Checkpoint, folder: Path) -> None:
    """Copy what ships beside the weights: tokenizer, templates, settings of generation."""
    weights = {*baseline.form.files(os.listdir(baseline.folder)), "config.json"}
    for path in sorted(baseline.folder.iterdir()):
        if path.is_file() and path.name not in weights and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


def _llama_cpp(baseline: Checkpoint, form: str, out: Path) -> None:
    from invarlock.formats.gguf.write import quantize, write_dense

    dense = out.with_name("dense.gguf")
    write_dense(baseline, dense)
    quantize(dense, out, form)
    dense.unlink()


def _break_gguf(folder: Path) -> None:
    from invarlock.formats.gguf.write import exchange_scales

    exchange_scales(folder / GGUF_NAME)


def _break_folder(folder: Path) -> None:
    """Turn the scales of every packed matrix of the blocks by half their number.

    Shapes, types and finiteness stay: only what the weights stand for is another.

    Raises:
        InputError: no packed tensor has scales of its own.
    """
    held = DENSE.inventory(folder)
    names = {name for name in held.tensors if layer_of(name) is not None and _is_scale(name)}
    if not names:
        raise InputError("no scales of packed weights are found", where=str(folder))
    for file in held.files:
        members = [info for info in held.tensors.values() if info.file == file]
        entries = [
            ShardEntry(
                info.name,
                info.dtype,
                info.shape,
                partial(_content, folder, info, info.name in names),
            )
            for info in sorted(members, key=lambda info: info.begin)
        ]
        metadata = held.metadata.get(file) or {"format": "pt"}
        write_shard(folder / f"{file}.new", entries, metadata)
        os.replace(folder / f"{file}.new", folder / file)


def _is_scale(name: str) -> bool:
    return name.split(".")[-1] in SCALE_PARTS or name.endswith("_weight_scale")  # torchao's


def _content(folder: Path, info: TensorInfo, turned: bool) -> Sequence[memoryview]:
    import torch

    stored = stored_tensor(folder, info)
    if turned:
        stored = torch.roll(stored.reshape(-1), max(1, stored.numel() // 2)).reshape(stored.shape)
    flat: torch.Tensor = stored.contiguous().view(-1).view(torch.uint8)
    return [flat.numpy().data]
