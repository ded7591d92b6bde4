"""GGUF: what llama.cpp runs. A single file, a folder of one model, or the parts of a split one.

The effective weights are what its packed values stand for, by the package ``gguf``; losses and
activations are llama.cpp's own (:mod:`invarlock.formats.gguf.llama_cpp`), which also quantizes what
it multiplies them with. The embedded model comes as a GGUF file in a package, and is converted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from invarlock.errors import InputError
from invarlock.formats.gguf.architectures import architecture_of
from invarlock.formats.gguf.conversion import convert, converted_bytes, write_llama_files
from invarlock.formats.gguf.reading import Gguf, Stored, model_files
from invarlock.formats.gguf.scales import SCALES, scales_of
from invarlock.formats.gguf.small_files import write_beside
from invarlock.formats.kind import Format, Inventory, Package, PackedTensor, Tensors
from invarlock.formats.kinds.safetensors import Safetensors
from invarlock.formats.packed import elements
from invarlock.shards import DTYPES, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from invarlock.formats.execution import Engine, EngineSettings

SMALL_FILES_BYTES = 16 << 20  # bytes set aside for tokenizer and configuration of a conversion
PLAIN = {"F16": "F16", "BF16": "BF16"}  # what is not packed and keeps its type; F32 is all others'
BITS = {"TQ1_0": 1.6}  # of a value, where the name's number is another
TINY = 1e-6  # a block of weights below it may have a scale of zero: float16 has no smaller ones


class GgufFile(Format):
    """``.gguf`` files, which hold a model with its tokenizer."""

    name: ClassVar[str] = "gguf"
    order: ClassVar[int] = 90
    packed: ClassVar[bool] = True
    configured: ClassVar[bool] = False
    language_only: ClassVar[bool] = True
    title: ClassVar[str] = "GGUF"
    packages: ClassVar[tuple[Package, ...]] = (Package("llama_cpp", "gguf"),)

    def __init__(self) -> None:
        self._opened: tuple[Path, Gguf] | None = None
        self._fused = False  # whether the baseline has those of all experts as one tensor

    def files(self, names: Collection[str]) -> set[str]:
        return model_files(names)

    def beside(self, source: Path, baseline: Path | None) -> Format:
        """A format that keeps what it opened: to read the metadata takes seconds."""
        return GgufFile()

    def small_files(self, source: Path, baseline: Path | None, folder: Path) -> None:
        gguf = self._open(source)
        known = architecture_of(gguf)
        if baseline is not None and known.fused:
            self._fused = _has(baseline, {name for name, _ in known.fused.values()})
        if baseline is None:
            write_llama_files(gguf, folder)
        elif (baseline / "config.json").is_file():
            write_beside(gguf, baseline, folder)
        else:
            with TemporaryDirectory(prefix="invarlock-") as place:
                write_llama_files(Gguf(baseline), Path(place))
                write_beside(gguf, Path(place), folder)

    def inventory(self, folder: Path) -> Inventory:
        gguf = self._open(folder)
        known = architecture_of(gguf)
        tensors: dict[str, TensorInfo] = {}
        packed: dict[str, PackedTensor] = {}
        for name, parts in known.tensors_of(gguf, self._fused):
            first, names = parts[0], tuple(part.name for part in parts)
            if name in packed:
                raise InputError(
                    f"{packed[name].parts[0]} and {first.name} are both {name}",
                    where=str(first.path),
                )
            known.order_of(gguf, first.name, first.shape)  # refused now, if ever
            kinds = list(dict.fromkeys(part.kind for part in parts))
            dtype = PLAIN.get(first.kind, "F32") if len(kinds) == 1 else "F32"
            shape = _joined(parts)
            size = DTYPES[dtype][0] * elements(shape)
            tensors[name] = Unpacked(name, dtype, shape, first.path.name, 0, size, parts)
            packed[name] = PackedTensor(
                name=name,
                dtype=dtype,
                shape=shape,
                parts=names,
                scheme=" and ".join(kinds),
                bits=max(map(bits_of, kinds)),
                stored_bytes=sum(part.nbytes for part in parts),
            )
        files = tuple(path.name for path in gguf.paths)
        return Inventory(dict(sorted(tensors.items())), files, {}, dict(sorted(packed.items())))

    def chunks(self, folder: Path, info: TensorInfo, size: int) -> Iterator[memoryview]:
        if not isinstance(info, Unpacked):
            raise InputError(f"no tensor {info.name} in the GGUF model", where=str(folder))
        gguf = self._open(folder)
        held = bytearray()
        left = info.end - info.begin
        for values in self._values(gguf, info.parts):
            held += _stored_as(values, info.dtype).tobytes()
            while len(held) >= size or len(held) >= left > 0:
                taken = bytearray(held[: min(size, left)])
                del held[: len(taken)]
                left -= len(taken)
                yield memoryview(taken)
            if left <= 0:
                return

    def _values(self, gguf: Gguf, parts: Sequence[Stored]) -> Iterator[NDArray[np.float32]]:
        """The values of a tensor as transformers has them, some rows at a time."""
        known = architecture_of(gguf)
        if len(parts) > 1:  # of each expert, one part after the other
            for expert in range(parts[0].shape[0]):
                yield from (part.values(expert, 1) for part in parts)
            return
        (stored,) = parts
        order = known.order_of(gguf, stored.name, stored.shape)
        if order is not None:
            yield known.of_model(stored.name, order.of_model(stored.values()))
        elif len(stored.shape) < 2:
            yield known.of_model(stored.name, stored.values())
        else:
            step = max(1, ROWS_BYTES // (4 * max(1, elements(stored.shape[1:]))))
            for first in range(0, stored.shape[0], step):
                rows = stored.values(first, min(step, stored.shape[0] - first))
                yield known.of_model(stored.name, rows)

    def faults(self, source: Path, baseline: Tensors) -> Iterator[str]:
        """Scales that are not finite, and scales of zero where the baseline has weights."""
        import numpy as np

        gguf = self._open(source)
        known = architecture_of(gguf)
        for name, parts in known.tensors_of(gguf, self._fused):
            info, shape, first = baseline.tensors.get(name), _joined(parts), 0
            for stored in parts:
                own = slice(first, first := first + stored.shape[-2]) if len(parts) > 1 else None
                if stored.kind not in SCALES:
                    continue
                scales = scales_of(stored.tensor)
                odd = int((~np.isfinite(scales)).any(axis=-1).sum())
                if odd:
                    blocks = scales[..., 0].size
                    yield f"{name}: {odd} of {blocks} blocks have a scale that is not finite"
                empty = (scales == 0).all(axis=-1)
                if not empty.any() or info is None or info.shape != shape:
                    continue
                empty = empty.reshape(-1, empty.shape[-1])
                weights = baseline.load(name).float().abs().numpy()
                if own is not None:
                    weights = weights[:, own]
                order = known.order_of(gguf, stored.name, stored.shape)
                weights = weights if order is None else order.as_stored(weights)
                rows = np.flatnonzero(empty.any(axis=1))
                weights = weights.reshape(len(empty), -1)[rows]
                largest = weights.reshape(len(rows), empty.shape[1], -1).max(axis=2)
                lost = int((empty[rows] & (largest > TINY)).sum())
                if lost:
                    yield (
                        f"{name}: {lost} of {empty.size} blocks have a scale of zero where the"
                        " baseline's weights are not zero"
                    )

    def engine(self, source: Path, settings: EngineSettings) -> Engine:
        from invarlock.formats.gguf.llama_cpp import LlamaCpp

        return LlamaCpp(self._open(source), settings)

    def convert(self, paths: Mapping[str, Path], folder: Path) -> None:
        for path in paths.values():
            convert(path, folder)

    def converted_bytes(self, paths: Mapping[str, Path], stored: int) -> int:
        return sum(converted_bytes(Gguf(path)) for path in paths.values()) + SMALL_FILES_BYTES

    def _open(self, source: Path) -> Gguf:
        if self._opened is None or self._opened[0] != source:
            self._opened = source, Gguf(source)
        return self._opened[1]


ROWS_BYTES = 64 << 20  # of float32 that are unpacked at a time


@dataclass(frozen=True)
class Unpacked(TensorInfo):
    """A tensor whose values are made: ``begin`` and ``end`` count their bytes."""

    parts: tuple[Stored, ...]


def _joined(parts: Sequence[Stored]) -> tuple[int, ...]:
    """The shape of what parts are together, along their second dimension.

    Raises:
        InputError: they are no stacks of matrices with as many columns.
    """
    shapes = [part.shape for part in parts]
    if len(shapes) == 1:
        return shapes[0]
    if any(len(shape) != 3 for shape in shapes) or len({(s[0], s[2]) for s in shapes}) > 1:
        raise InputError(
            f"tensors {', '.join(part.name for part in parts)} do not belong together",
            where=str(parts[0].path), found="; ".join(str(list(shape)) for shape in shapes),
        )  # fmt: skip
    return shapes[0][0], sum(shape[1] for shape in shapes), shapes[0][2]


def _has(folder: Path, ends: Collection[str]) -> bool:
    """Whether a folder of safetensors holds a tensor whose name ends with one of these."""
    form = Safetensors()
    if not folder.is_dir() or not form.files([path.name for path in folder.iterdir()]):
        return False
    return any(name.endswith(tuple(ends)) for name in form.inventory(folder).tensors)


def bits_of(kind: str) -> float:
    """Bits of one value of a type of GGUF, without its scales."""
    number = re.search(r"\d+", kind)
    return BITS.get(kind, float(number[0]) if number else 0.0)


def _stored_as(values: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """Values that a type holds exactly, in that type."""
    import numpy as np

    if dtype == "F16":
        return values.astype("<f2")
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4") >> np.uint32(16)
        return bits.astype("<u2")
    return np.ascontiguousarray(values, dtype="<f4")
