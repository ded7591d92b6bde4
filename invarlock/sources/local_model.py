"""A model in a local folder: which of its files count, and their pin by content."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from invarlock.checkpoints import INDEX_NAME
from invarlock.errors import ConfigError
from invarlock.files import read_json_object
from invarlock.folders import NotACheckpointError, refuse_broken_files, refuse_other_formats
from invarlock.model_folder import no_tokenizer, open_model, refuse_architecture
from invarlock.shipped_files import chosen, names_in
from invarlock.sources.pickle_weights import pickle_files, require_allowed
from invarlock.sources.pins import Allow, FileDigest, Pin

NOTHING = Allow()

# Pinned beside the weights and what ships with them (invarlock.shipped_files).
ALWAYS = frozenset({
    "config.json", "tokenizer.json", INDEX_NAME, "LICENSE", "LICENSE.txt", "LICENSE.md",
})  # fmt: skip


def model_files(names: Collection[str], remote_code: bool) -> set[str]:
    """Those of a folder's or a repository's files that are part of the model, but the weights."""
    return {name for name in names if name in ALWAYS} | chosen(names, remote_code)


def pin_folder(folder: Path, allow: Allow = NOTHING) -> Pin:
    """Pin a local model folder by the digest of every file that counts.

    Raises:
        InputError: missing or unreadable folder, damaged shard, no tokenizer.
        ConfigError: pickle weights only, or Python code of its own, and that is not allowed.
    """
    check_folder(folder, allow)
    names = names_in(folder)
    weights = pickle_files(names) or set(open_model(folder).shards)
    remote_code = needs_remote_code(folder, names)
    counted = model_files(names, remote_code) | weights
    return Pin(
        source={"kind": "local", "name": folder.resolve().name},
        revision=None,
        gated=False,
        private=False,
        license=None,
        files={name: FileDigest.of_file(folder / name) for name in sorted(counted)},
        remote_code=remote_code,
    )


def check_folder(folder: Path, allow: Allow) -> dict[str, Any]:
    """Refuse a folder that :func:`pin_folder` would refuse, by names and headers alone.

    Returns:
        its ``config.json``.

    Raises:
        InputError, ConfigError: see :func:`pin_folder`.
    """
    if not folder.exists():
        raise NotACheckpointError(
            "no such folder", where=str(folder), hint="check the model's source"
        )
    refuse_broken_files(folder)
    names = set(os.listdir(folder))
    if not pickle_files(names):
        config = open_model(folder).config
    else:
        if "config.json" not in names:
            refuse_other_formats(folder)  # raises, and says what the folder holds instead
        require_allowed(allow.pickle, str(folder))
        config = read_json_object(folder / "config.json")
        refuse_architecture(config, folder)
    if needs_remote_code(folder, names) and not allow.remote_code:
        raise remote_code_error(str(folder))
    if "tokenizer.json" not in names:
        raise no_tokenizer(str(folder), names)
    return config


def require_permission(pin: Pin, allow: Allow, where: str) -> None:
    """Refuse a pin, also one of an earlier run, that needs a permission which is not given.

    Raises:
        ConfigError: names the switch.
    """
    if pin.remote_code and not allow.remote_code:
        raise remote_code_error(where)
    if pickle_files(pin.files):
        require_allowed(allow.pickle, where)


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
