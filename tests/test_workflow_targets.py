"""Targets beside the pack, through dry runs: repeats, pages in one job, the guards' sweep."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import write_tiny_folder
from repository_copy import ROOT, snakemake
from test_workflow import SMOLLM2, counts, expected_counts, graph

KEPT = ROOT / "tests/packs"


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


def test_the_runs_of_a_scenario_are_rendered_in_one_job(repository: Path) -> None:
    """One job a scenario, whatever its runs; a page alone asks for no other scenario."""
    config = ("--profile", "profiles/cpu", "--config", "out=out")
    config += ("scenarios=noop_clean,quant_8bit_clean,nan_injection",)
    jobs = graph(repository, "suite", *config, "runs={clean: 3, error_injection: 1}")
    found = counts(jobs)
    assert (found["evaluate"], found["render_3_runs"], found["render"]) == (7, 2, 1)
    (pages,) = (job.words("output") for job in jobs if job.rule == "render")
    folder = f"out/{SMOLLM2}/reports/nan_injection/run_1"
    assert pages == [f"{folder}/{n}" for n in ("evaluation.html", "evaluation.md", "verify.json")]
    alone = counts(graph(repository, f"{folder}/evaluation.md", *config))
    assert (alone["evaluate"], alone["render"], "edit" in alone) == (1, 1, False)


def test_new_page_code_makes_the_pages_again_and_measures_nothing(repository: Path) -> None:
    """The template of the pages belongs to the rule that writes them alone."""
    page = f"out/{SMOLLM2}/reports/nan_injection/run_1/evaluation.html"
    words = (page, "--cores", "1", "--config", "out=out", "scenarios=nan_injection")
    done = snakemake(repository, "out/state/model_revisions.json", *words[1:])
    assert done.returncode == 0, done.stderr
    for job in graph(repository, *words):  # the rest is only said to be made
        for path in map(repository.joinpath, job.words("output")):
            if not path.suffix:  # a checkpoint
                path.mkdir(parents=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            # the size of the weights is read when a run is planned
            path.write_text('{"total_bytes": 1}' if path.name == "baseline.json" else "")
    done = snakemake(repository, page, "--touch", "--forceall", *words[1:])
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in snakemake(repository, "-n", *words).stdout
    package = repository / "invarlock"
    package.unlink()
    shutil.copytree(ROOT / "invarlock", package, ignore=shutil.ignore_patterns("__pycache__"))
    assert "Nothing to be done" in snakemake(repository, "-n", *words).stdout
    with open(package / "reporting/templates/report.html.j2", "a") as template:
        template.write("<!-- changed -->")
    assert counts(graph(repository, *words)) == {"render": 1}


def test_more_than_a_pack_holds_can_be_planned_without_one(repository: Path) -> None:
    """The limit is the verifier's: the pack is refused, the verdict is not."""
    runs = "runs={clean: 25, stress: 25, error_injection: 25}"
    config = ("--profile", "profiles/cpu", "--config", "suite=smoke", "out=out", runs)
    done = snakemake(repository, "-n", *config)
    assert done.returncode == 2
    assert "the pack of 750 evaluations would be too large to be verified" in done.stderr
    assert counts(graph(repository, "suite", *config))["evaluate"] == 750


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


# --- the pack's files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["checksums.sha256", "manifest.signature.json", "README.md", "results/final_verdict.json",
     "metadata/environment.json", "results/analysis/edit_artifact_summary.json"],
)  # fmt: skip
def test_a_file_of_the_pack_is_a_target(repository: Path, key: Path, name: str) -> None:
    """Naming one makes the pack, which is built once; unsigned packs have no signature."""
    config = ("--profile", "profiles/cpu", "--config", "out=out", "scenarios=noop_clean")
    target = f"out/evidence_pack/{name}"
    jobs = counts(graph(repository, target, *config, f"signing_key={key}"))
    assert (jobs["build_pack"], jobs["evaluate"]) == (1, 1)
    assert "verify_made_pack" not in jobs
    if "signature" in name:
        done = snakemake(repository, "-n", target, *config)
        assert done.returncode == 1
        assert "MissingRuleException" in done.stderr + done.stdout


def test_a_report_of_the_pack_is_a_target(repository: Path, tmp_path: Path) -> None:
    """Where it lies depends on what comes out, so that it is looked for in the pack; the sweep
    there is made first."""
    config = ("--profile", "profiles/cpu", "--config", "out=out", "scenarios=noop_clean")
    report = f"out/evidence_pack/reports/{SMOLLM2}/noop_clean/run_1/evaluation.report.json"
    jobs = counts(graph(repository, report, *config))
    assert (jobs["build_pack"], jobs["packed_report"]) == (1, 1)
    sweep = "out/evidence_pack/reports/guard_value_all_guard_probe_sweep.json"
    assert counts(graph(repository, sweep, *config))["guard_value_sweep"] == 1

    pack = repository / "out/evidence_pack"
    shutil.copytree(KEPT / "v1-pass", pack)
    found = next((pack / "reports").rglob("evaluation.report.json")).relative_to(repository)
    before = found.name, (repository / found).read_bytes()
    only = ("--allowed-rules", "packed_report", "--cores", "1", "--config", "out=out")
    for name, code in ((str(found), 0), (str(found.with_name("none.json")), 1)):
        done = snakemake(repository, name, *only)
        assert done.returncode == code, done.stderr
    assert "none.json: the pack holds no such file" in done.stderr
    assert before == (found.name, (repository / found).read_bytes())


def verified(repository: Path, *config: str, **spoken: str) -> subprocess.CompletedProcess[str]:
    """The documented command of a received pack."""
    return snakemake(repository, "verify_pack", "--cores", "1", config=config, **spoken)


def test_verify_pack_alone_makes_no_pack(repository: Path) -> None:
    """On a fresh clone it says in one line what it needs; with a pack in place it verifies that."""
    done = verified(repository)
    assert done.returncode == 3  # as the verifier's own for a pack that is not there
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("invarlock: "))
    assert line.endswith(
        "evidence_pack_runs/smoke/evidence_pack: verify_pack: there is no pack; name one: "
        "snakemake verify_pack --config pack=DIR; or make this one: snakemake"
    )
    assert not (repository / "evidence_pack_runs").exists()
    shutil.copytree(KEPT / "v1-pass", repository / "evidence_pack_runs/smoke/evidence_pack")
    done = verified(repository)
    assert done.returncode == 0, done.stderr
    assert "build_pack" not in done.stdout + done.stderr
    assert (repository / "evidence_pack_runs/smoke/verify_pack.evidence_pack.json").is_file()


def test_verify_pack_beside_a_pack_that_is_made(repository: Path) -> None:
    """A command that makes the pack as well verifies the pack that it makes."""
    jobs = counts(graph(repository, "pack", "verify_pack", "--profile", "profiles/cpu"))
    assert (jobs["build_pack"], jobs["verify_pack"]) == (1, 1)


def test_two_packs_side_by_side(repository: Path, tmp_path: Path) -> None:
    """Each has a result of its own beside it, and the output ends with the verifier's meaning."""
    for name in ("one", "two"):
        shutil.copytree(KEPT / "v1-pass", tmp_path / name)
    with open(tmp_path / "two/README.md", "a") as readme:
        readme.write("more\n")
    for name, code, end in (("one", 0, "VERIFIED: "),
                            ("two", 6, "NOT VERIFIED (exit 6, integrity): ")):  # fmt: skip
        done = verified(repository, f"pack={tmp_path / name}")
        assert done.returncode == int(bool(code))
        (line,) = (line for line in done.stdout.splitlines() if "VERIFIED" in line)
        assert line.startswith(end)
        result = json.loads((tmp_path / f"verify_pack.{name}.json").read_text())
        assert (result["exit_code"], result["strict"], result["replay"]) == (code, True, True)
        log = repository / "evidence_pack_runs/smoke/logs/verify_pack.received.log"
        assert line in log.read_text()


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("verify_strict=false", 0, "is not listed in checksums.sha256"),
        ("verify_assurance=strict", 7, "container"),
        ("verify_profile=ci", 0, "VERIFIED"),
        ("trust_store=store.json", 5, "is not in the trust store"),
        ("verify_baseline=other.json", 7, "is not that of the baseline run"),
    ],
)
def test_how_a_pack_is_verified_is_set(
    repository: Path, tmp_path: Path, setting: str, code: int, said: str
) -> None:
    """Assurance, profile, trust store, strictness and baseline are keys, with the CLI's results."""
    pack = tmp_path / "pack"
    shutil.copytree(KEPT / "v1-pass", pack)
    if "strict=false" in setting:
        (pack / "extra.txt").write_text("x")
    (repository / "store.json").write_text(json.dumps(["sha256:" + "0" * 64]))
    other = {"schema": "invarlock/run-report-v1", "meta": {}, "data": {}, "guards": []}
    windows = {arm: {"window_ids": []} for arm in ("preview", "final")}
    (repository / "other.json").write_text(json.dumps(other | {"evaluation_windows": windows}))
    done = verified(repository, f"pack={pack}", setting)
    result = json.loads((tmp_path / "verify_pack.pack.json").read_text())
    assert result["exit_code"] == code, result["errors"]
    assert said in done.stdout


def test_replay_can_be_left_out(repository: Path, tmp_path: Path) -> None:
    """verify_replay=false believes what the evidence in a pack does not give."""
    pack = tmp_path / "pack"
    shutil.copytree(KEPT / "v1-pass", pack)
    verified(repository, f"pack={pack}", "verify_replay=false")
    assert json.loads((tmp_path / "verify_pack.pack.json").read_text())["replay"] is False
