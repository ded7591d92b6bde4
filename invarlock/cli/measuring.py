"""The options that ``run``, ``evaluate``, ``advanced calibrate`` and ``edit`` share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """What a checkpoint is measured on, how, and what the result is for."""
    add = parser.add_argument
    add("--windows", type=Path, required=True, metavar="FILE", help="windows.json")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    add("--profile", default="dev", help="dev, ci or release (default: dev)")
    add("--tier", default="balanced", help="tier of the policy (default: balanced)")
    add_arithmetic_options(parser)


def add_arithmetic_options(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is measured."""
    parser.add_argument(
        "--model-id", default="", metavar="ID", help="name in reports (default: folder name)"
    )
    add_model_options(parser)


def add_model_options(parser: argparse._ActionsContainer) -> None:
    """How a model is loaded and run."""
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs to wait for (default: 1)")
    add("--dtype", default="auto", help="auto, bfloat16, float16 or float32 (default: auto)")
    add("--token-budget", type=int, default=1024, metavar="N", help="tokens per batch")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    add("--determinism", default="strict", help="strict or throughput (default: strict)")
    add("--seed", type=int, default=43, metavar="N", help="seed of the generators (default: 43)")
    add("--allow-network", action="store_true", help="let libraries reach the network")
    add("--allow-remote-code", action="store_true", help="run code that comes with the model")
