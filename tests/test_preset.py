"""Presets: the tolerance factor, the derivation both ways, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import nct, norm

from invarlock.cli import main
from invarlock.contracts import violations
from invarlock.errors import ConfigError, ContractError, InputError, InvarlockError
from invarlock.files import write_json
from invarlock.policy import PresetPolicy, bounds_of, load_policy
from invarlock.preset import (
    NULL_EDITS,
    STATS_SCHEMA,
    derive,
    null_bound,
    preset_of,
    read_preset,
    summarise,
    to_yaml,
    tolerance_factor,
    zero_mean_factor,
)

Document = dict[str, Any]
RULE = PresetPolicy(false_alarm=0.01, confidence=0.95)
BASELINE = "a" * 64
MODULES = 40


def exact_factor(n: int, content: float, confidence: float = 0.95) -> float:
    """The one-sided tolerance factor from the noncentral t distribution."""
    shift = norm.ppf(content) * math.sqrt(n)
    return float(nct.ppf(confidence, n - 1, shift) / math.sqrt(n))


def stats(
    *, sigma: float = 1e-3, edge: float = 0.01, drift: float = 2e-3, far: float = 0.05
) -> Document:
    """Statistics of seeded normal noise with these standard deviations; the no-op has none."""
    rng, other = random.Random(5), random.Random(6)
    runs: list[Document] = []
    for edit in NULL_EDITS:
        size = 0.0 if edit == "noop" else 1.0
        weights = {
            "attn": [rng.gauss(0, sigma * size) for _ in range(MODULES)],
            "embed": [rng.gauss(0, sigma * size)],
        }
        for seed in (44, 45, 46):
            activations = [rng.gauss(0, edge * size) for _ in range(MODULES)]
            runs.append(
                {
                    "edit": edit,
                    "seed": seed,
                    "windows_sha256": f"{seed:064x}",
                    "drift": rng.gauss(0, drift * size),
                    "spectral": weights,
                    "rmt": {"attn": activations},
                    "representation": {
                        "attention": [abs(other.gauss(far, far / 9)) * size for _ in range(MODULES)]
                    },
                }
            )
    return {
        "schema": STATS_SCHEMA,
        "model_id": "acme/tiny",
        "checkpoint_sha256": BASELINE,
        "dtype": "float32",
        "device": "cpu",
        "dataset": {
            "provider": "local:text",
            "split": None,
            "seq_len": 16,
            "stride": 16,
            "preview_n": 8,
            "final_n": 8,
        },
        "null_edits": list(NULL_EDITS),
        "seeds": [44, 45, 46],
        "runs": runs,
    }


def row(document: Document, statistic: str, family: str | None = None) -> Document:
    """One line of the derivation."""
    return next(
        r for r in document["derivation"] if (r["statistic"], r["family"]) == (statistic, family)
    )


# --- the factor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 6, 8, 10, 20, 60, 210])
@pytest.mark.parametrize("modules", [1, 10, 210])
def test_closed_form_is_close_to_the_exact_factor(n: int, modules: int) -> None:
    """From 5 values on the closed form is within 1.5 % of noncentral t."""
    content = 1 - 0.01 / modules
    assert tolerance_factor(n, content, 0.95) == pytest.approx(exact_factor(n, content), rel=0.015)


@pytest.mark.parametrize(("n", "excess"), [(3, 0.28), (4, 0.05)])
def test_closed_form_is_cautious_for_few_values(n: int, excess: float) -> None:
    """With 3 or 4 values it is larger than the exact factor, by at most this share."""
    for content in (0.99, 0.995, 0.9999):
        ratio = tolerance_factor(n, content, 0.95) / exact_factor(n, content)
        assert 1 < ratio < 1 + excess


def test_factor_of_the_handbook() -> None:
    """NIST e-Handbook 7.2.6.3: n = 43, content 0.90, confidence 0.99 give k = 1.8752."""
    assert tolerance_factor(43, 0.90, 0.99) == pytest.approx(1.8752, abs=5e-4)


@pytest.mark.parametrize(("n", "two_sided"), [(8, False), (90, False), (90, True)])
def test_bound_covers_what_it_says(n: int, two_sided: bool) -> None:
    """In 95 % of simulated calibrations all modules together exceed the bound in at most 1 %.

    4000 calibrations: a share below 93.9 % has probability below 0.001 if the true one is 95 %.
    """
    rng = np.random.default_rng(7)
    samples = rng.normal(0.0, 1.0, (4000, n))
    covered = 0
    for x in samples:
        size = np.abs(x) if two_sided else x
        sample = {"n": n, "mean": x.mean(), "sd": x.std(ddof=1), "max": size.max()}
        bound = null_bound(sample, n, RULE, two_sided=two_sided)
        assert bound is not None
        beyond = norm.sf(bound) * (2 if two_sided else 1)
        covered += beyond * n <= 0.01
    assert covered / 4000 > 0.939


def test_bound_is_never_below_what_was_seen() -> None:
    """One outlier among many counts although the normal bound would pass over it."""
    sample = {"n": 100, "mean": 0.0, "sd": 0.001, "max": 0.5}
    assert null_bound(sample, 1, RULE, two_sided=False) == 0.5


def test_too_few_values_give_no_bound() -> None:
    """A family of one or two modules keeps the tier's threshold."""
    assert null_bound({"n": 2, "mean": 0.0, "sd": 0.0, "max": 0.0}, 2, RULE, two_sided=True) is None
    embed = row(derive(stats(), "balanced", "x"), "spectral", "embed")
    assert (embed["null_bound"], embed["direction"]) == (None, "unchanged")
    assert embed["overrides"] == []


def test_what_null_edits_leave_alone_keeps_the_tiers_threshold() -> None:
    """Zeros are no evidence that an edit that touches the family is harmless."""
    document = derive(stats(edge=0.0), "balanced", "x")
    found = row(document, "rmt", "attn")
    assert (found["null_bound"], found["direction"]) == (None, "unchanged")


# --- the derivation -----------------------------------------------------------------------------


def test_thresholds_follow_the_noise() -> None:
    """Known answer: each threshold is the bound of its noise, recomputed here from the runs."""
    given = stats(sigma=0.02, edge=0.07, drift=6e-3)
    document = derive(given, "balanced", "x")
    null = [r for r in given["runs"] if r["edit"] != "noop"]

    values = np.array([v for r in null for v in r["rmt"]["attn"]])
    k = tolerance_factor(MODULES, 1 - 0.01 / MODULES, 0.95)
    bound = math.expm1(values.mean() + k * values.std(ddof=1))
    found = row(document, "rmt", "attn")
    assert found["null_bound"] == pytest.approx(bound, rel=1e-6)
    assert document["guards"]["rmt"]["epsilon_by_family"]["attn"] == pytest.approx(bound, rel=1e-6)

    sigma = np.array(null[0]["spectral"]["attn"])  # the weights are the same on every seed
    k = tolerance_factor(MODULES, 1 - 0.005 / MODULES, 0.95)
    bound = abs(sigma.mean()) + k * sigma.std(ddof=1)
    kappa = load_policy("balanced").spectral.kappa("attn")
    tau = document["guards"]["spectral"]["tau_by_family"]["attn"]
    assert tau == pytest.approx(bound / kappa, rel=1e-6)

    drift = np.array([r["drift"] for r in null])
    size = math.sqrt(float((drift**2).mean()))
    half = math.expm1(zero_mean_factor(3, 0.995, 0.95) * size)
    band = document["primary_metric"]["drift_band"]
    assert (band["min"], band["max"]) == pytest.approx((1 - half, 1 + half), rel=1e-6)


@pytest.mark.parametrize(("share", "direction"), [(0.9, "tightened"), (1.2, "loosened")])
def test_a_preset_tightens_and_loosens(share: float, direction: str) -> None:
    """Quiet models get narrower thresholds than the tier's, noisy ones wider, everywhere."""
    tier, unit = load_policy("balanced"), derive(stats(sigma=1, edge=1, drift=1), "balanced", "x")

    def noise(own: float, *which: str) -> float:
        """The standard deviation whose bound is ``share`` of the tier's own threshold."""
        return math.log1p(share * own) / math.log1p(row(unit, *which)["null_bound"])

    given = stats(
        sigma=noise(tier.spectral.deadband, "spectral", "attn"),
        edge=noise(tier.rmt.epsilon_default, "rmt", "attn"),
        drift=noise(tier.drift.max - 1, "drift"),
    )
    document = derive(given, "balanced", "x")
    for which in (("spectral", "attn"), ("rmt", "attn"), ("drift",)):
        found = row(document, *which)
        assert found["value"] == pytest.approx(share * found["tier_value"], rel=1e-6)
        assert (found["direction"], found["clipped"]) == (direction, None)
    preset = preset_of(document, "x")
    mine, wider = preset.policy(), direction == "loosened"
    assert (mine.rmt.epsilon("attn") > tier.rmt.epsilon("attn")) is wider
    assert (mine.spectral.tau("attn") > tier.spectral.tau("attn")) is wider
    assert (mine.drift.max > tier.drift.max) is wider
    assert (mine.drift.min < tier.drift.min) is wider
    assert {o.source for o in mine.overrides} == {f"preset:{preset.sha256[:12]}"}


def test_floors_and_ceilings_hold() -> None:
    """Little noise gives the floor; much noise gives the ceiling and is listed."""
    bounds = bounds_of("balanced")
    quiet = derive(stats(sigma=1e-6, edge=1e-6, drift=1e-6), "balanced", "x")
    noisy = derive(stats(sigma=0.5, edge=0.5, drift=0.5, far=0.5), "balanced", "x")
    for statistic, family, name in (
        ("spectral", "attn", "spectral.threshold"),
        ("rmt", "attn", "rmt.epsilon"),
        ("representation", "attention", "representation.limit"),
        ("drift", None, "drift.half_width"),
    ):
        low, high = row(quiet, statistic, family), row(noisy, statistic, family)
        assert (low["value"], low["clipped"]) == (bounds[name][0], "floor")
        assert (high["value"], high["clipped"]) == (bounds[name][1], "ceiling")
    assert quiet["clipped"] == []
    assert noisy["clipped"] == ["drift", "spectral.attn", "rmt.attn", "representation.attention"]
    assert not noisy["_calibration_meta"]["drift_band_compatible"]
    preset_of(quiet, "x").policy()
    preset_of(noisy, "x").policy()


def test_the_limit_of_attention_follows_from_the_null_edits() -> None:
    """A bound on ln(1 + excess) between floor and ceiling becomes the limit; a kind of block that
    never blocks has none, and statistics of an older version none at all."""
    given = stats(far=0.27)
    for run in given["runs"]:
        run["representation"]["ffn"] = [0.5] * MODULES
    document = derive(given, "balanced", "x")
    values = np.array([v for r in given["runs"][3:] for v in r["representation"]["attention"]])
    k = tolerance_factor(MODULES, 1 - 0.01 / MODULES, 0.95)
    wanted = math.expm1(values.mean() + k * values.std(ddof=1))
    low, high = bounds_of("balanced")["representation.limit"]
    assert low < wanted < high
    policy = preset_of(document, "x").policy()
    limit = policy.representation.limit("attention")
    assert limit == pytest.approx(wanted, rel=1e-6)
    assert policy.representation.limit("ffn") is None
    assert document["guards"]["representation"]["limit_by_kind"] == {"attention": limit}
    for run in given["runs"]:
        del run["representation"]
    older = derive(given, "balanced", "x")
    assert not {"representation"} & {*older["guards"], *older["null_statistics"]}
    assert preset_of(older, "x").policy().representation.limit("attention") == low


def test_spectral_counts_each_module_once() -> None:
    """Weights do not depend on the windows: more seeds are no more evidence."""
    null = summarise(stats())
    assert null["spectral"]["attn"]["edits"][NULL_EDITS[1]]["n"] == MODULES
    assert null["rmt"]["attn"]["edits"][NULL_EDITS[1]]["n"] == MODULES
    assert null["drift"]["edits"][NULL_EDITS[1]]["n"] == 3


def test_runs_of_different_modules_are_refused() -> None:
    """A run that lacks a module is no run of the same model."""
    given = stats()
    given["runs"][-1]["rmt"]["attn"].pop()
    with pytest.raises(ContractError, match="differ in modules"):
        derive(given, "balanced", "x")


# --- what is accepted ---------------------------------------------------------------------------


def test_yaml_and_json_are_the_same_preset(tmp_path: Path) -> None:
    """Both files read back to the same content, digest and overrides."""
    document = derive(stats(), "balanced", "x")
    assert violations(document, "calibrated-preset") == []
    write_json(tmp_path / "p.json", document)
    (tmp_path / "p.yaml").write_text(to_yaml(document))
    one, two = read_preset(tmp_path / "p.json"), read_preset(tmp_path / "p.yaml")
    assert one == two
    assert one.overrides


def test_a_preset_is_for_one_baseline_and_tier() -> None:
    """Another checkpoint's or another tier's thresholds are refused."""
    preset = preset_of(derive(stats(), "balanced", "x"), "x")
    preset.require_for(BASELINE, "balanced")
    with pytest.raises(InputError, match="another baseline checkpoint"):
        preset.require_for("b" * 64, "balanced")
    with pytest.raises(InputError, match="another tier"):
        preset.require_for(BASELINE, "aggressive")


def test_a_preset_of_other_statistics_is_not_used_any_more() -> None:
    """One that was derived before there was a representation guard held matrices, not operators."""
    older = stats()
    for run in older["runs"]:
        del run["representation"]
    preset = preset_of(derive(older, "balanced", "x"), "x")
    with pytest.raises(InputError, match="measured in another way"):
        preset.require_for(BASELINE, "balanced")


def pointers(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every number of a document."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in pointers(v, (*at, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in pointers(v, (*at, i))]
    return [at] if isinstance(value, int | float) and not isinstance(value, bool) else []


# Facts that nothing else in the document repeats.
FACTS = {"seeds", "num_runs", "dataset"}


def test_a_preset_that_contradicts_itself_is_refused() -> None:
    """Any number of the document made 1 % larger is noticed, unless the rest follows from it."""
    document = derive(stats(sigma=0.02, edge=0.07), "balanced", "x")
    decisive = [p for p in pointers(document) if not FACTS & set(p)]
    unnoticed = []
    for pointer in decisive:
        forged: Any = copy.deepcopy(document)
        place = forged
        for key in pointer[:-1]:
            place = place[key]
        place[pointer[-1]] = place[pointer[-1]] * 1.01 or 0.01
        try:
            preset_of(forged, "x")
        except InvarlockError:
            continue
        unnoticed.append(pointer)
    # moments of a null edit that does not set the bound, and of families without one
    assert all(p[0] == "null_statistics" for p in unnoticed)
    assert not [p for p in unnoticed if p[-1] in ("mean", "sd") and p[2] == "attn"
                and p[-2] == NULL_EDITS[1]]  # fmt: skip


def test_a_kind_of_block_without_a_limit_is_refused_by_name() -> None:
    """In statistics and in a preset that was written by hand: one line, no traceback."""
    given = stats()
    document = derive(given, "balanced", "x")
    null = document["null_statistics"]["representation"]
    null["mixer"] = null["attention"]
    with pytest.raises(ContractError, match="representation"):
        preset_of(document, "x")
    given["runs"][0]["representation"]["mixer"] = [0.1]
    with pytest.raises(ContractError, match="representation"):
        derive(given, "balanced", "x")


def test_another_table_and_another_tier_are_noticed() -> None:
    """Renaming the tier, or naming none of ours, does not carry thresholds over."""
    document = derive(stats(), "balanced", "x")
    for tier, kind in (("aggressive", ContractError), ("lenient", ConfigError)):
        forged = copy.deepcopy(document)
        forged["_calibration_meta"]["tier"] = tier
        with pytest.raises(kind):
            preset_of(forged, "x")


@pytest.mark.parametrize("name", ["p.json", "p.yaml"])
@pytest.mark.parametrize("text", ["[1, 2", "{}", "- 1", "\x00"])
def test_what_is_no_preset_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    """Broken or foreign files end in one line that names the file."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InvarlockError) as error:
        read_preset(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_command_writes_both_files_and_says_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`advanced preset`: files, directions, and a warning where a bound is clipped."""
    write_json(tmp_path / "s.json", stats(edge=0.5))
    words = ["--stats", str(tmp_path / "s.json"), "--out-json", str(tmp_path / "p.json")]
    words += ["--out-yaml", str(tmp_path / "p.yaml")]
    assert main(["advanced", "preset", *words]) == 0
    text = capsys.readouterr().out
    assert "warning: rmt.attn" in text
    assert "spectral attn: tightened" in text
    assert read_preset(tmp_path / "p.json") == read_preset(tmp_path / "p.yaml")
    first = (tmp_path / "p.json").read_bytes()
    assert main(["advanced", "preset", *words]) == 0
    assert (tmp_path / "p.json").read_bytes() == first
    assert json.loads(first)["_calibration_meta"]["tier"] == "balanced"
    assert main(["advanced", "preset", *words, "--tier", "balancd"]) == 2


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_zero_mean_factor_is_close_to_exact(n: int) -> None:
    """The factor of a known mean departs from the exact chi-square one by less than 5 %."""
    from scipy.stats import chi2, norm

    exact = norm.ppf(0.995) * math.sqrt(n / chi2.ppf(0.05, n))
    assert 1 - 1e-3 < zero_mean_factor(n, 0.995, 0.95) / exact < 1.05
