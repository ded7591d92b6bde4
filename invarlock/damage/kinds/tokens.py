"""Damage to what stands for tokens: embedding, head and tokenizer."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.damage.kind import Damage, matrices_changed
from invarlock.damage.targets import required_architecture, vocabulary_tensors
from invarlock.edits.stream import CheckpointChange, NewTensor
from invarlock.errors import ConfigError, InputError
from invarlock.files import read_json_object
from invarlock.roles import Role, is_tied, role_of
from invarlock.shards import DTYPES

if TYPE_CHECKING:
    import torch

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class ShapeMismatch(Damage):
    """Token embedding and head grow by zero rows, which vocab_size does not say.

    With the size raised it would be a vocabulary padded with rows that no token reads, which many
    tools do and which changes nothing.
    """

    error_type: ClassVar[str] = "shape_mismatch"
    extra_rows: int = 8

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        replaced = {}
        for info in vocabulary_tensors(baseline):
            zeros = bytes(self.extra_rows * info.numel // info.shape[0] * DTYPES[info.dtype][0])
            shape = (info.shape[0] + self.extra_rows, *info.shape[1:])
            replaced[info.name] = NewTensor(
                info.dtype, shape, partial(_padded, baseline, info.name, zeros)
            )
        return CheckpointChange(replaced)


def _padded(source: Checkpoint, name: str, zeros: bytes) -> Iterable[bytes | memoryview]:
    """A tensor's bytes followed by ``zeros``."""
    return itertools.chain(source.chunks(name), [zeros])


@dataclass(frozen=True)
class WeightTyingBreak(Damage):
    """A tied head becomes a tensor of its own, each row the next token's; an untied one is tied.

    A head of its own with the embedding's bytes would be the same model.
    """

    error_type: ClassVar[str] = "weight_tying_break"

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        head = required_architecture(baseline).head
        embedding = next(
            info
            for info in vocabulary_tensors(baseline)
            if role_of(info.name, baseline.config) is Role.EMBED
        )
        config = {**baseline.config, "tie_word_embeddings": not is_tied(baseline.config)}
        if is_tied(baseline.config):
            clone = NewTensor(
                embedding.dtype, embedding.shape, lambda: _one_row_on(baseline, embedding)
            )
            if head in baseline.tensors:
                return CheckpointChange({head: clone}, config=config)
            return CheckpointChange(added={head: (embedding.file, clone)}, config=config)
        if head not in baseline.tensors:
            raise InputError(
                f"no tensor {head}, though the configuration says it is not tied",
                where=str(baseline.folder),
            )
        return CheckpointChange(dropped=frozenset({head}), config=config)


def _one_row_on(baseline: Checkpoint, table: TensorInfo) -> Iterator[bytes]:
    """The bytes of a matrix whose first row has become its last."""
    size, first = table.nbytes // table.shape[0], b""
    for chunk in baseline.chunks(table.name):
        data = bytes(chunk)
        lacking = size - len(first)
        first, data = first + data[:lacking], data[lacking:]
        if data:
            yield data
    yield first


@dataclass(frozen=True)
class TokenRowsExchanged(Damage):
    """Rows of the token embedding (and of a head that is stored) change places in one ring.

    ``fraction`` of all rows, drawn from the upper nine tenths of the ids: the special and most
    frequent tokens stay.
    """

    error_type: ClassVar[str] = "token_rows_exchanged"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "fraction": (0.0, 0.9),
        "seed": (0, 2**32),
    }
    fraction: float = 0.1
    seed: int = 42

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        tables = [info for info in vocabulary_tensors(baseline) if len(info.shape) == 2]
        rows = self._drawn(tables[0].shape[0])

        def exchange(matrix: torch.Tensor) -> None:
            """Each of the rows gets what stood in the one before it, the first the last's."""
            matrix[rows] = matrix[rows.roll(1)]

        return CheckpointChange({t.name: matrices_changed(baseline, t, exchange) for t in tables})

    def _drawn(self, rows: int) -> torch.Tensor:
        """Ids from the upper nine tenths of ``rows``, two at least."""
        import torch

        first = rows // 10
        generator = torch.Generator().manual_seed(self.seed)
        count = max(2, int(rows * self.fraction))
        return torch.randperm(rows - first, generator=generator)[:count] + first


@dataclass(frozen=True)
class TokenizerSwap(Damage):
    """Two tokens exchange their ids in tokenizer.json; the weights stay.

    Defaults: the two middle ids (-1) that belong to no added token.
    """

    error_type: ClassVar[str] = "tokenizer_swap"
    places: ClassVar[Mapping[str, str]] = {"first": "an id", "second": "another id"}
    first: int = -1
    second: int = -1

    def check(self, baseline: Checkpoint) -> Self:
        required_architecture(baseline)
        ids = sorted(_ordinary_ids(baseline))
        given = [i for i in (self.first, self.second) if i >= 0]
        for wrong in [i for i in given if i not in ids]:
            raise ConfigError(
                f"id {wrong} cannot be exchanged",
                where=str(baseline.folder / TOKENIZER),
                expected="an id of the vocabulary that belongs to no added and no unknown token",
            )
        middle = ids[len(ids) // 2 - 1 :]
        free = iter([i for i in middle if i not in given])
        first, second = (next(free, -1) if i < 0 else i for i in (self.first, self.second))
        if first == second or -1 in (first, second):
            raise ConfigError(
                "no two ids to exchange", where=str(baseline.folder / TOKENIZER), expected="two ids"
            )
        return dataclasses.replace(self, first=first, second=second)

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        document, vocabulary = _vocabulary(baseline)
        first, second = self.first, self.second
        if isinstance(vocabulary, dict):
            other = {first: second, second: first}
            document["model"]["vocab"] = {t: other.get(i, i) for t, i in vocabulary.items()}
        else:  # an id is a place in the list
            vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        content: Callable[[], Iterable[bytes]] = lambda: [text.encode()]  # noqa: E731
        return CheckpointChange(files={TOKENIZER: content})


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
