"""Labelled records: a prompt with its right answer, as text and as tokens.

A line of JSON is one of two kinds: ``{"prompt", "answer"}``, judged by exact match, or
``{"prompt", "choices", "answer"}``, where ``answer`` is the right choice or its index. Prompt and
answers are encoded on their own, so that the prompt's tokens are the same for every choice; a
blank between them belongs to whichever holds it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from invarlock.errors import InputError

if TYPE_CHECKING:
    from invarlock.documents.windows import Record

TEXT = "text"  # kind of windows that are cut from documents; any other is a metric's own
Encode = Callable[[str], Sequence[int]]


class LabelledRecord(Struct, frozen=True):
    """A record as text; ``where`` is its file and line."""

    prompt: str
    answers: tuple[str, ...]  # one: to be matched exactly; several: the choices
    label: int  # index of the right answer
    record: str
    cluster: str
    where: str


def parse_record(value: object, where: str, number: int) -> LabelledRecord:
    """A record from one decoded JSON line; ``number`` names it where it has no ``id``.

    Raises:
        InputError: no prompt, no answer (an unlabelled record), or an answer that is no choice.
    """
    if not isinstance(value, dict):
        raise InputError("a record is not an object", where=where)
    prompt, answer, choices = (value.get(key) for key in ("prompt", "answer", "choices"))
    if not isinstance(prompt, str) or not prompt:
        raise InputError("a record without a prompt", where=where, expected="a text in prompt")
    if answer is None:
        raise InputError(
            "an unlabelled record", where=where, expected="answer", hint="label or remove it"
        )
    answers: tuple[str, ...]
    if choices is None:
        if not isinstance(answer, str) or not answer:
            raise InputError("the answer is not a text", where=where, found=repr(answer))
        answers, label = (answer,), 0
    else:
        answers = _choices(choices, where)
        label = _label(answer, answers, where)
    name = str(value.get("id", number))
    cluster = str(value.get("cluster", f"record-{name}"))
    return LabelledRecord(prompt, answers, label, name, cluster, where)


def _choices(choices: object, where: str) -> tuple[str, ...]:
    texts = choices if isinstance(choices, list) else []
    if len(texts) < 2 or not all(isinstance(t, str) and t for t in texts):
        raise InputError("choices are not two texts or more", where=where)
    if len(set(texts)) != len(texts):
        raise InputError("a choice is given twice", where=where)
    return tuple(texts)


def _label(answer: object, choices: tuple[str, ...], where: str) -> int:
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if type(answer) is int and 0 <= answer < len(choices):
        return answer
    raise InputError(
        "the answer is none of the choices",
        where=where,
        expected=f"a choice or its index, 0 to {len(choices) - 1}",
        found=repr(answer),
    )


def record_id(prompt: Sequence[int], answers: Sequence[Sequence[int]], label: int) -> str:
    """First 16 hex digits of SHA-256 over uint32s: label, then each sequence after its length."""
    numbers = [label]
    for sequence in (prompt, *answers):
        numbers += [len(sequence), *sequence]
    return hashlib.sha256(struct.pack(f"<{len(numbers)}I", *numbers)).hexdigest()[:16]


def encode_record(
    labelled: LabelledRecord, encode: Encode, longest: int, head: tuple[int, ...] = ()
) -> Record:
    """The record's tokens; ``head`` stands before those of the prompt.

    Raises:
        InputError: a prompt or answer without a token, choices of equal tokens, or a sequence of
            more than ``longest`` tokens.
    """
    from invarlock.documents.windows import Record  # the verifier, which has none, saves its time

    text = tuple(encode(labelled.prompt))
    prompt = (*head, *text)
    answers = tuple(tuple(encode(text)) for text in labelled.answers)
    if not text or not all(answers):
        raise InputError("a prompt or answer without a token", where=labelled.where)
    if len(set(answers)) != len(answers):
        raise InputError("choices that have the same tokens", where=labelled.where)
    found = Record(
        record_id(prompt, answers, labelled.label),
        labelled.cluster,
        labelled.record,
        prompt,
        answers,
        labelled.label,
    )
    if found.length > longest:
        raise InputError(
            "a record is too long",
            where=labelled.where,
            expected=f"at most {longest} tokens (windows.seq_len)",
            found=str(found.length),
            hint="raise windows.seq_len or shorten the record",
        )
    return found


def check_record(record: Record, where: str) -> None:
    """Refuse a record of ``windows.json`` that contradicts itself.

    Raises:
        InputError: the id is not that of the tokens, or the label names no answer.
    """
    if record.label >= len(record.answers):
        raise InputError("the label names no answer", where=where)
    if record_id(record.prompt, record.answers, record.label) != record.window_id:
        raise InputError("the window_id does not fit the tokens", where=where)
