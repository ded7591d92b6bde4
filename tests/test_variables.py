"""Environment variables: the table holds all that are read, and says of the rest why not."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repository_copy import ROOT, invarlock, quiet_environment, snakemake
from settings_factory import FILE, refusal, settings

from invarlock.cli import main
from invarlock.variables import OURS, VARIABLES, warnings

pytestmark = pytest.mark.usefixtures("in_repository")
# What is read through a name that stands for the environment.
MAPPINGS = {"os.environ", "environment", "outer", "variables", "environ"}
PROGRAMS = [*(ROOT / "invarlock").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
RECIPES = [
    *(ROOT / "rules").glob("*.smk"), ROOT / "Snakefile", ROOT / "Makefile",
    *(ROOT / "tools").glob("*.sh"),
]  # fmt: skip
# Of make and of the scripts themselves, and names of the lab cluster that tools/slurm_up.sh starts.
LOCAL = re.compile(r"SLURM_LAB_\w+|SLURM_CONF|BASE\w*|PWD|OLDPWD|PYTHON|TORCH|CONFIG_HOME|HOME")


TREES = {path: ast.parse(path.read_text()) for path in PROGRAMS}


def keys(tree: ast.Module) -> Iterator[ast.expr]:
    """What the environment is asked for: subscripts, get, setdefault, pop and in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in MAPPINGS:
            yield node.slice
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("get", "setdefault", "pop", "getenv")
            and ast.unparse(node.func.value) in {*MAPPINGS, "os"}
            and node.args
        ):
            yield node.args[0]
        elif (
            isinstance(node, ast.Compare)
            and isinstance(node.ops[0], ast.In | ast.NotIn)
            and ast.unparse(node.comparators[0]) in MAPPINGS
        ):
            yield node.left


def named(path: Path, tree: ast.Module, key: ast.expr) -> list[str]:
    """The variables that an expression stands for."""
    if isinstance(key, ast.Constant):
        return [str(key.value)]
    name = ast.unparse(key)
    for node in ast.walk(tree):  # for NAME in (texts or a constant)
        loops = [node] if isinstance(node, ast.For) else getattr(node, "generators", [])
        for loop in loops:
            if ast.unparse(loop.target) == name and key in ast.walk(node):
                if isinstance(loop.iter, ast.Tuple):
                    return [ast.literal_eval(one) for one in loop.iter.elts]
                return list(constant(path, ast.unparse(loop.iter)))
    return [str(constant(path, name))]


def constant(path: Path, name: str) -> Any:
    """What a name of a module stands for."""
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return getattr(importlib.import_module(dotted), name)


def reads() -> Iterator[tuple[str, str]]:
    """Every variable that a program or a recipe names, and where."""
    for path, tree in TREES.items():
        if path.name == "variables.py":  # goes through the table
            continue
        for key in keys(tree):
            yield from ((name, str(path)) for name in named(path, tree, key))
    for path in PROGRAMS:
        if path.name != "variables.py":
            for name in re.findall(r"[\"'](?:APPTAINERENV_)?((?:INVARLOCK|PACK)_[A-Z_]+)[\"'=]",
                                   path.read_text()):  # fmt: skip
                yield name, str(path)
    for path in RECIPES:
        text = path.read_text()
        found = re.findall(r"\b((?:INVARLOCK|PACK|HF|APPTAINER)_[A-Z_]+)\b", text)
        if path.suffix == ".sh":
            found += re.findall(r"\$\{?([A-Z][A-Z_]+)", text)
        yield from ((name, str(path)) for name in found if not LOCAL.fullmatch(name))


def test_every_variable_that_is_read_stands_in_the_table() -> None:
    """Programs, rules, scripts and the Makefile read no other variable than those of the table."""
    found = list(reads())
    assert {"INVARLOCK_DIGESTS", "SOURCE_DATE_EPOCH", "SLURM_JOB_ID", "HF_HUB_OFFLINE",
            "INVARLOCK_SIGNING_KEY"} <= {name for name, _ in found}  # fmt: skip
    assert {(name, where) for name, where in found if name not in VARIABLES} == set()


def test_what_the_table_says_is_read_is_read() -> None:
    """A variable that gives no setting and is not inert is named where it is read; those that
    libraries or a shell read for us are these."""
    elsewhere = {
        "HF_DATASETS_CACHE", "HF_ENDPOINT", "TMPDIR", "PATH", "PYTHONPATH",
        "INVARLOCK_CALIBRATIONS", "INVARLOCK_TEST_MODEL", *(f"MODEL_{n}" for n in range(1, 9)),
    }  # fmt: skip
    said = {v.name for v in VARIABLES.values() if v.read and v.gives is None}
    assert said - {name for name, _ in reads()} <= elsewhere


def test_settings_of_the_table_are_settings() -> None:
    """What a variable gives is a key of config.yaml, and its line names the key."""
    samples = {"threads": "2", "min_free_disk_gb": "3", "repeats": "2"}
    for name, variable in VARIABLES.items():
        if variable.gives is None:
            continue
        key = variable.does.partition("`")[2].partition("`")[0]
        for text in (samples.get(key, "0"), samples.get(key, "1")):
            assert set(variable.gives(text)) <= set(FILE), name


# --- the variables of the published harness -----------------------------------------------------


def test_signing_is_asked_for_and_turned_off() -> None:
    """1 demands a key; 0 makes no signature, also where a key is named; both at once is refused."""
    key = {"PACK_SIGNING_KEY": "key.pem"}
    for name in ("PACK_SIGN_MANIFEST", "PACK_STRICT_MODE"):
        assert settings({name: "1", **key}).values["require_signature"] is True
        assert refusal(environment={name: "1"}).startswith(
            f"{name}: require_signature is on and no signing_key is given"
        )
    for name in ("PACK_SIGN_MANIFEST", "PACK_GPG_SIGN"):
        found = settings({name: "0", **key})
        assert (found.values["signing_key"], found.values["require_signature"]) == ("", False)
        assert settings({name: "0"}, signing_key="mine.pem").values["signing_key"] == "mine.pem"
    assert settings({"PACK_GPG_SIGN": "1", **key}).values["signing_key"] == "key.pem"
    both = {"PACK_STRICT_MODE": "1", "PACK_SIGN_MANIFEST": "0", **key}
    assert "no signing_key" in refusal(environment=both)


def test_a_received_pack_needs_no_key(tmp_path: Path) -> None:
    """PACK_STRICT_MODE=1 before `snakemake verify_pack` asks for a signature, not for our key."""
    assert settings({"PACK_STRICT_MODE": "1"}, pack=str(tmp_path)).values["require_signature"]


def test_the_first_of_two_variables_counts() -> None:
    """PACK_NET, which is the workflow's own, over INVARLOCK_ALLOW_NETWORK."""
    found = settings({"PACK_NET": "0", "INVARLOCK_ALLOW_NETWORK": "1"})
    assert (found.values["net"], found.origins["net"]) == (0, "environment PACK_NET")
    assert settings({"INVARLOCK_ALLOW_NETWORK": "1"}).values["net"] == 1


def test_models_and_scenarios_are_lists() -> None:
    """A,B of a variable is the list."""
    found = settings({"PACK_SCENARIO_IDS": "noop_clean, nan_injection"})
    assert [s.id for s in found.scenarios] == ["noop_clean", "nan_injection"]


# --- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("INVARLOCK_TEIR", "x", "no variable that InvarLock knows; the nearest is INVARLOCK_TIER"),
        ("PACK_SIGNING_KEYS", "x", "the nearest is PACK_SIGNING_KEY"),
        ("MODEL_9", "x", "is no variable that InvarLock knows; the nearest is MODEL_"),
        ("PACK_ZQXJWV", "x", "is no variable that InvarLock knows; config/README.md lists them"),
        ("INVARLOCK_CONFIG_ROOT", "/x", "=/x changes nothing: settings are read from"),
        ("INVARLOCK_STORE_EVAL_WINDOWS", "0", "=0 changes nothing: every report holds its windows"),
        ("PACK_STRICT_MODE", "0", "=0 changes nothing: "),
        ("PACK_GPG_SIGN", "1", "=1 changes nothing: "),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_said_in_one_line(name: str, text: str, words: str) -> None:
    """A name that is none of ours, and one of theirs that does nothing here."""
    (line,) = warnings({name: text, "HOME": "/x"}, ours=True)
    assert line.startswith(name)
    assert words in line
    assert "\n" not in line
    assert "`" not in line
    assert warnings({name: ""}) == []


def test_names_that_others_set_are_only_the_workflows_business() -> None:
    """SKIP_FLASH_ATTN and TRANSFORMERS_CACHE are told once a run, not at every command."""
    common = {"SKIP_FLASH_ATTN": "true", "TRANSFORMERS_CACHE": "/x"}
    assert len(warnings(common)) == 2
    assert warnings(common, ours=True) == []


def test_what_acts_is_not_warned_of() -> None:
    """Every variable that gives a setting or is read is silent, with a value that it takes."""
    acting = {v.name: "1" for v in VARIABLES.values() if not v.inert and v.name != "PACK_GPG_SIGN"}
    assert warnings(acting) == []
    assert warnings(quiet_environment(), ours=True) == []


def test_the_command_line_warns_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line before what the command says; none in a job, for which the workflow has said it."""
    monkeypatch.setenv("INVARLOCK_TEIR", "x")
    assert main(["gate", "nosuch.json"]) == 3
    said = capsys.readouterr().err
    assert said.count("INVARLOCK_TEIR") == 1
    assert said.startswith("invarlock: warning: ")
    monkeypatch.setenv("INVARLOCK_SETTINGS", "{}")
    assert main(["gate", "nosuch.json"]) == 3
    assert "INVARLOCK_TEIR" not in capsys.readouterr().err


def test_a_command_without_such_variables_says_nothing() -> None:
    """Standard error stays empty."""
    done = invarlock("scenarios", "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_workflow_warns_once(repository: Path) -> None:
    """A line for each variable, in a dry run too; and a host that is not allowed is refused there,
    under the name of the variable that says so."""
    target = "evidence_pack_runs/smoke/state/config.json"
    said = {"INVARLOCK_TEIR": "x", "SKIP_FLASH_ATTN": "true"}
    done = snakemake(repository, "-n", target, **said)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("invarlock: warning: ")]
    assert [sum(name in line for line in lines) for name in said] == [1, 1]

    done = snakemake(repository, "-n", "--profile", "profiles/cpu",
                     INVARLOCK_ALLOW_HOST_EXECUTION="0")  # fmt: skip
    assert done.returncode == 2
    assert "invarlock: INVARLOCK_ALLOW_HOST_EXECUTION: host execution is not allowed" in done.stderr


# --- an output folder of its own ------------------------------------------------------------------


def test_a_folder_with_the_time_in_its_name() -> None:
    """By key and by variable."""
    name = re.compile(r"evidence_pack_runs/subset_20\d{6}_\d{6}")
    assert name.fullmatch(str(settings(suite="subset", out="auto").out))
    assert name.fullmatch(str(settings({"OUTPUT_DIR": "auto"}, suite="subset").out))
    assert settings({"OUTPUT_DIR": "runs/x"}).out == Path("runs/x")


def test_jobs_of_a_start_see_its_folder(repository: Path) -> None:
    """What snakemake passes to a job, here or on a cluster, names the folder of the start."""
    wrapper = repository / "wrapper.smk"
    wrapper.write_text(
        'include: "Snakefile"\nprint("PASSED", *workflow.config_settings.config_args)\n'
    )
    words = ["-s", str(wrapper), "-n", "timings", "--quiet", "all"]
    first = snakemake(repository, *words, config=["seed=7", "out=auto"])
    assert first.returncode == 0, first.stderr
    (told,) = re.findall(r"to go on with this run: (out=\S+)", first.stderr)
    (passed,) = re.findall(r"^PASSED (.*)$", first.stdout, re.M)
    assert passed.split() == ["seed=7", told]
    by_variable = snakemake(repository, *words, OUTPUT_DIR="auto")
    (told,) = re.findall(r"to go on with this run: (out=\S+)", by_variable.stderr)
    (passed,) = re.findall(r"^PASSED (.*)$", by_variable.stdout, re.M)
    assert passed.split() == [told]
    job = snakemake(repository, *words, config=passed.split(), OUTPUT_DIR="auto")
    assert job.returncode == 0, job.stderr
    assert "to go on" not in job.stderr


def test_ours_are_told_apart() -> None:
    """The prefixes that nobody else uses, and the slots of models."""
    assert all(map(OURS.fullmatch, ("PACK_NET", "INVARLOCK_X", "MODEL_12")))
    assert not any(map(OURS.fullmatch, ("MODEL_DIR", "OUTPUT_DIR", "PACKAGE")))
