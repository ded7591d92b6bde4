"""Evaluation windows: which tokens are measured, chosen from documents by a seed.

A document is tokenized without special tokens and cut into non-overlapping windows of exactly
``seq_len`` tokens; the shorter rest is dropped, and documents are never joined. Windows whose
tokens were seen before, or are in other window files that are to be kept apart (``excluded``), are
dropped. Where the model expects a begin-of-text token, it is the first of the ``seq_len``, and
text follows. The rest are taken in adjacent pairs (2k, 2k+1), one pair a
document and pass, so that preview and final sample the same documents and as many as possible;
documents of a single window come last, and only where pairs do not suffice.
Only ``random()`` of a seeded generator is used, whose sequence Python keeps between versions.
A source of labelled records gives a window per record, as many tokens as it has; there the
begin-of-text token is the first of the prompt.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from invarlock import contracts
from invarlock.checkpoints import tokenizer_digest
from invarlock.counts import counted
from invarlock.documents.windows import Record, Slice, Window, WindowSet
from invarlock.effective_config import CONTEXT, context_of
from invarlock.errors import ConfigError, InputError
from invarlock.files import (
    canonical_json,
    digest_json,
    read_json_object,
    sha256_bytes,
    write_bytes,
)
from invarlock.records import TEXT, Encode, LabelledRecord, check_record, encode_record
from invarlock.tokenizer_meaning import read_tokenizer

if TYPE_CHECKING:
    from invarlock.pictures import Processor

SCHEMA = "invarlock/windows-v1"


@dataclass(frozen=True)
class WindowPlan:
    """How many windows of how many tokens (records: at most), and the seed of their choice.

    Raises:
        ConfigError: ``seq_len`` below 2 (nothing to predict) or an empty arm.
    """

    seq_len: int  # tokens
    preview: int  # windows
    final: int  # windows
    seed: int
    excluded: frozenset[str] = frozenset()  # ids of windows that are not to be chosen
    bos: int | None = None  # token at the head of each window; None: none

    @property
    def head(self) -> tuple[int, ...]:
        """The tokens that each window begins with."""
        return () if self.bos is None else (self.bos,)

    @property
    def stride(self) -> int:
        """Tokens of text in a window."""
        return self.seq_len - len(self.head)

    def __post_init__(self) -> None:
        for key, low in (("seq_len", 2), ("preview", 1), ("final", 1)):
            if getattr(self, key) < low:
                raise ConfigError(
                    f"windows.{key} is too small",
                    expected=f"at least {low}",
                    found=str(getattr(self, key)),
                )


def window_id(tokens: Sequence[int]) -> str:
    """First 16 hex digits of SHA-256 over the token ids as little-endian uint32."""
    return sha256_bytes(struct.pack(f"<{len(tokens)}I", *tokens))[:16]


def select_windows(
    documents: Sequence[str], encode: Encode, plan: WindowPlan
) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """Choose the (preview, final) windows; a document is encoded only when its turn comes.

    Pass p takes, of every document in seeded order, its p-th pair counted from a seeded start and
    wrapping round. The t-th pair taken gives its first window to preview when t is even, to final
    when t is odd, and its second to the other; a full arm takes no more. Where all pairs do not
    fill the arms, documents of a single window follow in the same order; the odd last window of a
    longer document stays out.

    Raises:
        InputError: the documents hold too few windows.
    """
    rng = random.Random(plan.seed)
    keys = [rng.random() for _ in documents]
    starts = [rng.random() for _ in documents]  # drawn for all: laziness changes no draw
    order = sorted(range(len(documents)), key=keys.__getitem__)
    wanted = (plan.preview, plan.final)
    arms: tuple[list[Window], list[Window]] = ([], [])
    pairs: dict[int, list[tuple[Window, Window]]] = {}
    singles: list[Window] = []  # of documents that have but one
    seen = set(plan.excluded)
    taken = 0
    for turn in itertools.count():
        before = taken
        for index in order:
            if turn == 0:
                fresh = _fresh(encode(documents[index]), index, plan, seen)
                pairs[index] = list(zip(fresh[0::2], fresh[1::2], strict=False))
                singles += fresh if len(fresh) == 1 else []
            mine = pairs[index]
            if turn >= len(mine):
                continue
            first, second = mine[(turn + int(starts[index] * len(mine))) % len(mine)]
            arm = taken % 2
            taken += 1
            for target, window in ((arm, first), (1 - arm, second)):
                if len(arms[target]) < wanted[target]:
                    arms[target].append(window)
            if all(len(arms[i]) == wanted[i] for i in (0, 1)):
                return tuple(arms[0]), tuple(arms[1])
        if taken == before:
            break
    for window in singles:  # each goes where more is missing
        lacking = [wanted[i] - len(arms[i]) for i in (0, 1)]
        if max(lacking) > 0:
            arms[lacking[1] > lacking[0]].append(window)
    if any(len(arms[i]) < wanted[i] for i in (0, 1)):
        raise _too_few(taken + len(singles) // 2, len(documents), plan)
    return tuple(arms[0]), tuple(arms[1])


def _fresh(tokens: Sequence[int], index: int, plan: WindowPlan, seen: set[str]) -> list[Window]:
    """The windows of a document that were not seen before, in order."""
    fresh: list[Window] = []
    for begin in range(0, len(tokens) - plan.stride + 1, plan.stride):
        part = (*plan.head, *tokens[begin : begin + plan.stride])
        identity = window_id(part)
        if identity not in seen:
            seen.add(identity)
            fresh.append(Window(identity, f"doc-{index}", part))
    return fresh


def _too_few(pairs: int, n_documents: int, plan: WindowPlan) -> InputError:
    return InputError(
        f"too few windows of {plan.seq_len} tokens in {counted(n_documents, 'document')}",
        expected=f"{plan.preview} for preview and {plan.final} for final",
        found=f"{pairs} for each",
        hint="lower windows.preview, windows.final or windows.seq_len, or give more text",
    )


def load_encoder(folder: Path) -> Encode:
    """An encoder from ``tokenizer.json``: no special tokens, no truncation, no padding.

    Control tokens spelled out in a text are encoded as the text they are.

    Raises:
        InputError: no tokenizer, or one that cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError("no tokenizer.json in the folder", where=str(folder))
    tokenizer = read_tokenizer(path)
    tokenizer.encode_special_tokens = True

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def make_windows(
    folder: Path,
    documents: Sequence[str],
    plan: WindowPlan,
    source: Mapping[str, Any],
    kind: str = TEXT,
) -> dict[str, Any]:
    """The document ``windows.json`` for the tokenizer, and any config, in ``folder``.

    Raises:
        InputError: too little text, an unreadable tokenizer, or tokens outside the vocabulary.
        ConfigError: windows longer than the model's context.
    """
    config = _config_for(folder, plan)
    arms = select_windows(documents, load_encoder(folder), plan)
    head = {"source": dict(source), "n_documents": len(documents), "kind": kind}
    return _document(folder, config, arms, plan, head)


@dataclass(frozen=True)
class SliceText:
    """A slice to be cut: what its windows are cut from, and how."""

    name: str
    text: str  # name of the text; slices of one text, such as a long one, share its documents
    documents: Sequence[str]
    plan: WindowPlan
    source: Mapping[str, Any]


def make_sliced_windows(
    folder: Path, slices: Sequence[SliceText], kind: str = TEXT, min_documents: int = 1
) -> dict[str, Any]:
    """The document ``windows.json`` of several slices; no window is in two of them.

    A longer window may cover shorter ones of another slice of its text: they share a cluster.

    Args:
        min_documents: of the scored windows of each of several slices; of fewer none could pass.

    Raises:
        InputError, ConfigError: as :func:`make_windows`, with the name of the slice; or one of
            several has scored windows of fewer than ``min_documents``.
    """
    encode, config = load_encoder(folder), _config_for(folder, slices[0].plan)
    arms: tuple[list[Window], list[Window]] = ([], [])
    taken = set(slices[0].plan.excluded)
    rows: list[dict[str, Any]] = []
    for one in slices:
        _config_for(folder, one.plan)
        plan = replace(one.plan, excluded=frozenset(taken))
        try:
            found = select_windows(one.documents, encode, plan)
        except InputError as error:
            raise InputError(
                f"slice {one.name}: {error.what}",
                where=str(one.source["name"]),
                expected=error.expected,
                found=error.found,
                hint=error.hint,
            ) from error
        _require_documents(one, found[1], min_documents if len(slices) > 1 else 1)
        for arm, windows in zip(arms, found, strict=True):
            arm += [Window(w.window_id, f"{one.text}/{w.cluster}", w.tokens) for w in windows]
            taken |= {w.window_id for w in windows}
        rows.append(
            {
                "name": one.name,
                "seq_len": plan.seq_len,
                "source": dict(one.source),
                "n_documents": len(one.documents),
                "counts": {"preview": plan.preview, "final": plan.final},
            }
        )
    first = slices[0]
    head = {
        "source": dict(first.source),
        "n_documents": len(first.documents),
        "kind": kind,
        "slices": rows,
    }
    return _document(folder, config, arms, first.plan, head)


def _require_documents(one: SliceText, final: Sequence[Window], least: int) -> None:
    """Refuse to measure to its end a slice that could not pass."""
    found = len({window.cluster for window in final})
    if found < least:
        raise InputError(
            f"slice {one.name}: its scored windows are of too few documents: nothing could pass",
            where=str(one.source["name"]),
            expected=f"at least {least}",
            found=str(found),
            hint="raise windows.final, or give the slice a text of more documents, or none",
        )


def divided(windows: int, parts: int) -> list[int]:
    """As equal parts as there can be, the larger first."""
    return [windows // parts + (i < windows % parts) for i in range(parts)]


def long_length(folder: Path, most: int) -> int | None:
    """Tokens of a long window: the model's context, at most ``most``, in whole steps of 64.

    Tables of positions may have some entries that no token takes (RoBERTa: 514 for 512).

    Returns:
        None where the model states no context.
    """
    path = folder / "config.json"
    config = read_json_object(path) if path.is_file() else {}
    context = context_of(config)
    return None if context is None else min(context, most) // 64 * 64


def make_record_windows(
    folder: Path,
    records: Sequence[LabelledRecord],
    plan: WindowPlan,
    source: Mapping[str, Any],
    kind: str,
    processor: Processor | None = None,
) -> dict[str, Any]:
    """The document ``windows.json`` of labelled records; equal records count once.

    Both arms are the first of an order permuted by the seed.

    Args:
        processor: of the model, where records have pictures.

    Raises:
        InputError, ConfigError: as :func:`make_windows`; a record longer than ``plan.seq_len``.
    """
    config, encode = _config_for(folder, plan), load_encoder(folder)
    encoded = [
        encode_record(record, encode, plan.seq_len, plan.head, processor) for record in records
    ]
    by_id = {record.window_id: record for record in encoded}
    distinct = [by_id[name] for name in by_id if name not in plan.excluded]
    wanted = plan.preview + plan.final
    if len(distinct) < wanted:
        raise InputError(
            "too few records",
            where=str(source["name"]),
            expected=f"{plan.preview} for preview and {plan.final} for final",
            found=f"{len(distinct)} different ones",
            hint="lower windows.preview or windows.final, or give more records",
        )
    rng = random.Random(plan.seed)
    chosen = sorted(distinct, key=lambda _: rng.random())[:wanted]
    arms = tuple(chosen[: plan.preview]), tuple(chosen[plan.preview :])
    head: dict[str, Any] = {
        "source": dict(source),
        "n_documents": len(records),
        "kind": kind,
    }
    if processor is not None:
        head["processor"] = {
            name: {"bytes": len(data), "sha256": sha256_bytes(data)}
            for name, data in processor.files().items()
        }
    return _document(folder, config, arms, plan, head)


def _config_for(folder: Path, plan: WindowPlan) -> Mapping[str, Any]:
    config = read_json_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    if error := too_long(folder, config, plan.seq_len):
        raise error
    return config


def too_long(folder: Path, config: Mapping[str, Any], seq_len: int) -> ConfigError | None:
    """The refusal of windows that are longer than the context of the model in ``folder``, whose
    configuration is given; None where they fit, or the model states no context."""
    context = context_of(config)
    if context is None or seq_len <= context:
        return None
    return ConfigError(
        "windows.seq_len is longer than the model's context",
        where=str(folder / "config.json"),
        expected=f"at most {context} ({CONTEXT[0]})",
        found=str(seq_len),
        hint="lower windows.seq_len",
    )


def _document(
    folder: Path,
    config: Mapping[str, Any],
    arms: tuple[Sequence[Window] | Sequence[Record], Sequence[Window] | Sequence[Record]],
    plan: WindowPlan,
    head: Mapping[str, Any],
) -> dict[str, Any]:
    preview, final = arms
    vocabulary = config.get("vocab_size")
    largest = max(max(window.tokens) for window in (*preview, *final))
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise InputError(
            "the tokenizer does not belong to the model",
            where=str(folder),
            expected=f"token ids below {vocabulary} (vocab_size)",
            found=str(largest),
        )
    if plan.bos is not None:
        head = {**head, "bos_token_id": plan.bos}
    if plan.excluded:
        head = {**head, "excluded": set_of_ids(plan.excluded)}
    return {
        "schema": SCHEMA,
        "seq_len": plan.seq_len,
        "stride": plan.stride,
        "seed": plan.seed,
        "tokenizer_sha256": tokenizer_digest(folder),
        "counts": {"preview": len(preview), "final": len(final)},
        **msgspec.json.decode(msgspec.json.encode({"preview": preview, "final": final})),
        **head,
    }


def set_of_ids(ids: Iterable[str]) -> dict[str, Any]:
    """Which windows, without naming them: their number, and the digest of their sorted ids."""
    names = sorted(set(ids))
    return {"windows": len(names), "ids_sha256": digest_json(names)}


def ids_of_others(paths: Sequence[Path], seq_len: int, bos: int | None = None) -> frozenset[str]:
    """The ids of all windows of other files, to be kept apart from windows of ``seq_len`` tokens.

    Of a longer window, as a slice may have them, they are also those of everything in it that is
    ``seq_len`` long, wherever it begins. What lies across its end is not known here, so that a
    window may share less than ``seq_len`` tokens with it.

    Args:
        bos: the begin-of-text token at the head of the windows; None for none.

    Raises:
        ConfigError: a file's windows have another length or head, so that equal text has another
            id.
    """
    ids: set[str] = set()
    for path in paths:
        other = read_windows(path)
        if other.kind == TEXT and other.seq_len != seq_len:
            raise ConfigError(
                "windows of another length cannot be excluded",
                where=str(path),
                expected=f"windows of {seq_len} tokens",
                found=str(other.seq_len),
                hint="use one length for windows that have to be kept apart",
            )
        if other.bos != bos:
            raise ConfigError(
                "windows of another head cannot be excluded",
                where=str(path),
                expected="no begin-of-text token" if bos is None else f"begin-of-text token {bos}",
                found=str(other.bos),
                hint="cut all windows of a model with or without it",
            )
        for window in (*other.preview, *other.final):
            ids.add(window.window_id)
            if isinstance(window, Window):
                ids |= _ids_within(window.tokens, seq_len, () if bos is None else (bos,))
    return frozenset(ids)


def _ids_within(tokens: Sequence[int], seq_len: int, head: tuple[int, ...]) -> set[str]:
    """The ids of the windows of ``seq_len`` tokens whose text is in a longer window."""
    text, stride = tokens[len(head) :], seq_len - len(head)
    begins = range(len(text) - stride + 1)
    return {window_id((*head, *text[begin : begin + stride])) for begin in begins}


def write_windows(path: Path, document: Mapping[str, Any]) -> None:
    """Check ``document`` against its contract and write it, compact (it is all numbers)."""
    contracts.validate(document, "windows", str(path))
    write_bytes(path, canonical_json(document) + b"\n")


def read_windows(path: Path, tokenizer_sha256: str | None = None) -> WindowSet:
    """Read ``windows.json`` and check every window against its id; pictures stay where they are.

    Raises:
        InputError: against its contract, a wrong length, count or id, a window given twice, or
            made with another tokenizer than ``tokenizer_sha256`` (where that is given).
    """
    document = read_json_object(path)
    contracts.validate(document, "windows", str(path))
    found: WindowSet = msgspec.convert(document, WindowSet)
    if tokenizer_sha256 not in (None, found.tokenizer_sha256):
        raise InputError(
            "the windows were made with another tokenizer than the checkpoint's",
            where=str(path),
            expected=f"tokenizer {tokenizer_sha256}",
            found=found.tokenizer_sha256,
            hint="make the windows again from the baseline's folder",
        )
    parts: Sequence[Slice | WindowSet] = [*found.of_slices] or [found]
    for arm, rows, count in (
        ("preview", found.preview, found.counts.preview),
        ("final", found.final, found.counts.final),
    ):
        lengths = [part.seq_len for part in parts for _ in range(getattr(part.counts, arm))]
        _check_arm(arm, rows, count, lengths, str(path))
    if len({part.name for part in found.of_slices}) != len(found.of_slices):
        raise InputError("two slices have one name", where=str(path))
    identities = [window.window_id for window in (*found.preview, *found.final)]
    if len(set(identities)) != len(identities):
        raise InputError("a window is given twice", where=str(path))
    return found


def _check_arm(
    arm: str, rows: Sequence[Window | Record], count: int, lengths: Sequence[int], where: str
) -> None:
    if not len(rows) == count == len(lengths):
        raise InputError(f"/{arm} does not hold the windows /counts/{arm} says", where=where)
    for number, (row, seq_len) in enumerate(zip(rows, lengths, strict=True)):
        if isinstance(row, Record):
            check_record(row, f"{where}: /{arm}/{number}")
        elif len(row.tokens) != seq_len:
            raise InputError(f"/{arm}/{number}/tokens is not seq_len long", where=where)
        elif window_id(row.tokens) != row.window_id:
            raise InputError(f"/{arm}/{number}/window_id does not fit its tokens", where=where)
