"""A line about a run of the workflow, beside what Snakemake says itself.

On a terminal it stands at the bottom and is renewed once a second; whatever Snakemake says goes
above it. Elsewhere, and in CI, it is a plain line now and then, after an evaluation has ended.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from invarlock.forecast import Forecast

SECONDS = 1.0  # between two looks at a terminal
MANY = 8  # jobs; the files of more are looked at less often
PLAIN_SECONDS = 10.0  # between two plain lines at least
COLUMNS = 80  # of a terminal that does not say
LISTED = 1000  # jobs of a plan that somebody may read one by one
ERASE = "\r\x1b[2K"


def is_for_people(stream: TextIO) -> bool:
    """Whether somebody looks at the stream while it is written."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class Below:
    """A stream with a line below what is written to it.

    The cursor stands at the line's beginning, so that what others write there takes its place.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.RLock()
        self._begun = False  # a line of others that has not ended
        self._drawn = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """What others say; the line is drawn again by the next ``draw``."""
        with self._lock:
            self.clear()
            self._begun = not text.endswith("\n") if text else self._begun
            return self._stream.write(text)

    def draw(self, line: str) -> None:
        """Show the line, unless somebody is writing one."""
        with self._lock:
            if not self._begun:
                self._stream.write(f"{ERASE}{line}\r")
                self._stream.flush()
                self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._drawn:
                self._stream.write(ERASE)
                self._stream.flush()
                self._drawn = False


class ProgressHandler(logging.Handler):
    """Follows the events of Snakemake's log, by the names of its logger interface."""

    def __init__(self, forecast: Forecast, stream: TextIO) -> None:
        super().__init__()
        self.forecast, self.stream = forecast, stream
        self.below = Below(stream) if is_for_people(stream) else None
        self._ended = threading.Event()
        self._said = forecast.clock()
        if self.below is not None:
            threading.Thread(target=self._renew, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", "") or "")
        if event == "job_info":
            self.forecast.start(record.__dict__["jobid"])
        elif event == "job_error":
            self.forecast.stop(record.__dict__["jobid"])
        elif event == "job_finished":
            before = self.forecast.done
            self.forecast.end(record.__dict__["job_id"])
            if self.below is None and self.forecast.done > before:
                self._say()

    def _say(self) -> None:
        now, left = self.forecast.clock(), self.forecast.time_left()
        if now - self._said >= PLAIN_SECONDS:
            self._said = now
            self._print(", ".join(filter(None, [self.forecast.counted(), left])))

    def _print(self, text: str) -> None:
        print(f"invarlock: {text}", file=self.stream, flush=True)

    def _renew(self) -> None:
        assert self.below is not None
        while not self._ended.wait(SECONDS if len(self.forecast.running) <= MANY else 5 * SECONDS):
            self.acquire()  # no event in between
            try:
                if not self._ended.is_set():
                    self.forecast.look()
                    # some terminals do not say
                    columns = os.get_terminal_size(self.stream.fileno()).columns or COLUMNS
                    self.below.draw(self.forecast.line(columns - 1))
            except OSError:
                return  # the terminal is gone; the run goes on without the line
            finally:
                self.release()

    def end(self) -> None:
        """The run is over: take the line away, and say what was done."""
        self.acquire()
        try:
            if self._ended.is_set():
                return
            self._ended.set()
            if self.below is not None:
                self.below.clear()
            for number in list(self.forecast.running):
                self.forecast.stop(number)
        finally:
            self.release()
        if text := self.forecast.summary():
            self._print(text)


class LargePlan(logging.Handler):
    """Waits for Snakemake's table of the jobs of a plan; of more than a reader reads, it tells how
    many there are."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if str(getattr(record, "event", "") or "") == "run_info":
            jobs = record.__dict__["stats"]["total"]
            if jobs > LISTED:
                self.tell(jobs)


def follow(logger: logging.Logger, forecast: Forecast) -> ProgressHandler | None:
    """Show the progress of a run beside what the logger says on a stream; None where it says
    nothing there, or another display does it."""
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (
            sys.stderr,
            sys.stdout,
        ):
            mine = ProgressHandler(forecast, handler.stream)
            if mine.below is not None:
                handler.stream = mine.below
            logger.addHandler(mine)
            return mine
    return None
