"""The intervals cover the truth as often as they say: ``benchmarks/coverage.py`` in small."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from repository_copy import ROOT
from scipy.stats import binom, t

from invarlock.metrics.bootstrap import PLAIN, WIDENED, effective_clusters, expanded_quantile

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
    """60 documents of 1-12 unequal windows, normal and skewed: 5 % misses, within the band.

    The plain interval is as wide as it should be; the widened one may miss less often.
    """
    scenario = simulation.SCENARIOS[number]
    plain, widened = (
        simulation.misses(
            simulation.sampler(scenario),
            scenario.truth,
            repetitions=N,
            replicates=600,
            seed=3,
            method=method,
        )
        for method in (PLAIN, WIDENED)
    )
    low, high = band()
    assert low <= plain.missed <= high
    assert widened.missed <= high
    assert widened.width < 1.4 * plain.width


@pytest.mark.parametrize("deviations", ["+8.8", "-8.8"])
def test_a_document_far_out_is_covered(simulation, deviations):
    """One document in 180 is 8.8 deviations off, kurtosis 18: at most 5 % misses, and 3 % to
    either side, within the band; without the widening there are more."""
    (scenario,) = (s for s in simulation.HEAVY if f" {deviations} " in s.name)
    plain, widened = (
        simulation.misses(
            simulation.sampler(scenario),
            scenario.truth,
            repetitions=N,
            replicates=400,
            seed=5,
            method=method,
        )
        for method in (PLAIN, WIDENED)
    )
    assert widened.missed <= band()[1]
    assert max(widened.above, widened.below) <= band(0.03)[1]
    assert widened.missed <= 0.85 * plain.missed


def test_a_subject_at_the_limit_seldom_passes(simulation):
    """180 single windows that differ normally: the upper bound is below the truth in 2.5 %."""
    scenario = simulation.SCENARIOS[5]
    found = simulation.misses(
        simulation.sampler(scenario), scenario.truth, repetitions=N, replicates=400, seed=4
    )
    assert found.below <= band(0.025)[1]


def test_recorded_documents_are_drawn_as_they_are(simulation, tmp_path):
    """The documents of a report, summed over windows; draws keep differences with their tokens."""
    final = {
        "nll_sum": [3.0, 5.0, 9.0],
        "baseline_nll_sum": [1.0, 1.0, 1.0],
        "token_counts": [10, 20, 40],
        "clusters": ["b", "a", "b"],
    }
    path = tmp_path / "evaluation.report.json"
    path.write_text(json.dumps({"evaluation_windows": {"final": final}}))
    population = simulation.recorded(path)
    assert [values.tolist() for values in population] == [[4.0, 10.0], [20.0, 50.0]]
    drawn = np.array(simulation.resampler(population)(np.random.default_rng(0)))
    assert set(map(tuple, drawn.T)) <= {(4.0, 20.0), (10.0, 50.0)}


def test_ignoring_clusters_would_cover_less(simulation):
    """The test above can fail: windows taken as independent leave the band by far."""
    scenario = simulation.SCENARIOS[0]
    found = simulation.misses(
        simulation.sampler(scenario, clustered=False),
        scenario.truth,
        repetitions=200,
        replicates=300,
        seed=3,
    )
    assert found.missed / 200 > 2 * band()[1] / N


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
