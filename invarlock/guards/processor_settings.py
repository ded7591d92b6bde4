"""Settings of what turns pictures into a model's input, wherever a library keeps them.

transformers 5 writes those of each part into the one file of the whole; before, each had its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from invarlock.differences import short
from invarlock.effective_config import code_of
from invarlock.files import read_json_object
from invarlock.guards.findings import Failure

ACCEPT, TYPE = "processor_config", "processor_config_changed"
LONGEST = 400  # characters of a message
WHOLE = "processor_config.json"
# A part of the whole -> the file of its own that it may have.
PARTS = {
    "image_processor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}
# Names, versions, and where and how a library computes.
IGNORED = frozenset(
    {
        "processor_class", "_processor_class", "transformers_version", "feature_extractor_type",
        "device", "return_tensors", "data_format", "input_data_format", "disable_grouping",
    }
)  # fmt: skip
KINDS = ("Fast", "Pil")  # ends of names of classes that compute the same
Settings = Mapping[str, Any]


def check_processor(baseline: Path, subject: Path) -> Iterator[Failure]:
    """How the processors of two checkpoint folders differ."""
    before, after = settings(baseline), settings(subject)
    changed = {n: (v, after[n]) for n, v in before.items() if n in after and v != after[n]}
    lost = {name: value for name, value in before.items() if name not in after}
    new = sorted(after.keys() - before.keys())
    if code := [name for name in new if name.endswith("auto_map")]:
        yield _fatal(f"processor settings name code: {short(after[code[0]])}", "remote_code")
    new = [name for name in new if name not in code]
    told = [f"{name} was {short(was)}, is {short(now)}" for name, (was, now) in changed.items()]
    if lost and not after and not _sees(baseline):
        yield _note("processor settings are lost, which a model for text does not need")
    elif lost:
        told.append(f"lost: {', '.join(lost)}")
    # another layout of files, or kind of class, spells out more of the same
    if new and _spelling(baseline) == _spelling(subject):
        told.append(f"new: {', '.join(new)}")
    elif new:
        yield _note(f"processor settings are new: {', '.join(new)}")
    if told:
        yield _fatal(f"processor settings: {'; '.join(told)}")
    known = dict(_contradictions(baseline))
    for part, text in _contradictions(subject):
        if known.get(part) != text:
            yield _fatal(text)


def settings(folder: Path) -> dict[str, Any]:
    """Every setting by its name, those of a part with the part's before it."""
    whole = _read(folder / WHOLE)
    found = {name: value for name, value in whole.items() if name not in PARTS}
    for part, stated in _parts(folder).items():
        found |= {f"{part}.{name}": value for name, value in stated.items()}
    plain = {name: _plain(name.rpartition(".")[2], value) for name, value in found.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _spelling(folder: Path) -> list[object]:
    """Where each part is kept, and by which class."""
    whole = _read(folder / WHOLE)
    return [
        (part in whole, bool(stated), stated.get(f"{part}_type"))
        for part, stated in _parts(folder).items()
    ]


def _parts(folder: Path) -> dict[str, Settings]:
    """What is stated of each part; the file of the whole is read first."""
    whole = _read(folder / WHOLE)
    return {
        part: inside if isinstance(inside := whole.get(part), Mapping) else _read(folder / file)
        for part, file in PARTS.items()
    }


def _contradictions(folder: Path) -> Iterator[tuple[str, str]]:
    """Parts that both files state, and not alike: libraries differ in which they read."""
    whole = _read(folder / WHOLE)
    for part, file in PARTS.items():
        inside, own = whole.get(part), _read(folder / file)
        if not isinstance(inside, Mapping) or not own:
            continue
        for name in sorted(inside.keys() & own.keys()):
            one, other = (_plain(name, side[name]) for side in (inside, own))
            if one != other:
                said = f"{name} is {short(one)} in {WHOLE}, {short(other)} in {file}"
                yield part, f"two settings of a processor contradict each other: {said}"
                break


def _plain(name: str, value: Any) -> Any:
    if name in IGNORED:
        return None
    if name == "auto_map":
        return code_of({name: value})
    if name.endswith("_type") and isinstance(value, str):
        return next((value.removesuffix(k) for k in KINDS if value.endswith(k)), value)
    return value


def _sees(folder: Path) -> bool:
    return isinstance(_read(folder / "config.json").get("vision_config"), Mapping)


def _read(path: Path) -> Settings:
    return read_json_object(path) if path.is_file() else {}


def _note(message: str) -> Failure:
    return {"type": TYPE, "severity": "warning", "message": message[:LONGEST]}


def _fatal(message: str, accept: str = ACCEPT) -> Failure:
    return {"type": TYPE, "severity": "fatal", "message": message[:LONGEST], "accept": accept}
