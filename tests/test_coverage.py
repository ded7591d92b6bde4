"""The intervals cover the truth as often as they say: ``benchmarks/coverage.py`` in small."""

import importlib.util
import sys

import numpy as np
import pytest
from repository_copy import ROOT
from scipy.stats import binom, t

from invarlock.metrics.bootstrap import effective_clusters, expanded_quantile

FALSE_ALARM = 1e-4  # of each simulated test, if coverage is what it should be
N = 800


@pytest.fixture(scope="module")
def simulation():
    """The benchmark as a module; under another name, because ``coverage`` is a package."""
    spec = importlib.util.spec_from_file_location("coverage_bench", ROOT / "benchmarks/coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def band(level=0.05):
    """Numbers of misses in N that a true level stays within, but for the false alarms."""
    return binom.ppf(FALSE_ALARM / 2, N, level), binom.isf(FALSE_ALARM / 2, N, level)


@pytest.mark.parametrize("number", [0, 1])
def test_interval_covers_the_truth_on_clustered_unequal_windows(simulation, number):
    """60 documents of 1-12 unequal windows, normal and skewed: 5 % misses, within the band."""
    scenario = simulation.SCENARIOS[number]
    missed = sum(simulation.misses(scenario, repetitions=N, replicates=600, seed=3))
    low, high = band()
    assert low <= missed <= high


def test_ignoring_clusters_would_cover_less(simulation):
    """The test above can fail: windows taken as independent leave the band by far."""
    missed = sum(
        simulation.misses(
            simulation.SCENARIOS[0], repetitions=200, replicates=300, seed=3, clustered=False
        )
    )
    assert missed / 200 > 2 * band()[1] / N


def test_tail_bound_is_one(simulation):
    """The lower bound of the tail quantile exceeds the truth in 5 % at most, within the band."""
    exceeded = simulation.tail_errors(simulation.SCENARIOS[0], repetitions=N, seed=3)
    assert exceeded <= band()[1]


@pytest.mark.parametrize("df", [3, 8, 30, 59.5, 400])
def test_quantile_is_expanded_by_student(df):
    """The expansion around the normal is Student's quantile to 1 %, times sqrt((df + 1) / df)."""
    exact = t.ppf(0.975, df) * ((df + 1) / df) ** 0.5
    assert expanded_quantile(0.975, df) == pytest.approx(exact, rel=0.01)
    assert expanded_quantile(0.025, df) == pytest.approx(-expanded_quantile(0.975, df))


def test_effective_clusters_are_those_of_equal_size():
    """Equal clusters count fully; beside one that is huge the others hardly count."""
    assert effective_clusters(np.full(60, 127.0)) == pytest.approx(60)
    assert effective_clusters(np.array([1e6, *[1.0] * 59])) == pytest.approx(1, abs=1e-6)
    assert effective_clusters(np.array([1.0, 1.0, 2.0])) == pytest.approx(36 / 18)
