"""Whether two ``tokenizer.json`` read text the same way, whatever they spell it like.

Two files with the same content need no library. Otherwise both are read by the installed
``tokenizers``, which writes merges, defaults and absent fields in one way; what is compared is
the vocabulary, the merges, the added tokens, the normalizer, the pre-tokenizer and the decoder,
and then the ids of texts: the windows', as the baseline's tokenizer spells them, and a fixed probe.
What is added around a text is compared by its effect alone: a post-processor that adds nothing
is none.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.counts import counted
from invarlock.errors import InputError
from invarlock.files import read_bytes, read_json
from invarlock.template_files import written

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "tokenizer.json"
PROBE_FILE = Path(__file__).with_name("data") / "probe_texts.json"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")  # beside it
PARTS = ("normalizer", "pre_tokenizer", "decoder")
SHOWN = 40  # characters of a text in a message
# Names by which differences that leave the ids of every tried text alone may be accepted.
ACCEPTABLE = ("tokenizer", "added_tokens")
LISTED = 3  # tokens given in a message; the count is complete


def probe_texts() -> list[str]:
    """Scripts, digits, white space, control characters, emoji, code: what differs in use."""
    texts: list[str] = json.loads(PROBE_FILE.read_bytes())
    return texts


class Effect(Enum):
    """What a difference of the tokenizers is."""

    OTHER_IDS = "other_ids"  # a text gets other ids: the same windows would be other texts
    OTHER_FILE = "other_file"  # every text tried gets the same ids, but something else differs
    NOTE = "note"


@dataclass(frozen=True)
class TokenizerDifference:
    """One difference, in words."""

    effect: Effect
    name: str  # as accepted by name
    message: str


def differences(
    baseline: Path, subject: Path, windows: Iterable[Sequence[int]] = ()
) -> list[TokenizerDifference]:
    """How the tokenizer of the folder ``subject`` differs from that of ``baseline``, worst first.

    ``windows`` are token ids of the baseline.

    Raises:
        InputError: the baseline's cannot be read.
    """
    files = [folder / NAME for folder in (baseline, subject)]
    there = [path.is_file() for path in files]
    if there != [True, True]:
        what = "has none, the subject has" if there[1] else "has one, the subject has none"
        text = f"{NAME}: the baseline {what}"
        return [TokenizerDifference(Effect.OTHER_IDS, "tokenizer", text)] if any(there) else []
    if filecmp.cmp(files[0], files[1], shallow=False):
        return []
    documents = [read_json(path) for path in files]
    if documents[0] == documents[1]:
        return []
    mine = read_tokenizer(files[0])
    try:
        other = read_tokenizer(files[1])
    except InputError as error:
        told = InputError(error.what, where=NAME)  # no path: it is of this machine
        return [TokenizerDifference(Effect.OTHER_IDS, "tokenizer", str(told))]
    found = [*_settings(*documents)]
    stated = written(subject) + "".join(
        read_bytes(subject / name).decode(errors="replace")
        for name in SETTINGS
        if (subject / name).is_file()
    )
    renamed = {
        a: b
        for a, b in _renamed(mine, other).items()
        if a not in stated and json.dumps(a)[1:-1] not in stated
    }
    vocabulary = _vocabulary(mine, other, renamed)
    if vocabulary is not None and vocabulary.effect is Effect.OTHER_IDS:
        return [vocabulary, *found]  # whatever else differs, these are two
    found += [*([vocabulary] if vocabulary else []), *_structure(mine, other)]
    example = _first_other_ids(mine, other, windows, renamed)
    if example:
        found.append(TokenizerDifference(Effect.OTHER_IDS, "tokenizer", f"{NAME}: {example}"))
    return sorted(found, key=lambda difference: [*Effect].index(difference.effect))


def largest_id(folder: Path, without: Collection[int] = ()) -> int | None:
    """The largest id of the tokenizer in ``folder`` but for those of ``without``; None where there
    is no readable one."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        ids = read_tokenizer(path).get_vocab(with_added_tokens=True).values()
    except InputError:
        return None
    return max((index for index in ids if index not in without), default=None)


def new_tokens(baseline: Path, subject: Path) -> frozenset[str]:
    """The tokens that only the subject's tokenizer has; none where one of the two is not read."""
    try:
        before, after = (
            read_tokenizer(folder / NAME).get_vocab(with_added_tokens=True)
            for folder in (baseline, subject)
        )
    except InputError:
        return frozenset()
    return frozenset(after.keys() - before.keys())


def other_ids(
    folder: Path,
    encode: Callable[[str], Sequence[int] | None],
    windows: Iterable[Sequence[int]],
    probes: bool = False,
) -> str | None:
    """Texts of windows to which something else than the tokenizer in ``folder`` gives other ids.

    Special tokens are left out of the texts: how they are put around one is for whoever serves.

    Args:
        folder: it has a ``tokenizer.json``.
        encode: ids of a text without special ones; None where it gives none.
        windows: token ids.
        probes: whether the fixed texts are tried, too.

    Returns:
        how many there are, and where the first parts; None where every text gets the same ids.
    """
    tokenizer = read_tokenizer(folder / NAME)
    count, example = 0, ""
    texts = [tokenizer.decode(list(ids)) for ids in windows]
    if probes:  # special tokens are read as such by one, and as text by the other
        special = [each.content for each in tokenizer.get_added_tokens_decoder().values()]
        texts += [text for text in probe_texts() if not any(s in text for s in special)]
    for text, encoded in zip(
        texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        ids = encode(text)
        if ids is None:
            return None
        if list(ids) != encoded.ids:
            count += 1
            example = example or (
                f"{_around(text, encoded.ids, ids, tokenizer)} is"
                f" {_cut(encoded.ids, ids)} to {NAME} and {_cut(ids, encoded.ids)}"
            )
    return f"{count} of {counted(len(texts), 'text')}: {example}" if count else None


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``, without truncation and padding.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    from tokenizers import Tokenizer

    data = read_bytes(path)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"not a readable tokenizer: {error}", where=str(path)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[TokenizerDifference]:
    for name in ("truncation", "padding"):
        b, s = before.get(name), after.get(name)
        if b != s:
            text = f"{NAME}: {name} was {_shown(b)}, is {_shown(s)}; windows are cut without it"
            yield TokenizerDifference(Effect.NOTE, name, text)


def _vocabulary(
    mine: Tokenizer, other: Tokenizer, renamed: Mapping[str, str]
) -> TokenizerDifference | None:
    """Tokens with another id or none are other text; tokens that are only new are an addition, and
    so are reserved ones that got another name."""
    before, after = (t.get_vocab(with_added_tokens=True) for t in (mine, other))
    moved = sorted(
        (t for t in before if after.get(t) != before[t] and t not in renamed),
        key=before.__getitem__,
    )
    if moved:
        cases = [f"{t!r} was {before[t]}, is {after.get(t, 'gone')}" for t in moved[:LISTED]]
        how_many = counted(len(moved), "token has", "tokens have")
        text = f"{NAME}: {how_many} another id or none: {'; '.join(cases)}"
        return TokenizerDifference(Effect.OTHER_IDS, "tokenizer", text)
    names = {*renamed.values()}
    new = sorted((t for t in after if t not in before and t not in names), key=after.__getitem__)
    told = []
    if new:
        cases = [f"{token!r} ({after[token]})" for token in new[:LISTED]]
        told.append(f"{counted(len(new), 'token is', 'tokens are')} new: {', '.join(cases)}")
    if renamed:
        cases = [f"{t!r} is {renamed[t]!r} ({before[t]})" for t in [*renamed][:LISTED]]
        told.append(
            f"{counted(len(renamed), 'special token has', 'special tokens have')} another name:"
            f" {', '.join(cases)}"
        )
    text = f"{NAME}: {'; '.join(told)}"
    return TokenizerDifference(Effect.OTHER_FILE, "added_tokens", text) if told else None


def _renamed(mine: Tokenizer, other: Tokenizer) -> dict[str, str]:
    """The special tokens of one whose ids have special ones of other names in the other; a file
    that still writes the old name is for the caller."""
    before, after = (t.get_added_tokens_decoder() for t in (mine, other))
    known, held = (t.get_vocab(with_added_tokens=True) for t in (mine, other))
    return {
        token.content: after[number].content
        for number, token in sorted(before.items())
        if number in after
        and token.special
        and after[number].special
        and token.content not in held
        and after[number].content not in known
    }


def _structure(mine: Tokenizer, other: Tokenizer) -> Iterator[TokenizerDifference]:
    """Parts that differ in the library's own spelling of both."""
    before, after = (json.loads(tokenizer.to_str()) for tokenizer in (mine, other))
    for name in PARTS:
        b, s = (_plain(name, side.get(name)) for side in (before, after))
        if b != s:
            text = f"{NAME}: {name} was {_shown(b)}, is {_shown(s)}"
            yield TokenizerDifference(Effect.OTHER_FILE, "tokenizer", text)
    b, s = (dict(side["model"], vocab=None) for side in (before, after))
    differing = sorted(key for key in {*b, *s} if (b.get(key) or None) != (s.get(key) or None))
    for key in differing:
        values = f" was {_shown(b.get(key))}, is {_shown(s.get(key))}" if key != "merges" else ""
        text = f"{NAME}: {key} of the model{values or ' differ'}"
        yield TokenizerDifference(Effect.OTHER_FILE, "tokenizer", text)
    pieces = [side["model"]["vocab"] for side in (before, after)]
    if isinstance(pieces[0], list) and _scores(pieces[0]) != _scores(pieces[1]):
        yield TokenizerDifference(
            Effect.OTHER_FILE, "tokenizer", f"{NAME}: scores of the model differ"
        )
    b, s = ({t["content"]: t for t in side["added_tokens"]} for side in (before, after))
    changed = sorted(token for token in {*b} & {*s} if b[token] != s[token])
    changed += sorted(token for token in {*b} ^ {*s} if token in _both(mine, other))
    if changed:
        token = changed[0]
        text = f"{token!r} was {_flags(b.get(token))}, is {_flags(s.get(token))}"
        text = f"{NAME}: {len(changed)} added tokens are treated otherwise: {text}"
        yield TokenizerDifference(Effect.OTHER_FILE, "tokenizer", text)


def _scores(pieces: Sequence[tuple[str, float]]) -> dict[str, float]:
    return {piece: score for piece, score in pieces}  # noqa: C416 (lists of two from JSON)


def _both(mine: Tokenizer, other: Tokenizer) -> set[str]:
    before, after = (t.get_vocab(with_added_tokens=True) for t in (mine, other))
    return set(before) & set(after)


def _flags(token: Mapping[str, Any] | None) -> str:
    if token is None:
        return "an ordinary token"
    names = ("special", "normalized", "single_word", "lstrip", "rstrip")
    return " ".join(name for name in names if token[name]) or "without flags"


def _plain(name: str, part: Any) -> Any:
    """A part without what has no effect: a sequence of one is that one, of none is none."""
    if not isinstance(part, dict):
        return part
    kept = {key: value for key, value in part.items() if key != "trim_offsets"}  # offsets only
    if name == "decoder" and part["type"] == "ByteLevel":
        return {"type": "ByteLevel"}  # its other fields act on encoding
    inner = next((key for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
    if part["type"] != "Sequence" or inner is None:
        return kept
    parts: list[Any] = []
    for item in part[inner]:
        plain = _plain(name, item)
        if isinstance(plain, dict) and plain["type"] == "Sequence":
            parts += plain[inner]
        elif plain is not None:
            parts.append(plain)
    return parts[0] if len(parts) == 1 else {**kept, inner: parts} if parts else None


def _first_other_ids(
    mine: Tokenizer,
    other: Tokenizer,
    windows: Iterable[Sequence[int]],
    renamed: Mapping[str, str],
) -> str | None:
    """The first text that the two encode differently, with what each makes of it."""
    added = [token.content for token in mine.get_added_tokens_decoder().values()]
    added = [token for token in added if token not in renamed]
    around = [text for token in added for text in (token, f"a {token} b", f"a{token}b")]
    # texts that hold a token that is only new, or a lost name, differ by nothing else: it is told
    known = mine.get_vocab(with_added_tokens=True)
    decoder = other.get_added_tokens_decoder()
    new = [token.content for token in decoder.values() if token.content not in known]
    told = (*new, *renamed)
    probe = [text for text in probe_texts() if not any(token in text for token in told)]
    texts = [*probe, *around]
    texts += [mine.decode(list(ids), skip_special_tokens=False) for ids in windows]
    for literal in (True, False):  # control tokens in a text: as windows are cut, and as served
        for tokenizer in (mine, other):
            tokenizer.encode_special_tokens = literal
        for special in (False, True):
            pairs = [[t.encode_batch(texts, add_special_tokens=special) for t in (mine, other)]]
            if special:
                both = [(text, "b") for text in probe]
                pairs.append([t.encode_batch(both) for t in (mine, other)])
            for before, after in pairs:
                for index, (b, s) in enumerate(zip(before, after, strict=True)):
                    if b.ids != s.ids or (special and b.type_ids != s.type_ids):
                        text = _around(texts[index], b.ids, s.ids, mine)
                        if special:
                            text += " with what is added around it"
                        if b.ids == s.ids:
                            return f"{text} has other type ids in a pair of texts"
                        return f"{text} was read as {_cut(b.ids, s.ids)}, is {_cut(s.ids, b.ids)}"
    return None


def _around(text: str, before: Sequence[int], after: Sequence[int], mine: Tokenizer) -> str:
    """The part of ``text`` where the ids part."""
    if len(text) <= SHOWN:
        return repr(text)
    at = _parting(before, after)
    return repr(mine.decode(list(before[max(0, at - 2) : at + 6]), skip_special_tokens=False))


def _parting(one: Sequence[int], two: Sequence[int]) -> int:
    shorter = min(len(one), len(two))
    return next((i for i in range(shorter) if one[i] != two[i]), shorter)


def _cut(ids: Sequence[int], others: Sequence[int]) -> str:
    at = max(0, _parting(ids, others) - 2) if len(ids) > 8 else 0
    return (
        ("... " if at else "")
        + " ".join(map(str, ids[at : at + 8]))
        + (" ..." if len(ids) > at + 8 else "")
    )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, sort_keys=True)
    return text if len(text) <= 3 * SHOWN else text[: 3 * SHOWN] + "..."
