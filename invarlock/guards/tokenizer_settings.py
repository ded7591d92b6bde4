"""Tokenizer settings and special tokens of two checkpoints, as transformers resolves them.

``tokenizer.json`` is compared by the other invariants; here is what the files beside it make of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.differences import stated
from invarlock.effective_config import code_of
from invarlock.files import read_json_object
from invarlock.guards.findings import Failure
from invarlock.guards.generation_settings import effective
from invarlock.guards.padding import predicts_the_next, read_where_it_pads
from invarlock.shown import listed
from invarlock.tokenizer_meaning import SETTINGS as FILES
from invarlock.tokenizer_meaning import new_tokens, probe_texts

NAME = FILES[0]
SETTINGS, SPECIAL = "tokenizer_config", "special_tokens"  # names to accept a difference by
RESOLVED = (
    "padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces",
    "split_special_tokens",
)  # fmt: skip
PADDING, EXTRA = "pad_token", "extra_special_tokens"
ADDED = ("add_bos_token", "add_eos_token")  # other loaders believe what the file declares
# Declared, and compared elsewhere or without meaning.
IGNORED = (
    "tokenizer_class", "backend", "is_local", "local_files_only", "name_or_path", "processor_class",
    "chat_template", "added_tokens_decoder", "auto_map", "transformers_version", "tokenizer_file",
    "vocab_file", "merges_file", "special_tokens_map_file", "additional_special_tokens",
    EXTRA, *RESOLVED, *ADDED,
)  # fmt: skip
PROBE = "The year 2024, I'm  told:\n\tnaïve café?"  # around which tokens are added
PREFIX = "add_prefix_space"
NEW_CLASS = "TokenizersBackend"  # loaders from before transformers 5 refuse it
LISTED, SHOWN = 4, 40  # tokens and characters of a text in a message


@dataclass(frozen=True)
class Resolved:
    """A tokenizer as transformers loads it."""

    settings: Mapping[str, object]
    special: Mapping[str, object]
    around: tuple[list[str], list[str]]  # tokens added before and after a text
    pieces: Mapping[str, list[str]]  # tokens of texts without them
    numbered: Mapping[str, str]  # tokens that are found in a text before it is split

    @property
    def added(self) -> frozenset[str]:
        """Their texts."""
        return frozenset(self.numbered.values())

    def apart(self, other: Resolved) -> str:
        """The first text that the two split otherwise; a token that one lacks is told by name."""
        new = self.added ^ other.added
        return next(
            (
                text
                for text, tokens in self.pieces.items()
                if other.pieces[text] != tokens and not any(token in text for token in new)
            ),
            "",
        )


Found = Resolved | str  # or why transformers does not load it


def check_tokenizer(baseline: tuple[Path, Found], subject: tuple[Path, Found]) -> Iterator[Failure]:
    """How the settings beside two tokenizers differ; of each, the folder and :func:`resolve`."""
    before, after = _declared(baseline[0]), _declared(subject[0])
    old, new = baseline[1], subject[1]
    code = code_of(after)
    if any(code_of(before).get(part) != named for part, named in code.items()):
        message = f"{NAME} names other code to run: {stated(after['auto_map'])}"
        yield {**_fatal("remote_code", message), "type": "shipped_file_changed"}
    if isinstance(old, str):
        yield from _as_declared(before, after)
        return
    if isinstance(new, str):
        yield _fatal(SETTINGS, f"transformers cannot load the tokenizer: {new}")
        return
    changed = dict(_differences(old.settings, new.settings))
    from_the_end = predicts_the_next(subject[0])
    looser = {n: both for n, both in changed.items() if _is_looser(n, *both, from_the_end)}
    changed = {name: both for name, both in changed.items() if name not in looser}
    changed |= dict(_adding((old, before), (new, after)))
    changed |= dict(_prefixing((baseline[0], before), (subject[0], after)))
    if changed:
        yield _fatal(SETTINGS, "tokenizer settings: " + _told(changed))
    elif old.around != new.around:
        yield _fatal(
            SETTINGS, f"around a text stood {_ends(old.around)}, stands {_ends(new.around)}"
        )
    if text := old.apart(new):
        told = f"{text[:SHOWN]!r} was {_parting(old, new, text)}, is {_parting(new, old, text)}"
        yield _fatal(SETTINGS, f"the settings beside tokenizer.json split a text otherwise: {told}")
    special = dict(_special(old, new, baseline[0], subject[0]))
    read = ""  # where padding is read; training tools take one, or another
    if PADDING in special:
        read = read_where_it_pads(subject[0], *special[PADDING], effective(subject[0]))
    padding = {n: v for n, v in special.items() if n == PADDING and not read}
    if meant := {n: v for n, v in special.items() if n not in padding}:
        why = f"; as padding, {read}" if PADDING in meant else ""
        yield _fatal(SPECIAL, f"special tokens: {_told(meant)}{why}")
    if padding:
        yield {
            "type": f"{SPECIAL}_changed",
            "severity": "warning",
            "message": "special tokens: " + _told(padding),
        }
    notes = dict(_differences(_others(before), _others(after)))
    classes = before.get("tokenizer_class"), after.get("tokenizer_class")
    if classes[0] != classes[1]:
        if NEW_CLASS in str(classes[1]):
            named = _told({"tokenizer_class": classes})
            yield _note(f"{named}: loaders from before transformers 5 refuse it")
        else:
            notes["tokenizer_class"] = classes
    notes |= looser
    if notes:
        yield _note(f"{NAME} is spelled otherwise: {_told(notes)}")


def check_around(folder: Path, backend: str, put: Sequence[Sequence[str]]) -> Iterator[Failure]:
    """Whether a backend puts the tokens around a text that the settings beside a tokenizer do.

    Args:
        folder: of the tokenizer.
        backend: its name.
        put: tokens before and after a text, as the backend puts them.
    """
    found, declared = resolve(folder), _declared(folder)
    if isinstance(found, str):
        return
    for name, done, own in zip(ADDED, found.around, put, strict=True):
        # where the settings say otherwise than is done, some loaders follow them
        said = declared.get(name)
        if list(own) != done and (said is None or bool(said) != bool(own)):
            where = "before" if name == ADDED[0] else "after"
            yield _fatal(
                SETTINGS,
                f"{backend} puts {' '.join(own) or 'nothing'} {where} a text, the tokenizer"
                f" {' '.join(done) or 'nothing'}",
            )


def special_tokens(folder: Path, found: Found) -> dict[str, str]:
    """The special tokens that a template may print, by name."""
    stated = _declared(folder) if isinstance(found, str) else found.special
    return {
        name: _text(value)
        for name, value in stated.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }


def resolve(folder: Path) -> Found:
    """The tokenizer of a folder as transformers loads it, or why it does not."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    library_log: Any = logging
    library_log.set_verbosity_error()
    if not (folder / "tokenizer.json").is_file():
        return "there is no tokenizer.json"
    try:
        loaded: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        with_added = loaded(PROBE).input_ids
        texts = [PROBE, *probe_texts()]
        split = loaded(texts, add_special_tokens=False).input_ids
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises nothing narrower
        return f"{type(error).__name__} {error}".splitlines()[0].replace(f"{folder}", "")[:160]
    plain = split[0]
    before = next(
        (i for i in range(len(with_added)) if with_added[i : i + len(plain)] == plain), None
    )
    around = (with_added, []) if before is None else (
        with_added[:before], with_added[before + len(plain) :]
    )  # fmt: skip
    names = loaded.convert_ids_to_tokens
    special: dict[str, object] = {
        name: sorted(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in loaded.special_tokens_map.items()
    }
    added = {f"token {number}": token for number, token in loaded.added_tokens_decoder.items()}
    special |= {name: f"{token.content} {_flags(token)}" for name, token in added.items()}
    extra = getattr(loaded, EXTRA, None)
    if isinstance(extra, list | tuple) and extra:
        special[EXTRA] = sorted(map(str, extra))
    return Resolved(
        settings={name: getattr(loaded, name, None) for name in RESOLVED},
        special=special,
        around=(names(around[0]), names(around[1])),
        pieces=dict(zip(texts, map(names, split), strict=True)),
        numbered={name: token.content for name, token in added.items()},
    )


def _flags(token: Any) -> str:
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    return "(" + ", ".join(flag for flag in flags if getattr(token, flag)) + ")"


def _declared(folder: Path) -> dict[str, Any]:
    """What the files say: the map of special tokens over the settings."""
    found: dict[str, Any] = {}
    for name in FILES:
        if (folder / name).is_file():
            found |= read_json_object(folder / name)
    return found


def _adding(
    old: tuple[Resolved, Mapping[str, Any]], new: tuple[Resolved, Mapping[str, Any]]
) -> Iterator[tuple[str, tuple[object, object]]]:
    """Whether a begin- or end-of-text token is added: as declared, else as it is done.

    A declaration that is left out is one that the tokenizer itself carries out.
    """
    for name, end in zip(ADDED, (0, 1), strict=True):
        token = name.removeprefix("add_")
        said = [declared.get(name) for _, declared in (old, new)]
        done = [r.special.get(token) in r.around[end] for r, _ in (old, new)]
        was, now = (d if s is None else bool(s) for s, d in zip(said, done, strict=True))
        left_out = said[1] is None and done[0] == done[1]  # as a loader left it when it saved
        if was != now and not left_out:
            yield name, (was, now)


def _special(
    old: Resolved, new: Resolved, baseline: Path, subject: Path
) -> Iterator[tuple[str, tuple[object, object]]]:
    """How the special tokens differ but by those that the subject's ``tokenizer.json`` has anew, or
    under another name, which are told with it."""
    changed = dict(_differences(old.special, new.special))
    differ = old.added != new.added
    added = new_tokens(baseline, subject) if differ else frozenset()
    lost = new_tokens(subject, baseline) if differ else frozenset()
    for name, (was, now) in changed.items():
        texts = old.numbered.get(name), new.numbered.get(name)
        if texts[1] in added and (texts[0] is None or texts[0] in lost):
            continue
        if name == EXTRA:
            both = [{*(side if isinstance(side, list) else ())} for side in (was, now)]
            if both[0] - lost == both[1] - added:
                continue
        yield name, (was, now)


def _parting(one: Resolved, other: Resolved, text: str) -> str:
    """The tokens around the place from which on a text is split otherwise."""
    mine, theirs = one.pieces[text], other.pieces[text]
    at = next((i for i, both in enumerate(zip(mine, theirs, strict=False)) if len({*both}) > 1), 0)
    return " ".join(mine[max(0, at - 1) : at + LISTED])[:SHOWN]


def _is_looser(name: str, was: object, now: object, from_the_end: bool) -> bool:
    """Whether no text comes out worse: several at once are padded where generation from their ends
    needs it, or texts are cut off later."""
    if name == "padding_side":
        return from_the_end and (was, now) == ("right", "left")
    if name == "model_max_length":
        return isinstance(was, int | float) and isinstance(now, int | float) and now > was
    return False


def _prefixing(
    old: tuple[Path, Mapping[str, Any]], new: tuple[Path, Mapping[str, Any]]
) -> Iterator[tuple[str, tuple[object, object]]]:
    """Whether loaders from before transformers 5 put a space before a text.

    They set a pre-tokenizer of bytes alone to what the settings say, whatever it says itself.
    """
    was, now = (bool(declared.get(PREFIX)) for _, declared in (old, new))
    if was != now:
        splits = read_json_object(new[0] / "tokenizer.json").get("pre_tokenizer")
        if isinstance(splits, Mapping) and PREFIX in splits:
            yield PREFIX, (was, now)


def _as_declared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Failure]:
    """The comparison where transformers cannot load the baseline's tokenizer either."""
    changed = dict(_differences(before, after))
    meant = {k: v for k, v in changed.items() if k not in IGNORED or k in (*RESOLVED, *ADDED)}
    for accept, rows in (
        (SPECIAL, {k: v for k, v in meant.items() if k.endswith("_token")}),
        (SETTINGS, {k: v for k, v in meant.items() if not k.endswith("_token")}),
    ):
        if rows:
            yield _fatal(accept, f"{accept.replace('_', ' ')}, as declared: {_told(rows)}")


def _others(declared: Mapping[str, Any]) -> dict[str, object]:
    return {k: v for k, v in declared.items() if k not in IGNORED and not k.endswith("_token")}


def _differences(
    before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[tuple[str, tuple[object, object]]]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield name, (before.get(name), after.get(name))


def _told(changed: Mapping[str, tuple[object, object]]) -> str:
    told = [f"{n} was {stated(was)}, is {stated(now)}" for n, (was, now) in changed.items()]
    return listed(told, 6)


def _ends(around: tuple[list[str], list[str]]) -> str:
    return f"{' '.join(around[0]) or 'nothing'} before and {' '.join(around[1]) or 'nothing'} after"


def _text(value: object) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _note(message: str) -> Failure:
    return {"type": "tokenizer_config_spelling", "severity": "warning", "message": message}


def _fatal(accept: str, message: str) -> Failure:
    return {
        "type": f"{accept}_changed",
        "severity": "fatal",
        "message": message,
        "accept": accept,
    }
