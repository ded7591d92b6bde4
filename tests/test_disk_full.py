"""A full disk while edits, evaluations and packs are made: one line, no part, and then it goes on.

Other commands are in ``test_bad_input.py``; a pack that fills the disk while it is built is in
``test_pack_atomic.py``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pack_factory as packs
import pytest
from conftest import write_tiny_folder
from measuring_factory import SETTINGS, documents
from report_factory import Document, digest

from invarlock.cli import main
from invarlock.windows import WindowPlan, make_windows, write_windows

SIZE = r"[0-9.]+ [GM]B"


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, but for the filler of the disk."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "filler"
    }


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of some 60 kB."""
    folder = tmp_path_factory.mktemp("disk") / "model"
    write_tiny_folder(folder)
    return folder


@pytest.fixture(scope="module")
def windows(baseline: Path) -> Path:
    """Windows of the model."""
    path = baseline.with_name("windows.json")
    source: Document = {"kind": "local", "name": "nonsense", "version": None, "revision": None}
    source |= {"config": None, "split": None, "field": "text", "max_samples": None}
    source["files"] = {"nonsense.txt": {"bytes": 1, "sha256": digest("nonsense")}}
    write_windows(path, make_windows(baseline, documents(8), WindowPlan(32, 16, 16, 1), source))
    return path


def stopped(words: list[str], disk: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that the full disk stops; it left nothing half-written."""
    capsys.readouterr()
    assert main(words) in (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(disk) in line
    assert "make space" in line
    assert len(re.findall(SIZE, line)) == 2, line  # needed and free
    assert not [name for name in files(disk) if ".tmp" in name]
    return line


def test_an_edit(baseline: Path, full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The room for the checkpoint is asked for before the first byte."""

    def words(at: Path) -> list[str]:
        edit = ["edit", "--baseline", str(baseline), "--spec", "quant_rtn:8:0:all"]
        return [*edit, "--out", str(at / "subject"), "--metadata", str(at / "edit_metadata.json")]

    stopped(words(full_disk), full_disk, capsys)
    assert files(full_disk) == {}
    (full_disk / "filler").unlink()
    elsewhere = baseline.with_name("elsewhere")
    assert main(words(full_disk)) == main(words(elsewhere)) == 0
    assert files(full_disk) == files(elsewhere)


def test_an_evaluation(
    baseline: Path,
    windows: Path,
    full_disk: Path,
    in_this_process: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each of its files is there whole or not at all, and no outcome says that it is done."""
    measuring = ["--windows", str(windows), *SETTINGS]
    run = baseline.with_name("run")
    assert main(["run", "--model", str(baseline), "--out", str(run), *measuring]) == 0

    def words(at: Path) -> list[str]:
        pair = ["--baseline", str(baseline), "--subject", str(baseline)]
        return ["evaluate", *pair, "--baseline-report", str(run), "--out", str(at), *measuring]

    assert main(words(baseline.with_name("out"))) == 0
    whole = files(baseline.with_name("out"))
    stopped(words(full_disk / "out"), full_disk, capsys)
    left = files(full_disk / "out")
    assert "outcome.json" not in left
    assert left.items() <= whole.items()
    (full_disk / "filler").unlink()
    assert main(words(full_disk / "out")) == 0
    made = files(full_disk / "out")
    moment = "runtime.manifest.json"  # says when
    assert made.pop(moment)
    assert whole.pop(moment)
    assert made == whole


def test_a_pack(
    key: Path, tmp_path: Path, full_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No part of a pack, and the whole one after space was made."""
    suite = packs.write_suite(tmp_path / "run", ("noop_clean",))
    build = ["advanced", "evidence-pack", "build", str(full_disk / "pack")]
    words = [*build, "--run-dir", str(suite), "--signing-key", str(key)]
    stopped(words, full_disk, capsys)
    assert files(full_disk) == {}
    (full_disk / "filler").unlink()
    assert main(words) == 0
    assert (full_disk / "pack/manifest.json").is_file()
    assert shutil.disk_usage(full_disk).free > 0
