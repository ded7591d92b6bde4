"""Models in a local folder, pinned by their content."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.documents.fields import Source
from invarlock.documents.model_revisions import Pin, PinnedModel
from invarlock.errors import ConfigError
from invarlock.folders import refuse_broken_files
from invarlock.formats.kinds import format_of
from invarlock.model_folder import open_model
from invarlock.shipped_files import names_in
from invarlock.sources.kind import ModelSource
from invarlock.sources.local_model import check_folder, model_files, needs_remote_code
from invarlock.sources.pins import Allow, file_digest

if TYPE_CHECKING:
    from invarlock.sources.hub_model import Hub

NOTHING = Allow()


@dataclass(frozen=True)
class LocalModel(ModelSource):
    """A folder of this machine; its path is in no record."""

    kind: ClassVar[str] = "local"
    form: ClassVar[str] = "local:PATH"

    @classmethod
    def pinned(cls, pin: Pin, model_id: str) -> Self:
        raise ConfigError(
            "a local model's folder is not recorded in the pin",
            where=model_id,
            hint=f"give it again: --model '{model_id}=local:FOLDER'",
        )

    @property
    def recorded_name(self) -> str:
        return Path(self.name).resolve().name

    @property
    def folder(self) -> Path | None:
        return Path(self.name)

    def pin(self, hub: Hub, allow: Allow) -> PinnedModel:
        return pin_folder(Path(self.name), allow)

    def prepare(self) -> None:
        refuse_broken_files(Path(self.name))

    def locate(self, pin: Pin, name: str, hub: Hub, model_id: str) -> Path:
        return Path(self.name) / name

    def refuse_overlap(self, out: Path) -> None:
        there, here = Path(self.name).resolve(), out.resolve()
        if there == here or there in here.parents or here in there.parents:
            raise ConfigError("--out overlaps the source folder", where=str(out))

    @property
    def link_root(self) -> tuple[str, Path] | None:
        return "source_folder", Path(self.name)

    def known_bytes(self, pin: Pin | None) -> int | None:
        return folder_bytes(self.name) if pin is None else super().known_bytes(pin)


def pin_folder(folder: Path, allow: Allow = NOTHING) -> PinnedModel:
    """Pin a local model folder by the digest of every file that counts.

    Raises:
        InputError: missing or unreadable folder, damaged shard, no tokenizer.
        ConfigError: pickle weights only, or Python code of its own, and that is not allowed.
    """
    check_folder(folder, allow)
    names = names_in(folder)
    form = format_of(names)
    rewritten = form.files(names) if form and form.rewritten else set()
    weights = rewritten or set(open_model(folder).shards)
    remote_code = needs_remote_code(folder, names)
    counted = model_files(names, remote_code) | weights
    return PinnedModel(
        source=Source("local", folder.resolve().name),
        revision=None,
        gated=False,
        private=False,
        license=None,
        files={name: file_digest(folder / name) for name in sorted(counted)},
        remote_code=remote_code,
    )


def folder_bytes(folder: str) -> int:
    """Bytes of the files of a local model that count; a link counts as what it leads to."""
    names = names_in(Path(folder)) if os.path.isdir(folder) else set()
    form = format_of(names)
    weights = form.files(names) if form else set()
    paths = [os.path.join(folder, name) for name in model_files(names, remote_code=True) | weights]
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
