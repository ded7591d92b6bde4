"""What ships beside the weights, compared by meaning: no window shows it, and users meet it first.

A model can predict every token as before and still be broken for whoever serves it: its chat
template is gone, it never stops, a begin-of-text token is added. Such a difference blocks, unless
the user accepts it by the name of its kind (``invarlock.shipped_files.SHIPPED``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from invarlock import tokenizer_meaning
from invarlock.errors import InputError
from invarlock.files import parse_json, read_bytes, read_json_object
from invarlock.formats.kind import SINGLE_NAME
from invarlock.guards.chat_templates import check_templates
from invarlock.guards.findings import Failure
from invarlock.guards.generation_settings import check_generation
from invarlock.guards.processor_settings import check_processor
from invarlock.guards.tokenizer_settings import check_tokenizer, resolve, special_tokens
from invarlock.shipped_files import (
    file_digests,
    is_unread,
    kind_of,
    names_in,
    shipped_files,
)
from invarlock.shown import listed

# Where one side lacks a file of this kind, another file says the same, or no loader of the other
# side needs it: what is missing shows in what the loader resolves.
OPTIONAL = ("tokenizer_files",)
MERGES = "merges.txt"
VOCABULARY = (MERGES, "vocab.json")  # which say what the newer file of a tokenizer does
BY_MEANING = (
    "chat_template", "generation_config", "tokenizer_config", "special_tokens", "processor_config",
)  # fmt: skip
WEIGHTS = (".safetensors", ".safetensors.index.json")
# Files that some loader takes for a model's weights; those of the subject's format are read.
OTHER_WEIGHTS = (".safetensors", ".bin", ".pth", ".gguf")
OWN = ("config.json", "tokenizer.json")  # compared by the other invariants


@dataclass(frozen=True)
class _Sides:
    baseline: Path
    subject: Path
    before: Mapping[str, str]  # digests of the shipped files
    after: Mapping[str, str]

    def differ(self, *kinds: str) -> bool:
        """Whether any file of these kinds is not the same on both sides, byte for byte."""
        names = {n for n in (*self.before, *self.after) if kind_of(n) in kinds}
        return any(self.before.get(n) != self.after.get(n) for n in names)


def check_shipped(
    baseline: Path, subject: Path, read: Collection[str] = (SINGLE_NAME,), whole: bool = True
) -> list[Failure]:
    """How the shipped files of two checkpoint folders differ; nothing for equal bytes.

    ``read``: files of the subject that its format reads, and that are compared as weights.
    ``whole``: whether the subject's folder is what was named, and no view that its format made.

    Raises:
        InputError: the system refuses to read a file.
    """
    sides = _Sides(baseline, subject, file_digests(baseline), file_digests(subject))
    garbled = dict(_unreadable(subject)), dict(_unreadable(baseline))
    found: list[Failure] = []
    for whose, files in zip(("", "the baseline's "), garbled, strict=True):
        for name, why in files.items():
            if sides.before.get(name) != sides.after.get(name):
                message = f"{whose}{name} cannot be read: {why}"
                found.append(_fatal("unreadable_file", message, str(kind_of(name))))
    broken = {*garbled[0], *garbled[1]}
    return [
        *found,
        *_by_meaning(sides, broken),
        *_other_files(sides, broken),
        *_beside(sides, read, whole),
    ]


def _by_meaning(sides: _Sides, broken: Collection[str]) -> Iterator[Failure]:
    """Settings and templates; what a garbled file stands beside cannot be resolved either."""
    kinds = {kind_of(name) for name in broken}
    if "generation_config" not in kinds and sides.differ("generation_config"):
        yield from check_generation(sides.baseline, sides.subject)
    if "processor_config" not in kinds and sides.differ("processor_config"):
        yield from check_processor(sides.baseline, sides.subject)
    settings = "tokenizer_config", "special_tokens"
    if kinds & {*settings, "chat_template"} or not sides.differ(*settings, "chat_template"):
        return
    old = new = resolve(sides.baseline)
    if sides.differ(*settings):
        new = resolve(sides.subject)
        yield from check_tokenizer((sides.baseline, old), (sides.subject, new))
    tokens = special_tokens(sides.baseline, old), special_tokens(sides.subject, new)
    yield from check_templates(sides.baseline, sides.subject, tokens)


def _unreadable(folder: Path) -> Iterator[tuple[str, str]]:
    """The shipped files that are empty or not what their names say, with the reason."""
    for name, path in shipped_files(folder).items():
        try:
            data = read_bytes(path)
            if not data.strip() and kind_of(name) != "remote_code":
                yield name, "it is empty"
            elif kind_of(name) in BY_MEANING and name.endswith(".json"):
                read_json_object(path)
            elif name.endswith(".json"):
                parse_json(data, name)
            elif name.endswith((".jinja", ".txt", ".py")):
                data.decode()
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise
            yield name, error.what
        except UnicodeDecodeError:
            yield name, "it is not UTF-8"


def _other_files(sides: _Sides, broken: Collection[str]) -> Iterator[Failure]:
    """Vocabularies and code: by content, JSON without regard to its layout."""
    for name in sorted({*sides.before, *sides.after} - {*broken}):
        kind = kind_of(name)
        before, after = sides.before.get(name), sides.after.get(name)
        if kind in BY_MEANING or before == after or kind is None:
            continue
        if before is not None and after is not None:
            if _content(sides.baseline / name) == _content(sides.subject / name):
                continue
            what = "has another content"
        else:
            what = "is new" if before is None else "is lost"
        if before is None and (other := _other_vocabulary(sides.subject, name)):
            yield _fatal("shipped_file_changed", f"{name} is new, and {other}", kind)
        elif kind in OPTIONAL and None in (before, after):
            yield _note("shipped_file_changed", f"{name} {what}")
        else:
            yield _fatal("shipped_file_changed", f"{name} {what}", kind)


def _other_vocabulary(folder: Path, name: str) -> str:
    """What a vocabulary file that only the subject has says otherwise than its tokenizer.json:
    some loaders and converters read the file in its place."""
    whole = folder / tokenizer_meaning.NAME
    if name not in VOCABULARY or not whole.is_file():
        return ""
    if name == MERGES:
        merges = read_json_object(whole).get("model", {}).get("merges") or ()
        mine = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        # pieces may hold what else ends lines in Unicode, or is blank in it
        lines = read_bytes(folder / name).decode().replace("\r\n", "\n").split("\n")
        stated = [line for line in lines if line and not line.startswith("#version")]
        return "" if stated == mine else "has other merges than tokenizer.json"
    ids = tokenizer_meaning.read_tokenizer(whole).get_vocab(with_added_tokens=True)
    stated_ids = parse_json(read_bytes(folder / name), name)
    given = stated_ids.items() if isinstance(stated_ids, dict) else ()
    other = next((token for token, number in given if ids.get(token) != number), None)
    return "" if other is None else f"gives {other!r} another id than tokenizer.json"


def _content(path: Path) -> object:
    """What a file says: JSON as a value, lines without their ends, else the bytes."""
    data = read_bytes(path)
    if path.suffix == ".json":
        return parse_json(data, path.name)
    if path.suffix in (".txt", ".py"):
        return [line.rstrip() for line in data.rstrip().splitlines()]
    return data


def _beside(sides: _Sides, read: Collection[str], whole: bool) -> Iterator[Failure]:
    """Files that nothing here reads: weights, and what only one side has and is no leftover."""
    before, after = names_in(sides.baseline), names_in(sides.subject) - {*read}
    # those of the baseline that were copied along, too: they are not what was edited
    stray = sorted(n for n in after if n.endswith(OTHER_WEIGHTS) and not is_unread(n))
    if stray and whole:
        text = f"weights beside those that are judged, which some loaders take: {listed(stray, 5)}"
        yield _note("other_weights", text)
    for what, names in (("new", after - before), ("lost", before - after)):
        odd = sorted(
            n
            for n in names
            if kind_of(n) is None
            and not is_unread(n)
            and n not in (*OWN, *stray)
            and not n.endswith(WEIGHTS)
        )
        if odd:
            yield _note("other_files", f"files that are not compared are {what}: {listed(odd, 5)}")


def _note(kind: str, message: str) -> Failure:
    return {"type": kind, "severity": "warning", "message": message}


def _fatal(kind: str, message: str, accept: str) -> Failure:
    return {"type": kind, "severity": "fatal", "message": message, "accept": accept}
