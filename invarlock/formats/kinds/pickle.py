"""Pickle checkpoints, only where the switch allows them.

Baselines are rewritten as safetensors and never kept; subjects are read as they are. Both with
torch's restricted unpickler (``weights_only``), which builds tensors and plain containers and
nothing else, and mapped where the file is of the kind that can be.
"""

from __future__ import annotations

import functools
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import ConfigError, InputError
from invarlock.files import read_json_object, unreadable
from invarlock.formats.kind import (
    CODES,
    INDEX_NAME,
    SINGLE_NAME,
    Format,
    Inventory,
    ShardNames,
    copied,
)
from invarlock.shards import TensorInfo

if TYPE_CHECKING:
    import torch

INDEX = "pytorch_model.bin.index.json"
_NAME = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin")


class Pickle(Format):
    """``pytorch_model.bin``, or its shards and their index."""

    name: ClassVar[str] = "pickle"
    order: ClassVar[int] = 10
    title: ClassVar[str] = "pickle checkpoint"
    lists: ClassVar[frozenset[str]] = frozenset({INDEX})
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

    def loading(self, source: Path, config: Mapping[str, Any], device: str) -> Mapping[str, object]:
        return {"use_safetensors": False, "weights_only": True}

    def inventory(self, folder: Path) -> Inventory:
        """See :meth:`Format.inventory`; nothing but pickles says what they hold, so they are read.

        Raises:
            InputError: no map of tensors, a tensor in two shards, or a shard of the index is not
                there.
        """
        files = tuple(sorted(self.files(os.listdir(folder))))
        _require_shards(folder, files)
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, tensor in _state(folder / file).items():
                if name in tensors:
                    first = tensors[name].file
                    raise InputError(
                        f"tensor {name} is in two shards: {first} and {file}", where=str(folder)
                    )
                code = CODES.get(str(tensor.dtype).removeprefix("torch."))
                if code is None:
                    raise InputError(
                        f"tensor {name} is of the type {tensor.dtype}, which is not read",
                        where=str(folder / file),
                    )
                tensors[name] = TensorInfo(name, code, tuple(tensor.shape), file, 0, tensor.nbytes)
        return Inventory(dict(sorted(tensors.items())), files)

    def chunks(self, folder: Path, info: TensorInfo, size: int) -> Iterator[memoryview]:
        tensor = _state(folder / info.file).get(info.name)
        if tensor is None or tuple(tensor.shape) != info.shape or tensor.nbytes != info.nbytes:
            raise InputError("the file changed while being read", where=str(folder / info.file))
        yield from copied(tensor, info, size)

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
    return {name: tensor.clone().contiguous() for name, tensor in sorted(_state(path).items())}


def _require_shards(folder: Path, files: tuple[str, ...]) -> None:
    index = folder / INDEX
    if not index.is_file():
        return
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError("/weight_map is missing", where=str(index))
    missing = sorted({str(file) for file in weight_map.values()} - set(files))
    if missing:
        raise InputError(
            f"shard {missing[0]} is named by the index but missing", where=str(folder),
            hint="copy or download the folder again",
        )  # fmt: skip


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return _unpickled(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)  # tensors are asked for one by one, shard after shard
def _unpickled(path: Path, _changed: int, _size: int) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        # the older kind of file, which is no archive, cannot be mapped
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).partition("\n")[0][:200]
        raise InputError(f"not a readable pickle of weights: {first}", where=str(path)) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError("not a map of tensors", where=str(path))
    return {str(name): tensor for name, tensor in state.items()}
