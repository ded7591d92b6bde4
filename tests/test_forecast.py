"""How far a run is and how long the rest takes, from jobs and the files that they write."""

from __future__ import annotations

import io
import logging
import os
import pty
from pathlib import Path

import pytest

from invarlock.forecast import Forecast, Work, fitted, span
from invarlock.progress_line import ERASE, PLAIN_SECONDS, Below, follow


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def evaluation(folder: Path, name: str, early: bool = False) -> Work:
    """An evaluation of 1,000 tokens."""
    kind = "early" if early else "whole"
    return Work(name, kind, 1000, early, counted=True, told=folder / name)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(tmp_path: Path, clock: Clock) -> Forecast:
    """Two whole evaluations, two controls and an edit; three evaluations are there."""
    jobs = {
        1: evaluation(tmp_path, "noop"),
        2: evaluation(tmp_path, "mine"),
        3: evaluation(tmp_path, "nan", early=True),
        4: evaluation(tmp_path, "zero", early=True),
        5: Work("edit mine", "edit"),
    }
    return Forecast(jobs, 1, done_before=3, clock=clock)


def test_nothing_is_promised_before_anything_is_measured(run: Forecast) -> None:
    """The evaluations that are there count; there is no time left to tell."""
    assert run.line(80) == "3 of 7 evaluations"
    run.start(1)
    assert run.line(80) == "3 of 7 evaluations, noop loading"


def test_the_time_left_follows_the_measured_speed(
    run: Forecast, clock: Clock, tmp_path: Path
) -> None:
    """A job's own speed first, then what those of its kind have taken."""
    run.start(1)
    clock.now = 100.0
    (tmp_path / "noop").write_text("1 4 250 1000\n")
    run.look()
    # 300 s for itself, 400 s for the other, a quarter of it for each control, 2 s for the edit
    assert run.left() == pytest.approx(300 + 400 + 2 * 100 + 2)
    assert run.line(80) == "3 of 7 evaluations, noop 25 %, about 15 min left"
    clock.now = 200.0
    (tmp_path / "noop").write_text("4 4 1000 1000\n")
    run.look()
    assert run.line(80).startswith("3 of 7 evaluations, noop guards")
    run.end(1)
    assert not (tmp_path / "noop").exists()
    assert run.left() == pytest.approx(200 + 2 * 50 + 2)
    run.start(3)
    clock.now = 210.0
    run.end(3)  # it ended early, after 10 s
    assert run.left() == pytest.approx(200 + 10 + 2)
    assert run.line(80) == "5 of 7 evaluations, about 4 min left"


def test_jobs_side_by_side_share_the_time(tmp_path: Path, clock: Clock) -> None:
    """Two at once take half as long, but no less than the longest that goes on."""
    jobs = {n: evaluation(tmp_path, f"e{n}") for n in range(4)}
    run = Forecast(jobs, 2, clock=clock)
    for number in (0, 1):
        run.start(number)
    clock.now = 60.0
    run.end(0)
    assert run.left() == pytest.approx(2 * 60 / 2)
    clock.now = 61.0
    run.start(2)
    run.start(3)
    assert run.left() == pytest.approx(60)


def test_another_try_begins_anew(run: Forecast, tmp_path: Path, clock: Clock) -> None:
    """What an earlier try said of itself is forgotten, and a failed job is none that was made."""
    run.start(1)
    (tmp_path / "noop").write_text("4 4 900 1000\n")
    run.stop(1)
    run.start(1)
    run.look()
    assert run.line(80) == "3 of 7 evaluations, noop loading"
    run.stop(1)
    assert run.summary() == ""
    run.start(2)
    clock.now = 90.0
    run.end(2)
    assert run.summary() == "1 evaluation in 2 min; 4 of 7 evaluations are there"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_the_line_fits(tmp_path: Path, clock: Clock, width: int) -> None:
    """However many jobs go on; it names as many as there is room for."""
    jobs = {n: evaluation(tmp_path, f"a_scenario_{n:02}") for n in range(12)}
    run = Forecast(jobs, 0, clock=clock)
    for number in jobs:
        run.start(number)
    assert len(run.line(width)) <= width
    assert ("more" in run.line(width)) is (width >= 60)
    assert fitted(["one", "two", "three"], 15) == "one, two, three"
    assert fitted(["one", "two", "three"], 14) == "one, 2 more"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1, "1 s"), (29, "29 s"), (31, "1 min"), (6900, "115 min"), (7300, "2 h 2 min"),
     (10**6, "12 days")],
)  # fmt: skip
def test_times_are_said_as_people_do(seconds: float, text: str) -> None:
    assert span(seconds) == text


# --- on a stream ----------------------------------------------------------------------------------


def logger_on(stream: io.TextIOBase, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A logger as Snakemake's, that says messages on standard error."""
    monkeypatch.setattr("sys.stderr", stream)
    logger = logging.Logger("workflow", logging.INFO)
    logger.addHandler(logging.StreamHandler(stream))
    return logger


def say(logger: logging.Logger, event: str, **given: int) -> None:
    logger.info(event, extra={"event": event, **given})


@pytest.mark.parametrize("terminal", [False, True])
def test_a_pipe_and_ci_get_a_plain_line_now_and_then(
    run: Forecast, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """After evaluations alone, not one right after the other, and at the end what was done; in CI
    on a terminal too."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setenv("CI", "true")
    logger = logger_on(stream, monkeypatch)
    shown = follow(logger, run)
    assert shown is not None
    for number, now in ((5, 20.0), (1, 30.0), (2, 35.0), (3, 30 + PLAIN_SECONDS)):
        say(logger, "job_info", jobid=number)
        clock.now = now
        if number == 1:
            (tmp_path / "noop").write_text("4 4 1000 1000\n")
        say(logger, "job_finished", job_id=number)
    shown.end()
    shown.end()
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = [line for line in text.splitlines() if line.startswith("invarlock: ")]
    assert lines == [
        "invarlock: 4 of 7 evaluations, about 15 s left",
        "invarlock: 6 of 7 evaluations, about 5 s left",
        "invarlock: 3 evaluations in 1 min; 6 of 7 evaluations are there",
    ]


def test_the_line_stands_below_what_is_said() -> None:
    """It goes away before a message, comes back after a whole one, and leaves nothing."""
    stream = io.StringIO()
    below = Below(stream)
    below.draw("half")
    below.write("a message")
    below.draw("not in the middle")
    below.write("\n")
    below.draw("done")
    below.clear()
    below.clear()
    expected = f"{ERASE}half\r{ERASE}a message\n{ERASE}done\r{ERASE}"
    assert stream.getvalue() == expected


def test_a_terminal_is_left_clean(run: Forecast, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is renewed while the run goes on; after its end nothing but the summary comes."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("invarlock.progress_line.SECONDS", 0.02)
    master, slave = pty.openpty()
    with open(slave, "w") as stream:
        logger = logger_on(stream, monkeypatch)
        shown = follow(logger, run)
        assert shown is not None
        say(logger, "job_info", jobid=1)
        said = b""
        while b"noop loading" not in said:
            said += os.read(master, 4096)
        shown.end()
        assert stream.write("after\n")
        stream.flush()
        while b"after" not in said:
            said += os.read(master, 4096)
    os.close(master)
    last = said.decode().rpartition("\x1b[2K")[2]
    assert last.strip() == "after"
    assert said.decode().index("job_info") < said.decode().index("noop loading")
