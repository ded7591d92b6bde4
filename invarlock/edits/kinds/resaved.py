"""The checkpoint as the library saves it: other files around the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from invarlock.checkpoints import Checkpoint
from invarlock.edits.blocks import Loss
from invarlock.edits.kind import EditSpec
from invarlock.edits.stream import CheckpointChange, Subject, refuse_same_place
from invarlock.errors import ConfigError
from invarlock.files import atomic_directory
from invarlock.library_log import quiet
from invarlock.loading_faults import library

SHARDS = 3  # about: the library cuts where a size is reached


@dataclass(frozen=True)
class Resaved(EditSpec):
    """Loaded by transformers and saved again: other shards, the library's own files beside them.

    Every weight stays byte for byte, so that evaluations call it a no-op.
    """

    edit_type: ClassVar[str] = "resaved"
    storage_format: ClassVar[str] = "unchanged"
    allows_no_change: ClassVar[bool] = True
    keeps_weights: ClassVar[bool] = True
    in_memory: ClassVar[bool] = True

    def change(self, baseline: Checkpoint, seed: int, loss: Loss) -> CheckpointChange:
        return CheckpointChange()

    def write(self, baseline: Checkpoint, change: CheckpointChange, out: Path) -> Subject:
        """Load and save model and tokenizer.

        Raises:
            ConfigError: the library does not store the same weights, or ``out`` overlaps the
                baseline's folder.
            InputError: it does not load the checkpoint.
        """
        import transformers

        from invarlock.metrics.kinds import metric_of
        from invarlock.model_folder import open_model

        refuse_same_place(baseline.folder, out)
        loader = getattr(transformers, metric_of(baseline.config).loader)
        size = max(1, sum(i.nbytes for i in baseline.tensors.values()) // SHARDS)
        quiet()
        with atomic_directory(out) as stage:
            with library(baseline.folder):
                model = loader.from_pretrained(
                    baseline.folder, dtype="auto", use_safetensors=True, local_files_only=True
                )
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    baseline.folder, local_files_only=True
                )
                model.save_pretrained(stage, max_shard_size=size)
                tokenizer.save_pretrained(stage)
            saved = open_model(stage, baseline.folder)
            if saved.parts()["weights_sha256"] != baseline.parts()["weights_sha256"]:
                raise ConfigError(
                    "the library stores other weights than it was given",
                    where=str(baseline.folder),
                    expected="the same names and bytes",
                    hint="save the baseline by the library first",
                )
            digest = saved.digest()
        return Subject(digest, {}, (), {})
