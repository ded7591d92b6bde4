"""The pictures of a page: every value is where it belongs, and every threshold is drawn."""

from __future__ import annotations

import copy
import math
import re

import pytest
from page_factory import make_mixture_report, make_page_report
from report_factory import make_report

from invarlock.guards import BY_NAME, variance
from invarlock.metrics import readings
from invarlock.pages.changes import module_changes, ratio_label
from invarlock.pages.panels import NAMED
from invarlock.pages.plots import LEFT, RIGHT, Plot
from invarlock.reporting import figures, metric_sections

DOWN = "model.layers.1.mlp.down_proj.weight"
HARMFUL = make_report("prune_50pct_stress", 1.6)
PAGE = make_page_report()
HARM = make_page_report(harm=0.2)


def texts(plot: Plot, style: str) -> list[str]:
    """The words of one style, in order."""
    return [t.text for t in plot.texts if t.style == style]


def paths(plot: Plot, style: str) -> list[str]:
    """The subpaths of every shape of one style."""
    found = [s.path for s in plot.shapes if s.style == style]
    return [part for path in found for part in re.findall(r"M[^M]+", path)]


def starts(plot: Plot, style: str) -> list[tuple[float, float]]:
    """Where each subpath of a style starts."""
    numbers = [re.match(r"M(-?[\d.]+) (-?[\d.]+)", path) for path in paths(plot, style)]
    return [(float(m[1]), float(m[2])) for m in numbers if m]


def test_windows() -> None:
    """One dot a window, and the mean line is the logarithm of the ratio."""
    differences = readings.window_differences(HARMFUL)
    assert readings.weighted_mean(differences) == pytest.approx(math.log(1.6))
    plot = figures.windows_plot(differences, HARMFUL["primary_metric"]["limit"])
    assert plot is not None
    assert len(paths(plot, "dot")) == len(HARMFUL["evaluation_windows"]["final"]["window_ids"])
    wanted = [f"mean {math.log(1.6):+.4f}", f"limit {math.log(1.102):+.4f}"]
    assert texts(plot, "level") == wanted
    assert starts(plot, "mean")[0][1] < starts(plot, "limit")[0][1]  # the mean is above the limit


def test_slices_are_drawn_with_their_intervals_and_the_limit() -> None:
    """A row each; the limit lies between those that pass and those that do not."""
    slices = [
        figures.SliceResult("prose", 1.02, (1.01, 1.03)),
        figures.SliceResult("a name of more than twenty characters", 1.2, (1.15, 1.25)),
        figures.SliceResult("long", None, None),
    ]
    plot = figures.slices_plot(slices, 1.1, "ratio")
    assert plot is not None
    assert len(paths(plot, "dot")) == 2
    (limit,) = starts(plot, "limit")
    dots = [x for x, _ in starts(plot, "dot")]
    assert dots[0] < limit[0] < dots[1]
    assert [t for t in texts(plot, "tick") if "name" in t] == ["a name of more than\u2026"]
    assert "long -" in plot.description
    assert figures.slices_plot(slices[:1], 1.1, "ratio") is None


def test_distances_are_drawn_layer_by_layer() -> None:
    """The furthest block and the first that moved as much by half are named."""
    moved = {f"model.layers.{i}.mlp.down_proj": d for i, d in enumerate((0.0, 0.3, 0.5, 0.2))}
    (plot,) = BY_NAME["representation"].where(make_report("moved", 1.004, moved=moved))
    assert plot.description.endswith(
        "The largest is 0.5000 in model.layers.2.mlp.down_proj; the first block that reaches half "
        "of that is model.layers.1.mlp.down_proj."
    )
    marks = starts(plot, "within")
    assert len(marks) == 8 + 2  # two kinds of four layers, and the legend
    squares = {round(y) for _, y in marks[5:9]}
    assert len(squares) == 4
    assert BY_NAME["representation"].where(make_report("noop_clean")) == ()


def test_many_windows_are_aggregated() -> None:
    """Thousands of windows are drawn as at most 400 quantiles."""
    many = [readings.WindowDifference(f"{i}", "d", 100.0, i / 1000) for i in range(5000)]
    plot = figures.windows_plot(many, 1.1)
    assert plot is not None
    assert len(paths(plot, "dot")) == figures.MAX_DOTS
    assert "5000 windows" in plot.description


def test_tail() -> None:
    """The worse half of the windows, the quantile with its bounds, and the limit in its place."""
    tail, differences = HARM["primary_metric_tail"], readings.window_differences(HARM)
    plot = figures.tail_plot(differences, tail)
    assert plot is not None
    assert len(set(paths(plot, "dot"))) == len(differences) // 2
    assert texts(plot, "level") == ["limit +0.2000"]
    stats = tail["stats"]
    for value in (stats["quantile_point"], stats["quantile_low"], stats["quantile_high"]):
        assert f"{value:+.4f}" in plot.description
    (low, _, high) = [y for _, y in starts(plot, "bound")]
    dots = sorted(y for _, y in starts(plot, "dot"))
    assert dots[0] < high < low < dots[-1]
    # the limit is drawn at its height: between the dots of the windows below and above it
    above = sum(d.nats > 0.2 for d in differences)
    assert sum(y < starts(plot, "limit")[0][1] for y in dots) == pytest.approx(above, abs=2)


def test_tail_without_an_upper_bound() -> None:
    """Where the windows are too few for an upper bound the bar is open and the words say so."""
    tail = copy.deepcopy(PAGE["primary_metric_tail"])
    tail["stats"]["quantile_high"] = None
    plot = figures.tail_plot(readings.window_differences(PAGE), tail)
    assert plot is not None
    assert "unknown" in plot.description
    assert len(paths(plot, "bound")) == 2
    tail["evaluated"] = False
    assert figures.tail_plot(readings.window_differences(PAGE), tail) is None


@pytest.mark.parametrize("guard", ["spectral", "rmt"])
def test_modules_and_their_limits(guard: str) -> None:
    """One mark a module; those beyond the limit of their own family, and no others, say so."""
    statistic = {"spectral": "sigma_max", "rmt": "edge"}[guard]
    section = BY_NAME[guard].section
    caps = HARM["spectral"]["family_caps"]
    limit = {f: math.exp(cap["kappa"] * cap["tau"]) for f, cap in caps.items()}
    if guard == "rmt":
        limit = {f: 1 + e for f, e in HARM["rmt"]["epsilon_by_family"].items()}
    table = HARM[guard]["operators" if guard == "spectral" else "modules"]
    limit = {f: limit[f] for f in set(table["family"])}
    ratios = [
        (family, mine / base)
        for family, mine, base in zip(
            table["family"], table[statistic], table["baseline_" + statistic], strict=True
        )
    ]
    beyond = [
        (f, r) for f, r in ratios if r > limit[f] or (guard == "spectral" and r < 1 / limit[f])
    ]
    (plot,) = section(HARM).plots
    assert len(paths(plot, "beyond")) == len(beyond)
    assert len(paths(plot, "within")) - len(limit) == len(ratios) - len(beyond)  # legend
    assert f"{len(beyond)} beyond" in plot.description
    for family in limit:
        assert f"limit {ratio_label(math.log(limit[family]))}" in texts(plot, "level")
    families = [s for s in plot.shapes if s.style == "beyond" and s.name]
    assert 0 < len(families) <= len(limit) * NAMED


def test_one_capped_module() -> None:
    """The module beyond the cap carries its name, and the table of changes begins with it."""
    report = make_report("rank1_projection", 1.09, rank={DOWN: 0.05}, scale={DOWN: 0.6})
    changes = module_changes(report, "spectral", "sigma_max", "operators")
    assert changes[0].name == DOWN
    assert changes[0].log_ratio == pytest.approx(math.log(0.6))
    (plot,) = BY_NAME["spectral"].section(report).plots
    assert [s.name for s in plot.shapes if s.style == "beyond"] == [f"{DOWN}: 0.6"]


@pytest.mark.parametrize("ratio", [0.0, 1e-30, 1e30])
def test_extreme_modules_stay_in_the_picture(ratio: float) -> None:
    """A vanished or exploded matrix is drawn inside the frame, beyond its limit."""
    report = make_report("x", 1.01, scale={DOWN: ratio})
    (plot,) = BY_NAME["spectral"].section(report).plots
    assert len(paths(plot, "beyond")) == 1
    assert all(0 <= y <= plot.height for style in ("within", "beyond")
               for _, y in starts(plot, style))  # fmt: skip


def test_a_lost_number_is_beyond_every_limit() -> None:
    """A module whose statistic is not finite is drawn as far away as can be."""
    report = copy.deepcopy(PAGE)
    report["rmt"]["modules"]["edge"][0] = None
    section = BY_NAME["rmt"].section(report)
    assert "1 beyond" in section.plots[0].description
    assert section.tables[-1].rows[0][2] == "beyond measure"


def test_modules_of_another_model_are_matched_by_name() -> None:
    """Where the runs' modules differ, each is compared with its namesake."""
    report = copy.deepcopy(PAGE)
    table = report["variance"]["modules"]
    table["baseline_name"] = table["name"][::-1]
    table["baseline_variance"] = table["baseline_variance"][::-1]
    changes = module_changes(report, "variance", "variance")
    assert changes == module_changes(PAGE, "variance", "variance")
    table["name"][0] = "new"
    assert len(module_changes(report, "variance", "variance")) == len(changes) - 1


def test_variance_deadband() -> None:
    """The limits are the ratios whose restoring scale lies on the edge of the deadband."""
    low, high = variance._limits(PAGE["variance"], ["ffn"])["ffn"]
    assert math.exp(low) ** -0.5 == pytest.approx(1.02)
    assert math.exp(high) ** -0.5 == pytest.approx(0.98)
    (plot,) = BY_NAME["variance"].section(PAGE).plots
    assert texts(plot, "level")[:2] == ["limit 0.9612", "limit 1.041"]


def test_routers() -> None:
    """A router that fell by more than a tenth lies beyond the limit of 0.9."""
    (plot,) = BY_NAME["moe"].section(make_mixture_report(layers=2)).plots
    assert texts(plot, "level") == ["limit 0.9"]
    assert [s.name for s in plot.shapes if s.style == "beyond"] == ["model.layers.00.mlp.gate: 0.6"]


def test_histograms() -> None:
    """Every token is in a bar, and mean, quantile and limit stand where the bins say."""
    report = copy.deepcopy(PAGE)
    report["resolved_policy"]["distribution"] = {"kl_mean_max": 0.05, "flip_fraction_max": 0.03}
    kl, change = metric_sections.distribution(report).plots
    counts = report["distribution"]["histograms"]["kl"]["counts"]
    assert len(paths(kl, "bars")) == sum(n > 0 for n in counts)
    assert texts(kl, "level")[-1] == "limit of the mean 0.0500"
    mean, high = (float(x) for x, _ in starts(kl, "mean"))
    assert mean < float(starts(kl, "limit")[0][0])
    assert mean < high
    assert "differs at 0.17 %" in change.description
    # the change is symmetric about 0, which lies in the middle of the picture
    middle = starts(change, "mean")[1][0]
    assert middle == pytest.approx((LEFT + RIGHT) / 2, abs=10)


@pytest.mark.parametrize("counts", [[], [0, 0], [5]])
def test_histogram_without_tokens(counts: list[int]) -> None:
    """A histogram that is empty or does not fit its edges is left out."""
    section = {"histograms": {"kl": {"edges": [0.0, 1.0, 2.0], "counts": counts}}}
    assert figures.distribution_plots(section, {}) == []
