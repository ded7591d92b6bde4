"""What a run leaves alone and what it makes again, through real ``snakemake`` processes."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_tiny_folder
from repository_copy import engine_of_a_version, program, quiet_environment, snakemake
from test_workflow import counts, graph, rules

from invarlock.cli import parser_of

MINUTE = 60.0


# --- the user's own folders ---------------------------------------------------------------------


def write_over(file: Path, other: Path) -> None:
    """New bytes in place, older than what was made of the old ones; the folder shows nothing."""
    before = file.parent.stat().st_mtime_ns
    shutil.copyfile(other, file)
    os.utime(file, (before / 1e9 - MINUTE, before / 1e9 - MINUTE))
    assert file.parent.stat().st_mtime_ns == before


def test_new_weights_in_an_old_folder_are_judged(repository: Path) -> None:
    """A file that was written over in place is seen, in the subject and in the baseline."""
    for seed, name in enumerate(("base", "mine", "other")):
        write_tiny_folder(repository / name, seed=seed)
    words = ["--cores", "1", "--config", "suite=byoe", "baseline=base", "subject=mine", "out=out"]
    metadata = "out/base/edits/byoe/edit_metadata.json"
    outcome = "out/base/reports/byoe/run_1/outcome.json"
    done = snakemake(repository, metadata, *words)
    assert done.returncode == 0, done.stderr
    for job in graph(repository, outcome, *words):  # the rest is only said to be made
        for path in map(repository.joinpath, job.words("output")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    done = snakemake(repository, outcome, "--touch", "--forceall", *words)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in snakemake(repository, outcome, "-n", *words).stdout

    write_over(repository / "mine/model.safetensors", repository / "other/model.safetensors")
    assert counts(graph(repository, outcome, *words)) == {"describe_subject": 1, "evaluate": 1}
    # a start sets the earlier answers aside, and measures nothing else again for it
    done = snakemake(repository, outcome, *words)
    assert "superseded" in done.stderr, done.stderr
    assert "describe_subject" in done.stderr
    assert "baseline_report" not in done.stderr
    # also where the description was made again alone and says the same
    was = (repository / metadata).stat().st_mtime
    assert snakemake(repository, metadata, "--touch", *words).returncode == 0
    os.utime(repository / metadata, (was, was))
    assert counts(graph(repository, outcome, *words)) == {"evaluate": 1}

    # what a person removed of what all evaluations are compared with is made again for a new one
    for removed, planned in (
        ("state/config.json", ("effective_config", "reference", "evaluate")),
        ("base/windows.json", ("windows", "baseline_report", "reference", "evaluate")),
    ):
        (repository / "out" / removed).unlink()
        done = snakemake(repository, outcome, *words)
        for rule in planned:
            assert re.search(rf"^{rule} +1$", done.stderr, re.M), (rule, done.stderr)

    write_over(repository / "base/model.safetensors", repository / "other/model.safetensors")
    planned = counts(graph(repository, outcome, *words))
    assert {"pin_revisions", "baseline", "windows", "baseline_report"} < set(planned)


def test_a_pack_of_an_earlier_subject_is_set_aside(repository: Path) -> None:
    """Also where a target takes the pack, which snakemake has looked at by then."""
    for seed, name in enumerate(("base", "mine", "other")):
        write_tiny_folder(repository / name, seed=seed)
    words = ["--cores", "1", "--config", "suite=byoe", "baseline=base", "scenarios=byoe", "out=out"]
    words += ["tier=none", "windows={seq_len: 64}", "long_context={windows: 0}"]
    manifest = "out/evidence_pack/manifest.json"
    metadata = "out/base/edits/byoe/edit_metadata.json"
    assert snakemake(repository, metadata, *words, "subject=mine").returncode == 0
    (repository / manifest).parent.mkdir(parents=True)
    (repository / manifest).touch()
    done = snakemake(repository, "all", "--until", "source_repo", *words, "subject=other")
    assert done.returncode == 0, done.stderr
    assert "superseded" in done.stderr
    moved = [
        p.relative_to(repository).as_posix() for p in (repository / "out").rglob("manifest.json")
    ]
    assert moved == ["out/superseded/evidence_pack/manifest.json"], done.stderr


# --- words of the shell commands ----------------------------------------------------------------

END = "\x1f"  # of an argument


def calls(folder: Path, out: str, *targets: str, **said: object) -> list[str]:
    """What every ``python`` of a plan is called with, sorted; bash reads it as printed."""
    (folder / f"{out}.yaml").write_text(yaml.safe_dump({"out": out, **said}))
    engine = engine_of_a_version(folder)
    found = {"PATH": f"{engine.parent}:{os.environ['PATH']}", "CALLS": str(folder / f"{out}.calls")}
    words = ["--sdm", "apptainer", "--cores", "1", "--config", f"include={out}.yaml"]
    done = snakemake(folder, *targets, "-n", "-p", "--quiet", "progress", *words, **found)
    assert done.returncode == 0, done.stderr + done.stdout
    for files in re.findall(r"^    (?:log|output): (.*)$", done.stdout, re.M):
        for path in files.split(", "):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
    python = f'python() {{ printf \'%s{END}\' "$@" >> "$CALLS"; echo >> "$CALLS"; }}'
    for command in re.findall(r"^Shell command: (.*python .*)$", done.stdout, re.M):
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{python}; {command}"],
            cwd=folder, env=quiet_environment() | found, check=True,
        )  # fmt: skip
    return sorted(Path(found["CALLS"]).read_text().splitlines())


def understood(call: str) -> bool:
    """Whether the command that a rule calls takes these words: each option has its value."""
    _, module, *words = call.split(END)[:-1]
    assert module == "invarlock", call
    name = " ".join(words[:2]) if words[0] == "advanced" else words[0]
    parser_of(name).parse_args(words[len(name.split()) :])
    return True


@pytest.mark.parametrize("suite", ["byoe", "subset"])
def test_any_name_reaches_the_command_line_whole(repository: Path, suite: str) -> None:
    """Blanks and quotes in a name of a model, of the output or of a file part no argument."""

    def planned(model: str, out: str) -> list[str]:
        write_tiny_folder(repository / model)
        (repository / "image.sif").touch()
        (repository / f"{out}.txt").write_text("a text")
        said = {"suite": suite, "text": f"local:{out}.txt", "container_image": "image.sif"}
        if suite == "byoe":
            said |= {"baseline": model, "subject": model}
            return calls(repository, out, "pack", "verify_pack", **said, repeats=2)
        said |= {"models": [f"local:{model}"]}
        return calls(repository, out, "tune", f"{out}/state/tuned_edit_params.json", **said)

    plain, odd = planned("model", "out"), planned('it\'s a "model"', "my  out's")
    assert len(plain) > 10
    assert all(map(understood, plain))
    names = (("it-s-a--model-", "model"), ('it\'s a "model"', "model"), ("my  out's", "out"))
    for name, other in names:
        odd = [call.replace(name, other) for call in odd]
    assert sorted(odd) == plain


# --- more time and memory -----------------------------------------------------------------------


def test_another_attempt_gets_more_time_and_memory(repository: Path) -> None:
    """Every rule that asks a scheduler for time asks for more of both when a job is repeated."""
    write_tiny_folder(repository / "model")
    byoe = ("suite=byoe", "baseline=model", "subject=model")
    seen = set()
    packed = ("suite=deployable", "deploy_backends=bitsandbytes")
    asked = ((("all", "tune"), ("suite=subset",)), (("all",), byoe), (("all",), packed))
    for targets, said in asked:
        words = (*targets, "--cores", "8", "--resources", "gpu=1", "--config", "device=cuda", *said)
        first, second = (
            {(job.rule, job.lines.get("wildcards")): job for job in graph(repository, *a, *words)}
            for a in (("--attempt", "1"), ("--attempt", "2"))
        )
        assert set(first) == set(second)
        for key, job in first.items():
            if job.resource("runtime") > 0:
                seen.add(job.rule)
                for name in ("runtime", "mem_mb"):
                    assert second[key].resource(name) > job.resource(name), (key, name)
    assert {name for name, text in rules() if "runtime=" in text} <= seen


# --- one run in a folder ------------------------------------------------------------------------


def test_a_run_without_the_wrapper_keeps_its_locks(repository: Path) -> None:
    """While a plain snakemake lives nothing clears what it locked; once it is dead, all goes on."""
    os.mkfifo(repository / "gate")
    (repository / "wait.sh").write_text("cat gate\n")  # what bash reads first, so the job waits
    words = ["out/state/config.json", "--cores", "1", "--config", "out=out"]
    wrapper = [sys.executable, "tools/workflow.py", *words]

    def wrapped(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*wrapper, *options],
            cwd=repository, env=quiet_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip

    running = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *words],
        cwd=repository, env=quiet_environment() | {"BASH_ENV": "wait.sh"}, text=True,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert running.stderr
        assert any("rule effective_config:" in line for line in running.stderr)
        locks = repository / ".snakemake/locks"
        held = sorted(locks.iterdir())
        assert held
        planned = wrapped("-n")
        assert planned.returncode == 0, planned.stderr
        refused = wrapped()
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "another run is going on in this folder" in refused.stderr
        assert sorted(locks.iterdir()) == held
        assert running.poll() is None
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(MINUTE)
    done = wrapped()
    assert done.returncode == 0, done.stderr
    assert "An earlier run was interrupted" in done.stdout


@pytest.mark.parametrize(
    ("word", "dry"),
    [("-n", True), ("-np", True), ("--dry-run", True), ("-p", False), ("--until", False)],
)
def test_what_a_dry_run_is_called(word: str, dry: bool) -> None:
    """Also among other short options: only such a start takes no lock."""
    assert bool(program("tools/workflow.py").DRY.fullmatch(word)) is dry


def test_a_run_that_is_refused_leaves_no_lock(repository: Path) -> None:
    """While the wrapper looks for stale locks no run begins, and repeated, the command works."""
    command = [sys.executable, "-m", "snakemake", "out/state/config.json", "--cores", "1"]
    command += ["--config", "out=out"]
    (repository / ".snakemake").mkdir()
    with open(repository / ".snakemake/invarlock.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        refused = subprocess.run(
            command, cwd=repository, env=quiet_environment(), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    assert refused.returncode == 2
    assert "repeat the command" in refused.stderr
    subprocess.run(command, cwd=repository, env=quiet_environment(), check=True)
