"""Determinism: what has to be set before torch is imported, and what was in force."""

from __future__ import annotations

import os
import random
import sys
from typing import Any

from invarlock.errors import ConfigError

LEVELS = ("strict", "throughput")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
# torch imports whatever an installed package registers as a backend, unless this is 0; nothing
# else that we load or import looks for plugins
TORCH_PLUGINS = "TORCH_DEVICE_BACKEND_AUTOLOAD"
# Makes torch.cuda.is_available() ask the driver's library without starting CUDA, which would
# fix the visible devices before some are leased.
CUDA_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
_set: list[tuple[str, int, bool]] = []  # what the libraries were loaded with
# What use_deterministic_algorithms tells torch's compiler too; for that it imports the compiler,
# which is a third of the time of a subject that is rejected before anything is run.
INDUCTOR = "TORCHINDUCTOR_DETERMINISTIC"


def set_environment(level: str, threads: int, network: bool) -> None:
    """Set the variables that libraries read once, when they are imported.

    Raises:
        ConfigError: an unknown level.
    """
    if level not in LEVELS:
        raise ConfigError(f"{level!r} is not a determinism level", expected="strict or throughput")
    if "torch" in sys.modules and (level, threads, network) not in _set[-1:]:  # pragma: no cover
        raise RuntimeError("set_environment must run before torch is imported")  # not a user's
    _set.append((level, threads, network))
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ[CUDA_CHECK] = "1"
    if level == "strict":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        os.environ[INDUCTOR] = "1"
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    set_offline(network)


def set_offline(network: bool) -> None:
    """Make the hub libraries follow the network switch; telemetry and plugins are off anyway."""
    for name in OFFLINE_VARIABLES:
        os.environ[name] = "0" if network else "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ[TORCH_PLUGINS] = "0"


def network_allowed() -> bool:
    """Whether any of the libraries was left free to reach the network."""
    return any(os.environ.get(name) != "1" for name in OFFLINE_VARIABLES)


def plugins_allowed() -> bool:
    """Whether torch was left free to load the plugins that installed packages register."""
    return os.environ.get(TORCH_PLUGINS) != "0"


def seed_everything(level: str, threads: int, seed: int) -> dict[str, Any]:
    """Seed all generators, fix torch's switches and say what is in force (``meta.determinism``)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    strict = level == "strict"
    torch.set_deterministic_debug_mode("error" if strict else "default")
    torch.backends.cudnn.deterministic = strict
    torch.backends.cudnn.benchmark = not strict
    torch.backends.cuda.matmul.allow_tf32 = not strict
    torch.backends.cudnn.allow_tf32 = not strict
    return {
        "requested": level,
        "level": level,
        "threads": threads,
        "seed": seed,
        "seeds": {"python": seed, "numpy": seed, "torch": seed},
        "torch": {
            "version": torch.__version__,
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "allow_tf32": bool(torch.backends.cuda.matmul.allow_tf32),
        },
    }
