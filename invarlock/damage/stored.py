"""Damage to what is stored: a shard of another revision, a shard cut short, exchanged token ids."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from invarlock.checkpoints import READ_CHUNK, Checkpoint, TensorInfo
from invarlock.contracts import short
from invarlock.damage.specs import StaleShard, TokenizerSwap, TruncatedShard
from invarlock.damage.targets import layer_count, required_architecture
from invarlock.edits.apply import tensor_seed
from invarlock.edits.blocks import BLOCK_ELEMENTS
from invarlock.edits.stream import Change, NewTensor
from invarlock.errors import ConfigError, InputError
from invarlock.files import read_json_object, unreadable
from invarlock.roles import Role, layer_of, role_of
from invarlock.shards import DTYPES, FLOAT_DTYPES

TOKENIZER = "tokenizer.json"
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


# --- a shard of another revision -----------------------------------------------------------


def stale_shard(baseline: Checkpoint, damage: StaleShard, seed: int) -> Change:
    """The shard's tensors as the donor holds them, or as they were before training.

    Raises:
        ConfigError: the shard holds nothing that training changes.
        InputError: the donor cannot be read or is of another shape, or config.json's
            initializer_range is no number.
    """
    hit = [info for info in baseline.tensors.values() if info.file == damage.shard]
    if len(baseline.shards) == 1:
        layers = layer_count(baseline)
        first = layers - math.ceil(layers * damage.fraction)
        hit = [i for i in hit if (layer := layer_of(i.name)) is not None and layer >= first]
    if damage.donor:
        donor = Checkpoint.open(damage.donor)
        return Change({info.name: _donated(donor, info) for info in hit})
    std = _initializer_range(baseline)
    replaced = {
        info.name: _untrained(info, role_of(info.name, baseline.config), std, seed)
        for info in hit
        if info.dtype in FLOAT_DTYPES and role_of(info.name, baseline.config) is not Role.OTHER
    }
    if not replaced:
        raise ConfigError(
            f"{damage.error_type} finds no weight in {damage.shard}", where=str(baseline.folder)
        )
    return Change(replaced)


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


# --- a shard cut short ---------------------------------------------------------------------


def truncated_shard(baseline: Checkpoint, damage: TruncatedShard) -> Change:
    """The shard without its last bytes.

    Raises:
        ConfigError: nothing would be left of it.
    """
    path = baseline.folder / damage.shard
    left = path.stat().st_size - damage.missing_bytes
    if left < 1:
        raise ConfigError(
            f"{damage.missing_bytes} bytes cannot be missing from {damage.shard}",
            where=str(baseline.folder),
            expected=f"at most {path.stat().st_size - 1}",
        )
    cut = [i.name for i in baseline.tensors.values() if i.file == damage.shard and i.end > left]
    return Change(files={damage.shard: partial(_head, path, left)}, cut=frozenset(cut))


def _head(path: Path, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of a file."""
    try:
        with open(path, "rb") as handle:
            for start in range(0, size, READ_CHUNK):
                yield handle.read(min(READ_CHUNK, size - start))
    except OSError as error:
        raise unreadable(path, error) from error


# --- exchanged token ids -------------------------------------------------------------------


def settle_ids(baseline: Checkpoint, damage: TokenizerSwap) -> TokenizerSwap:
    """The injector with both ids named.

    Raises:
        ConfigError: no tokenizer.json, or an id that it does not hold or that is special.
        InputError: a tokenizer of unknown form, or no role table for the architecture.
    """
    required_architecture(baseline)
    ids = sorted(_ordinary_ids(baseline))
    given = [i for i in (damage.first, damage.second) if i >= 0]
    for wrong in [i for i in given if i not in ids]:
        raise ConfigError(
            f"id {wrong} cannot be exchanged",
            where=str(baseline.folder / TOKENIZER),
            expected="an id of the vocabulary that belongs to no added and no unknown token",
        )
    middle = ids[len(ids) // 2 - 1 :]
    free = iter([i for i in middle if i not in given])
    first, second = (next(free, -1) if i < 0 else i for i in (damage.first, damage.second))
    if first == second or -1 in (first, second):
        raise ConfigError(
            "no two ids to exchange", where=str(baseline.folder / TOKENIZER), expected="two ids"
        )
    return TokenizerSwap(first, second)


def swapped_ids(baseline: Checkpoint, damage: TokenizerSwap) -> Change:
    """``tokenizer.json`` with the two ids exchanged, settled before."""
    document, vocabulary = _vocabulary(baseline)
    first, second = damage.first, damage.second
    if isinstance(vocabulary, dict):
        other = {first: second, second: first}
        document["model"]["vocab"] = {t: other.get(i, i) for t, i in vocabulary.items()}
    else:  # an id is a place in the list
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    content: Callable[[], Iterable[bytes]] = lambda: [text.encode()]  # noqa: E731
    return Change(files={TOKENIZER: content})


def _vocabulary(baseline: Checkpoint) -> tuple[dict[str, Any], dict[str, int] | list[Any]]:
    """The tokenizer's document, and its token -> id map or (Unigram) list of pieces."""
    path = baseline.folder / TOKENIZER
    if not path.is_file():
        raise ConfigError(f"the checkpoint has no {TOKENIZER}", where=str(baseline.folder))
    document = read_json_object(path)
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and all(type(i) is int for i in vocabulary.values()):
        return document, vocabulary
    if isinstance(vocabulary, list):
        return document, vocabulary
    raise InputError("/model/vocab is neither a map to ids nor a list of pieces", where=str(path))


def _ordinary_ids(baseline: Checkpoint) -> set[int]:
    """The ids of the vocabulary without those of added and unknown tokens."""
    document, vocabulary = _vocabulary(baseline)
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    model, added = document["model"], document.get("added_tokens") or []
    special = {token.get("id") for token in added if isinstance(token, dict)}
    special.add(model.get("unk_id"))
    if isinstance(vocabulary, dict):
        special.add(vocabulary.get(model.get("unk_token")))
    return set(ids) - special
