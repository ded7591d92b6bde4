"""What a comparison shows while it measures: a bar with the time left, or lines for a log."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from invarlock.forecast import span
from invarlock.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

SECONDS = 60.0  # between two lines of a log about one stage


class Stage(NamedTuple):
    """Something that is measured, and how much of it there is."""

    name: str
    windows: int
    tokens: int


@dataclass
class Display:
    """Lines on standard error, for logs: one a stage, and now and then how far it is."""

    clock: Callable[[], float] = time.monotonic
    stages: list[Stage] = field(default_factory=list)
    before: tuple[int, int] = (0, 0)  # windows and tokens of the stages that have ended
    now: Stage | None = None
    begun: float = 0.0  # when the first stage did
    said: float = 0.0  # when the last line was

    def plan(self, stages: Sequence[Stage]) -> None:
        """These are going to be measured."""
        self.stages = list(stages)
        self.begun = self.clock()

    def line(self, text: str) -> None:
        """Say something."""
        print(f"invarlock compare: {text}", file=sys.stderr, flush=True)

    def stage(self, stage: Stage) -> None:
        """This one begins."""
        self.now, self.said = stage, self.clock()
        self.line(f"{stage.name}: {stage.windows:,} windows")

    def show(self, progress: Progress) -> None:
        """So far it is."""
        tokens = self.tokens(progress)
        if self.now is None or not tokens or self.clock() - self.said < SECONDS:
            return
        self.said = self.clock()
        left = (self.said - self.begun) * (sum(s.tokens for s in self.stages) / tokens - 1)
        done = min(progress.windows, self.now.windows)
        self.line(
            f"{self.now.name}: {done:,} of {self.now.windows:,} windows, about {span(left)} left"
        )

    def whole(self, stage: Stage) -> None:
        """It has ended well."""
        self.before = self.before[0] + stage.windows, self.before[1] + stage.tokens

    def tokens(self, progress: Progress) -> int:
        """What has been measured of all stages. Time goes by tokens, since windows differ in
        length."""
        return self.before[1] + min(progress.tokens, self.now.tokens if self.now else 0)


@dataclass
class Terminal(Display):
    """A bar over all stages."""

    bar: Bar | None = None
    task: TaskID | None = None

    def plan(self, stages: Sequence[Stage]) -> None:
        super().plan(stages)
        if self.bar is not None:
            total = sum(stage.tokens for stage in stages)
            self.task = self.bar.add_task("", total=total, windows=self._windows(0))

    def line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, stage: Stage) -> None:
        self.now = stage
        self.show(Progress())

    def show(self, progress: Progress) -> None:
        if self.bar is None or self.task is None or self.now is None:
            return
        windows = self.before[0] + min(progress.windows, self.now.windows)
        what = self.now.name
        if not progress.windows:
            what += ": loading"
        elif progress.tokens >= self.now.tokens:
            what += ": guards"  # look at the weights, and at windows once more
        self.bar.update(
            self.task,
            completed=self.tokens(progress),
            description=what,
            windows=self._windows(windows),
        )
        self.bar.refresh()

    def whole(self, stage: Stage) -> None:
        self.show(Progress(stage.windows, stage.windows, stage.tokens, stage.tokens))
        super().whole(stage)

    def _windows(self, done: int) -> str:
        return f"{done:,} of {sum(stage.windows for stage in self.stages):,} windows"


@contextlib.contextmanager
def display() -> Iterator[Display]:
    """A bar where standard error is a terminal, else lines."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield Display()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", style=""),
        BarColumn(),
        TextColumn("{task.fields[windows]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    # no thread of its own: processes are started beside it
    bar = Progress(
        *columns, console=Console(stderr=True), auto_refresh=False, transient=True,
        speed_estimate_period=3600,
    )  # fmt: skip
    with bar:
        yield Terminal(bar=bar)
