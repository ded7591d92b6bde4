"""What no run can answer is said before its first job, and answers about others are set aside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_factory import make_llama
from conftest import write_tiny_folder
from gguf_factory import make_folder, write_gguf
from repository_copy import ROOT, snakemake
from settings_factory import settings
from test_preflight_run import CPU

from invarlock.evidence.tree import MAX_JUDGED
from invarlock.policy import load_policy
from invarlock.preflight import (
    VALUES,
    VALUES_OF_MATRIX,
    VALUES_OF_SLICE,
    doubts,
    refusals,
    size_of_pack,
)
from invarlock.superseded import record_asked, set_aside, supersede

pytestmark = pytest.mark.usefixtures("in_repository")

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer."""
    return make_llama(tmp_path_factory.mktemp("llama") / "base")


def lines(judged: bool = True, container: bool = False, **given: Any) -> list[str]:
    """The findings about the settings."""
    told = settings(**given)
    found = [str(e) for e in (*refusals(told, container, judged), *doubts(told))]
    assert all("\n" not in line for line in found)
    return found


# --- floors -------------------------------------------------------------------------------------


def test_the_shipped_suites_are_refused_nothing() -> None:
    """Every suite with its own geometry reaches the floors of the tier that is set."""
    for suite in ("smoke", "smoke-all", "subset", "full"):
        assert lines(suite=suite) == []


@pytest.mark.parametrize("tier", ["balanced", "conservative", "aggressive"])
@pytest.mark.parametrize(
    "windows",
    [
        {"seq_len": 64, "preview": 20, "final": 20},
        {"seq_len": 16, "preview": 300, "final": 300},
        {"seq_len": 512, "preview": 100, "final": 400},
        {"seq_len": 3, "preview": 1, "final": 1},
    ],
)
def test_the_numbers_that_would_do_do(tier: str, windows: dict[str, int]) -> None:
    """What the line names passes, and the tier without floors passes all."""
    given = {**windows, "seed": 43, "add_bos": "auto"}
    bootstrap = {"replicates": load_policy(tier).coverage.replicates, "alpha": 0.05}
    (line,) = lines(tier=tier, windows=given, bootstrap=bootstrap)
    assert "nothing could pass" in line
    assert "tier: none" in line
    named = line.partition("windows={")[2].partition("}")[0]
    better = {k: int(v) for k, v in (pair.split(": ") for pair in named.split(", "))}
    assert better["seq_len"] == windows["seq_len"]
    assert (
        lines(tier=tier, windows={**better, "seed": 43, "add_bos": "auto"}, bootstrap=bootstrap)
        == []
    )
    assert lines(tier="none", windows=given) == []
    assert lines(judged=False, tier=tier, windows=given) == []


def test_the_interval_has_floors_too() -> None:
    """Replicates and alpha."""
    few, loose = lines(bootstrap={"replicates": 200, "alpha": 0.2})
    assert "replicates: 1200" in few
    assert "at most 0.05" in loose


# --- where it runs, and the pack ----------------------------------------------------------------


def test_a_host_profile_where_hosts_are_not_allowed() -> None:
    """Refused with both ways out; in the image nothing is said."""
    (line,) = lines(allow_host_execution=False)
    assert "--profile profiles/container" in line
    assert "allow_host_execution: true" in line
    assert lines(allow_host_execution=False, container=True) == []
    assert any("strict assurance" in line for line in lines(assurance="strict", profile="ci"))


def test_a_pack_that_nobody_could_verify(tmp_path: Path) -> None:
    """By values that a verdict is recomputed from; as many evaluations as the line names fit."""
    base = make_llama(tmp_path / "base", layers=30)
    given = {"suite": "byoe", "baseline": str(base), "subject": str(base), "tier": "none"}
    # of seven matrices a layer, and of three texts and long windows
    fits = MAX_JUDGED // (VALUES + VALUES_OF_MATRIX * 30 * 7 + VALUES_OF_SLICE * 4)
    assert fits == 305  # of five scenarios, 61 runs each
    for runs, words in ((61, []), (62, [f"about {fits} evaluations fit"])):
        each = dict.fromkeys(("clean", "stress", "error_injection"), runs)
        assert lines(**given, runs=each) == []  # what needs no pack may be larger
        found = [str(line) for line in size_of_pack(settings(**given, runs=each))]
        assert len(found) == len(words)
        assert all(word in line for word, line in zip(words, found, strict=True))


# --- folders and text ---------------------------------------------------------------------------


def byoe(llama: Path, subject: Path, **given: Any) -> list[str]:
    """The findings about a baseline and a subject."""
    return lines(
        suite="byoe", baseline=str(llama), subject=str(subject), tier="none", **given
    )  # fmt: skip


def test_every_finding_is_a_line(llama: Path, tmp_path: Path) -> None:
    """Baseline, subject and text are all wrong: all three are said at once."""
    base = shutil.copytree(llama, tmp_path / "base")
    subject = shutil.copytree(llama, tmp_path / "subject")
    (base / "config.json").unlink()
    (subject / "model.safetensors").write_bytes(b"short")
    found = byoe(base, subject, text=f"local:{tmp_path}/none.jsonl")
    assert len(found) == 3
    for line, word in zip(found, ("no config.json", "truncated", "none.jsonl"), strict=True):
        assert word in line


def test_pictures_and_a_format_that_holds_none(tmp_path: Path) -> None:
    """llama.cpp is given token ids; records with pictures are refused before the first job."""
    make_folder(tmp_path / "base", "gemma3 pictured")
    write_gguf(tmp_path / "base", tmp_path / "mine.gguf", "gemma3")
    row = {"image": "1.png", "prompt": "What is it?", "choices": ["a", "b"], "answer": 0}
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for _ in range(40)))
    told = settings(
        suite="byoe", baseline=str(tmp_path / "base"), subject=str(tmp_path / "mine.gguf"),
        text=f"local:{tmp_path}/q.jsonl?metric=accuracy&image=image",
    )  # fmt: skip
    found = [str(error) for error in refusals(told, False, True)]
    assert [line for line in found if "run on text alone" in line], found


def test_roles_are_asked_for_only_where_they_are_needed(llama: Path, tmp_path: Path) -> None:
    """Without table and library: the scenarios that need one are named, with the rest."""
    base = shutil.copytree(llama, tmp_path / "own")
    path = base / "config.json"
    known = json.loads(path.read_text())
    new = {"model_type": "phi", "architectures": ["PhiForCausalLM"]}
    path.write_text(json.dumps(known | new))
    assert byoe(base, base) == []
    new = {"model_type": "nosuch", "architectures": ["NoSuchForCausalLM"]}
    code = {"auto_map": {"AutoModelForCausalLM": "modeling.NoSuchForCausalLM"}}
    path.write_text(json.dumps(known | new | code))
    (line,) = byoe(base, base, allow_remote_code=True)
    assert "scale_explosion" in line
    assert "scenarios=noop_clean,byoe" in line
    assert byoe(base, base, allow_remote_code=True, scenarios=["noop_clean", "byoe"]) == []


def test_edits_that_the_model_cannot_have_are_one_line(llama: Path, tmp_path: Path) -> None:
    """Tensors are rewritten together only where it is known which belong together."""
    base = shutil.copytree(llama, tmp_path / "own")
    path = base / "config.json"
    chosen = {
        "suite": "smoke-all",
        "scenarios": ["noop_clean", "scale_fold_clean", "norm_fuse_clean"],
    }
    given: dict[str, Any] = {"models": f"local:{base}", "tier": "none"} | chosen
    assert lines(**given) == []
    new = {"model_type": "phi", "architectures": ["PhiForCausalLM"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | new))
    (line,) = lines(**given)
    assert "model_type 'phi'" in line
    assert "concerned: scale_fold_clean, norm_fuse_clean" in line
    assert "scenarios=noop_clean" in line


def test_an_edit_that_is_spelled_wrong_is_one_line(llama: Path, tmp_path: Path) -> None:
    """Before the baseline is placed, where the catalogue is the user's."""
    document = json.loads((ROOT / "scenarios/scenarios.json").read_text())
    for entry in document["scenarios"]:
        if entry["id"] == "scale_fold_clean":
            entry["generation"]["edit_spec"] = "scale_fold:9:all"
    own = tmp_path / "own.json"
    own.write_text(json.dumps(document))
    given: dict[str, Any] = {"models": f"local:{llama}", "tier": "none", "catalogue": str(own)}
    (line,) = lines(suite="smoke", scenarios=["noop_clean", "scale_fold_clean"], **given)
    assert "spread is out of range" in line


def test_windows_longer_than_the_context(llama: Path) -> None:
    """Said of a local baseline at once."""
    (line,) = byoe(
        llama,
        llama,
        windows={"seq_len": 600, "preview": 1, "final": 1, "seed": 43, "add_bos": "auto"},
    )
    assert "at most 512" in line


TEXTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("t.jsonl", b"", "the text is empty"),
    "blank": ("t.jsonl", b"\n\n", "no document"),
    "one document": ("t.txt", b"word " * 9_000, "one document"),
    "one line": ("t.jsonl", json.dumps({"text": "w " * 40_000}).encode(), "one document"),
    "short": ("t.jsonl", b'{"text": "a"}\n{"text": "b"}\n', "fewer bytes than"),
    "other field": ("t.jsonl", b'{"body": "a"}\n', "no field text"),
    "one array": ("t.json", b'[\n{"text": "a"}\n]\n', "one object a line"),
    "pointer": ("t.txt", POINTER.encode(), "git lfs pull"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_cannot_do(llama: Path, tmp_path: Path, case: str) -> None:
    """Cheap to see before anything is measured."""
    name, data, words = TEXTS[case]
    source = {"t.json": "t.jsonl"}.get(name, name)
    (tmp_path / source).write_bytes(data)
    given = {"suite": "byoe", "baseline": str(llama), "subject": str(llama)}
    found = lines(**given, judged=False, text=f"local:{tmp_path}/{source}")
    assert any(words in line for line in found), found


# --- answers about others -------------------------------------------------------------------------


def _answers(out: Path) -> None:
    judged = ("reports/final_verdict.json", "evidence_pack/manifest.json", "verify_pack.json")
    runs = [f"m/reports/{name}/run_1/outcome.json" for name in ("byoe", "noop")]
    for name in (*judged, *runs):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)


def test_answers_are_moved_whole_and_once(tmp_path: Path) -> None:
    """Those about another subject; others stay, and nothing is moved while one asks the same."""
    custom = ["m/reports/byoe"]
    assert supersede(tmp_path / "none", "a", custom) is None
    record_asked(tmp_path, "a")
    _answers(tmp_path)
    assert supersede(tmp_path, "a", custom) is None
    place = supersede(tmp_path, "b", custom)
    assert place == tmp_path / "superseded"
    assert (place / "evidence_pack/manifest.json").read_text() == "evidence_pack/manifest.json"
    assert (place / "m/reports/byoe/run_1/outcome.json").is_file()
    assert (tmp_path / "m/reports/noop/run_1/outcome.json").is_file()
    assert not (tmp_path / "reports/final_verdict.json").exists()
    assert supersede(tmp_path, "b", custom) is None  # refused again: what was moved stays
    assert (place / "verify_pack.json").is_file()
    (tmp_path / "verify_pack.json").write_text("new")
    assert set_aside(tmp_path, ["verify_pack.json"]) == place
    assert [p.name for p in place.iterdir()] == ["verify_pack.json"]


# --- the workflow ---------------------------------------------------------------------------------


def test_a_bad_subject_ends_a_start_and_a_dry_run(repository: Path) -> None:
    """Exit 3 and one line; a start sets the older verdict aside, a dry run touches nothing."""
    for name in ("2023_12", "mine"):
        write_tiny_folder(repository / name)
    (repository / "mine/model.safetensors").write_text(POINTER)
    out = repository / "out"
    (out / "reports").mkdir(parents=True)
    (out / "reports/final_verdict.json").write_text("{}")
    config = ["suite=byoe", "baseline=2023_12", "subject=mine", "out=out", "tier=none"]
    config += ["windows={seq_len: 64, preview: 20, final: 20}"]
    dry = snakemake(repository, "-n", *CPU, config=config)
    assert dry.returncode == 3, dry.stderr
    line = dry.stderr.splitlines()[-1]
    assert line.startswith("invarlock: mine")
    assert (out / "reports/final_verdict.json").is_file()
    done = snakemake(repository, *CPU, config=config)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == line
    assert not (out / "reports/final_verdict.json").exists()
    assert (out / "superseded/reports/final_verdict.json").is_file()
    assert not (out / "logs").exists()


def test_what_will_refuse_a_subject_is_said_at_the_start(repository: Path) -> None:
    """In a warning: the controls of the run are worth something without it."""
    for name in ("base", "mine"):
        write_tiny_folder(repository / name)
    settings_file = repository / "mine/tokenizer_config.json"
    stated = json.loads(settings_file.read_text()) | {"add_bos_token": True}
    settings_file.write_text(json.dumps(stated))
    config = ["suite=byoe", "baseline=base", "subject=mine", "out=out", "tier=none"]
    config += ["windows={seq_len: 64, preview: 397, final: 397}"]
    done = snakemake(repository, "fetch", *CPU, config=config)
    line = "invarlock: warning: the subject will fail, whatever is measured: "
    (told,) = [text for text in done.stderr.splitlines() if text.startswith(line)]
    assert "add_bos_token" in told
    assert done.returncode == 0, done.stderr
    accepted = [*config, "accept=[tokenizer_config]"]
    done = snakemake(repository, "fetch", *CPU, config=accepted)
    assert (done.returncode, "will fail" in done.stderr) == (0, False), done.stderr


def test_too_few_windows_end_a_dry_run(repository: Path) -> None:
    """Exit 2; what judges nothing goes on."""
    config = ["windows={seq_len: 64, preview: 20, final: 20}"]
    done = snakemake(repository, "-n", *CPU, config=config)
    assert done.returncode == 2
    assert "windows={seq_len: 64, preview: 397, final: 397}" in done.stderr
    assert snakemake(repository, "fetch", "-n", *CPU, config=config).returncode == 0
