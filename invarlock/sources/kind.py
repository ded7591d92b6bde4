"""What a kind of model source is: a class that pins a model and finds its files.

    @dataclass(frozen=True)
    class Mirror(ModelSource):
        kind: ClassVar[str] = "mirror"

        def pin(self, hub, allow): ...
        def locate(self, pin, name, hub, model_id): ...

A class like that in a file of ``invarlock/sources/kinds`` is all that a new source needs: source
strings, pinning, the preflight, the disk plan and the baseline ask it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.documents.model_revisions import Pin, PinnedModel
from invarlock.errors import ConfigError
from invarlock.formats.kinds import format_of
from invarlock.sources.pins import Allow

if TYPE_CHECKING:
    from invarlock.sources.hub_model import Hub


@dataclass(frozen=True)
class ModelSource:
    """Base of all model sources; ``name`` is a package, a folder or ``owner/name``."""

    kind: ClassVar[str]
    form: ClassVar[str]  # of the string, for messages
    needs_network: ClassVar[bool] = False  # whether what is not in the cache has to be fetched
    note: ClassVar[str | None] = None  # what the record of the baseline says of every such model
    mend: ClassVar[str] = "restore the file or pin again"  # where a file is not as pinned

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """The source of ``name``, what follows the kind in the string ``text``.

        Raises:
            ConfigError: no such source can be.
        """
        return cls(name)

    @classmethod
    def pinned(cls, pin: Pin, model_id: str) -> Self:
        """The source that a pin records.

        Raises:
            ConfigError: the pin does not record it whole.
        """
        return cls(pin.source.name, pin.revision)

    @property
    def recorded_name(self) -> str:
        """The name as a pin records it: no path of this host."""
        return self.name

    def at(self, pin: Pin) -> Self:
        """The same source at the pinned revision."""
        return replace(self, revision=pin.revision)

    def pin(self, hub: Hub, allow: Allow) -> PinnedModel:
        """Pin the model: revision, licence, digest of every file that counts.

        Raises:
            InputError: something is missing, unreadable or not reachable.
            ConfigError: a permission that it needs is not given.
        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Look at the source before its files are copied.

        Raises:
            InputError: a file cannot be read.
        """

    def locate(self, pin: Pin, name: str, hub: Hub, model_id: str) -> Path:
        """Where the pinned file ``name`` lies, fetched if it has to be.

        Raises:
            InputError: it is not there, or the network is needed and off.
        """
        raise NotImplementedError

    def label(self, path: Path) -> str:
        """A file of the source, for messages."""
        return str(path)

    def refuse_overlap(self, out: Path) -> None:
        """Refuse a target that is, holds or lies in the source.

        Raises:
            ConfigError: it does.
        """

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that the user named; None where there is none."""
        return None

    @property
    def link_root(self) -> tuple[str, Path] | None:
        """Name and place of the folder into which links of a placed baseline lead."""
        return None

    def known_bytes(self, pin: Pin | None) -> int | None:
        """Bytes of the placed model as far as files tell; None where they do not."""
        form = format_of(pin.files) if pin else None
        # what is packed grows when it is rewritten
        return pin.total_bytes if pin and not (form and form.packed) else None

    def download_bytes(self, pin: Pin | None, planned: int) -> int:
        """Bytes that still have to be fetched: of the pinned files, or of the planned size."""
        return 0

    def lacking(self, pin: Pin | None) -> Iterator[str]:
        """What has to be fetched before the network can be off, in a few words each."""
        return iter(())


def unknown_package(name: str, known: list[str], text: str) -> ConfigError:
    """The line for a package that carries nothing that is known."""
    return ConfigError(
        "unknown package", where=text, expected="one of " + ", ".join(sorted(known)), found=name
    )
