"""Pickle checkpoints, only where the switch allows them: rewritten as safetensors, never kept.

Loaded with torch's restricted unpickler (``weights_only``), which builds tensors and plain
containers and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.checkpoints import INDEX_NAME, SINGLE_NAME
from invarlock.errors import ConfigError, InputError
from invarlock.files import pretty_json

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin")


def pickle_files(names: Collection[str]) -> set[str]:
    """The pickle weight files among ``names``; empty where there are safetensors weights."""
    if INDEX_NAME in names or SINGLE_NAME in names:
        return set()
    return {name for name in names if _NAME.fullmatch(name)}


def require_allowed(allowed: bool, where: str) -> None:
    """Refuse pickle weights unless the switch is on.

    Raises:
        ConfigError: names the switch.
    """
    if not allowed:
        raise ConfigError(
            "the model has only pickle weights, which can run code when loaded",
            where=where,
            hint="allow them with --allow-pickle (allow_pickle_checkpoints: true)",
        )


def convert_pickles(paths: Mapping[str, Path], folder: Path) -> None:
    """Write the tensors of ``paths`` (file name -> path) into ``folder`` as safetensors shards.

    Peak memory is one shard. Tensors that share memory are stored once each.

    Raises:
        InputError: not a plain map of tensors, or a tensor in two shards.
    """
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    total = 0
    for number, name in enumerate(sorted(paths), start=1):
        shard = f"model-{number:05d}-of-{len(paths):05d}.safetensors"
        shard = SINGLE_NAME if len(paths) == 1 else shard
        tensors = _load(paths[name])
        twice = sorted(set(tensors) & set(weight_map))
        if twice:
            raise InputError(f"tensor {twice[0]} is in two shards", where=str(paths[name]))
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(paths) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_bytes(pretty_json(index))


def _load(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).partition("\n")[0][:200]
        raise InputError(f"not a readable pickle of weights: {first}", where=str(path)) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError("not a map of tensors", where=str(path))
    return {str(name): tensor.clone().contiguous() for name, tensor in sorted(state.items())}
