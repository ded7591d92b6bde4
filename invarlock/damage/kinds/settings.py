"""Damage beside the weights: settings and files that a loader or a chat server reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from invarlock.checkpoints import Checkpoint
from invarlock.damage.kind import Damage
from invarlock.damage.targets import required_architecture
from invarlock.edits.stream import CheckpointChange
from invarlock.errors import ConfigError
from invarlock.files import pretty_json, read_json_object
from invarlock.severity import NOTHING_EDITED
from invarlock.shipped_files import SHIPPED, kind_of, names_in

_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class LongContextSetting(Damage):
    """Rotary angles are scaled and the context is cut: it acts beyond the usual window alone."""

    error_type: ClassVar[str] = "long_context_setting"
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "factor": (1.01, 1024.0),
        "cut": (1, 2**20),
    }
    factor: float = 4.0
    cut: int = 8  # the context becomes so many times shorter

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        required_architecture(baseline)
        length = baseline.config.get("max_position_embeddings")
        if type(length) is not int or length // self.cut < 1:
            raise ConfigError(
                "the context cannot be cut",
                where=str(baseline.folder / "config.json"),
                expected=f"max_position_embeddings of {self.cut} or more",
                found=f"{length!r}",
            )
        scaling = {"rope_type": "dynamic", "factor": self.factor}
        changed = {"rope_scaling": scaling, "max_position_embeddings": length // self.cut}
        return CheckpointChange(config={**baseline.config, **changed})


@dataclass(frozen=True)
class ChatTemplateLost(Damage):
    """The chat template is gone, from the tokenizer's settings and as a file of its own."""

    error_type: ClassVar[str] = "chat_template_lost"

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        removed = {n for n in names_in(baseline.folder) if kind_of(n) == "chat_template"}
        path = baseline.folder / _TOKENIZER_CONFIG
        settings = read_json_object(path) if path.is_file() else {}
        rewritten = {}
        if settings.pop("chat_template", None):
            text = pretty_json(settings)
            rewritten = {_TOKENIZER_CONFIG: lambda: [text]}
        if not removed and not rewritten:
            raise ConfigError(
                "the checkpoint has no chat template",
                where=str(baseline.folder),
                expected=f"chat_template in {_TOKENIZER_CONFIG}, or a file of "
                + ", ".join(SHIPPED["chat_template"]),
            )
        return CheckpointChange(files=rewritten, removed=frozenset(removed))


@dataclass(frozen=True)
class NothingEdited(Damage):
    """An edit that was announced and never applied: every weight is the baseline's, and
    config.json says only that another version of the library wrote it."""

    error_type: ClassVar[str] = NOTHING_EDITED

    def change(self, baseline: Checkpoint, seed: int) -> CheckpointChange:
        required_architecture(baseline)
        written = f"{baseline.config.get('transformers_version', '')}+edited"
        return CheckpointChange(config={**baseline.config, "transformers_version": written})
