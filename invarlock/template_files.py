"""Where a model folder keeps its chat templates, each under a name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from invarlock.errors import InputError
from invarlock.files import read_bytes, read_json_object

FILE, LEGACY, SETTINGS = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
MORE = "additional_chat_templates"
DEFAULT = "default"  # name of the template that is taken when none is asked for
Templates = Mapping[str, str]  # by name


def spellings(folder: Path) -> dict[str, Templates]:
    """Every place of a folder that holds templates, the one that transformers reads first."""
    found: dict[str, Templates] = {}
    files = {DEFAULT: folder / FILE} if (folder / FILE).is_file() else {}
    files |= {path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))}
    if files:
        found[FILE] = {name: read_bytes(path).decode() for name, path in files.items()}
    for name in (SETTINGS, LEGACY):
        if (folder / name).is_file():
            stated = read_json_object(folder / name).get("chat_template")
            templates = _named(stated)
            if templates:
                found[name] = templates
    return found


def written(folder: Path) -> str:
    """The texts of all templates of a folder; empty where one cannot be read, which the comparison
    of shipped files tells."""
    try:
        return "".join(text for named in spellings(folder).values() for text in named.values())
    except (InputError, UnicodeDecodeError):
        return ""


def _named(stated: object) -> Templates:
    """Templates as JSON holds them: one text, or a list of names with texts."""
    if isinstance(stated, str):
        return {DEFAULT: stated}
    rows = stated if isinstance(stated, list) else []
    if isinstance(stated, dict):
        return {str(name): str(text) for name, text in stated.items()}
    return {str(r["name"]): str(r["template"]) for r in rows if {"name", "template"} <= {*r}}


def effective(found: Mapping[str, Templates]) -> Templates:
    """The templates that transformers takes."""
    return next(iter(found.values()), {})
