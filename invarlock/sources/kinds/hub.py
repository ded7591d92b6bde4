"""Models of the Hugging Face hub, pinned by commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from invarlock.documents.fields import Source
from invarlock.documents.model_revisions import Pin, PinnedModel
from invarlock.errors import ConfigError, InputError
from invarlock.formats.kinds import format_of
from invarlock.model_folder import no_tokenizer
from invarlock.shown import listed
from invarlock.sources.hub_cache import RepoType, cache_folder, cached_file
from invarlock.sources.hub_model import Hub, where_of
from invarlock.sources.kind import ModelSource
from invarlock.sources.local_model import (
    model_files,
    needs_remote_code,
    remote_code_error,
    require_format,
)
from invarlock.sources.pins import Allow

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel(ModelSource):
    """A repository of the hub."""

    kind: ClassVar[str] = "hub"
    form: ClassVar[str] = "hub:OWNER/NAME"
    needs_network: ClassVar[bool] = True
    mend: ClassVar[str] = "delete the file from the hub cache and repeat with the network on"

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        return cls(*repository_of(name, text))

    def pin(self, hub: Hub, allow: Allow) -> PinnedModel:
        """See :meth:`ModelSource.pin`; no weights are fetched.

        Raises:
            InputError: network off, missing repository or revision, no tokenizer, no weights.
            ConfigError: gated, private; pickle weights or Python code of its own without
                permission.
        """
        info = hub.info(self.name, self.revision, "model")
        where = where_of(self.name, info.revision)
        if info.custom_code and not allow.remote_code:
            raise remote_code_error(where)
        names = set(info.files)
        if "config.json" not in names:
            raise InputError("the repository has no config.json", where=where)
        if "tokenizer.json" not in names:
            raise no_tokenizer(where)

        def fetch(name: str) -> Path:
            return hub.fetch(self.name, info.revision, name, "model")

        folder = fetch("config.json").parent
        if "tokenizer_config.json" in names:
            fetch("tokenizer_config.json")
        remote_code = info.custom_code or needs_remote_code(folder, names)
        if remote_code and not allow.remote_code:
            raise remote_code_error(where)
        weights = _weight_files(names, fetch, where, allow)
        chosen = model_files(names, remote_code) | weights
        return PinnedModel(
            source=Source("hub", self.name),
            revision=info.revision,
            gated=info.gated,
            private=info.private,
            license=info.license,
            files={name: hub.pin_file(self.name, info, name, "model") for name in sorted(chosen)},
            remote_code=remote_code,
        )

    def locate(self, pin: Pin, name: str, hub: Hub, model_id: str) -> Path:
        return hub.fetch(self.name, str(pin.revision), name, "model")

    @property
    def link_root(self) -> tuple[str, Path] | None:
        return "hub_cache", cache_folder()

    def download_bytes(self, pin: Pin | None, planned: int) -> int:
        if pin is None:
            return planned
        return sum(
            file.bytes
            for name, file in pin.files.items()
            if not cached_file(self.name, str(pin.revision), name, "model").exists()
        )

    def lacking(self, pin: Pin | None) -> Iterator[str]:
        return lacking(str(self), self.name, pin, "model")


def lacking(source: str, repo: str, pin: Pin | None, kind: RepoType) -> Iterator[str]:
    """The files of a repository that the cache has not, in a line; nothing where it has all."""
    if pin is None:
        yield f"{source} (not pinned)"
        return
    revision = str(pin.revision)
    absent = [n for n in sorted(pin.files) if not cached_file(repo, revision, n, kind).exists()]
    if absent:
        yield f"hub:{repo}@{revision}: {listed(absent, 3)}"


def _weight_files(
    names: Collection[str], fetch: Callable[[str], Path], where: str, allow: Allow
) -> set[str]:
    form = format_of(names)
    if form is None:
        raise InputError("the repository has no weights that can be read", where=where)
    require_format(form, allow, where)
    return form.wanted(names, fetch, where)


def repository_of(name: str, text: str) -> tuple[str, str | None]:
    """Repository and revision of ``owner/name@<40 hex>``.

    Raises:
        ConfigError: malformed, or a branch as revision.
    """
    repository, at, revision = name.partition("@")
    if not _REPO.fullmatch(repository):
        raise ConfigError("not a hub repository", where=text, expected="hub:OWNER/NAME")
    if at and not _REVISION.fullmatch(revision):
        raise ConfigError(
            "a branch or tag is not a revision, because it can move",
            where=text,
            expected="@ and 40 hexadecimal digits, or no revision at all (then pinning finds it)",
            found=repr(revision),
        )
    return repository, revision or None
