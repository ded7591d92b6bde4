"""What somebody says of an edit of his own: a file that names it, or the name of its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from invarlock.documents.kinds import EDITS
from invarlock.errors import ConfigError, InputError
from invarlock.files import canonical_json, parse_json, read_bytes
from invarlock.models import one_of
from invarlock.scenarios import UNCHANGED
from invarlock.written import BAD_YAML

MEMBERS = ("name", "label", "plan", "parameters")


class EditConfig(NamedTuple):
    """An edit as its file names it; everything but the label is recorded as it stands."""

    label: str
    recorded: dict[str, Any]


def read_edit_config(path: Path) -> EditConfig:
    """Read a YAML or JSON file: ``label`` (or ``name``), ``plan``, ``parameters``, bare or in
    ``edit``.

    Raises:
        InputError: unreadable.
        ConfigError: another member, or a value of another kind.
    """
    data = read_bytes(path)
    if path.suffix == ".json":
        document = parse_json(data, str(path))
    else:
        try:
            document = yaml.safe_load(data)
        except BAD_YAML as error:
            found = str(error).splitlines()[0]
            raise InputError("not YAML", where=str(path), found=found) from error
    if isinstance(document, Mapping) and list(document) == ["edit"]:
        document = document["edit"]
    if not isinstance(document, Mapping) or not document:
        raise ConfigError("names no edit", where=str(path), expected=", ".join(MEMBERS))
    for key in document:
        one_of(str(key), str(key), MEMBERS, str(path))
    names = {str(document[key]) for key in ("name", "label") if key in document}
    if len(names) > 1:
        raise ConfigError(
            "name and label differ", where=str(path), found=" and ".join(sorted(names))
        )
    kinds = (("plan", str | Mapping, "text or a mapping"), ("parameters", Mapping, "a mapping"))
    for key, kind, expected in kinds:
        if key in document and not isinstance(document[key], kind):
            raise ConfigError(f"/{key} is no edit's", where=str(path), expected=expected)
    plan = document.get("plan", "")
    label = names.pop() if names else plan.partition(":")[0] if isinstance(plan, str) else ""
    recorded = {k: document[k] for k in ("plan", "parameters") if k in document}
    try:
        canonical_json(recorded)  # as the reports will hold it, which are written last
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"holds what no report can: {error}", where=str(path),
            hint="write dates as text, and numbers that are finite",
        ) from error  # fmt: skip
    return EditConfig(label, recorded)


def label_of_folder(folder: Path) -> str:
    """The edit that a folder is called by, as a whole word: ``opt-quant_rtn-4bit`` is
    ``quant_rtn``; empty where it is called by none, or by one that leaves the weights."""
    words = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower())
    named = [
        name
        for name in EDITS
        if name not in UNCHANGED and re.search(rf"(^|_){re.escape(name)}(_|$)", words)
    ]
    return max(named, key=len, default="")
