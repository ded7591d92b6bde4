"""How far a run of the workflow is, and about how long the rest takes at the speed of this run.

Jobs of a kind (the same rule on the same model, and controls apart, which may end after a tenth of
their windows) take as long as those of the kind that have ended. Until the first has ended, what a
job is going to measure is divided by the tokens a second that this run has shown so far.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from invarlock.progress import Progress

EARLY = 0.25  # of a control's windows, guess: a tenth, loading, and those few that are not decided
NOTHING = Progress()
SMALL = 2.0  # seconds, guess: a job that measures nothing


@dataclass(frozen=True)
class Work:
    """A job."""

    name: str  # for people
    kind: str
    tokens: int = 0  # that it is going to measure
    early: bool = False  # it may end before
    counted: bool = False  # an evaluation
    told: Path | None = None  # where it writes how far it is


@dataclass
class _Running:
    since: float
    progress: Progress = NOTHING


class Forecast:
    """The jobs of a run: which are to come, which go on, how long those took that have ended."""

    def __init__(
        self,
        jobs: Mapping[int, Work],
        at_once: int,
        done_before: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            jobs: those to run, by their numbers.
            at_once: how many run side by side; 0: as many as do.
            done_before: evaluations that earlier runs have made.
            clock: seconds.
        """
        self.jobs, self.at_once, self.clock = jobs, at_once, clock
        self.done, self.all = done_before, done_before + sum(w.counted for w in jobs.values())
        self.made = 0  # evaluations of this run
        self.started = clock()
        self.running: dict[int, _Running] = {}
        self._to_come = set(jobs)
        self._kinds = Counter(work.kind for work in jobs.values())  # to come
        self._a_job = {work.kind: work for work in jobs.values()}
        self._took: dict[str, list[float]] = defaultdict(list)
        self._measured = [0, 0.0]  # tokens, seconds

    # --- what happens --------------------------------------------------------------------------

    def start(self, number: int) -> None:
        """A job has begun, perhaps again; how far an earlier try of it was counts no more."""
        if number not in self.jobs:
            return
        if number in self._to_come:
            self._to_come.remove(number)
            self._kinds[self.jobs[number].kind] -= 1
        self.running[number] = _Running(self.clock())
        self._forget(number)

    def end(self, number: int) -> None:
        """A job has ended well."""
        running = self.running.get(number)
        if running is None:
            return
        self.look()
        work, took = self.jobs[number], self.clock() - running.since
        self._took[work.kind].append(took)
        if running.progress.tokens:
            self._measured[0] += running.progress.tokens
            self._measured[1] += took
        if work.counted:
            self.done += 1
            self.made += 1
        self.stop(number)

    def stop(self, number: int) -> None:
        """A job goes on no more."""
        if self.running.pop(number, None) is not None:
            self._forget(number)

    def look(self) -> None:
        """Read how far the running jobs are."""
        for number, running in self.running.items():
            if (told := self.jobs[number].told) is not None:
                running.progress = Progress.read(told)

    def _forget(self, number: int) -> None:
        if (told := self.jobs[number].told) is not None:
            told.unlink(missing_ok=True)

    # --- what follows from it ------------------------------------------------------------------

    def left(self) -> float | None:
        """Seconds until the last job ends; None where nothing was measured that would tell."""
        speed = self._speed()
        if speed is None and any(w.tokens and self._pending(w) for w in self._a_job.values()):
            return None
        rest = [self._rest(number, running, speed) for number, running in self.running.items()]
        whole = sum(n * self._expected(self._a_job[kind], speed) for kind, n in self._kinds.items())
        return max([(whole + sum(rest)) / (self.at_once or max(1, len(rest))), *rest])

    def _pending(self, work: Work) -> bool:
        going = any(self.jobs[number].kind == work.kind for number in self.running)
        return not self._took[work.kind] and (self._kinds[work.kind] > 0 or going)

    def _speed(self) -> float | None:
        """Tokens a second, of jobs that have ended and of those that go on."""
        tokens, seconds = self._measured
        for running in self.running.values():
            if running.progress.tokens:
                tokens += running.progress.tokens
                seconds += self.clock() - running.since
        return tokens / seconds if seconds > 0 else None

    def _expected(self, work: Work, speed: float | None) -> float:
        if took := self._took[work.kind]:
            return sum(took) / len(took)
        if work.tokens and speed:
            return work.tokens / speed * (EARLY if work.early else 1)
        return SMALL

    def _rest(self, number: int, running: _Running, speed: float | None) -> float:
        """Seconds that a running job has before it: by the others of its kind; of one that takes
        longer than those, or is the first, by its own speed."""
        work, gone = self.jobs[number], self.clock() - running.since
        rest, done = self._expected(work, speed) - gone, self._part(number)
        if done and (rest <= 0 or not (work.early or self._took[work.kind])):
            rest = gone / done - gone
        return max(rest, 0.0)

    def _part(self, number: int) -> float:
        progress = self.running[number].progress
        of = max(self.jobs[number].tokens, progress.of_tokens)
        return min(progress.tokens / of, 1.0) if of else 0.0

    # --- for people ----------------------------------------------------------------------------

    def counted(self) -> str:
        """Evaluations done of all."""
        return f"{self.done:,} of {self.all:,} evaluations"

    def time_left(self) -> str:
        """Nothing where it is not known."""
        left = self.left()
        return "" if left is None else f"about {span(left)} left"

    def line(self, width: int) -> str:
        """Evaluations, what goes on now, and the time left; as much as the width holds."""
        ends = [self.counted(), *filter(None, [self.time_left()])]
        room = width - len(", ".join(ends)) - 2
        now = fitted([self._now(n) for n in sorted(self.running, key=self._rank)], room)
        return ", ".join([ends[0], *filter(None, [now]), *ends[1:]])[: max(width, 0)]

    def _rank(self, number: int) -> tuple[bool, float]:
        return self.jobs[number].tokens == 0, self.running[number].since

    def _now(self, number: int) -> str:
        work, progress = self.jobs[number], self.running[number].progress
        if not work.tokens:
            return work.name
        if not progress.tokens:
            return f"{work.name} loading"
        if progress.tokens >= max(work.tokens, progress.of_tokens):
            return f"{work.name} guards"  # look at the weights, and at windows once more
        return f"{work.name} {self._part(number):.0%}".replace("%", " %")

    def summary(self) -> str:
        """What this run did, at its end; nothing where it evaluated nothing."""
        if not self.made:
            return ""
        took = span(self.clock() - self.started)
        made = f"{self.made:,} evaluation{'s' * (self.made != 1)} in {took}"
        return made if self.done == self.all else f"{made}; {self.counted()} are there"


def fitted(parts: Sequence[str], room: int) -> str:
    """As many of the parts as there is room for, and how many more there are."""
    for shown in range(len(parts), 0, -1):
        more = [f"{len(parts) - shown:,} more"] if shown < len(parts) else []
        if len(text := ", ".join([*parts[:shown], *more])) <= room:
            return text
    return ""


def span(seconds: float) -> str:
    """A time as people say it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(round(seconds), 1)} s"
    hours, rest = divmod(minutes, 60)
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {rest} min" if hours < 48 else f"{round(hours / 24)} days"
