"""What a comparison shows while it measures: a bar with the time left, or a line per stage."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from invarlock.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Stage(NamedTuple):
    """Something that is measured, and how much of it there is."""

    name: str
    windows: int
    tokens: int


@dataclass
class Display:
    """Lines on standard error, for logs: one a stage."""

    stages: list[Stage] = field(default_factory=list)

    def plan(self, stages: Sequence[Stage]) -> None:
        """These are going to be measured."""
        self.stages = list(stages)

    def line(self, text: str) -> None:
        """Say something."""
        print(f"invarlock compare: {text}", file=sys.stderr, flush=True)

    def stage(self, stage: Stage) -> None:
        """This one begins."""
        self.line(f"{stage.name}: {stage.windows:,} windows")

    def show(self, progress: Progress) -> None:
        """So far it is."""

    def whole(self, stage: Stage) -> None:
        """It has ended well."""


@dataclass
class Terminal(Display):
    """A bar over all stages. Time goes by tokens, since windows differ in length."""

    bar: Bar | None = None
    task: TaskID | None = None
    before: tuple[int, int] = (0, 0)  # windows and tokens of the stages that have ended
    now: Stage | None = None

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
        tokens = self.before[1] + min(progress.tokens, self.now.tokens)
        what = self.now.name
        if not progress.windows:
            what += ": loading"
        elif progress.tokens >= self.now.tokens:
            what += ": guards"  # look at the weights, and at windows once more
        self.bar.update(
            self.task, completed=tokens, description=what, windows=self._windows(windows)
        )
        self.bar.refresh()

    def whole(self, stage: Stage) -> None:
        self.show(Progress(stage.windows, stage.windows, stage.tokens, stage.tokens))
        self.before = self.before[0] + stage.windows, self.before[1] + stage.tokens

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
