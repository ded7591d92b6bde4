"""Dense safetensors: one file, or shards that an index lists; what edits write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import ClassVar

from invarlock.counts import counted
from invarlock.errors import InputError
from invarlock.files import read_json_object
from invarlock.formats.kind import INDEX_NAME, SINGLE_NAME, Format, Inventory
from invarlock.shards import TensorInfo, read_shard_header


class Safetensors(Format):
    """``model.safetensors``, or shards and ``model.safetensors.index.json``."""

    name: ClassVar[str] = "safetensors"
    order: ClassVar[int] = 0
    dense: ClassVar[bool] = True

    def files(self, names: Collection[str]) -> set[str]:
        if INDEX_NAME not in names and SINGLE_NAME not in names:
            return set()
        return {name for name in names if name.endswith(".safetensors")} or {SINGLE_NAME}

    def wanted(self, names: Collection[str], fetch: Callable[[str], Path], where: str) -> set[str]:
        if INDEX_NAME not in names:
            return {SINGLE_NAME}
        weight_map = read_json_object(fetch(INDEX_NAME)).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError("/weight_map is missing", where=f"{where}/{INDEX_NAME}")
        shards = {str(shard) for shard in weight_map.values()}
        missing = sorted(shards - set(names))
        if missing:
            raise InputError(f"shard {missing[0]} of the index is not there", where=where)
        return shards

    def inventory(self, folder: Path) -> Inventory:
        """See :meth:`Format.inventory`.

        Raises:
            InputError: a missing, truncated or garbled shard, a tensor in two shards, or an
                index that disagrees with the shards.
        """
        weight_map = _weight_map(folder)
        shards = (SINGLE_NAME,) if weight_map is None else tuple(sorted(set(weight_map.values())))
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[str, dict[str, str]] = {}
        for shard in shards:
            if not (folder / shard).is_file():
                raise InputError(
                    f"shard {shard} is named by the index but missing",
                    where=str(folder),
                    hint="copy or download the folder again",
                )
            header = read_shard_header(folder / shard)
            metadata[shard] = header.metadata
            for name, info in header.tensors.items():
                if name in tensors:
                    first = tensors[name].file
                    raise InputError(
                        f"tensor {name} is in two shards: {first} and {shard}", where=str(folder)
                    )
                tensors[name] = info
        if weight_map is not None:
            _refuse_disagreement(folder, weight_map, tensors)
        else:
            _refuse_more(folder, tensors)
        return Inventory(dict(sorted(tensors.items())), shards, metadata)


def _weight_map(folder: Path) -> dict[str, str] | None:
    """The index's tensor -> shard map, or None for a single-file checkpoint."""
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if not index.is_file():
        return None
    document = read_json_object(index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("/weight_map is missing or empty", where=str(index))
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or shard in (".", "..") or "/" in shard:
            raise InputError(
                f"/weight_map/{name} is not a file name", where=str(index), found=repr(shard)
            )
    if single.is_file() and SINGLE_NAME not in weight_map.values():
        raise InputError(
            f"two sets of weights: {SINGLE_NAME} and the shards of {INDEX_NAME}",
            where=str(folder),
            hint="remove the one that is not meant",
        )
    return weight_map


def _refuse_more(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a second file with tensors of the model where no index says which one is meant.

    Loaders of the library read the single file; servers read every file that ends like it, the
    last one over the others.
    """
    for path in sorted(folder.glob("*.safetensors")):
        twice = [] if path.name == SINGLE_NAME else [*(tensors.keys() & {*_names(path)})]
        if twice:
            raise InputError(
                f"two sets of weights: {counted(len(twice), 'tensor')} of {SINGLE_NAME} in"
                f" {path.name} too, and servers read both where no index says which",
                where=str(folder),
                hint="remove the one that is not meant",
            )  # fmt: skip


def _names(path: Path) -> Collection[str]:
    """The tensors of a file that may be none; what cannot be read is loaded by nobody."""
    try:
        return read_shard_header(path).tensors
    except InputError:
        return ()


def _refuse_disagreement(
    folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> None:
    where = str(folder / INDEX_NAME)
    for name, shard in sorted(weight_map.items()):
        if name not in tensors or tensors[name].file != shard:
            raise InputError(
                f"tensor {name} is not in {shard}, where the index puts it", where=where
            )
    for name, info in sorted(tensors.items()):
        if name not in weight_map:
            raise InputError(f"tensor {name} of {info.file} is not in the index", where=where)
