"""Whether the intervals cover the truth as often as they say, by simulation.

Each scenario draws documents of 1 to 12 windows of 20 to 140 tokens, or of one full window; the
difference of a window is a document effect plus its own noise, and the truth is known; in some a
small share of the documents is far out. For the bootstrap interval (nominal 95 %) it prints the
kurtosis of the documents, the coverage with its binomial standard error, both error rates and the
mean width, for the lower bound of the tail quantile (nominal at least 95 %) how often it is one. An
interval below the truth is what passes a subject that is exactly at the limit.

With reports, the documents of their scored windows are what is drawn from, in the same number.

    python benchmarks/coverage.py [--repetitions 2000] [--replicates 2000] [--seed 1]
        [--method bca_cluster_ratio] [evaluation.report.json ...]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from invarlock.metrics.bootstrap import METHODS, WIDENED, cluster_sums, kurtosis, residuals
from invarlock.metrics.perplexity import Arm
from invarlock.metrics.tail import Tail

TRUTH = 0.01  # nats per token
QUANTILE = 0.95
SAME_DRAWS = 50  # repetitions that share the resampling, which takes most of the time

if TYPE_CHECKING:
    from invarlock.metrics.bootstrap import Floats

    Sums = tuple[Floats, Floats]  # differences and tokens, both (clusters,)


@dataclass(frozen=True)
class Scenario:
    """How documents and windows differ."""

    name: str
    documents: int = 60
    max_windows: int = 12  # of a document, at least 1, uniform
    effect: float = 0.02  # standard deviation of the document effect, nats per token
    noise: float = 0.02  # of a window
    tokens: tuple[int, int] = (20, 140)  # fewest and most of a window
    skewed: bool = False  # document effects exponential instead of normal
    outlying: float = 0.0  # share of documents that are far out
    far: float = 0.0  # by how much more than TRUTH, nats per token

    @property
    def truth(self) -> float:
        """The expected difference, nats per token."""
        return TRUTH + self.outlying * self.far


SCENARIOS = (
    Scenario("60 documents, 1-12 windows"),
    Scenario("the same, skewed effects", skewed=True),
    Scenario("the same, no document effect", effect=0.0, noise=0.05),
    Scenario("30 documents, 1-12 windows", documents=30),
    Scenario("120 documents, 1-12 windows", documents=120),
    Scenario("180 documents, one window each", documents=180, max_windows=1),
)
# One document in 180 is worse, or better, than the others by some of their standard deviations;
# full windows, as a run cuts them.
DEVIATION = 0.02
HEAVY = tuple(
    Scenario(
        f"1 in 180 off by {far:+} deviations",
        documents=180,
        max_windows=1,
        effect=0.0,
        noise=DEVIATION,
        tokens=(143, 143),
        outlying=1 / 180,
        far=far * DEVIATION,
    )
    for far in (0, 4, 7.5, 8.8, 10, 14, -4, -7.5, -8.8, -10, -14)
)


def draw(scenario: Scenario, rng: np.random.Generator) -> Arm:
    """One sample of windows whose expected difference is ``scenario.truth``."""
    counts = rng.integers(1, scenario.max_windows + 1, scenario.documents)
    index = np.repeat(np.arange(scenario.documents), counts)
    if scenario.skewed:
        effects = scenario.effect * (rng.exponential(1.0, scenario.documents) - 1.0)
    else:
        effects = rng.normal(0.0, scenario.effect, scenario.documents)
    if scenario.outlying:
        effects += scenario.far * (rng.random(scenario.documents) < scenario.outlying)
    fewest, most = scenario.tokens
    tokens = rng.integers(fewest, most + 1, len(index)).astype(np.float64)
    worse = TRUTH + effects[index] + rng.normal(0.0, scenario.noise, len(index))
    return Arm(
        window_ids=[str(i) for i in range(len(index))],
        clusters=[f"{i:04d}" for i in index],
        token_counts=tokens,
        subject_nll=tokens * worse,
        baseline_nll=np.zeros(len(index)),
    )


def sampler(scenario: Scenario, *, clustered: bool = True) -> Callable[[np.random.Generator], Sums]:
    """Draws a sample and sums it by document, or leaves every window on its own."""

    def sample(rng: np.random.Generator) -> Sums:
        arm = draw(scenario, rng)
        sums = arm.subject_nll, arm.token_counts
        return cluster_sums(arm.clusters, *sums) if clustered else sums

    return sample


@dataclass(frozen=True)
class Outcome:
    """How often the interval lies above, and below, the truth, and its mean width."""

    above: int
    below: int
    width: float

    @property
    def missed(self) -> int:
        """How often the interval does not cover the truth."""
        return self.above + self.below


def misses(
    sample: Callable[[np.random.Generator], Sums],
    truth: float,
    *,
    repetitions: int,
    replicates: int,
    seed: int,
    method: str = WIDENED,
) -> Outcome:
    """What 95 % intervals of repeated samples do."""
    rng = np.random.default_rng(seed)
    above = below = 0
    width = 0.0
    for repetition in range(repetitions):
        interval = METHODS[method](
            *sample(rng),
            replicates=replicates,
            alpha=0.05,
            seed=seed + repetition // SAME_DRAWS,
        )
        assert interval is not None
        above += interval.low > truth
        below += interval.high < truth
        width += (interval.high - interval.low) / repetitions
    return Outcome(above, below, width)


def recorded(report: Path) -> Sums:
    """Differences and tokens of the documents that a report's scored windows are of."""
    final = json.loads(report.read_text())["evaluation_windows"]["final"]
    difference = np.subtract(final["nll_sum"], final["baseline_nll_sum"])
    return cluster_sums(final["clusters"], difference, np.asarray(final["token_counts"], float))


def resampler(population: Sums) -> Callable[[np.random.Generator], Sums]:
    """Draws as many documents as there are, each with equal probability."""

    def sample(rng: np.random.Generator) -> Sums:
        drawn = rng.integers(0, len(population[0]), len(population[0]))
        return population[0][drawn], population[1][drawn]

    return sample


def weight_of(sample: Callable[[np.random.Generator], Sums], seed: int) -> float:
    """Kurtosis of the documents, from 200 samples at once."""
    rng = np.random.default_rng(seed)
    difference, tokens = zip(*(sample(rng) for _ in range(200)), strict=True)
    return kurtosis(residuals(np.concatenate(difference), np.concatenate(tokens)))


def tail_errors(scenario: Scenario, *, repetitions: int, seed: int) -> int:
    """How often the lower bound of the tail quantile lies above the true quantile (normal)."""
    rng = np.random.default_rng(seed)
    spread = math.hypot(scenario.effect, scenario.noise)
    truth = TRUTH + NormalDist().inv_cdf(QUANTILE) * spread
    bounds = (Tail.of(draw(scenario, rng)).bounds(QUANTILE)[0] for _ in range(repetitions))
    return sum(low is not None and low > truth for low in bounds)


def main() -> None:
    """Print a line per scenario, or per report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", type=Path, nargs="*")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--method", choices=METHODS, default=WIDENED)
    wanted = parser.parse_args()
    n = wanted.repetitions
    print(f"{wanted.method}, {n} repetitions, {wanted.replicates} replicates, seed {wanted.seed}\n")
    head = f"{'scenario':<32}{'kurtosis':>9}{'coverage':>10}{'+-':>7}{'above':>8}{'below':>8}"
    print(f"{head}{'width':>9}{'tail bound':>12}")
    if wanted.reports:
        for path in wanted.reports:
            population = recorded(path)
            truth = float(population[0].sum() / population[1].sum())
            name = str(path.parent.parent.name)
            print(line(name, resampler(population), truth, wanted), flush=True)
        return
    for scenario in (*SCENARIOS, *HEAVY):
        tail = "-"
        if not scenario.skewed and not scenario.outlying:
            tail = f"{1 - tail_errors(scenario, repetitions=n, seed=wanted.seed) / n:.1%}"
        told = line(scenario.name, sampler(scenario), scenario.truth, wanted)
        print(f"{told}{tail:>12}", flush=True)


def line(
    name: str,
    sample: Callable[[np.random.Generator], Sums],
    truth: float,
    wanted: argparse.Namespace,
) -> str:
    """What the intervals of repeated samples do, as a line of the table."""
    n = wanted.repetitions
    found = misses(
        sample,
        truth,
        repetitions=n,
        replicates=wanted.replicates,
        seed=wanted.seed,
        method=wanted.method,
    )
    coverage = 1 - found.missed / n
    error = math.sqrt(coverage * (1 - coverage) / n)
    return (
        f"{name:<32}{weight_of(sample, wanted.seed):>9.1f}{coverage:>10.1%}{error:>7.1%}"
        f"{found.above / n:>8.1%}{found.below / n:>8.1%}{found.width:>9.5f}"
    )


if __name__ == "__main__":
    main()
