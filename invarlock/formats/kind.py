"""What a format of checkpoints is: a class that says which files are its own and reads them.

    class Npy(Format):
        name: ClassVar[str] = "npy"

        def files(self, names): return {name for name in names if name.endswith(".npy")}
        def inventory(self, folder): ...

A file like that in ``invarlock/formats/kinds`` is all that a new format needs: folders of it are
opened and compared, and models of it are placed as baselines, rewritten as safetensors.

A format gives two views of a model. The *effective weights*, under the model's own names: what
packs them unpacks them here, one tensor at a time (``chunks``; :mod:`invarlock.formats.packed` for
weights that are packed into safetensors). And the *execution*: transformers, with what the format
adds to its loader (``loading``), or a program of its own (``engine``). Weights are judged by the
first, losses and activations by the second; neither stands for the other. Where no kernels of a
format run here, dense ones multiply its effective weights, and reports say so (``dense_because``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from invarlock.errors import ConfigError, InputError
from invarlock.files import pretty_json, unreadable
from invarlock.formats.execution import Engine, EngineSettings
from invarlock.shards import DTYPES, ShardEntry, TensorInfo, write_shard

if TYPE_CHECKING:
    import torch

# The safetensors code of a dtype, by torch's name of it.
CODES = {torch_name: code for code, (_, torch_name) in DTYPES.items()}
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of the model that is stored as something else."""

    name: str  # of the model's tensor
    dtype: str  # of the values that it stands for, by its safetensors code
    shape: tuple[int, ...]
    parts: tuple[str, ...]  # names of the stored tensors that it is made of
    scheme: str  # as people call it: "int4, groups of 128", "FP8 E4M3, a scale per row", "Q4_K"
    bits: float  # of one stored value, scales not counted
    stored_bytes: int  # of all its parts


@dataclass(frozen=True)
class Inventory:
    """The tensors of a folder under the model's names, and the files that hold them, sorted."""

    tensors: dict[str, TensorInfo]
    files: tuple[str, ...]
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)  # of each file, free text
    packed: dict[str, PackedTensor] = field(default_factory=dict)  # by the model's names


class Tensors(Protocol):
    """A checkpoint, as far as formats ask of a baseline."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, by name."""

    def load(self, name: str) -> torch.Tensor:
        """The values of one."""


@dataclass(frozen=True)
class Package:
    """A Python package that runs models of a format."""

    module: str  # as it is imported
    extra: str  # of invarlock that installs it


class Format:
    """Base of all formats; an object of it knows no folder."""

    name: ClassVar[str]
    order: ClassVar[int] = 50  # of several formats in one folder, the lowest is the one meant
    inside: ClassVar[str] = ""  # the format whose files it uses; config.json tells the two apart
    dense: ClassVar[bool] = False  # whether it is the one that edits write and baselines are in
    packed: ClassVar[bool] = False  # whether the weights take more room once they are rewritten
    switch: ClassVar[str] = ""  # the permission it needs (a member of sources.pins.Allow)
    lists: ClassVar[frozenset[str]] = frozenset()  # files that list those of weights
    # Files beside those of weights that say, too, how they are packed.
    packing_files: ClassVar[frozenset[str]] = frozenset()
    note: ClassVar[str | None] = None  # what the record of a rewritten baseline says
    title: ClassVar[str] = ""  # what people call it
    # Whether a folder has to have ``config.json``; else the format writes what it lacks
    # (``small_files``), and a single file may be named in place of a folder.
    configured: ClassVar[bool] = True
    # Whether only language models are in its files: what reads pictures for one is in another file.
    language_only: ClassVar[bool] = False
    packages: ClassVar[tuple[Package, ...]] = ()  # what execution needs beside transformers

    @property
    def rewritten(self) -> bool:
        """Whether a baseline of it is known by its files alone, until they are rewritten."""
        return bool(self.switch)

    def files(self, names: Collection[str]) -> set[str]:
        """The files of weights among the names of a folder; empty where it is of another format."""
        raise NotImplementedError

    def packs(self, config: Mapping[str, Any]) -> bool:
        """Whether ``config.json`` says that files of the format ``inside`` are of this one."""
        return False

    def wanted(self, names: Collection[str], fetch: Callable[[str], Path], where: str) -> set[str]:
        """The same where the folder may hold others as well; ``fetch`` gives its small files.

        Raises:
            InputError: a file that lists the others is damaged, or one of them is not there.
        """
        return self.files(names)

    def small_files(self, source: Path, baseline: Path | None, folder: Path) -> None:
        """Write configuration, tokenizer and what ships beside them into ``folder``.

        Only where the format is not ``configured``. What the source does not hold is the
        baseline's, linked; what it does hold is its own.

        Args:
            source: the folder or file that was named.
            baseline: the folder of the baseline, where there is one.
            folder: it is there and empty.

        Raises:
            InputError: the source is damaged, or does not say what is needed.
        """
        raise NotImplementedError

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        """What is wrong with the way the weights are packed, a line each: damage, which rejects.

        Not what the tensors themselves show: values that are not finite, shapes, missing names.

        Args:
            source: the folder or file that was named.
            baseline: what it was made from; its values are read where they are asked for.
        """
        yield from ()

    def notes(self, source: Path, baseline: Path) -> Iterator[str]:
        """What people should know of a subject and rejects nothing, a line each.

        Args:
            source: the folder or file that was named.
            baseline: the folder of the baseline.
        """
        yield from ()

    def beside(self, source: Path, baseline: Path | None) -> Format:
        """The format of this source, where it needs a baseline to be read, as an adapter does.

        Raises:
            NotACheckpointError: there is none, or it is the wrong one.
        """
        return self

    def loading(self, source: Path, config: Mapping[str, Any], device: str) -> Mapping[str, object]:
        """Further arguments of transformers' ``from_pretrained``, which loads the small files'
        folder (the source itself, where that holds them); they replace those that are given."""
        return {}

    def loaded(self, model: Any, source: Path) -> Any:
        """The model as it is to be run, from what transformers loaded."""
        return model

    def detail(self, model: Any) -> Mapping[str, str]:
        """What reports say of a loaded model beside its kernels: what was done to the weights, how
        activations are rounded, what other hardware would do instead."""
        return {}

    def dense_because(self, source: Path, config: Mapping[str, Any]) -> str:
        """Why dense kernels multiply the effective weights in place of the format's own; empty
        where its own do. Reports say it: what is judged then is what the weights stand for, and not
        the kernels that will serve them."""
        return ""

    def engine(self, source: Path, settings: EngineSettings) -> Engine | None:
        """The program that runs the model; None: transformers does.

        Raises:
            InputError: its package is missing, or it does not load the model.
        """
        return None

    def refusal(self, where: str) -> ConfigError:
        """The line for a model that needs ``switch`` while it is off."""
        raise NotImplementedError

    def inventory(self, folder: Path) -> Inventory:
        """Names, shapes and types of all tensors, by the headers of the files alone.

        Raises:
            InputError: a file is missing or damaged.
        """
        raise NotImplementedError

    def chunks(self, folder: Path, info: TensorInfo, size: int) -> Iterator[memoryview]:
        """A tensor's values in order, row-major, in the type that the inventory says.

        A chunk is ``size`` bytes but for the last, may be written to, and dies with the next but
        one.

        Raises:
            InputError: the file cannot be read.
        """
        return byte_range(folder / info.file, info, size)

    def convert(self, paths: Mapping[str, Path], folder: Path) -> None:
        """Write the weights into ``folder`` as safetensors, a shard for each file that holds any.

        Args:
            paths: where each file of weights lies; the files of one folder.
            folder: it is there.

        Raises:
            InputError: a file is missing or damaged.
        """
        source = next(iter(paths.values())).parent
        held = self.inventory(source)
        homes = sorted({info.file for info in held.tensors.values()})
        shards = ShardNames(len(homes))
        for home in homes:
            entries = [
                ShardEntry(
                    info.name,
                    info.dtype,
                    info.shape,
                    partial(self.chunks, source, info, READ_CHUNK),
                )
                for info in held.tensors.values()
                if info.file == home
            ]
            shard = shards.next({e.name: e.nbytes for e in entries})
            write_shard(folder / shard, entries, {"format": "pt"})
        shards.write_index(folder)

    def converted_bytes(self, paths: Mapping[str, Path], stored: int) -> int:
        """Bytes that :meth:`convert` will write, of files that take ``stored`` bytes."""
        return stored


READ_CHUNK = 1 << 20  # bytes held while hashing or copying


class ShardNames:
    """The names of ``count`` shards, and in the end the index of what they hold."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.made = 0
        self.total = 0
        self.weight_map: dict[str, str] = {}

    def next(self, sizes: Mapping[str, int]) -> str:
        """The name of the next shard, which holds tensors of these names and bytes."""
        self.made += 1
        shard = f"model-{self.made:05d}-of-{self.count:05d}.safetensors"
        shard = SINGLE_NAME if self.count == 1 else shard
        self.weight_map |= dict.fromkeys(sizes, shard)
        self.total += sum(sizes.values())
        return shard

    def write_index(self, folder: Path) -> None:
        """Write the index, which one shard alone does not need."""
        if self.count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": self.weight_map}
            (folder / INDEX_NAME).write_bytes(pretty_json(index))


def byte_range(path: Path, info: TensorInfo, size: int) -> Iterator[memoryview]:
    """The bytes of a file from ``info.begin`` to ``info.end``; two buffers serve all chunks.

    Raises:
        InputError: the file cannot be read, or became shorter.
    """
    import numpy as np

    # not filled with zeros, which would cost as much as reading does
    buffers = [np.empty(min(size, info.nbytes), np.uint8).data]
    if info.nbytes > size:
        buffers.append(np.empty(size, np.uint8).data)
    try:
        with open(path, "rb", buffering=0) as handle:
            handle.seek(info.begin)
            for number, start in enumerate(range(0, info.nbytes, max(size, 1))):
                chunk = buffers[number % len(buffers)][: min(size, info.nbytes - start)]
                _fill(chunk, handle, path)
                yield chunk
    except OSError as error:
        raise unreadable(path, error) from error


def _fill(chunk: memoryview, handle: FileIO, path: Path) -> None:
    """Read until ``chunk`` is full (one system call may return less)."""
    done = 0
    while done < len(chunk):
        got = handle.readinto(chunk[done:])
        if not got:
            raise InputError("the shard became shorter while being read", where=str(path))
        done += got


def copied(values: torch.Tensor, info: TensorInfo, size: int) -> Iterator[memoryview]:
    """The bytes of a tensor from ``info.begin`` to ``info.end``, ``size`` at a time; a copy, since
    whoever gets a chunk may write to it."""
    import torch

    flat = values.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(info.begin, info.end, max(size, 1)):
        yield flat[start : min(start + size, info.end)].clone().numpy().data
