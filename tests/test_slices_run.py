"""Slices from the windows of a real model to its report."""

from __future__ import annotations

import shutil
from pathlib import Path

import measuring_factory as measuring
import pytest
from checkpoint_factory import make_llama
from test_windows import SOURCE

from invarlock.reporting.replay import replay
from invarlock.windows import SliceText, WindowPlan, make_sliced_windows, write_windows

COUNTS = {"prose": (12, 8, 32), "code": (6, 8, 32), "long": (1, 6, 256)}


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an edit on windows of three slices, one of them long."""
    root = tmp_path_factory.mktemp("sliced")
    baseline = make_llama(root / "baseline", hidden=32, seed=1)
    texts = measuring.documents()
    slices = [
        SliceText(name, name, texts[i::3], WindowPlan(length, preview, final, 43), SOURCE)
        for i, (name, (preview, final, length)) in enumerate(COUNTS.items())
    ]
    write_windows(root / "windows.json", make_sliced_windows(baseline, slices))
    subject = root / "subject"
    shutil.copytree(baseline, subject)

    def louder(tensors: dict[str, object]) -> None:
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name] * 1.01  # type: ignore[operator]

    measuring.change(subject, louder)
    command = ["evaluate", "--baseline", str(baseline), "--subject", str(subject)]
    command += ["--windows", str(root / "windows.json"), "--out", str(root / "out")]
    assert measuring.main_forking([*command, *measuring.SETTINGS, "--tier", "none"]) == 0
    return root


def test_every_slice_is_measured_at_its_own_length(sliced: Path) -> None:
    """And judged by itself, in a report that its evidence rebuilds."""
    report = measuring.read(sliced / "out")
    final = report["evaluation_windows"]["final"]
    assert final["slices"] == [n for n, (_, count, _) in COUNTS.items() for _ in range(count)]
    assert final["token_counts"] == [n - 1 for _, c, n in COUNTS.values() for _ in range(c)]
    parts = report["primary_metric"]["slices"]
    assert [(p["name"], p["windows"]) for p in parts] == [(n, c[1]) for n, c in COUNTS.items()]
    assert all(0.9 < part["ratio_vs_baseline"] < 1.1 for part in parts)
    assert all("files_sha256" in part["source"] for part in report["dataset"]["slices"])
    assert replay(report) == []


def test_guards_look_at_the_first_slice_alone(sliced: Path) -> None:
    """So that what they show is comparable with the windows that a preset is derived from."""
    report = measuring.read(sliced / "out")
    preview = report["evaluation_windows"]["preview"]
    first = preview["window_ids"][: COUNTS["prose"][0]]
    used = report["rmt"]["calibration"]["window_ids"]
    assert len(used) == 8
    assert set(used) <= set(first)
