"""Temporary files of writers that were killed, and of those that are at work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from invarlock.files import temporary_sibling, write_text

WRITER = """
import pathlib, sys
from invarlock.files import temporary_sibling
temporary_sibling(pathlib.Path(sys.argv[1])).write_text("half")
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of writing ``result.json``."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "result.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"\n"
        yield running
        running.kill()


def left(folder: Path) -> list[Path]:
    """The hidden files of a folder."""
    return sorted(folder.glob(".*"))


def test_what_a_living_process_writes_is_left_alone(
    writer: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Another writer of the same file, and of its neighbour, does not touch it."""
    (half,) = left(tmp_path)
    write_text(tmp_path / "result.json", "whole")
    write_text(tmp_path / "other.json", "whole")
    assert left(tmp_path) == [half]


def test_what_a_killed_process_wrote_is_removed_before_anybody_waited_for_it(
    writer: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Its number is still taken then: under some init processes for long."""
    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # ended; its exit code is still there
    Path(f"/proc/{writer.pid}").stat()
    write_text(tmp_path / "result.json", "whole")
    assert left(tmp_path) == []


def test_a_number_that_went_to_another_process_protects_nothing(tmp_path: Path) -> None:
    """A file of this process's number, from a process that began at another time."""
    path = tmp_path / "result.json"
    head, owner, end = temporary_sibling(path).name.rsplit(".", 2)
    pid = owner.partition("-")[0]
    (tmp_path / f"{head}.{pid}-1.{end}").write_text("half")
    (tmp_path / f"{head}.{owner}.{end}").write_text("half")
    write_text(path, "whole")
    assert left(tmp_path) == [tmp_path / f"{head}.{owner}.{end}"]


def test_files_of_another_machine_are_left_alone(tmp_path: Path) -> None:
    """On a shared disk the number of a process says nothing about other machines."""
    other = tmp_path / ".result.json.tmp.00000000.1-1.00000000"
    other.write_text("half")
    write_text(tmp_path / "result.json", "whole")
    assert left(tmp_path) == [other]


def test_files_of_another_space_of_process_numbers_are_left_alone(tmp_path: Path) -> None:
    """In a container of the same host name a number means another process."""
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no new space of process numbers may be made here")
    words = [*apart, sys.executable, "-c", WRITER, str(tmp_path / "result.json")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stdout.readline() == b"\n"
        (half,) = left(tmp_path)
        write_text(tmp_path / "result.json", "whole")
        assert left(tmp_path) == [half]
        running.kill()
