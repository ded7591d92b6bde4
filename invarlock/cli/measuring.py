"""Options that commands which load and measure checkpoints share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from invarlock.cli.options import option
from invarlock.cli.purpose import Purpose
from invarlock.formats.kinds.pickle import Pickle

if TYPE_CHECKING:
    from invarlock.run.loading import Target


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is loaded and run."""

    device: str = option(
        "auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)", setting="device"
    )
    gpus: int = option(1, metavar="N", help="GPUs to wait for (default: 1)")
    dtype: str = option(
        "auto", help="auto, bfloat16, float16 or float32 (default: auto)", setting="dtype"
    )
    token_budget: int = option(1024, metavar="N", help="tokens per batch", setting="token_budget")
    threads: int = option(1, metavar="N", help="CPU threads (default: 1)", setting="threads")
    determinism: str = option(
        "strict", help="strict or throughput (default: strict)", setting="determinism"
    )
    seed: int = option(43, metavar="N", help="seed of the generators (default: 43)", setting="seed")
    allow_network: bool = option(False, help="let libraries reach the network")
    allow_remote_code: bool = option(
        False, help="run code that comes with the model", setting="allow_remote_code"
    )

    def target(self) -> Target:
        """What a model is loaded for."""
        from invarlock.run.loading import Target

        return Target(self.device, self.dtype, self.allow_remote_code)

    def arithmetic(self) -> tuple[str, str]:
        """The dtype and the device that a model will be measured with."""
        from invarlock.run.loading import arithmetic

        return arithmetic(self.target())


@dataclass(frozen=True, kw_only=True)
class Permissions:
    """What a subject needs to be allowed for."""

    allow_pickle: bool = option(
        False,
        help="read a subject that has only pickle weights (torch loads tensors alone of them)",
        setting="allow_pickle_checkpoints",
    )

    @property
    def allowed(self) -> tuple[str, ...]:
        """The permissions of formats that are given."""
        return (Pickle.switch,) if self.allow_pickle else ()


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Loading):
    """How a checkpoint is measured, and what it is called."""

    model_id: str = option("", metavar="ID", help="name in reports (default: folder name)")

    def name_of(self, folder: Path) -> str:
        """The name in reports of the checkpoint in ``folder``."""
        return self.model_id or folder.resolve().name


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions(Purpose, Arithmetic):
    """What one checkpoint is measured on, how, and what the result is for."""

    windows: Path = option(metavar="FILE", help="windows.json")
    out: Path = option(metavar="DIR", help="folder of the results", writes=True)
    hidden_states_mb: int = option(
        1000,
        metavar="MB",
        help="so much of its hidden states a baseline's run keeps at most, from which the run of a "
        "subject starts that differs in its later blocks only; 0: every run is whole "
        "(default: 1000)",
        setting="hidden_states_mb",
    )
    telemetry: bool = option(
        False,
        help="latency, throughput and memory in the reports, whose bytes then differ each time",
        setting="telemetry",
    )
