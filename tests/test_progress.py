"""How far a measurement is: what it tells, and what is read of it."""

from __future__ import annotations

import os
import subprocess

import pytest
import warm
from measuring_factory import SETTINGS, write_tiny_windows
from repository_copy import ROOT, quiet_environment

from invarlock.progress import FILE, Progress
from invarlock.windows import WindowPlan


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", Progress()),
        ("1 2 3 4\n", Progress(1, 2, 3, 4)),
        ("1 2 3 4\n2 2 4 4\n", Progress(2, 2, 4, 4)),
        ("1 2 3 4\n2 2 4", Progress(1, 2, 3, 4)),  # still being written
        ("1 2 3\n", Progress()),
        ("a b c d\n", Progress()),
    ],
)
def test_the_last_whole_line_counts(tmp_path, text, found):
    """Whatever else stands in the file."""
    (tmp_path / "told").write_text(text)
    assert Progress.read(tmp_path / "told") == found


def test_nothing_told_is_nothing(tmp_path):
    """A process that has not begun has written no file."""
    assert Progress.read(tmp_path / "none") == Progress()


def test_a_run_tells_each_batch_to_its_end(world, tmp_path):
    """All windows are done at the end, one after the other; a full device ends no measuring."""
    windows = tmp_path / "windows.json"
    write_tiny_windows(world.baseline, windows, WindowPlan(24, 10, 12, 43))
    words = ["run", "--model", str(world.baseline), "--windows", str(windows), *SETTINGS]
    words += ["--tier", "none", "--token-budget", "48"]
    for number, told in enumerate((tmp_path / "told", "/dev/full")):
        found = quiet_environment() | {FILE: str(told), "PYTHONPATH": str(ROOT)}
        subprocess.run(
            [warm.python(), "-m", "invarlock", *words, "--out", str(tmp_path / str(number))],
            env=found, check=True, capture_output=True,
        )  # fmt: skip
    lines = [tuple(map(int, row.split())) for row in (tmp_path / "told").read_text().splitlines()]
    assert [row[0] for row in lines] == sorted(row[0] for row in lines)
    last = Progress.read(tmp_path / "told")
    assert last.windows >= last.of_windows >= 12
    assert last.tokens == 24 * last.windows
    assert len({row[0] for row in lines}) > 5  # batch by batch
    names = [sorted(os.listdir(tmp_path / str(number))) for number in (0, 1)]
    assert names[0] == names[1]
