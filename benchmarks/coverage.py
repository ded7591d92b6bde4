"""Whether the intervals cover the truth as often as they say, by simulation.

Each scenario draws documents of 1 to 12 windows of 20 to 140 tokens; the difference of a window is
a document effect plus its own noise, and the truth is known. For the bootstrap interval (nominal
95 %) it prints the coverage with its binomial standard error and both error rates, for the lower
bound of the tail quantile (nominal at least 95 %) how often it is one.

    python benchmarks/coverage.py [--repetitions 2000] [--replicates 2000] [--seed 1]
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from invarlock.metrics.bootstrap import bca_interval, cluster_sums
from invarlock.metrics.perplexity import Arm
from invarlock.metrics.tail import Tail

TRUTH = 0.01  # nats per token
QUANTILE = 0.95


@dataclass(frozen=True)
class Scenario:
    """How documents and windows differ."""

    name: str
    documents: int = 60
    max_windows: int = 12  # of a document, at least 1, uniform
    effect: float = 0.02  # standard deviation of the document effect, nats per token
    noise: float = 0.02  # of a window
    skewed: bool = False  # document effects exponential instead of normal


SCENARIOS = (
    Scenario("60 documents, 1-12 windows"),
    Scenario("the same, skewed effects", skewed=True),
    Scenario("the same, no document effect", effect=0.0, noise=0.05),
    Scenario("30 documents, 1-12 windows", documents=30),
    Scenario("120 documents, 1-12 windows", documents=120),
    Scenario("180 documents, one window each", documents=180, max_windows=1),
)


def draw(scenario: Scenario, rng: np.random.Generator) -> Arm:
    """One sample of windows whose expected difference is ``TRUTH``."""
    counts = rng.integers(1, scenario.max_windows + 1, scenario.documents)
    index = np.repeat(np.arange(scenario.documents), counts)
    if scenario.skewed:
        effects = scenario.effect * (rng.exponential(1.0, scenario.documents) - 1.0)
    else:
        effects = rng.normal(0.0, scenario.effect, scenario.documents)
    tokens = rng.integers(20, 141, len(index)).astype(np.float64)
    worse = TRUTH + effects[index] + rng.normal(0.0, scenario.noise, len(index))
    return Arm(
        window_ids=[str(i) for i in range(len(index))],
        clusters=[f"{i:04d}" for i in index],
        token_counts=tokens,
        subject_nll=tokens * worse,
        baseline_nll=np.zeros(len(index)),
    )


def misses(
    scenario: Scenario, *, repetitions: int, replicates: int, seed: int, clustered: bool = True
) -> tuple[int, int]:
    """How often the 95 % interval lies above, and below, the truth."""
    rng = np.random.default_rng(seed)
    above = below = 0
    for repetition in range(repetitions):
        arm = draw(scenario, rng)
        sums = arm.subject_nll, arm.token_counts
        if clustered:
            sums = cluster_sums(arm.clusters, *sums)
        interval = bca_interval(*sums, replicates=replicates, alpha=0.05, seed=seed + repetition)
        assert interval is not None
        above += interval.low > TRUTH
        below += interval.high < TRUTH
    return above, below


def tail_errors(scenario: Scenario, *, repetitions: int, seed: int) -> int:
    """How often the lower bound of the tail quantile lies above the true quantile (normal)."""
    rng = np.random.default_rng(seed)
    spread = math.hypot(scenario.effect, scenario.noise)
    truth = TRUTH + NormalDist().inv_cdf(QUANTILE) * spread
    bounds = (Tail.of(draw(scenario, rng)).bounds(QUANTILE)[0] for _ in range(repetitions))
    return sum(low is not None and low > truth for low in bounds)


def main() -> None:
    """Print a line per scenario."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    n = wanted.repetitions
    print(f"{n} repetitions, {wanted.replicates} replicates, seed {wanted.seed}\n")
    print(f"{'scenario':<32}{'coverage':>10}{'+-':>7}{'above':>8}{'below':>8}{'tail bound':>12}")
    for scenario in SCENARIOS:
        above, below = misses(
            scenario, repetitions=n, replicates=wanted.replicates, seed=wanted.seed
        )
        coverage = 1 - (above + below) / n
        error = math.sqrt(coverage * (1 - coverage) / n)
        tail = "-"
        if not scenario.skewed:
            tail = f"{1 - tail_errors(scenario, repetitions=n, seed=wanted.seed) / n:.1%}"
        print(
            f"{scenario.name:<32}{coverage:>10.1%}{error:>7.1%}"
            f"{above / n:>8.1%}{below / n:>8.1%}{tail:>12}",
            flush=True,
        )


if __name__ == "__main__":
    main()
