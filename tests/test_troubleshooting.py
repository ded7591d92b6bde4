"""docs/troubleshooting.md: every line that it quotes is what a user really sees."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pack_factory as packs
import pytest
from checkpoint_factory import make_llama
from completion_server import Completions, serving
from repository_copy import ROOT
from settings_factory import MISTRAL, refusal, settings
from test_bad_input import Bench, prepared
from test_folders import OTHER, UNUSABLE, Change

from invarlock.cli import main
from invarlock.config import check_release
from invarlock.errors import InvarlockError
from invarlock.evidence.keys import load_signing_key
from invarlock.model_folder import open_model
from invarlock.preflight import doubts, refusals, size_of_pack
from invarlock.run.container import SIF, check_engine, check_reference, find_runtime
from invarlock.run.server import Address, Server
from invarlock.sources.disk import plan_disk
from invarlock.sources.preflight import refuse_cold

pytestmark = pytest.mark.usefixtures("in_repository")

assert prepared  # a fixture of this module too

PAGE = ROOT / "docs/troubleshooting.md"
ROW = re.compile(r"^\| (?!case|---)([^|]+) \| `([^|]+)` \| ([^|]+) \|$", re.MULTILINE)
ROWS = {found[1]: found[2] for found in ROW.finditer(PAGE.read_text())}


@pytest.fixture
def bench(prepared: Path, tmp_path: Path) -> Bench:
    """A prepared baseline that a case may damage."""
    shutil.copytree(prepared, tmp_path / "work")
    return Bench(tmp_path / "work", tmp_path / "out")


def line_of(call: Callable[[], object]) -> str:
    """The line of what a call raises."""
    with pytest.raises(InvarlockError) as caught:
        call()
    return str(caught.value)


def _twins(folder: Path) -> str:
    for parent in ("a", "b"):
        (folder / parent / "m").mkdir(parents=True)
    return refusal(models=[f"local:{folder}/a/m", f"local:{folder}/b/m"])


def _outside(folder: Path) -> str:
    (folder / "mine.yaml").write_text("seed: 1\n")
    return refusal(include=[str(folder / "mine.yaml")])


def _open_key(folder: Path) -> str:
    key = packs.new_key(folder / "key.pem")
    key.chmod(0o644)
    return line_of(lambda: load_signing_key(key))


def _untuned(folder: Path) -> str:
    table = json.loads((ROOT / "scenarios/tuned_edit_params.json").read_text())
    del table["models"][MISTRAL]["fp8_quant"]
    table.pop("defaults", None)
    (folder / "tuned.json").write_text(json.dumps(table))
    found = settings(suite="subset", tuned_edit_params=str(folder / "tuned.json"))
    return line_of(lambda: found.edit_spec(found.models[0].slug, "fp8_e5m2_clean"))


def _no_room(folder: Path) -> str:
    found = settings(min_free_disk_gb=1e9, out=str(folder))
    return str(plan_disk(found).refusal(found.out))


def _cold(folder: Path) -> str:
    found = settings(suite="subset", out=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HOME", "HF_HUB_CACHE"):
            patch.setenv(name, str(folder / "cache"))
        return str(refuse_cold(found, [folder / "windows.json"]))


def _few_windows(_: Path) -> str:
    given = {"seq_len": 64, "preview": 20, "final": 20, "seed": 43, "add_bos": "auto"}
    (line,) = refusals(settings(windows=given), False, True)
    return str(line)


def _host(_: Path) -> str:
    (line,) = refusals(settings(allow_host_execution=False), False, True)
    return str(line)


def _large(folder: Path) -> str:
    base = str(make_llama(folder / "base", layers=30))
    runs = dict.fromkeys(("clean", "stress", "error_injection"), 99)
    given = settings(suite="byoe", baseline=base, subject=base, runs=runs)
    (line,) = size_of_pack(given)
    return str(line)


def _one_document(folder: Path) -> str:
    (folder / "t.txt").write_text("word " * 20_000)
    (line,) = doubts(settings(text=f"local:{folder}/t.txt"))
    return str(line)


def _subject(change: Change) -> Callable[[Path], str]:
    """The line about a subject that was changed so."""

    def raised(folder: Path) -> str:
        base = make_llama(folder / "base")
        change(shutil.copytree(base, folder / "subject"))
        given = settings(suite="byoe", baseline=str(base), subject=str(folder / "subject"))
        (line,) = refusals(given, False, False)
        return str(line)

    return raised


def _alone(change: Change) -> Callable[[Path], str]:
    """The line about a folder that was changed so and is named as a baseline."""

    def raised(folder: Path) -> str:
        change(make_llama(folder / "base"))
        return line_of(lambda: open_model(folder / "base"))

    return raised


def _without_logprobs(folder: Path) -> str:
    completions = Completions(make_llama(folder / "served"), "no echo")
    ids = completions.tokenizer.encode("the state of the union is a message to the people").ids
    with serving(completions) as address:
        server = Server(Address.read(address), tokenizer=completions.tokenizer)
        return line_of(lambda: (server.choose(), server.prove(ids)))


def _deployable(folder: Path) -> str:
    document = json.loads((ROOT / "scenarios/scenarios.json").read_text())
    document["scenarios"][0]["artifact_class"] = "deployable_optimized_subject"
    (folder / "scenarios.json").write_text(json.dumps(document))
    return refusal(catalogue=str(folder / "scenarios.json"))


# Before the first job: what raises the line, given a folder to write to.
BEFORE: dict[str, Callable[[Path], str]] = {
    "unknown setting": lambda _: refusal(suit="smoke"),
    "unknown suite": lambda _: refusal(suite="smok"),
    "unknown model": lambda _: refusal(models=["Mistral-7B"]),
    "unknown scenario": lambda _: refusal(scenarios="noop_claen"),
    "nothing selected": lambda _: refusal(categories="custom"),
    "every model turned off": lambda _: refusal(environment={"MODEL_1": ""}),
    "two models, one folder": _twins,
    "settings from elsewhere": _outside,
    "signature asked for, no key": lambda _: refusal(require_signature=True),
    "key that others can read": _open_key,
    "no image": lambda folder: line_of(lambda: check_reference(str(folder / "image.sif"))),
    "image by tag": lambda _: line_of(lambda: check_reference("docker://ghcr.io/acme/run:1")),
    "release review with less": lambda _: line_of(lambda: check_release(settings(), False)),
    "disk too small": _no_room,
    "network off, nothing fetched": _cold,
    "too few windows": _few_windows,
    "host not allowed": _host,
    "pack too large": _large,
    "adapter instead of a model": _alone(OTHER["adapter"][0]),
    "adapter of another kind": _subject(OTHER["adapter of another kind"][0]),
    "server without log-probabilities": _without_logprobs,
    "pointer of git-lfs": _subject(OTHER["pointer of the weights"][0]),
    "link of a cache": _subject(OTHER["dangling link"][0]),
    "quantization left behind": _subject(UNUSABLE["left quantization"][0]),
    "ModelOpt's file left behind": _subject(UNUSABLE["left by ModelOpt"][0]),
    "packed weights": _subject(UNUSABLE["AQLM"][0]),
    "subject without tokenizer": _subject(UNUSABLE["no tokenizer"][0]),
    "text of one document": _one_document,
    "no tuned parameters": _untuned,
    "class that no edit makes": _deployable,
}


def matches(case: str, found: str) -> bool:
    """Whether some line, without the command in front, is the one that the page quotes."""
    quoted = "(?:invarlock [a-z -]+: )?" + ".*".join(map(re.escape, ROWS[case].split("...")))
    return any(re.fullmatch(quoted, line.strip()) for line in found.splitlines())


@pytest.mark.parametrize("case", BEFORE)
def test_lines_before_the_first_job(case: str, tmp_path: Path) -> None:
    """Settings that cannot work end with the quoted line."""
    found = BEFORE[case](tmp_path)
    assert matches(case, found), found


def test_no_container_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing on the PATH starts containers, the line says so; with one, nothing is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = line_of(check_engine)
    assert matches("no container engine", found), found
    (tmp_path / "singularity").write_text("#!/bin/sh\n")
    (tmp_path / "singularity").chmod(0o755)
    check_engine()


def test_an_engine_without_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman alone is there, and knows no image; and a file that is Apptainer's."""
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho 'Error: image not known' >&2\nexit 125\n")
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = line_of(lambda: find_runtime("podman", SIF))
    assert matches("no image in the engine", found), found
    found = line_of(lambda: find_runtime("podman", str(tmp_path / "own.sif")))
    assert matches("file for another engine", found), found


def _needs_code(bench: Bench) -> list[str]:
    path = bench.model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "own.M"}}))
    return bench.words("pin")


def _pickled(bench: Bench) -> list[str]:
    (bench.model / "model.safetensors").unlink()
    (bench.model / "pytorch_model.bin").write_bytes(b"\x80")
    return bench.words("pin")


def _other_subject(bench: Bench) -> list[str]:
    assert main([*bench.words("edit")]) == 0
    entry = {"id": "prune", "generation": {"kind": "edit", "edit_spec": "magnitude_prune:0.1:all"}}
    metadata = bench.out / "edit.json"
    return [*bench.words("evaluate"), "--scenario", json.dumps(entry),
            "--edit-metadata", str(metadata)]  # fmt: skip


def _no_target(bench: Bench) -> list[str]:
    words = [{"nan_injection": "spectral_moderate_scale"}.get(w, w) for w in bench.words("inject")]
    return [*words, "--parameters", '{"params": "nosuch"}']


# During a run: the words of the command that says it.
DURING: dict[str, Callable[[Bench], list[str]]] = {
    "model with code of its own": _needs_code,
    "pickled weights": _pickled,
    "disk filled since then": lambda b: [{"0": "1e9"}.get(w, w) for w in b.words("baseline")],
    "text too short": lambda b: [{"2": "5000"}.get(w, w) for w in b.words("windows")],
    "host instead of image": lambda b: [*b.words("evaluate"), "--require-container"],
    "subject of another scenario": _other_subject,
    "damage without effect": _no_target,
}


@pytest.mark.parametrize("case", DURING)
def test_lines_during_a_run(case: str, bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """The commands of the rules end with the quoted line."""
    assert main(DURING[case](bench)) in (2, 3)
    found = capfd.readouterr().err
    assert matches(case, found), found


def test_lines_after_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A verdict that fails, and packs that are not signed, or not by whom was expected."""
    suite = packs.write_suite(tmp_path / "out", packs.IDS, packs.failed_clean)
    assert main(["gate", str(suite)]) == 1
    undecided = packs.write_suite(tmp_path / "open", packs.IDS, packs.open_clean)
    assert main(["gate", str(undecided)]) == 8
    assert packs.build(suite, tmp_path / "unsigned") == 0
    assert packs.verify(tmp_path / "unsigned") == 5
    assert packs.build(suite, tmp_path / "signed", key=packs.new_key(tmp_path / "key.pem")) == 0
    other = "sha256:" + "0" * 64
    assert packs.verify(tmp_path / "signed", "--expected-fingerprint", other) == 5
    found = "\n".join(capfd.readouterr())
    for case in AFTER:
        assert matches(case, found), (case, found)


AFTER = ("verdict FAIL", "verdict INCONCLUSIVE", "unsigned pack", "pack of another signer")


def test_every_row_is_tried() -> None:
    """The page and the tables of this test hold the same cases."""
    engines = {"no container engine", "no image in the engine", "file for another engine"}
    assert set(ROWS) == {*BEFORE, *engines, *DURING, *AFTER}
