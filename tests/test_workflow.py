"""The file graph, through real ``snakemake`` processes, and the digest that reruns it."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import write_tiny_folder
from repository_copy import ROOT, snakemake

from invarlock import code_digest as digests
from invarlock.evidence import keys

SMOLLM2 = "huggingfacetb__smollm2-135m-instruct"
ONCE = {
    "effective_config": 1, "pin_revisions": 1, "scenarios": 1, "source_repo": 1, "environment": 1,
    "verdict": 1, "build_pack": 1, "timings": 1, "verify_made_pack": 1, "all": 1,
}  # fmt: skip
TUNED = {"tuned_parameters": 1}  # of suites with edits whose numbers stand in the table
EACH_MODEL = ("baseline", "windows", "baseline_report", "calibrate", "preset", "reference")
EACH_EVALUATION = ("evaluate", "render")


@dataclass(frozen=True)
class Job:
    """A job as a dry run prints it."""

    rule: str
    lines: dict[str, str]

    def words(self, key: str) -> list[str]:
        """A comma-separated line as its words."""
        return [word for word in self.lines.get(key, "").split(", ") if word]

    def resource(self, name: str) -> float:
        """A numeric resource, NaN where the job has none of that name."""
        found = dict(word.split("=", 1) for word in self.words("resources"))
        return float(found.get(name, "nan"))

    @property
    def model(self) -> str:
        """The model's folder name."""
        return dict(word.split("=", 1) for word in self.words("wildcards"))["model"]


def graph(folder: Path, *words: str) -> list[Job]:
    """The jobs of a dry run."""
    done = snakemake(folder, "-n", *words, "--quiet", "progress")  # profiles say less
    assert done.returncode == 0, done.stderr + done.stdout
    jobs: list[Job] = []
    for line in done.stdout.splitlines():
        if found := re.fullmatch(r"(?:local)?rule (\w+):", line):
            jobs.append(Job(found[1], {}))
        elif jobs and (found := re.fullmatch(r"    (\w+): (.*)", line)):
            jobs[-1].lines[found[1]] = found[2]
    return jobs


def expected_counts(models: int, edits: int, injections: int, trained: int = 0) -> dict[str, int]:
    """How often each rule runs for these subjects of each model."""
    text = {"training_windows": models, "train": models * trained}
    return (
        ONCE
        | dict.fromkeys(EACH_MODEL, models)
        | {"edit": models * edits, "inject": models * injections}
        | {"calibration_windows": 3 * models}  # one a seed
        | (text if trained else {})
        | dict.fromkeys(EACH_EVALUATION, models * (edits + injections + trained))
    )


def counts(jobs: list[Job]) -> dict[str, int]:
    """How often each rule runs."""
    return dict(Counter(job.rule for job in jobs))


def by_model(jobs: list[Job], rule: str, resource: str) -> dict[str, float]:
    """The resource of that rule by model; the same for every scenario of a model."""
    found: dict[str, set[float]] = {}
    for job in jobs:
        if job.rule == rule:
            found.setdefault(job.model, set()).add(job.resource(resource))
    assert found
    assert all(len(values) == 1 for values in found.values()), found
    return {model: values.pop() for model, values in found.items()}


# --- graphs -------------------------------------------------------------------------------------


def test_the_smoke_suite_makes_every_scenario_once(repository: Path) -> None:
    """Suite smoke: one baseline run, one subject and one evaluation a scenario, one pack."""
    jobs = graph(repository, "--profile", "profiles/cpu", "--config", "suite=smoke")
    kinds = Counter(
        entry["generation"]["kind"]
        for entry in json.loads((ROOT / "scenarios/scenarios.json").read_text())["scenarios"]
        if "smoke" in entry["suites"]
    )
    assert kinds["edit"] >= 8
    assert kinds["error"] >= 10
    assert counts(jobs) == expected_counts(1, kinds["edit"], kinds["error"])


@pytest.mark.parametrize(("chosen", "injections"), [((), 65), (("clean",), 0)])
def test_the_detection_suite_makes_its_catalogue_once(
    repository: Path, chosen: tuple[str, ...], injections: int
) -> None:
    """Suite detection: 35 kinds of damage, 30 of them stronger or weaker; or its clean edits, three
    of which take a text."""
    given = [f"categories={name}" for name in chosen]
    given += ["tier=none", "windows={preview: 90, final: 90, seed: 101}"]  # as make results does
    jobs = graph(repository, "--profile", "profiles/cpu", "--config", "suite=detection", *given)
    wanted = expected_counts(1, 14, injections, trained=3) | {"tuned_parameters": 1}
    assert counts(jobs) == {rule: number for rule, number in wanted.items() if number}


def test_only_training_waits_for_a_text_of_its_own(repository: Path) -> None:
    """Its windows leave out the judged and the calibration ones; no other edit waits for them."""
    chosen = "scenarios=noop_clean,lora_rank8_stress"
    jobs = graph(repository, "--profile", "profiles/cpu", "--config", "suite=smoke-all", chosen)
    made = counts(jobs)
    assert (made["edit"], made["train"], made["training_windows"]) == (1, 1, 1)
    rules = {job.rule: job for job in jobs}
    cut, train, edit = (rules[name] for name in ("training_windows", "train", "edit"))
    names = [Path(path).name for path in cut.words("input")]
    assert {"windows.json", *(f"windows_seed_{n}.json" for n in (44, 45, 46))} < set(names)
    assert cut.words("output") == [p for p in train.words("input") if p.endswith(".json")]
    assert [Path(path).name for path in edit.words("input")] == ["baseline"]
    assert train.resource("mem_mb") > edit.resource("mem_mb")


def test_an_artifact_is_a_target(repository: Path) -> None:
    """Asking for windows.json makes that file and what it needs, nothing else."""
    target = f"evidence_pack_runs/smoke/{SMOLLM2}/windows.json"
    jobs = graph(repository, "--profile", "profiles/cpu", target)
    assert counts(jobs) == {"pin_revisions": 1, "baseline": 1, "windows": 1}


def assert_resources_follow_the_model(jobs: list[Job]) -> None:
    """Memory, disk and time grow with the weights, and what does not fit one GPU gets more."""
    order = [
        "mistralai__mistral-7b-v0.1", "qwen__qwen3-8b", "qwen__qwen2.5-14b",
        "qwen__qwen2.5-32b", "01-ai__yi-34b", "mistralai__mixtral-8x7b-v0.1",
    ]  # fmt: skip
    for rule, resource in (
        ("evaluate", "mem_mb"),
        ("evaluate", "runtime"),
        ("baseline_report", "mem_mb"),
        ("calibrate", "mem_mb"),
        ("calibrate", "runtime"),
        ("edit", "disk_mb"),
        ("edit", "mem_mb"),
        ("edit", "runtime"),
        ("inject", "disk_mb"),
        ("baseline", "disk_mb"),
        ("baseline", "runtime"),
    ):
        values = by_model(jobs, rule, resource)
        listed = [values[name] for name in order]
        assert listed == sorted(set(listed)), (rule, resource, values)
    for rule in ("evaluate", "baseline_report", "calibrate"):
        assert by_model(jobs, rule, "gpu") == dict.fromkeys(order[:3], 1.0) | {
            order[3]: 1.0,
            order[4]: 2.0,
            order[5]: 2.0,
        }
    # an edit streams: it needs the disk of a model, not its memory
    edit = next(job for job in jobs if job.rule == "edit" and job.model == order[-1])
    assert edit.resource("mem_mb") < edit.resource("disk_mb") / 4


def test_the_gpu_profile_sizes_every_model(repository: Path) -> None:
    """On a machine of four GPUs every model of suite full gets what it needs."""
    words = ("--profile", "gpu", "--resources", "gpu=4", "--config", "suite=full")
    jobs = graph(repository, *words)
    assert counts(jobs) == expected_counts(6, 9, 20, trained=4) | TUNED
    assert_resources_follow_the_model(jobs)


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="the SLURM executor plugin is not installed",
)
def test_the_slurm_profile_sizes_every_model(repository: Path) -> None:
    """`snakemake -n --profile slurm --config suite=full` asks the scheduler the same."""
    jobs = graph(repository, "--profile", "slurm", "--config", "suite=full")
    assert counts(jobs) == expected_counts(6, 9, 20, trained=4) | TUNED
    assert_resources_follow_the_model(jobs)


def test_byoe_judges_the_users_folder(repository: Path, tmp_path: Path) -> None:
    """Suite byoe describes and evaluates the subject folder, and never removes or makes it."""
    base, mine = tmp_path / "base", tmp_path / "mine"
    write_tiny_folder(base)
    write_tiny_folder(mine, seed=1)
    given = ["suite=byoe", f"baseline={base}", f"subject={mine}"]
    jobs = graph(repository, "pack", "--profile", "profiles/cpu", "--config", *given)
    found = counts(jobs)
    assert found["describe_subject"] == 1
    assert found["edit"] + found["inject"] + 1 == found["evaluate"]
    assert found["pack"] == 1
    judged = [job for job in jobs if job.rule == "evaluate" and str(mine) in job.words("input")]
    assert [dict(w.split("=") for w in job.words("wildcards")) for job in judged] == [
        {"model": "base", "scenario": "byoe", "run": "1"}
    ]
    assert not any(str(mine) in job.words("output") for job in jobs)


# --- refusals -----------------------------------------------------------------------------------


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Our one line of a run that was refused with exit 2."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("invarlock: ")]
    return line


def test_the_command_line_wins_with_the_files_own_value(repository: Path) -> None:
    """What is given counts also where it equals the file: here against a tier that is none."""
    target = "evidence_pack_runs/smoke/state/config.json"
    words = ["-n", target, "--profile", "profiles/cpu", "--config"]
    done = snakemake(repository, *words, "seed=43", INVARLOCK_TIER="nosuch")
    assert "'nosuch'" in refusal(done)
    done = snakemake(repository, *words, "tier=balanced", INVARLOCK_TIER="nosuch")
    assert done.returncode == 0, done.stderr


def test_a_readable_signing_key_stops_before_any_job(repository: Path, tmp_path: Path) -> None:
    """A private key that others can read is refused before the first job, also in a real run."""
    key, out = tmp_path / "key.pem", tmp_path / "out"
    keys.generate(key, tmp_path / "key.pub.pem")
    key.chmod(0o640)
    words = ["--profile", "profiles/cpu", "--config", f"out={out}", f"signing_key={key}"]
    line = refusal(snakemake(repository, f"{out}/state/config.json", *words))
    assert "can be read by others" in line
    assert "mode 0640" in line
    assert not out.exists()


# --- the text of the rules ----------------------------------------------------------------------


def rules() -> Iterator[tuple[str, str]]:
    """Every rule of the workflow: its name and its text."""
    for path in [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]:
        parts = re.split(r"^\s*(?:rule|checkpoint) (\w+):\n", path.read_text(), flags=re.M)
        yield from zip(parts[1::2], parts[2::2], strict=True)


def test_every_rule_that_runs_code_has_a_container_and_a_log() -> None:
    """A shell command never stands without container: and log:."""
    shells = [(name, text) for name, text in rules() if re.search(r"^\s+shell:", text, re.M)]
    assert len(shells) >= 12
    for name, text in shells:
        for directive in ("container", "log"):
            assert re.search(rf"^\s+{directive}:", text, re.M), f"{name} has no {directive}:"


def test_no_rule_runs_python_inside_snakemake() -> None:
    """Work is done by our command line, never by run:, script: or notebook: blocks."""
    for name, text in rules():
        assert not re.search(r"^\s+(run|script|notebook|wrapper):", text, re.M), name


def test_every_rule_that_runs_our_command_knows_its_code() -> None:
    """A rule that runs `invarlock VERB` has the digest of that verb's modules as a parameter."""
    for name, text in rules():
        verbs = re.findall(r"python -m invarlock (?:advanced )?([a-z-]+)", text)
        if verbs:
            code = re.search(r"code=code\(([^)]*)\)", text)
            assert code, f"{name} has no code digest"
            assert {verb.replace("-", "_") for verb in verbs} <= set(re.findall(r"\w+", code[1]))


# --- digests of the code ------------------------------------------------------------------------

VERBS = (
    "analyze", "baseline", "calibrate", "edit", "evaluate", "evaluate_record", "evaluate_worker",
    "evidence_pack", "inject", "pages", "pin", "preset", "report", "run", "scenarios", "verdict",
    "verify", "windows",
)  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that the digests are taken over."""
    copy = tmp_path / "invarlock"
    shutil.copytree(digests.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digests, "PACKAGE", copy)
    forget()
    yield copy
    forget()


def forget() -> None:
    """Empty the caches of the module."""
    for function in (
        digests._file_of, digests._imports, digests.modules_behind, digests._lines,
        digests.code_digest,
    ):  # fmt: skip
        function.cache_clear()


def digest_of_each() -> dict[str, str]:
    """The digest of every verb."""
    forget()
    return {verb: digests.code_digest(f"invarlock.cli.{verb}") for verb in VERBS}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The digests of the package as it is, whose copy has the same."""
    return digest_of_each()


@pytest.mark.parametrize(
    ("file", "touched"),
    [
        ("edits/kinds/quant_rtn.py", {"edit", "calibrate"}),
        ("damage/kinds/matrices.py", {"inject"}),
        ("sources/text.py", {"pin", "windows"}),
        ("sources/kinds/hub.py", {"baseline", "pin", "windows"}),
        ("cli/verdict.py", {"verdict"}),
        ("reporting/templates/report.html.j2", {"evidence_pack", "pages", "report"}),
        ("evidence/keys.py", {"evidence_pack"}),
        ("errors.py", set(VERBS)),
    ],
)
def test_a_change_touches_the_verbs_that_import_it(
    before: dict[str, str], package: Path, file: str, touched: set[str]
) -> None:
    """A changed file changes the digest of the verbs that use it, and of no other."""
    with open(package / file, "a") as handle:
        handle.write("\n# changed\n")
    after = digest_of_each()
    assert {verb for verb in VERBS if before[verb] != after[verb]} == touched


def test_the_closure_follows_imports_inside_functions(package: Path) -> None:
    """Modules that are imported lazily or by a worker belong to the digest."""
    edit = digests.modules_behind("invarlock.cli.edit")
    assert {"invarlock.edits.apply", "invarlock.shards", "invarlock.roles"} <= set(edit)
    worker = digests.modules_behind("invarlock.cli.evaluate_worker")
    assert {"invarlock.run.measure", "invarlock.guards.spectral"} <= set(worker)
    assert not any(".evidence" in name or ".sources" in name for name in (*edit, *worker))


def named_when_run(block: ast.AST) -> Iterator[str]:
    """Modules of the package, and what is taken from them, in every import that is run."""
    for node in ast.iter_child_nodes(block):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for other in node.orelse:
                yield from named_when_run(ast.Module([other], []))
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from named_when_run(node)


def test_imports_are_read_as_python_reads_them() -> None:
    """In every module of the package, without parsing it."""
    seen = 0
    for path in digests.PACKAGE.rglob("*.py"):
        text = path.read_text()
        names = named_when_run(ast.parse(text))
        ours = {name for name in names if name.partition(".")[0] == "invarlock"}
        assert digests._named(text) == ours, path
        seen += len(ours)
    assert seen > 2000


def test_the_thresholds_belong_to_what_judges(before: dict[str, str], package: Path) -> None:
    """A changed tier table reruns what decides and not what only makes subjects."""
    tiers = package / "data/tiers.yaml"
    tiers.write_text(tiers.read_text().replace("balanced", "balanced ", 1))
    after = digest_of_each()
    touched = {verb for verb in VERBS if before[verb] != after[verb]}
    assert {"evaluate_worker", "verify", "evidence_pack"} <= touched
    assert not touched & {"edit", "inject", "windows", "pin", "baseline", "scenarios"}


def test_an_unknown_module_is_refused(package: Path) -> None:
    """A misspelt verb in a rule is an error, not the digest of nothing."""
    with pytest.raises(ValueError, match=r"no module invarlock\.cli\.edits"):
        digests.code_digest("invarlock.cli.edits")
