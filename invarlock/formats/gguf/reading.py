"""One GGUF model, opened: metadata of its first file, tensors of all its files.

A model may be split (``X-00001-of-00003.gguf`` and so on). Any part, or the folder, stands for all.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.errors import InputError, NotACheckpointError
from invarlock.shown import listed

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, ReaderTensor
    from numpy.typing import NDArray

SUFFIX = ".gguf"
SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")
# What stands beside a model in a folder and is none: the part of another that reads images.
PROJECTOR = re.compile(r"(?:.*[-_.])?mmproj.*", re.IGNORECASE)
LISTED = 4  # names in a line


def model_files(names: Collection[str]) -> set[str]:
    """The GGUF files among the names that hold language models, or parts of them."""
    return {name for name in names if name.endswith(SUFFIX) and not PROJECTOR.fullmatch(name)}


def parts_of(source: Path) -> list[Path]:
    """The files of the model that ``source`` names, in their order.

    Raises:
        NotACheckpointError: a folder of several models.
        InputError: a part is missing.
    """
    name, folder = source.name, source.parent
    if source.is_dir():
        folder, names = source, model_files(os.listdir(source))
        stems = {_stem(each) for each in names}
        if len(stems) > 1:
            raise NotACheckpointError(
                f"holds {len(stems)} GGUF models", where=str(source),
                found=listed(sorted(names), LISTED), hint="name the file of one",
            )  # fmt: skip
        name = min(names)
    split = SPLIT.fullmatch(name)
    if split is None:
        return [folder / name]
    count, stem = int(split["count"]), split["stem"]
    wanted = [folder / f"{stem}-{part:05d}-of-{count:05d}{SUFFIX}" for part in range(1, count + 1)]
    missing = [path.name for path in wanted if not path.is_file()]
    if missing or not wanted:
        raise InputError(
            f"{len(missing)} of {count} parts of the GGUF model are missing", where=str(folder),
            found=f"no {listed(missing, LISTED)}", hint="copy or download them again",
        )  # fmt: skip
    return wanted


def _stem(name: str) -> str:
    split = SPLIT.fullmatch(name)
    return f"{split['stem']}/{split['count']}" if split else name


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it."""

    name: str  # the file's
    kind: str  # F32, Q4_K: as the package calls it
    shape: tuple[int, ...]  # row-major; GGUF stores it reversed
    path: Path
    nbytes: int
    tensor: ReaderTensor

    def values(self, first: int = 0, rows: int | None = None) -> NDArray[np.float32]:
        """What it stands for, in float32; of a matrix, some rows if asked for.

        Raises:
            InputError: the package has no way to unpack it.
        """
        from gguf.quants import dequantize

        data = self.tensor.data
        shape = self.shape
        if rows is not None:
            data, shape = data[first : first + rows], (rows, *self.shape[1:])
        try:
            values: NDArray[np.float32] = dequantize(data, self.tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"{self.name} is packed as {self.kind}, which the package gguf does not unpack",
                where=str(self.path),
            ) from error
        return values.reshape(shape)

    def as_row(self) -> Stored:
        """The same vector as a matrix of one row."""
        row = self.tensor._replace(data=self.tensor.data[None])
        return replace(self, shape=(1, *self.shape), tensor=row)

    def as_filters(self) -> Stored:
        """The same matrix as filters of one channel: its rows, each of (1, columns)."""
        return replace(self, shape=(self.shape[0], 1, self.shape[1]))

    def experts(self) -> list[Stored]:
        """The matrices that are stacked in this tensor, in their order.

        Raises:
            InputError: it is no stack of matrices.
        """
        if len(self.shape) != 3:
            raise InputError(
                f"tensor {self.name} is no stack of matrices", where=str(self.path),
                expected="three dimensions", found=str(list(self.shape)),
            )  # fmt: skip
        return [
            replace(
                self, shape=self.shape[1:], nbytes=self.nbytes // self.shape[0],
                tensor=self.tensor._replace(data=self.tensor.data[number]),
            )
            for number in range(self.shape[0])
        ]  # fmt: skip


class Gguf:
    """One open model.

    Raises:
        InputError: missing, unreadable, not GGUF, or parts that do not belong together.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.paths = parts_of(source)
        self._first, *others = readers = [_reader(path) for path in self.paths]
        self.tensors: dict[str, Stored] = {}
        for path, reader in zip(self.paths, readers, strict=True):
            for tensor in reader.tensors:
                stored = Stored(
                    name=tensor.name,
                    kind=tensor.tensor_type.name,
                    shape=tuple(int(size) for size in reversed(tensor.shape)),
                    path=path,
                    nbytes=int(tensor.n_bytes),
                    tensor=tensor,
                )
                if self.tensors.setdefault(tensor.name, stored) is not stored:
                    raise InputError(f"tensor {tensor.name} is in two parts", where=str(path))
        self._refuse_other_parts(others)

    def _refuse_other_parts(self, others: Sequence[GGUFReader]) -> None:
        """Refuse parts of another model, by what they say of themselves."""
        count = self.get("split.count")
        if count is not None and int(count) > 1 and len(self.paths) != int(count):
            raise InputError(
                f"is one of {int(count)} parts, and its name does not say so",
                where=str(self.paths[0]), expected=f"NAME-00001-of-{int(count):05d}{SUFFIX}",
            )  # fmt: skip
        total = self.get("split.tensors.count")
        if others and total is not None and int(total) != len(self.tensors):
            raise InputError(
                "the parts are not of one model", where=str(self.paths[0].parent),
                expected=f"{int(total)} tensors", found=str(len(self.tensors)),
            )  # fmt: skip

    def get(self, key: str) -> Any:
        """Metadata value of ``key``, or None."""
        field = self._first.get_field(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{key} of the metadata is not UTF-8", where=str(self.source)
            ) from error

    @property
    def names(self) -> list[str]:
        """The keys of the metadata."""
        return list(self._first.fields)

    def meta(self, key: str) -> Any:
        """Metadata value of ``key``; InputError where it is missing."""
        value = self.get(key)
        if value is None:
            raise InputError(f"the metadata lack {key}", where=str(self.source))
        return value

    @property
    def architecture(self) -> str:
        """``general.architecture``."""
        return str(self.meta("general.architecture"))

    def of_model(self, key: str) -> Any:
        """Metadata value of ``key`` of the architecture, such as ``block_count``, or None."""
        return self.get(f"{self.architecture}.{key}")


def _reader(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    hint = "the file is damaged or cut off; copy, download or install it again"
    try:
        with open(path, "rb") as handle:
            magic = handle.read(4)
        if magic != b"GGUF":
            raise InputError(
                "not a GGUF file", where=str(path), expected="GGUF at its start",
                found=repr(magic) if magic else "an empty file", hint=hint,
            )  # fmt: skip
        reader: GGUFReader = GGUFReader(path)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        told = "it ends before its header does" if isinstance(error, IndexError) else told
        raise InputError(
            f"not a readable GGUF file: {told[:120]}", where=str(path), hint=hint
        ) from error
    size = path.stat().st_size
    for tensor in reader.tensors:
        if not tensor.n_elements:
            raise InputError(f"tensor {tensor.name} is empty", where=str(path), hint=hint)
        if math.prod(map(int, tensor.shape)) != tensor.n_elements or (
            int(tensor.data_offset) + int(tensor.n_bytes) > size
        ):
            raise InputError(
                f"tensor {tensor.name} ends behind the file", where=str(path), hint=hint
            )
    return reader
