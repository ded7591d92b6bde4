"""Which files of a model count, and what a folder or a repository needs permission for."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from invarlock.documents.model_revisions import PinnedModel
from invarlock.errors import ConfigError, NotACheckpointError
from invarlock.files import read_json_object
from invarlock.folders import readable_format, refuse_broken_files
from invarlock.formats.kind import INDEX_NAME, Format
from invarlock.formats.kinds import format_of
from invarlock.model_folder import no_tokenizer, open_model, refuse_architecture
from invarlock.shipped_files import chosen
from invarlock.sources.pins import Allow

# Pinned beside the weights and what ships with them (invarlock.shipped_files).
ALWAYS = frozenset({
    "config.json", "tokenizer.json", INDEX_NAME, "LICENSE", "LICENSE.txt", "LICENSE.md",
})  # fmt: skip


def model_files(names: Collection[str], remote_code: bool) -> set[str]:
    """Those of a folder's or a repository's files that are part of the model, but the weights."""
    return {name for name in names if name in ALWAYS} | chosen(names, remote_code)


def check_folder(folder: Path, allow: Allow) -> dict[str, Any]:
    """Refuse a folder that a pin would refuse, by names and headers alone.

    Returns:
        its ``config.json``.

    Raises:
        InputError, ConfigError: see a pin.
    """
    if not folder.exists():
        raise NotACheckpointError(
            "no such folder", where=str(folder), hint="check the model's source"
        )
    refuse_broken_files(folder)
    names = set(os.listdir(folder))
    form = format_of(names)
    if form is None or not form.rewritten:
        config = open_model(folder).config
    else:
        if "config.json" not in names:
            readable_format(folder)  # raises, and says what the folder holds instead
        require_format(form, allow, str(folder))
        config = read_json_object(folder / "config.json")
        refuse_architecture(config, folder)
    if needs_remote_code(folder, names) and not allow.remote_code:
        raise remote_code_error(str(folder))
    if "tokenizer.json" not in names:
        raise no_tokenizer(str(folder), names)
    return config


def require_permission(pin: PinnedModel, allow: Allow, where: str) -> None:
    """Refuse a pin, also one of an earlier run, that needs a permission which is not given.

    Raises:
        ConfigError: names the switch.
    """
    if pin.remote_code and not allow.remote_code:
        raise remote_code_error(where)
    form = format_of(pin.files)
    if form is not None:
        require_format(form, allow, where)


def require_format(form: Format, allow: Allow, where: str) -> None:
    """Refuse weights of a format that needs a permission which is not given.

    Raises:
        ConfigError: names the switch.
    """
    if form.switch and not getattr(allow, form.switch):
        raise form.refusal(where)


def needs_remote_code(folder: Path, names: Collection[str]) -> bool:
    """Whether a configuration file asks for Python code of the model's own (``auto_map``)."""
    return any(
        "auto_map" in read_json_object(folder / name)
        for name in ("config.json", "tokenizer_config.json")
        if name in names
    )


def remote_code_error(where: str) -> ConfigError:
    """The line for a model that would run its own Python code."""
    return ConfigError(
        "the model needs Python code of its own (auto_map)",
        where=where,
        hint="read that code, then allow it with --allow-remote-code (allow_remote_code: true)",
    )
