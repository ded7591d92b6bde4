"""Starts of the real workflow: with a cold cache, a disk that is too small, one that is short."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CONFIG, mounted, write_tiny_folder
from hub_world import TEXT, World, open_world
from repository_copy import link_repository, snakemake
from safetensors.numpy import load_file, save_file

from invarlock.files import temporary_sibling

SMALL = [
    "windows={seq_len: 16, preview: 4, final: 4, seed: 43}",
    "calibration={seeds: 3, windows: 8}",
    "bootstrap={replicates: 200, alpha: 0.05}",
    "tier=none",
]
CPU = ("--profile", "profiles/cpu")
SUBJECTS = ("quant_8bit_clean", "prune_50pct_stress", "nan_injection")


# --- the network --------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A hub, a cold cache and a folder."""
    with open_world(tmp_path) as opened:
        yield opened


def test_a_cold_start_fails_first_and_the_command_it_names_is_enough(
    world: World, repository: Path
) -> None:
    """A run fails before its first job, ``fetch`` fills, and then no network is needed."""
    given = ["suite=smoke", "models=hub:o/m", f"text={TEXT}", "scenarios=noop_clean"]
    given += ["min_free_disk_gb=0", "baseline_storage=snapshot_symlink"]
    config = [*given, *SMALL]
    spoken = {"HF_HOME": str(world.folder / "hf"), "HF_ENDPOINT": world.address}
    spoken["NO_PROXY"] = "127.0.0.1"
    out = repository / "evidence_pack_runs/smoke"

    cold = snakemake(repository, *CPU, config=config, **spoken)
    assert cold.returncode == 3
    line = cold.stderr.splitlines()[-1]
    assert "hub:o/m (not pinned); hub:o/d?config=en&split=validation (not pinned)" in line
    command = line.partition("run: ")[2]
    assert command.startswith("snakemake fetch --config suite=smoke ")
    assert not out.exists()

    filled = snakemake(
        repository, "fetch", *CPU, config=[*shlex.split(command)[3:], *SMALL], **spoken
    )
    assert filled.returncode == 0, filled.stderr
    assert (out / "o__m/models/baseline/model.safetensors").is_symlink()
    pinned = (out / "state/model_revisions.json").read_bytes()

    asked = len(world.asked)
    warm = snakemake(repository, "-n", *CPU, config=config, **spoken)
    assert "warning" not in warm.stderr + warm.stdout
    assert not {"pin_revisions:", "baseline:"} & set((warm.stderr + warm.stdout).split())

    # a pins file of an earlier run, put into its place, is used
    (out / "o__m/baseline.json").unlink()
    placed = snakemake(repository, "fetch", *CPU, config=config, **spoken)
    assert placed.returncode == 0, placed.stderr
    assert (out / "state/model_revisions.json").read_bytes() == pinned
    assert len(world.asked) == asked, "the network was used though it is off"


# --- the disk -----------------------------------------------------------------------------------


def test_a_model_of_unknown_size_is_not_refused_on_a_guess(world: World, small_disk: Path) -> None:
    """A hub model that no table lists is fetched onto a disk that is smaller than the default."""
    repository = link_repository(small_disk / "repository")
    config = ["suite=smoke", "models=hub:o/m", f"text={TEXT}", "net=1", *SMALL]
    config += ["min_free_disk_gb=0", "scenarios=noop_clean"]
    spoken = {"HF_HOME": str(small_disk / "hf"), "HF_ENDPOINT": world.address}
    done = snakemake(repository, "fetch", *CPU, config=config, NO_PROXY="127.0.0.1", **spoken)
    assert done.returncode == 0, done.stderr
    assert (repository / "evidence_pack_runs/smoke/o__m/windows.json").is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 22 MB, mounted for one test."""
    with mounted(tmp_path / "disk", 22) as folder:
        yield folder


@pytest.fixture
def wide_model(tmp_path: Path) -> Path:
    """A model of 6.3 MB that is fast: two layers with wide feed-forward blocks."""
    folder, width = tmp_path / "wide", 16_384
    write_tiny_folder(folder)
    config = TINY_CONFIG | {"intermediate_size": width}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(7)
    for name, old in weights.items():
        if "mlp" in name:
            shape = (16, width) if "down_proj" in name else (width, 16)
            weights[name] = (rng.standard_normal(shape) * old.std()).astype(np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "speech.txt").write_text(
        " ".join(f"sentence {n} of {n * n} words." for n in range(160))
    )
    return folder


def outcomes(reports: Path) -> list[str]:
    """What the evaluation of each subject ends with."""
    return [f"{reports}/{subject}/run_1/outcome.json" for subject in SUBJECTS]


def short(small_disk: Path, wide_model: Path, *more: str) -> list[str]:
    """A run of three subjects, of which the disk holds one or two beside the baseline."""
    return [
        "suite=smoke", f"models=local:{wide_model}", f"out={small_disk}/out", "seed=1",
        f"text=local:{wide_model.parent}/speech.txt",
        "scenarios=" + ",".join(SUBJECTS), *SMALL, *more,
    ]  # fmt: skip


def test_a_disk_that_is_too_small_fails_first(
    small_disk: Path, wide_model: Path, repository: Path
) -> None:
    """The sums, what is free and the way out; a dry run says the same and goes on."""
    kept = short(small_disk, wide_model, "keep_subjects=true", "min_free_disk_gb=0.002")
    done = snakemake(repository, *CPU, config=kept)
    assert done.returncode == 3, done.stderr
    line = done.stderr.splitlines()[-1]
    assert "not enough disk" in line
    assert "edited checkpoint 3 x 0.01 GB" in line
    assert "keep_subjects=false" in line
    assert not (small_disk / "out/logs").exists()
    dry = snakemake(repository, "-n", *CPU, config=kept)
    assert dry.returncode == 0, dry.stderr
    assert "invarlock: warning: " in dry.stderr + dry.stdout


def test_subjects_take_turns_on_a_short_disk(
    small_disk: Path, wide_model: Path, repository: Path
) -> None:
    """More subjects than fit: each waits for its place, and all are evaluated.

    What a killed writer left keeps nobody from starting: the start removes it, a dry run does not.
    """
    config = short(small_disk, wide_model, "min_free_disk_gb=0.002")
    reports = small_disk / "out/wide/reports"
    mine = temporary_sibling(small_disk / "out/wide/models/other")
    left = Path(re.sub(r"-\d+(\.\w+)$", r"-1\1", str(mine)))  # of a process that began earlier
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(bytes(6_000_000))
    dry = snakemake(repository, "-n", *outcomes(reports), *CPU, config=config)
    assert "not enough disk" not in dry.stderr + dry.stdout
    assert left.is_dir()
    placed = snakemake(repository, "fetch", *CPU, config=config)
    assert placed.returncode == 0, placed.stderr
    assert not left.exists()
    done = snakemake(repository, *outcomes(reports), "--cores", "3", *CPU, config=config)
    assert done.returncode == 0, done.stderr[-6000:]
    plan = json.loads((small_disk / "out/state/disk.json").read_text())
    assert plan["tight"]
    assert all(Path(path).is_file() for path in outcomes(reports))
    assert [path.name for path in small_disk.glob("out/wide/models/*")] == ["baseline"]
    size = sum(f.stat().st_size for f in wide_model.iterdir())
    assert 4 * size > 22 << 20, "all subjects would have fitted"
