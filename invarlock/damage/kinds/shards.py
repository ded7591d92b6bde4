"""Damage to stored files: a shard of another revision, a shard cut short."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.checkpoints import READ_CHUNK, Checkpoint, TensorInfo
from invarlock.contracts import short
from invarlock.damage.kind import Damage
from invarlock.damage.targets import layer_count, required_architecture
from invarlock.edits.blocks import BLOCK_ELEMENTS
from invarlock.edits.stream import CheckpointChange, NewTensor, tensor_seed
from invarlock.errors import ConfigError, InputError
from invarlock.files import unreadable
from invarlock.roles import Role, layer_of, role_of
from invarlock.shards import DTYPES, FLOAT_DTYPES

if TYPE_CHECKING:
    import torch

INITIALIZER_RANGE = 0.02  # standard deviation, where config.json gives none


def shard_name(baseline: Checkpoint, shard: str) -> str:
    """The shard that is meant: the last one where none is named.

    Raises:
        ConfigError: no such shard.
        InputError: no role table for the architecture.
    """
    required_architecture(baseline)
    shard = shard or baseline.shards[-1]
    if shard not in baseline.shards:
        raise ConfigError(
            f"no shard {shard}",
            where=str(baseline.folder),
            expected="one of " + ", ".join(baseline.shards),
        )
    return shard


@dataclass(frozen=True)
class StaleShard(Damage):
    """One shard's tensors come from another revision of the model.

    From the checkpoint folder ``donor`` where there is one. Else from before training: matrices
    normal with the configuration's initializer_range (0.02 where it has none), norms 1, biases 0.
    ``shard`` is a file name (default: the last shard). Of a checkpoint in one file, it is the
    tensors of the last ``fraction`` of the layers.
    """

    error_type: ClassVar[str] = "stale_shard"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (0.01, 1.0)}
    shard: str = ""
    donor: str = ""
    fraction: float = 0.25

    def check(self, baseline: Checkpoint) -> Self:
        return dataclasses.replace(self, shard=shard_name(baseline, self.shard))

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        hit = [info for info in baseline.tensors.values() if info.file == self.shard]
        if len(baseline.shards) == 1:
            layers = layer_count(baseline)
            first = layers - math.ceil(layers * self.fraction)
            hit = [i for i in hit if (layer := layer_of(i.name)) is not None and layer >= first]
        if self.donor:
            donor = Checkpoint.open(self.donor)
            return CheckpointChange({info.name: _donated(donor, info) for info in hit})
        std = _initializer_range(baseline)
        replaced = {
            info.name: _untrained(info, role_of(info.name, baseline.config), std, seed)
            for info in hit
            if info.dtype in FLOAT_DTYPES and role_of(info.name, baseline.config) is not Role.OTHER
        }
        if not replaced:
            raise ConfigError(
                f"{self.error_type} finds no weight in {self.shard}", where=str(baseline.folder)
            )
        return CheckpointChange(replaced)


def _initializer_range(baseline: Checkpoint) -> float:
    """Standard deviation of new weights; ``INITIALIZER_RANGE`` where config.json has none."""
    std = baseline.config.get("initializer_range")
    if std is None:
        return INITIALIZER_RANGE
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf:
        raise InputError(
            "/initializer_range cannot be used",
            where=str(baseline.folder / "config.json"),
            expected="a number above 0, or null",
            found=short(std),
        )
    return float(std)


def _donated(donor: Checkpoint, info: TensorInfo) -> NewTensor:
    theirs = donor.info(info.name)
    if (theirs.shape, theirs.dtype) != (info.shape, info.dtype):
        raise InputError(
            f"tensor {info.name} is of another shape or type than the baseline's",
            where=str(donor.folder),
            expected=f"{info.dtype} {list(info.shape)}",
            found=f"{theirs.dtype} {list(theirs.shape)}",
        )
    return NewTensor(info.dtype, info.shape, partial(donor.chunks, info.name))


def _untrained(info: TensorInfo, role: Role, std: float, seed: int) -> NewTensor:
    """A tensor as models of this kind begin their training."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[info.dtype][1])
    bias = info.name.endswith((".bias", ".beta"))
    constant = 0.0 if bias else 1.0 if role is Role.NORM else None

    def chunks() -> Iterator[memoryview]:
        generator = torch.Generator().manual_seed(tensor_seed(seed, info.name))
        for start in range(0, info.numel, BLOCK_ELEMENTS):
            block = torch.empty(min(BLOCK_ELEMENTS, info.numel - start))
            if constant is None:
                block.normal_(0.0, std, generator=generator)
            else:
                block.fill_(constant)
            raw: memoryview = block.to(dtype).view(torch.uint8).numpy().data
            yield raw

    return NewTensor(info.dtype, info.shape, chunks)


@dataclass(frozen=True)
class TruncatedShard(Damage):
    """The last bytes of one shard are missing, so that the file cannot be read whole.

    ``shard`` is a file name (default: the last shard).
    """

    error_type: ClassVar[str] = "truncated_shard"
    shard: str = ""
    missing_bytes: int = 512

    def check(self, baseline: Checkpoint) -> Self:
        return dataclasses.replace(self, shard=shard_name(baseline, self.shard))

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        path = baseline.folder / self.shard
        left = path.stat().st_size - self.missing_bytes
        if left < 1:
            raise ConfigError(
                f"{self.missing_bytes} bytes cannot be missing from {self.shard}",
                where=str(baseline.folder),
                expected=f"at most {path.stat().st_size - 1}",
            )
        cut = [i.name for i in baseline.tensors.values() if i.file == self.shard and i.end > left]
        return CheckpointChange(files={self.shard: partial(_head, path, left)}, cut=frozenset(cut))


def _head(path: Path, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of a file."""
    try:
        with open(path, "rb") as handle:
            for start in range(0, size, READ_CHUNK):
                yield handle.read(min(READ_CHUNK, size - start))
    except OSError as error:
        raise unreadable(path, error) from error
