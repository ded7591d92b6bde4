"""Values of a tier from sweeps: known answers, what counts as a run, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pack_factory as packs
import pytest
import report_factory as factory
from scipy.stats import binom
from test_preset import stats

from invarlock.cli import main
from invarlock.files import read_json_object, write_json
from invarlock.policy import TIERS_FILE, Override, load_policy
from invarlock.sweep import kept, read_proposal, rounded_up, runs_needed, upper_bound

Document = dict[str, Any]
UP = "model.layers.1.mlp.up_proj.weight"
ATTENTION = "model.layers.1.self_attn.o_proj"
EDITS = 20  # of the sweep; the first moves nothing
AIM = ("--false-alarm", "0.3")  # 9 runs give a bound


def moved(i: int) -> Document:
    """What the edit of that number changes."""
    return {
        "edge": {factory.DOWN: 1 + i / 50},
        "scale": {UP: math.exp(i / 110)},
        "moved": {ATTENTION: i / 40},
        "spread": {factory.DOWN: (1 + i / 100) ** -2},
        "gain": (i - 10) / 1000,
    }


@functools.cache
def report(i: int, tier: str = "balanced", overrides: tuple[Override, ...] = ()) -> Document:
    """The report of an edit."""
    return factory.make_report(f"edit{i}", tier=tier, overrides=overrides, **moved(i))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A folder of finished runs."""
    for i in range(EDITS):
        write_json(tmp_path / f"runs/edit{i}/run_1/evaluation.report.json", report(i))
    return tmp_path / "runs"


def proposal(verb: str, *words: object) -> Document:
    """What the command writes."""
    out = Path(str(words[0])).parent / "proposal.json"
    line = ["advanced", "calibrate", verb, "--runs", *map(str, words), "--out", str(out)]
    assert main(line) == 0
    return read_json_object(out)


def row(document: Document, path: str) -> Document:
    """One limit."""
    return next(r for r in document["limits"] if r["path"] == path)


# --- the bound -----------------------------------------------------------------------------------


def test_the_bound_is_that_of_tables() -> None:
    """59, 93 and 124 values: the largest, second and third bound 95 % with confidence 95 %."""
    assert (runs_needed(0.05, 0.95), runs_needed(0.01, 0.95)) == (59, 299)
    for n, expected in ((58, None), (59, 59), (92, 92), (93, 92), (123, 122), (124, 122)):
        assert upper_bound(range(1, n + 1), 0.05, 0.95) == expected
    assert upper_bound([], 0.05, 0.95) is None


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Of samples of a skewed distribution 95 % have it beyond the true quantile.

    The second of 46 values is a bound with confidence 95.2 %; of 4000 samples a share outside the
    limits has probability below 0.001.
    """
    samples = np.random.default_rng(3).exponential(size=(4000, 46))
    true = math.log(10)  # 90 %
    bounds = [upper_bound(list(x), 0.1, 0.95) for x in samples]
    held = [bound is not None and bound >= true for bound in bounds]
    assert 0.939 < sum(held) / 4000 < 0.965


@pytest.mark.parametrize(("n", "aim", "expected"), [(100, 0.05, 95), (300, 0.01, 297), (9, 0.1, 9)])
def test_the_quantile_flags_no_more_than_the_aim(n: int, aim: float, expected: int) -> None:
    """Of 1 to n the value that only the aim's share exceeds."""
    values = list(range(n, 0, -1))
    assert kept(values, aim) == expected
    assert sum(v > expected for v in values) <= aim * n < sum(v >= expected for v in values)


def test_values_are_rounded_up() -> None:
    """To a number that does not flag what it comes from; what is not finite is none."""
    assert rounded_up(1.1 - 1) == 0.1
    assert rounded_up(0.12345601) == 0.123457
    assert rounded_up(math.inf) is None


# --- the sweep -----------------------------------------------------------------------------------


def test_null_sweep_proposes_what_the_runs_need(sweep: Path) -> None:
    """Known growth, changes and distances; the order statistic is that of scipy."""
    found = proposal("null-sweep", sweep, *AIM)
    at = int(binom.ppf(0.95, EDITS - 1, 0.7))  # the smallest k with P(X <= k - 1) >= 0.95, less 1
    assert 13 < at < EDITS - 2  # neither the quantile nor the largest
    assert (found["tier"], found["runs"], found["repeats"]) == ("balanced", EDITS, 0)
    edge = row(found, "rmt.epsilon.ffn")
    assert (edge["runs"], edge["silent"], edge["in_force"]) == (19, 1, 0.2)
    assert edge["alarms"]["flagged"] == 9  # 0.22 to 0.38
    assert edge["alarms"]["lower"] < 9 / 19 < edge["alarms"]["upper"]
    assert (edge["kept"], edge["largest"]) == (pytest.approx(14 / 50), pytest.approx(0.38))
    assert edge["bound"] == edge["proposed"] == pytest.approx((at + 1) / 50)
    tau = row(found, "spectral.tau.ffn")
    kappa = load_policy("balanced").spectral.kappa("ffn")
    assert tau["bound"] == pytest.approx((at + 1) / 110 / kappa, rel=2e-5)
    assert row(found, "representation.limit.attention")["bound"] == pytest.approx((at + 1) / 40)
    assert found["values"]["rmt.epsilon.ffn"] == edge["proposed"]
    assert "pm_tail.quantile_max" not in found["values"]  # no override may set it
    assert "distribution.flip_fraction_max" not in found["values"]  # the tier sets none


def test_what_is_proposed_flags_as_few_as_it_says(sweep: Path) -> None:
    """Judged by the proposal, the runs above the bound are flagged and no others."""
    found = proposal("null-sweep", sweep, *AIM)
    by = tuple(Override(path, value, "config") for path, value in found["values"].items())
    names = ("rmt.epsilon.ffn", "spectral.tau.ffn")
    above = dict.fromkeys(names, 0)
    for i in range(EDITS):
        judged = report(i, overrides=by)
        above[names[0]] += bool(judged["rmt"]["epsilon_violations"])
        caps = judged["spectral"]
        above[names[1]] += (
            caps["family_z_summary"]["ffn"]["max"] > caps["family_caps"]["ffn"]["kappa"]
        )
    at = int(binom.ppf(0.95, EDITS - 1, 0.7)) + 1
    assert above == dict.fromkeys(names, EDITS - 1 - at)


def test_a_value_stays_within_the_tiers_bounds(sweep: Path) -> None:
    """What harmless edits need more than the tier admits is cut, and said."""
    found = proposal("null-sweep", sweep, *AIM, "--tier", "conservative")
    edge = row(found, "rmt.epsilon.ffn")
    assert (edge["in_force"], edge["ceiling"], edge["proposed"]) == (0.15, 0.3, 0.3)
    assert (edge["bound"] > 0.3, edge["clipped"]) == (True, "ceiling")
    assert found["values"]["rmt.epsilon.ffn"] == 0.3


def test_too_few_runs_propose_nothing(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the tier's own aim 299 are needed; what was seen is told, the tier is as it was."""
    before = TIERS_FILE.read_bytes()
    found = proposal("null-sweep", sweep)
    assert (found["false_alarm"], found["confidence"], found["values"]) == (0.01, 0.95, {})
    for limit in found["limits"]:
        assert (limit["bound"], limit["proposed"], limit["runs_needed"]) == (None, None, 299)
        assert limit["kept"] == limit["largest"]
    shown = capsys.readouterr().out
    assert "needs 299 runs" in shown
    assert "20 runs of harmless edits of 1 model" in shown
    assert TIERS_FILE.read_bytes() == before


def test_ve_sweep_reads_the_trials(sweep: Path) -> None:
    """Scales 1.01 to 1.19; trials of those beyond the deadband, with the gains they had."""
    found = proposal("ve-sweep", sweep, *AIM)
    assert [r["path"] for r in found["limits"]] == [
        "variance.deadband",
        "variance.min_effect_lognll",
    ]
    deadband, gain = found["limits"]
    at = int(binom.ppf(0.95, EDITS - 1, 0.7)) + 1
    assert (deadband["in_force"], deadband["runs"]) == (0.02, 19)
    assert deadband["bound"] == pytest.approx(at / 100, rel=1e-5)
    assert deadband["alarms"]["flagged"] >= 17  # 1.02 itself is a matter of rounding
    assert gain["runs"] == deadband["alarms"]["flagged"]
    lows = sorted(
        max(gate["gain_ci"][0], 0.0)
        for i in range(EDITS)
        if (gate := report(i)["variance"]["predictive_gate"])["evaluated"]
    )
    assert gain["largest"] == pytest.approx(lows[-1], rel=1e-5)
    assert gain["alarms"]["flagged"] == sum(low > 0 for low in lows) > 3
    assert found["values"] == {}  # no policy pack sets them


def test_trials_of_another_deadband_do_not_count(sweep: Path) -> None:
    """Reports by balanced tried other scales than conservative would."""
    found = proposal("ve-sweep", sweep, "--tier", "conservative")
    assert [r["path"] for r in found["limits"]] == ["variance.deadband"]


def test_a_calibration_is_a_sweep_of_null_edits(tmp_path: Path) -> None:
    """Each edit and seed is a run; weights count once an edit; logarithms become changes."""
    content = stats()
    write_json(tmp_path / "calibration_stats.json", content)
    found = proposal("null-sweep", tmp_path, "--false-alarm", "0.7", "--tier", "aggressive")
    runs = content["runs"]
    assert found["runs"] == len(runs)
    edge = row(found, "rmt.epsilon.attn")
    growth = [math.expm1(max(run["rmt"]["attn"])) for run in runs]
    assert edge["largest"] == pytest.approx(max(growth), rel=1e-5)
    assert edge["runs"] == sum(value != 0 for value in growth)
    edits = {run["edit"] for run in runs if any(run["spectral"]["attn"])}
    assert row(found, "spectral.tau.attn")["runs"] == len(edits)
    drift = row(found, "drift.half_width")
    halves = [abs(math.exp(run["drift"]) - 1) for run in runs]
    assert drift["largest"] == pytest.approx(max(halves), rel=1e-5)
    band = [found["values"][f"drift.{end}"] for end in ("min", "max")]
    assert band == pytest.approx([1 - drift["proposed"], 1 + drift["proposed"]])


# --- which runs ----------------------------------------------------------------------------------


def test_a_repeat_is_no_further_run(sweep: Path) -> None:
    """Neither a copy nor a folder that is named twice; another window file is another run, of
    which the weights are the same."""
    write_json(sweep / "edit3/run_2/evaluation.report.json", report(3))
    found = proposal("null-sweep", sweep, sweep)
    assert (found["runs"], found["repeats"]) == (EDITS, EDITS + 2)
    other = copy.deepcopy(report(3))
    other["provenance"]["windows_sha256"] = "0" * 64
    write_json(sweep / "edit3/run_2/evaluation.report.json", other)
    found = proposal("null-sweep", sweep)
    assert found["runs"] == EDITS + 1
    counts = [row(found, path)["runs"] for path in ("rmt.epsilon.ffn", "spectral.tau.ffn")]
    assert counts == [EDITS, EDITS - 1]


def test_damage_in_a_folder_is_left_out(sweep: Path, tmp_path: Path) -> None:
    """An outcome that says it was injected, and the metadata of an injection; counted."""
    (sweep / "edit4/run_1/error_metadata.json").write_text("{}")
    write_json(sweep / "edit5/run_1/outcome.json", {"injected": True})
    write_json(sweep / "edit6/run_1/outcome.json", {"injected": None})
    found = proposal("null-sweep", sweep)
    assert (found["runs"], found["left_out"]) == (EDITS - 2, 2)


@pytest.mark.parametrize(
    ("scenarios", "model"),
    [("state/scenarios.json", "acme__tiny/reports"),
     ("metadata/scenarios.json", "reports/acme__tiny")],
)  # fmt: skip
def test_of_a_suite_and_a_pack_clean_scenarios_count(
    scenarios: str, model: str, tmp_path: Path
) -> None:
    """Stress edits move more than harmless ones may."""
    catalogue = json.loads(factory.CATALOGUE.read_text())
    write_json(tmp_path / "suite" / scenarios, catalogue)
    kinds = {entry["category"]: entry["id"] for entry in catalogue["scenarios"]}
    for i, name in enumerate((kinds["clean"], kinds["stress"], "unheard_of")):
        folder = tmp_path / f"suite/{model}/{name}/run_1"
        write_json(folder / "evaluation.report.json", report(i + 1))
    found = proposal("null-sweep", tmp_path / "suite")
    assert (found["runs"], found["left_out"]) == (1, 2)
    assert row(found, "rmt.epsilon.ffn")["largest"] == pytest.approx(1 / 50)


def test_a_metric_without_perplexity_says_nothing_of_its_drift(tmp_path: Path) -> None:
    """Accuracies drift in percentage points, which no override sets."""
    write_json(tmp_path / "evaluation.report.json", factory.make_accuracy())
    found = proposal("null-sweep", tmp_path, "--tier", "none")
    assert "drift.half_width" not in [r["path"] for r in found["limits"]]


def test_a_report_of_little_is_read(tmp_path: Path) -> None:
    """Guards that were not evaluated say nothing; a router that fell does."""
    write_json(tmp_path / "a/evaluation.report.json", factory.make_unevaluated())
    write_json(tmp_path / "b/evaluation.report.json", factory.make_mixture())
    found = proposal("null-sweep", tmp_path)
    assert found["runs"] == 2
    assert proposal("ve-sweep", tmp_path)["runs"] == 2


# --- what becomes of it, and what is refused -----------------------------------------------------


def test_a_policy_pack_is_made_of_a_proposal(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From YAML as from JSON, beside other values; for its own tier alone, each path once."""
    yaml = tmp_path / "proposal.yaml"
    found = proposal("null-sweep", sweep, *AIM, "--out-yaml", yaml)
    assert read_proposal(yaml) == found
    key, out = packs.new_key(tmp_path / "key.pem"), tmp_path / "pack.json"
    words = ["policy", "create", "--name", "swept", "--signing-key", str(key), "--out", str(out)]
    for file in (yaml, tmp_path / "proposal.json"):
        assert main([*words, "--proposal", str(file), "--set", "tail.mode=fail"]) == 0
        assert read_json_object(out)["values"] == {**found["values"], "tail.mode": "fail"}
    capsys.readouterr()
    given = [*words, "--proposal", str(yaml)]
    assert main([*given, "--tier", "aggressive"]) == 2
    assert "expected --tier balanced" in capsys.readouterr().err
    assert main([*given, "--set", "rmt.epsilon.ffn=0.2"]) == 2
    assert "each path once" in capsys.readouterr().err
    empty = proposal("null-sweep", sweep)
    assert empty["values"] == {}
    capsys.readouterr()
    assert main([*words, "--proposal", str(tmp_path / "proposal.json")]) == 2
    assert "the proposal has no values" in capsys.readouterr().err


def otherwise(document: Document) -> None:
    """Of a guard that measured in another way."""
    document["rmt"]["measurement_contract_hash"] = "0" * 16


def without_families(document: Document) -> None:
    """No shape that a report has."""
    document["rmt"]["families"] = {"ffn": 3}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (otherwise, "is of a version whose rmt guard measured in another way"),
        (without_families, "cannot be read: TypeError"),
        (lambda d: d.pop("meta"), "/ lacks the key meta"),
        (lambda d: d.pop("schema_version"), "is no finished run"),
    ],
)
def test_what_is_no_run_is_one_line(
    change: Callable[[Document], object],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It names the file; nothing is written."""
    document = copy.deepcopy(report(2))
    change(document)
    write_json(tmp_path / "evaluation.report.json", document)
    refused(tmp_path, [tmp_path], 3, f"evaluation.report.json: {line}", capsys)


def refused(
    folder: Path,
    words: Sequence[object],
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    verb: str = "null-sweep",
) -> None:
    """The command ends with this code and one line."""
    out = folder / "proposal.json"
    asked = ["advanced", "calibrate", verb, "--runs", *map(str, words), "--out", str(out)]
    assert main(asked) == code
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_bad_input_is_one_line(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No such file, an empty folder, damage that is named, no trials, a wrong aim or tier."""
    refused(tmp_path, [tmp_path / "none"], 3, "none: ", capsys)
    (tmp_path / "empty").mkdir()
    refused(tmp_path, [tmp_path / "empty"], 3, "no run of a harmless edit; expected", capsys)
    file = sweep / "edit4/run_1/evaluation.report.json"
    file.with_name("error_metadata.json").write_text("{}")
    refused(tmp_path, [file], 3, "is of injected damage", capsys)
    refused(tmp_path, [file.parent], 3, "found 1 of damage or of other edits", capsys)
    write_json(tmp_path / "calibration_stats.json", stats())
    named = [tmp_path / "calibration_stats.json"]
    refused(tmp_path, named, 3, "expected evaluation.report.json", capsys, "ve-sweep")
    for aim in ("0", "1", "-0.1", "nan"):
        refused(tmp_path, [sweep, f"--false-alarm={aim}"], 2, "--false-alarm: not a share", capsys)
    refused(tmp_path, [sweep, "--confidence", "2"], 2, "--confidence: not a share", capsys)
    refused(tmp_path, [sweep, "--tier", "balance"], 2, "did you mean balanced?", capsys)


def test_the_command_without_a_sub_command_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """It demands its own options, and the sub-commands none of them."""
    with pytest.raises(SystemExit):
        main(["advanced", "calibrate", "--out", "x"])
    assert "required: --baseline, --windows" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["calibrate", "null-sweep"])
    assert "required: --runs, --out" in capsys.readouterr().err
