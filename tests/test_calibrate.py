"""Calibration on a tiny model: what is recorded, that it repeats, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_factory import make_llama
from measuring_factory import write_tiny_windows
from safetensors.torch import load_file, save_file

from invarlock.checkpoints import Checkpoint, tokenizer_digest
from invarlock.cli import main
from invarlock.contracts import violations
from invarlock.edits.apply import apply_edit
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError, MeasurementError
from invarlock.files import canonical_json
from invarlock.guards.operators import measure_weights
from invarlock.guards.rmt import Activation
from invarlock.preset import NULL_EDITS, derive, preset_of
from invarlock.run import calibrate as module
from invarlock.run import measure
from invarlock.run.calibrate import Calibration, Observed, calibrate, changes
from invarlock.run.forward import ArmResult
from invarlock.run.loading import Target
from invarlock.run.measure import Measurement, Observation, RunWindows, measure_checkpoint
from invarlock.windows import WindowPlan

SEEDS = (44, 45, 46)


def plan(folder: Path, *cuts: WindowPlan) -> Calibration:
    """The baseline in ``folder`` with one windows file a cut."""
    digest, windows = tokenizer_digest(folder), []
    for number, cut in enumerate(cuts):
        path = folder.parent / f"windows_{number}.json"
        write_tiny_windows(folder, path, cut)
        windows.append(RunWindows.read(path, digest))
    target = Target("cpu", "float32", False)
    return Calibration("acme/tiny", Checkpoint.open(folder), windows, target, 512)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    folder = tmp_path_factory.mktemp("calibrate") / "baseline"
    make_llama(folder, hidden=32, seed=1)
    return folder


def test_null_edits_are_measured_and_repeat(baseline: Path, tmp_path: Path) -> None:
    """Six runs: identical weights change nothing but noise, rounding a little; twice the same."""
    mine = plan(baseline, *(WindowPlan(32, 9, 9, seed) for seed in SEEDS))
    stats = calibrate(mine, tmp_path / "null_edit")
    assert violations(stats, "calibration-stats") == []
    assert [(r["edit"], r["seed"]) for r in stats["runs"]] == [
        (edit, seed) for edit in NULL_EDITS for seed in SEEDS
    ]
    for run in stats["runs"]:
        sigma = [abs(v) for values in run["spectral"].values() for v in values]
        edges = [abs(v) for values in run["rmt"].values() for v in values]
        far = [v for values in run["representation"].values() for v in values]
        if run["edit"] == "noop":
            assert max(far) == 0
            assert max(sigma) == 0
            assert max(*edges, abs(run["drift"])) < 1e-4
        else:
            assert 0 < max(sigma) < 0.02
            assert 0 < max(edges) < 0.1
            assert 0 < max(far) < 0.1
            assert 0 < abs(run["drift"]) < 0.05
    assert not list(tmp_path.iterdir()), "the edited checkpoint is left behind"
    again = calibrate(mine, tmp_path / "null_edit")
    assert canonical_json(again) == canonical_json(stats)
    preset = preset_of(derive(stats, "balanced", "x"), "x")
    preset.require_for(Checkpoint.open(baseline).digest(), "balanced")


def test_windows_have_to_differ_in_seed_alone(baseline: Path, tmp_path: Path) -> None:
    """Equal seeds are no repetition, and another geometry is another measurement."""
    with pytest.raises(ConfigError, match="same seed"):
        calibrate(plan(baseline, *[WindowPlan(32, 9, 9, 44)] * 2), tmp_path / "e")
    cuts = WindowPlan(32, 9, 9, 44), WindowPlan(32, 9, 8, 45)
    with pytest.raises(ConfigError, match="differ in geometry"):
        calibrate(plan(baseline, *cuts), tmp_path / "e")


def one_by_one(mine: Calibration, scratch: Path) -> list[tuple[str, int, Any]]:
    """The same changes, from a whole run of its own of every checkpoint and every seed."""
    apply_edit(mine.baseline, parse_edit_spec(NULL_EDITS[1]), scratch)
    subjects = {NULL_EDITS[0]: (mine.baseline, 2), NULL_EDITS[1]: (Checkpoint.open(scratch), 1)}
    found = []
    for edit, (subject, part) in subjects.items():
        for windows in mine.windows:
            first = run_of(mine, mine.baseline, windows, mine.token_budget)
            second = run_of(mine, subject, windows, mine.token_budget // part, first)
            before, after = (
                Observed(measure_weights(c, "cpu").operators, as_observation(run))
                for c, run in ((mine.baseline, first), (subject, second))
            )
            found.append((edit, windows.content.seed, changes(before, after)))
    return found


def run_of(
    mine: Calibration,
    checkpoint: Checkpoint,
    windows: RunWindows,
    token_budget: int,
    against: Measurement | None = None,
) -> Measurement:
    """A run as `invarlock run` makes it, or of a subject."""
    return measure_checkpoint(
        checkpoint,
        windows,
        mine.target,
        token_budget=token_budget,
        against=against.reference_arrays() if against else None,
    )


def as_observation(run: Measurement) -> Observation:
    """The part of a run that a calibration looks at."""
    return Observation(run.arms, run.activations, run.columns, run.arrays)


def test_weights_are_loaded_and_measured_once(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets of weights, two loads; every number is that of runs one by one."""
    mine = plan(baseline, *(WindowPlan(32, 9, 9, seed) for seed in SEEDS))
    calls: list[str] = []
    for name in ("load_model", "measure_weights"):
        original = getattr(module, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(module, name, counted)
        monkeypatch.setattr(measure, name, counted, raising=False)
    stats = calibrate(mine, tmp_path / "null_edit")
    assert sorted(calls) == ["load_model"] * 2 + ["measure_weights"] * 2
    heads = ("edit", "seed", "windows_sha256")
    rest = [{k: v for k, v in run.items() if k not in heads} for run in stats["runs"]]
    expected = one_by_one(mine, tmp_path / "subject")
    assert [(r["edit"], r["seed"]) for r in stats["runs"]] == [row[:2] for row in expected]
    assert canonical_json(rest) == canonical_json([row[2] for row in expected])


def fake(nll: float, edge: float) -> Any:
    """A measurement with a final arm that loses ``nll`` and one activation."""
    arms = {
        arm: ArmResult(nll_sum={0: value}, logprob={0: np.zeros(1, np.float32)})
        for arm, value in (("preview", 1.0), ("final", nll))
    }
    activations = [Activation("m", "ffn", 0, edge, 1.0)]
    arrays = {"representation.ffn.m": np.full((4, 4), edge / 4, np.float16)}
    return Observed([], Observation(arms, activations, {}, arrays))


def test_changes_are_logarithms_of_subject_over_baseline() -> None:
    """Known answer: losses of one token per arm, edges 2 and 1, 16 entries 1/4 apart."""
    found = changes(fake(3.0, 1.0), fake(3.5, 2.0))
    logarithm = [0.693147181]
    assert found == {
        "drift": 0.5,
        "spectral": {},
        "rmt": {"ffn": logarithm},
        "representation": {"ffn": logarithm},
    }


@pytest.mark.parametrize("subject", [fake(float("nan"), 1.0), fake(3.0, float("inf"))])
def test_a_measurement_that_is_not_finite_calibrates_nothing(subject: Any) -> None:
    """NaN losses or infinite activations are an error, not a threshold."""
    with pytest.raises(MeasurementError, match="not finite"):
        changes(fake(3.0, 1.0), subject)


def test_the_next_subject_takes_what_is_kept(
    baseline: Path, in_this_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bytes without a model, in whatever folder; what has changed, or was damaged, is
    measured again."""
    plan(baseline, *(WindowPlan(32, 9, 9, seed) for seed in SEEDS))
    windows = [str(baseline.parent / f"windows_{n}.json") for n in range(3)]
    kept = tmp_path / "kept"

    def run(out: str, *more: str, model: Path = baseline) -> tuple[bytes, bool]:
        words = ["advanced", "calibrate", "--baseline", str(model), "--windows", *windows]
        words += ["--device", "cpu", "--dtype", "float32", "--kept", str(kept)]
        assert main([*words, "--out", str(tmp_path / out / "stats.json"), *more]) == 0
        taken = "measured for an earlier run" in capsys.readouterr().out
        return (tmp_path / out / "stats.json").read_bytes(), taken

    first, taken = run("one")
    assert not taken
    assert run("two") == (first, True)
    (path,) = kept.glob("*.json")
    assert path.read_bytes() == first
    assert run("three", "--token-budget", "512")[1] is False
    other = shutil.copytree(baseline, tmp_path / baseline.name)  # equal content, another place
    assert run("four", model=other) == (first, True)
    rewrite = load_file(other / "model.safetensors")
    rewrite["model.norm.weight"][0] += 1
    save_file(rewrite, other / "model.safetensors", {"format": "pt"})
    assert run("five", model=other)[1] is False
    path.write_bytes(first[: len(first) // 2])
    assert run("six") == (first, False)
    assert path.read_bytes() == first
    assert not list(kept.glob(".*"))
