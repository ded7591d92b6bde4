"""What a run lacks before its first job: pins and downloads, disk, and the targets of links."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.errors import InputError
from invarlock.files import read_json_object
from invarlock.models import Model
from invarlock.sources.disk import Plan, known_pins
from invarlock.sources.hub_cache import cache_folder
from invarlock.sources.kind import ModelSource
from invarlock.sources.kinds.hub import lacking
from invarlock.sources.spec import parse_model_source, parse_slices

if TYPE_CHECKING:
    from invarlock.config import Settings


def check_start(settings: Settings, plan: Plan, windows: Iterable[Path]) -> list[InputError]:
    """Everything that keeps a run from ending, one line each; empty where nothing does.

    Raises:
        InputError: a record of an earlier start is damaged.
    """
    found = (
        refuse_changed_links(settings),
        refuse_cold(settings, windows),
        plan.refusal(settings.out),
    )
    return [error for error in found if error is not None]


def refuse_cold(settings: Settings, windows: Iterable[Path]) -> InputError | None:
    """The line for a run without the network that needs the hub; None where it needs nothing.

    ``windows`` are the files that are cut from the text.

    Raises:
        InputError: ``state/model_revisions.json`` is damaged.
    """
    if settings.values["net"]:
        return None
    pins = known_pins(settings.out)
    absent: list[str] = []
    for model in settings.models:
        if not _is_placed(settings, model):
            pin = pins.models.get(model.model_id) if pins else None
            absent += parse_model_source(model.source).lacking(pin)
    cut = all(path.is_file() for path in windows)
    for text in parse_slices(settings.text).values():
        if text.kind == "hub" and not cut:
            pinned = pins.datasets.get(text.dataset_id) if pins else None
            absent += lacking(text.dataset_id, text.name, pinned, "dataset")
    if not absent:
        return None
    return InputError(
        "the network is off (net: 0) and not everything is here",
        where=str(cache_folder()),
        expected="; ".join(absent),
        hint=f"run: {fill_command(settings)}",
    )


def fill_command(settings: Settings) -> str:
    """The command that pins and fetches all that this run needs, with the settings as given.

    What an included file or a variable says is repeated as a value; the file is not named.
    """
    words = [
        shlex.quote(f"{key}={_word(settings.values[key])}")
        for key in settings.fetching
        if key == "suite" or settings.origins[key] != "config"
    ]
    return f"snakemake fetch --config {' '.join(words)} net=1"


def _word(value: object) -> str:
    """A value as ``--config`` reads it back."""
    if isinstance(value, list) and value:
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _is_placed(settings: Settings, model: Model) -> bool:
    home = settings.out / model.slug
    return (home / "baseline.json").is_file() and (home / "models/baseline").is_dir()


def refuse_changed_links(settings: Settings) -> InputError | None:
    """The line for a placed baseline whose links do not lead where they led; None where they do.

    Looks at places and sizes. The bytes behind a link are hashed by whatever uses them.

    Raises:
        InputError: a ``baseline.json`` is damaged.
    """
    for model in settings.models:
        home = settings.out / model.slug
        if not _is_placed(settings, model):
            continue
        record = read_json_object(home / "baseline.json")
        for name, place in record.get("links", {}).items():
            path = home / "models/baseline" / name
            found = link_place(path, parse_model_source(model.source))
            size = record["files"][name]["bytes"]
            if found == place and path.is_file() and path.stat().st_size == size:
                continue
            gone = "is gone" if not path.is_file() else "has moved or changed"
            return InputError(
                f"the file behind a link of the baseline {gone}",
                where=str(path),
                expected=f"{place['path']} in the {place['root'].replace('_', ' ')}, {size} bytes",
                found=os.readlink(path) if path.is_symlink() else "no link",
                hint="restore it, or remove the baseline folder and its baseline.json",
            )
    return None


def link_place(link: Path, source: ModelSource) -> dict[str, str] | None:
    """Where a link of a baseline folder leads, without a path of this machine; None: no link.

    A target outside of the source (the hub's cache or the local folder) is known by its name alone.
    """
    if not link.is_symlink():
        return None
    target = Path(os.path.realpath(link))
    if source.link_root is not None:
        root, folder = source.link_root
        folder = Path(os.path.realpath(folder))
        if target.is_relative_to(folder):
            return {"root": root, "path": str(target.relative_to(folder))}
    return {"root": "elsewhere", "path": target.name}
