"""Targets beside the pack, through dry runs: repeats, pages in one job, the guards' sweep."""

from __future__ import annotations

from pathlib import Path

from conftest import write_tiny_folder
from repository_copy import snakemake
from test_workflow import SMOLLM2, counts, expected_counts, graph


def test_repeats_are_measured_and_packed(repository: Path) -> None:
    """repeats=3 evaluates one edit three times more, compares, and waits with the pack."""
    chosen = ("scenarios=noop_clean,quant_8bit_clean,nan_injection", "repeats=3")
    jobs = graph(repository, "--profile", "profiles/cpu", "--config", *chosen)
    assert counts(jobs) == expected_counts(1, 2, 1) | {"repeat": 3, "determinism": 1}
    made = [path for job in jobs if job.rule == "repeat" for path in job.words("output")]
    parents = {str(Path(path).parent).partition("determinism/")[2] for path in made}
    assert parents == {f"quant_8bit_clean/repeat_{k}" for k in (1, 2, 3)}
    pack = next(job for job in jobs if job.rule == "build_pack")
    assert any(path.endswith("analysis/determinism_repeats.json") for path in pack.words("input"))


def test_repeats_of_a_users_subject_and_of_nothing(repository: Path, tmp_path: Path) -> None:
    """Suite byoe repeats the user's own folder; without repeats no job of the target starts."""
    base, mine = tmp_path / "base", tmp_path / "mine"
    write_tiny_folder(base)
    write_tiny_folder(mine, seed=1)
    words = ["determinism", "--profile", "profiles/cpu", "--config", "suite=byoe"]
    words += [f"baseline={base}", f"subject={mine}"]
    jobs = graph(repository, *words, "repeats=2")
    repeats = [job for job in jobs if job.rule == "repeat"]
    assert len(repeats) == 2
    assert all(str(mine) in job.words("input") for job in repeats)
    assert "inject" not in counts(jobs)
    done = snakemake(repository, *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("invarlock: determinism: repeats is 0; expected")


def test_any_scenario_can_be_repeated_by_name(repository: Path) -> None:
    """A repeat of a scenario is a file, whatever the settings say."""
    named = f"out/{SMOLLM2}/determinism/nan_injection/repeat_2/outcome.json"
    jobs = counts(graph(repository, named, "--profile", "profiles/cpu", "--config", "out=out"))
    assert (jobs["inject"], jobs["repeat"]) == (1, 1)
    assert "evaluate" not in jobs


def test_deferred_rendering_is_one_job(repository: Path) -> None:
    """defer_rendering: one job makes all pages, after the last evaluation; pages stay targets."""
    config = ("--profile", "profiles/cpu", "--config", "defer_rendering=True", "out=out")
    scenarios = "scenarios=noop_clean,nan_injection"
    jobs = counts(graph(repository, *config, scenarios))
    expected = expected_counts(1, 1, 1) | {"render_together": 1}
    assert jobs == {rule: n for rule, n in expected.items() if rule != "render"}
    page = f"out/{SMOLLM2}/reports/noop_clean/run_1/evaluation.html"
    assert counts(graph(repository, page, *config, scenarios))["render_together"] == 1


def test_the_sweep_is_made_and_packed_when_it_is_asked_for(repository: Path) -> None:
    """A target of its own, from every evaluation; by its rule or its file, beside the pack, the
    pack of the same command holds it."""
    sweep = "out/reports/guard_value_all_guard_probe_sweep.json"
    config = ("--profile", "profiles/cpu", "--config", "out=out",
              "scenarios=noop_clean,rmt_norm_noise")  # fmt: skip
    alone = counts(graph(repository, sweep, *config))
    assert (alone["guard_value_sweep"], alone["evaluate"]) == (1, 2)
    assert "build_pack" not in alone
    for asked in (["guard_value_sweep"], [sweep], []):
        jobs = graph(repository, "pack", *asked, *config)
        (pack,) = (job for job in jobs if job.rule == "build_pack")
        assert counts(jobs).get("guard_value_sweep", 0) == len(asked)
        assert (sweep in pack.words("input")) is bool(asked)
