"""Pickle checkpoints, only where the switch allows them: rewritten as safetensors, never kept.

Loaded with torch's restricted unpickler (``weights_only``), which builds tensors and plain
containers and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from invarlock.errors import ConfigError, InputError
from invarlock.formats.kind import INDEX_NAME, SINGLE_NAME, Format, ShardNames

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin")


class Pickle(Format):
    """``pytorch_model.bin`` or its shards; their headers alone say nothing of the tensors."""

    name: ClassVar[str] = "pickle"
    order: ClassVar[int] = 10
    opened: ClassVar[bool] = False
    switch: ClassVar[str] = "pickle"
    note: ClassVar[str | None] = (
        "weights are rewritten from the source's pickle files as safetensors"
    )

    def files(self, names: Collection[str]) -> set[str]:
        if INDEX_NAME in names or SINGLE_NAME in names:
            return set()
        return {name for name in names if _NAME.fullmatch(name)}

    def refusal(self, where: str) -> ConfigError:
        return ConfigError(
            "the model has only pickle weights, which can run code when loaded",
            where=where,
            hint="allow them with --allow-pickle (allow_pickle_checkpoints: true)",
        )

    def convert(self, paths: Mapping[str, Path], folder: Path) -> None:
        """See :meth:`Format.convert`; peak memory is one shard.

        Tensors that share memory are stored once each.

        Raises:
            InputError: not a plain map of tensors, or a tensor in two shards.
        """
        from safetensors.torch import save_file

        shards = ShardNames(len(paths))
        for name in sorted(paths):
            tensors = _load(paths[name])
            twice = sorted(set(tensors) & set(shards.weight_map))
            if twice:
                raise InputError(f"tensor {twice[0]} is in two shards", where=str(paths[name]))
            shard = shards.next({name: tensor.nbytes for name, tensor in tensors.items()})
            save_file(tensors, folder / shard, metadata={"format": "pt"})
        shards.write_index(folder)


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
