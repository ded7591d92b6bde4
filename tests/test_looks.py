"""Looks at a control: which windows they see, how often they accuse by chance, and in reports."""

from __future__ import annotations

import copy
import hashlib
import math
import shutil

import numpy as np
import pytest
from conftest import measuring_here
from hypothesis import given
from hypothesis import strategies as st
from measuring_factory import change, entry, read
from report_factory import catalogue

from invarlock.contracts import validate
from invarlock.evidence import parity
from invarlock.metrics.bootstrap import widened_interval
from invarlock.metrics.looks import SHARES, SPENT, is_look, level_of, rows_of
from invarlock.reporting.outcome import FAIL, outcome
from invarlock.reporting.replay import believed, replay

DOWN = "model.layers.1.mlp.down_proj.weight"
WINDOWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=80)


def place(document: str) -> str:
    """By what documents are ordered."""
    return hashlib.sha256(document.encode()).hexdigest()


def columns(drawn):
    """Documents and slices; a document is of one slice."""
    return [f"{of}/doc-{d}" for d, of in drawn], [f"slice {of}" for _, of in drawn]


@given(WINDOWS)
def test_a_look_sees_whole_documents_and_its_share_of_every_slice(drawn) -> None:
    clusters, slices = columns(drawn)
    before: set[int] = set()
    for share in SHARES:
        rows = rows_of(share, clusters, slices)
        assert rows == sorted(set(rows))
        seen = {clusters[i] for i in rows}
        assert rows == [i for i, c in enumerate(clusters) if c in seen]
        for name in set(slices):
            mine = [i for i in rows if slices[i] == name]
            assert len(mine) >= share * slices.count(name)
            sizes = [sum(clusters[i] == c for i in mine) for c in {clusters[i] for i in mine}]
            # without some document it would be too few
            assert share == 1.0 or len(mine) - max(sizes) < share * slices.count(name) + 1
        assert before <= set(rows)  # what was seen stays seen
        before = set(rows)
    assert before == set(range(len(drawn)))


@given(WINDOWS, st.sampled_from(SHARES), st.data())
def test_the_windows_of_a_look_are_known_by_themselves(drawn, share, data) -> None:
    clusters, slices = columns(drawn)
    planned = {name: slices.count(name) for name in set(slices)}
    rows = rows_of(share, clusters, slices)

    def known(kept):
        return is_look(share, [clusters[i] for i in kept], [slices[i] for i in kept], planned)

    assert known(rows)
    # without the document that came last in its slice a look had not enough
    name = data.draw(st.sampled_from(sorted(planned)))
    mine = {clusters[i] for i in rows if slices[i] == name}
    last = max(mine, key=place)
    assert not known([i for i in rows if clusters[i] != last])
    # and with one more that comes behind it, it had too many
    more = [c for i, c in enumerate(clusters) if slices[i] == name and c not in mine]
    behind = [
        c
        for c in more
        if hashlib.sha256(c.encode()).hexdigest() > hashlib.sha256(last.encode()).hexdigest()
    ]
    if behind:
        assert not known(sorted([*rows, *(i for i, c in enumerate(clusters) if c == behind[0])]))


def test_the_errors_of_all_looks_are_that_of_the_interval() -> None:
    assert math.isclose(math.fsum(level_of(share, 0.05) for share in SHARES), 0.05)
    assert len(SPENT) == len(SHARES)
    assert SHARES[-1] == 1.0


@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_looking_again_and_again_accuses_no_oftener_than_the_error(tail) -> None:
    """A subject whose true log-ratio is the limit: the chance that any look lies wholly above it.

    One side of the interval accuses, so that half of alpha is what all looks may add up to; of 400
    repetitions the standard deviation is 0.8 %.
    """
    rng = np.random.default_rng(5)
    documents = [f"doc-{i}" for i in range(180)]
    accused = once = 0
    for repetition in range(400):
        draw = rng.standard_normal(180) if tail == "normal" else rng.standard_t(4, 180)
        tokens = rng.integers(1, 4, 180) * 143.0
        difference = tokens * 0.1 + 20 * draw  # around the limit of 0.1 nats a token
        found = []
        for share in SHARES:
            rows = rows_of(share, documents)
            interval = widened_interval(
                difference[rows], tokens[rows], replicates=300, alpha=level_of(share, 0.05),
                seed=repetition,
            )  # fmt: skip
            found.append(interval is not None and interval.low > 0.1)
        accused += any(found)
        once += found[-1]
    assert accused / 400 <= 0.025 + 3 * 0.008
    assert once <= accused


# --- an evaluation -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controls(world, tmp_path_factory):
    """A control that something refuses at once, one that nothing refuses, and the first whole."""
    root = tmp_path_factory.mktemp("controls")
    bad = shutil.copytree(world.baseline, root / "bad")
    change(bad, lambda t: t["model.norm.weight"].mul_(8))  # sure of what it does not know
    good = shutil.copytree(world.baseline, root / "good")
    change(good, lambda t: t[DOWN].mul_(1.02))
    stress = ("--scenario", entry("quant_4bit_stress"))
    with measuring_here():
        assert world.evaluate(bad, root / "stopped", *stress, "--early-decision") == 0
        assert world.evaluate(bad, root / "whole", *stress) == 0
        assert world.evaluate(good, root / "open", *stress, "--early-decision") == 0
    return root


def test_a_control_ends_when_something_refuses_it(controls, world) -> None:
    report, whole = read(controls / "stopped"), read(controls / "whole")
    early = report["context"]["early_decision"]
    assert early["share"] == SHARES[0]
    assert early["planned"] == {"preview": 180, "final": 180}
    assert outcome(report) == outcome(whole) == FAIL
    final, everything = (r["evaluation_windows"]["final"] for r in (report, whole))
    rows = rows_of(SHARES[0], everything["clusters"])
    assert final["window_ids"] == [everything["window_ids"][i] for i in rows]
    losses = [everything["nll_sum"][i] for i in rows]
    assert final["nll_sum"] == pytest.approx(losses, rel=1e-4)
    # guards looked at all that they look at
    assert report["rmt"]["calibration"] == whole["rmt"]["calibration"]
    assert report["spectral"]["modules"] == whole["spectral"]["modules"]
    assert report["representation"]["blocks"] == whole["representation"]["blocks"]
    assert "early_decision" not in whole["context"]


def test_a_control_that_nothing_refuses_is_measured_whole(controls) -> None:
    report = read(controls / "open")
    assert report["context"]["early_decision"]["share"] == 1.0
    assert len(report["evaluation_windows"]["final"]["window_ids"]) == 180
    assert report["context"]["bootstrap"]["alpha"] == pytest.approx(0.03)


@pytest.mark.parametrize("name", ["stopped", "open", "whole"])
def test_the_report_is_replayed(controls, world, name) -> None:
    report = read(controls / name)
    validate(report, "evaluation-report", name)
    assert replay(report) == []
    assert parity.check(report, read(world.run, "report.json")) == []
    said = [line for line in believed(report) if "of a control" in line]
    assert bool(said) == (name == "stopped")


def forget(report, at):
    """Leave a scored window out."""
    for column in report["evaluation_windows"]["final"].values():
        del column[at]


def test_a_look_is_of_as_many_token_ids_as_all_windows(controls) -> None:
    """The windows that did not run count: their ids are the baseline's."""
    report = copy.deepcopy(read(controls / "stopped"))
    measured = sum(sum(r["token_counts"]) for r in report["evaluation_windows"].values())
    report["vocabulary"] = {"used": 2 * measured, "size": 100 * measured}
    assert not [line for line in replay(report) if "more than the windows have" in line]
    report["vocabulary"]["used"] = 60 * measured
    assert [line for line in replay(report) if "more than the windows have" in line]


FORGERIES = {
    "another look": lambda r: r["context"]["early_decision"].update(share=0.25),
    "no look at all": lambda r: r["context"].pop("early_decision"),
    "errors of one's own": lambda r: r["context"]["early_decision"]["levels"].__setitem__(0, 0.05),
    "the whole error for one look": lambda r: r["context"]["bootstrap"].update(alpha=0.05),
    "fewer planned": lambda r: r["context"]["early_decision"]["planned"].update(final=19),
    "a window less": lambda r: forget(r, 0),
    "looks of one's own": lambda r: r["context"]["early_decision"].update(shares=[0.1, 1.0]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_look_is_found(controls, world, name) -> None:
    report = copy.deepcopy(read(controls / "stopped"))
    FORGERIES[name](report)
    assert replay(report) or parity.check(report, read(world.run, "report.json"))


def test_a_look_never_passes(controls) -> None:
    """Windows of a subject that nothing refuses, cut to a look by somebody who wants it to pass."""
    report, stopped = read(controls / "open"), read(controls / "stopped")
    rows = rows_of(SHARES[0], report["evaluation_windows"]["final"]["clusters"])
    for column in report["evaluation_windows"]["final"].values():
        column[:] = [column[i] for i in rows]
    report["context"]["early_decision"] = stopped["context"]["early_decision"]
    report["context"]["bootstrap"] = stopped["context"]["bootstrap"]
    assert any("nothing refuses the subject" in line for line in replay(report))


def test_only_what_has_to_be_refused_may_end_early() -> None:
    scenarios = {s.id: s for s in catalogue().scenarios}
    early = {name for name, scenario in scenarios.items() if scenario.is_control}
    assert {"extreme_quant", "rank1_projection", "prune_50pct_stress"} <= early
    assert not early & {"noop_clean", "quant_8bit_clean", "ve_mlp_scale_skew", "byoe"}
    assert not [name for name in early if scenarios[name].category == "clean"]
