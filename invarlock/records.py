"""Labelled records: a prompt with its right answer, as text and as tokens.

A line of JSON is one of two kinds: ``{"prompt", "answer"}``, judged by exact match, or
``{"prompt", "choices", "answer"}``, where ``answer`` is the right choice or its index. Prompt and
answers are encoded on their own, so that the prompt's tokens are the same for every choice; a
blank between them belongs to whichever holds it. A record may have a picture: then the model's
processor says which tokens it and the prompt are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from invarlock.errors import InputError
from invarlock.files import sha256_bytes

if TYPE_CHECKING:
    from invarlock.documents.windows import PicturedRecord, Record

TEXT = "text"  # kind of windows that are cut from documents; any other is a metric's own
PICTURED = "vision_text"  # kind of windows that are records with a picture each
IMAGES = ("image", "image_path", "images")  # members that hold a picture, as people name them
Encode = Callable[[str], Sequence[int]]


class Shown(Protocol):
    """What a processor makes of a picture and the text around it."""

    @property
    def tokens(self) -> tuple[int, ...]: ...


class Processor(Protocol):
    """What puts a picture into a prompt (:mod:`invarlock.pictures`)."""

    def text(self, prompt: str, where: str) -> str: ...

    def __call__(self, text: str, data: bytes, where: str) -> Shown: ...


class LabelledRecord(Struct, frozen=True):
    """A record as text; ``where`` is its file and line."""

    prompt: str
    answers: tuple[str, ...]  # one: to be matched exactly; several: the choices
    label: int  # index of the right answer
    record: str
    cluster: str
    where: str
    picture: bytes | None = None  # the file, as it is


def parse_record(
    value: object, where: str, number: int, picture: bytes | None = None
) -> LabelledRecord:
    """A record from one decoded JSON line; ``number`` names it where it has no ``id``.

    Args:
        picture: what its picture was read as; None where none was asked for.

    Raises:
        InputError: no prompt, no answer (an unlabelled record), an answer that is no choice, or a
            picture that nobody asked for.
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
    if picture is None:
        _refuse_picture(value, where)
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
    return LabelledRecord(prompt, answers, label, name, cluster, where, picture)


def _refuse_picture(value: dict[str, object], where: str) -> None:
    """A picture that is left out would leave a question that nobody can answer."""
    found = next((name for name in IMAGES if value.get(name)), None)
    if found is not None:
        raise InputError(
            "the record has a picture, and pictures were not asked for",
            where=where,
            found=found,
            hint=f"add &image={found} to the source, or take that member out of the records",
        )


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


def record_id(
    prompt: Sequence[int], answers: Sequence[Sequence[int]], label: int, image: str = ""
) -> str:
    """First 16 hex digits of SHA-256 over uint32s: label, then each sequence after its length;
    and over the digest of a picture."""
    numbers = [label]
    for sequence in (prompt, *answers):
        numbers += [len(sequence), *sequence]
    packed = struct.pack(f"<{len(numbers)}I", *numbers)
    return sha256_bytes(packed + bytes.fromhex(image))[:16]


def encode_record(
    labelled: LabelledRecord,
    encode: Encode,
    longest: int,
    head: tuple[int, ...] = (),
    processor: Processor | None = None,
) -> Record | PicturedRecord:
    """The record's tokens; ``head`` stands before those of the prompt.

    Args:
        processor: of the model, where records have pictures.

    Raises:
        InputError: a prompt or answer without a token, choices of equal tokens, a sequence of
            more than ``longest`` tokens, or a picture that cannot be read.
    """
    # the verifier, which has none, saves its time
    from invarlock.documents.windows import PicturedRecord, Record

    shown, image, picture = "", "", labelled.picture
    if processor is None or picture is None:
        text = tuple(encode(labelled.prompt))
    else:
        shown, image = processor.text(labelled.prompt, labelled.where), sha256_bytes(picture)
        text = processor(shown, picture, labelled.where).tokens
    # a chat template may have put the token of the head there itself
    prompt = text if text[: len(head)] == head and image else (*head, *text)
    answers = tuple(tuple(encode(text)) for text in labelled.answers)
    if not text or not all(answers):
        raise InputError("a prompt or answer without a token", where=labelled.where)
    if len(set(answers)) != len(answers):
        raise InputError("choices that have the same tokens", where=labelled.where)
    fields = (
        record_id(prompt, answers, labelled.label, image),
        labelled.cluster,
        labelled.record,
        prompt,
        answers,
        labelled.label,
    )
    found = PicturedRecord(*fields, image, shown) if image else Record(*fields)
    if found.length > longest:
        raise InputError(
            "a record is too long",
            where=labelled.where,
            expected=f"at most {longest} tokens (windows.seq_len)",
            found=str(found.length),
            hint="raise windows.seq_len or shorten the record",
        )
    return found


def check_record(record: Record | PicturedRecord, where: str) -> None:
    """Refuse a record of ``windows.json`` that contradicts itself.

    Raises:
        InputError: the id is not that of the tokens, or the label names no answer.
    """
    if record.label >= len(record.answers):
        raise InputError("the label names no answer", where=where)
    image = getattr(record, "image", "")
    if record_id(record.prompt, record.answers, record.label, image) != record.window_id:
        raise InputError("the window_id does not fit the tokens", where=where)
