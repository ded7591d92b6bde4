"""Bad input through the command line: one clear line, exit 2 or 3, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pack_factory
import pytest
from checkpoint_factory import make_llama
from conftest import write_tiny_folder
from repository_copy import ROOT, quiet_environment

from invarlock.cli import main

Words = list[str]


@dataclass(frozen=True)
class Bench:
    """A baseline with its pin and windows in ``work``; results go to ``out``."""

    work: Path
    out: Path

    @property
    def model(self) -> Path:
        """The baseline folder."""
        return self.work / "base"

    def words(self, verb: str) -> Words:
        """A command line that would succeed; its results lie in ``out``."""
        out = str(self.out / verb)
        model, windows = str(self.model), str(self.work / "windows.json")
        named, text = f"base=local:{model}", f"local:{self.work}/speech.txt"
        pins = str(self.work / "revisions.json")
        return {
            "edit": ["edit", "--baseline", model, "--spec", "quant_rtn:8:0:all",
                     "--out", out, "--metadata", f"{out}.json"],
            "inject": ["inject", "--baseline", model, "--error-type", "nan_injection",
                       "--out", out, "--metadata", f"{out}.json"],
            "pin": ["pin", "--suite", "byoe", "--model", named, "--text", text, "--out", out],
            "baseline": ["baseline", "--model", named, "--revisions", pins, "--min-free-gb", "0",
                         "--out", out, "--record", f"{out}.json"],
            "windows": ["windows", "--tokenizer", model, "--text", text, "--revisions", pins,
                        "--seq-len", "16", "--preview", "2", "--final", "2", "--seed", "43",
                        "--out", out],
            "run": ["run", "--model", model, "--windows", windows, "--device", "cpu",
                    "--out", out],
            "evaluate": ["evaluate", "--baseline", model, "--subject", model,
                         "--windows", windows, "--device", "cpu", "--out", out],
        }[verb]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baseline, text, pin and windows, made once by the commands themselves."""
    work = tmp_path_factory.mktemp("prepared")
    bench = Bench(work, work)
    write_tiny_folder(bench.model)
    (work / "speech.txt").write_text(" ".join(f"word {n} of {n * n}" for n in range(60)))
    assert main(bench.words("pin")) == 0
    (work / "pin").rename(work / "revisions.json")
    assert main(bench.words("windows")) == 0
    (work / "windows").rename(work / "windows.json")
    return work


@pytest.fixture
def bench(prepared: Path, tmp_path: Path) -> Bench:
    """A copy of the prepared folder that a test may damage."""
    work = tmp_path / "work"
    shutil.copytree(prepared, work)
    return Bench(work, tmp_path / "out")


Refuse = Callable[..., str]


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command that must fail: its exit code, one line on stderr, no file left.

    ``prefix`` starts a process of its own; so does ``run``, which wants to import torch itself.
    """

    def run(words: Words, *, code: int = 3, out: Path, prefix: Sequence[str] = ()) -> str:
        before = tree(out)
        if prefix or words[0] == "run":
            found, shown, errors = process([*prefix, sys.executable, "-m", "invarlock", *words])
        else:
            capfd.readouterr()
            found = main(words)
            shown, errors = capfd.readouterr()
        assert "Traceback" not in errors + shown, errors
        assert found == code, errors
        assert errors.endswith("\n")
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("invarlock ")
        assert tree(out) == before
        return errors

    return run


def process(words: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process."""
    done = subprocess.run(
        words, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def tree(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too, with its size; empty if it does not exist."""
    return sorted(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file()
    )


# --- checkpoints ------------------------------------------------------------------------------

READERS = ("edit", "inject", "pin", "run", "evaluate")
LIGHT_READERS = ("edit", "inject", "pin")  # the same reader of folders as in run and evaluate


@pytest.mark.parametrize("verb", READERS)
def test_a_missing_folder(verb: str, bench: Bench, refuse: Refuse) -> None:
    """A checkpoint folder that is not there is named by every command that reads one."""
    shutil.rmtree(bench.model)
    assert f"{bench.model}: no such" in refuse(bench.words(verb), out=bench.out)


@pytest.mark.parametrize("verb", LIGHT_READERS)
def test_a_file_instead_of_a_folder(verb: str, bench: Bench, refuse: Refuse) -> None:
    """A file where a checkpoint folder should be is refused."""
    shutil.rmtree(bench.model)
    bench.model.write_text("weights")
    assert str(bench.model) in refuse(bench.words(verb), out=bench.out)


@pytest.fixture
def unprivileged() -> list[str]:
    """Command words in front of which root, too, has to obey the modes of files."""
    if os.geteuid() != 0:
        return ["env"]
    if shutil.which("setpriv") is None:
        pytest.skip("root reads every folder, and setpriv is not there to give that up")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.parametrize("verb", ["edit", "inject", "pin", "run", "evaluate"])
def test_an_unreadable_folder(
    verb: str, bench: Bench, refuse: Refuse, unprivileged: list[str]
) -> None:
    """A folder without permission is refused with the reason, and not taken for a crash."""
    bench.model.chmod(0)
    try:
        line = refuse(bench.words(verb), out=bench.out, prefix=unprivileged)
    finally:
        bench.model.chmod(0o700)
    assert str(bench.model) in line
    assert "Permission denied" in line


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_an_output_folder_that_cannot_be_written(
    mode: int, bench: Bench, refuse: Refuse, unprivileged: list[str]
) -> None:
    """An output folder without permission is named."""
    bench.out.mkdir()
    bench.out.chmod(mode)
    try:
        line = refuse(bench.words("windows"), out=bench.work, prefix=unprivileged)
    finally:
        bench.out.chmod(0o700)
    assert str(bench.out) in line
    assert "Permission denied" in line
    assert not tree(bench.out)


@pytest.mark.parametrize("verb", LIGHT_READERS)
def test_an_unreadable_file(verb: str, bench: Bench, refuse: Refuse) -> None:
    """A configuration that cannot be read (here a folder of that name) is refused."""
    (bench.model / "config.json").unlink()
    (bench.model / "config.json").mkdir()
    assert "config.json" in refuse(bench.words(verb), out=bench.out)


@pytest.mark.parametrize("verb", LIGHT_READERS)
def test_pickle_weights(verb: str, bench: Bench, refuse: Refuse) -> None:
    """A folder with .bin weights alone is refused and never unpickled."""
    (bench.model / "model.safetensors").unlink()
    (bench.model / "pytorch_model.bin").write_bytes(b"\x80\x02cposix\nsystem\n.")
    code = 2 if verb == "pin" else 3  # pin may be allowed to read them
    line = refuse(bench.words(verb), code=code, out=bench.out)
    assert str(bench.model) in line
    assert "pickle" in line


@pytest.mark.parametrize("verb", READERS)
def test_a_truncated_shard(verb: str, bench: Bench, refuse: Refuse) -> None:
    """A shard that ends early is named, with what its header promises."""
    shard = bench.model / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)
    line = refuse(bench.words(verb), out=bench.out)
    assert str(shard) in line
    assert "bytes" in line


def test_a_shard_that_changed_since_it_was_pinned(bench: Bench, refuse: Refuse) -> None:
    """A baseline whose bytes are not the pinned ones is not placed."""
    write = bench.model / "model.safetensors"
    data = bytearray(write.read_bytes())
    data[-1] ^= 1
    write.write_bytes(data)
    assert "model.safetensors" in refuse(bench.words("baseline"), out=bench.out)


# --- tokenizer, text, disk ----------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run", "evaluate"])
def test_another_tokenizer_than_the_windows(verb: str, bench: Bench, refuse: Refuse) -> None:
    """Windows cut with another tokenizer are refused before anything is measured."""
    shutil.rmtree(bench.model)
    make_llama(bench.model)
    line = refuse(bench.words(verb), out=bench.out)
    assert "another tokenizer" in line
    assert "windows.json" in line


def test_a_tokenizer_too_large_for_the_model(bench: Bench, refuse: Refuse) -> None:
    """Tokens that the model's vocabulary does not hold are refused."""
    path = bench.model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 100}))
    assert "vocab_size" in refuse(bench.words("windows"), out=bench.out)


def test_too_little_text(bench: Bench, refuse: Refuse) -> None:
    """Too few windows: the line says how many there are, how many were asked for, and the keys."""
    words = [{"2": "5000"}.get(word, word) for word in bench.words("windows")]
    line = refuse(words, out=bench.out)
    for part in ("5000 for preview", "found 28", "windows.preview", "windows.seq_len"):
        assert part in line, line


def test_not_enough_disk(bench: Bench, refuse: Refuse) -> None:
    """A baseline that would leave less than was asked to stay free is not begun."""
    words = [{"0": "1e9"}.get(word, word) for word in bench.words("baseline")]
    line = refuse(words, out=bench.out)
    assert "not enough disk" in line
    assert "min_free_disk_gb" in line


# --- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["edit", "inject", "baseline", "windows", "run"])
def test_the_output_on_a_full_disk(
    verb: str, bench: Bench, full_disk: Path, refuse: Refuse
) -> None:
    """A disk that is full before or while a result is written leaves no part of it."""
    full = Bench(bench.work, full_disk)
    words = full.words(verb)
    if verb in ("windows", "run"):  # their files are small
        words = [{"2": "40", "16": "8"}.get(word, word) for word in words]
        (full_disk / "more").write_bytes(bytes(12_288))
    line = refuse(words, out=full_disk)
    assert "disk" in line or "No space left" in line
    assert str(full_disk) in line


def test_the_disk_fills_while_an_edit_is_written(
    bench: Bench, full_disk: Path, refuse: Refuse
) -> None:
    """Weights that fit beside a file that does not: the half-made checkpoint is removed."""
    (full_disk / "filler").unlink()
    (bench.model / "vocab.json").write_bytes(bytes(1 << 20))
    line = refuse(Bench(bench.work, full_disk).words("edit"), out=full_disk)
    assert "No space left" in line
    assert "make space and repeat the command" in line


def test_a_finished_result_survives_a_full_disk(
    bench: Bench, full_disk: Path, refuse: Refuse
) -> None:
    """A command that cannot write again leaves its earlier result as it was."""
    full = Bench(bench.work, full_disk)
    (full_disk / "filler").unlink()
    assert main(full.words("edit")) == 0
    left = shutil.disk_usage(full_disk).free
    (full_disk / "filler").write_bytes(bytes(left))
    before = (full_disk / "edit" / "model.safetensors").read_bytes()
    refuse(full.words("edit"), out=full_disk)
    assert (full_disk / "edit" / "model.safetensors").read_bytes() == before


# --- packs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an invented suite."""
    return pack_factory.write_suite(tmp_path_factory.mktemp("suite") / "out")


def build(pack: Path, suite: Path, *options: str) -> Words:
    """The command line that builds a pack of the suite."""
    return ["advanced", "evidence-pack", "build", str(pack), "--run-dir", str(suite), *options]


def test_a_signing_key_readable_by_others(suite: Path, tmp_path: Path, refuse: Refuse) -> None:
    """A private key with mode 0644 is refused with exit 2; no pack is made."""
    key = pack_factory.new_key(tmp_path / "key.pem")
    key.chmod(0o644)
    line = refuse(build(tmp_path / "pack", suite, "--signing-key", str(key)), code=2, out=tmp_path)
    assert "mode 0644" in line
    assert f"chmod 600 {key}" in line


def test_an_existing_pack_folder(suite: Path, tmp_path: Path, refuse: Refuse) -> None:
    """A pack never replaces a folder that holds something."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.txt").write_text("mine")
    line = refuse(build(tmp_path / "pack", suite), code=2, out=tmp_path)
    assert str(tmp_path / "pack") in line


def test_a_pack_on_a_full_disk(suite: Path, full_disk: Path, refuse: Refuse) -> None:
    """A pack that does not fit is not there at all."""
    line = refuse(build(full_disk / "pack", suite), out=full_disk)
    assert "No space left" in line


def test_a_key_on_a_full_disk(full_disk: Path, refuse: Refuse) -> None:
    """No half of a key pair is left."""
    (full_disk / "more").write_bytes(bytes(shutil.disk_usage(full_disk).free))
    words = ["advanced", "evidence-pack", "keygen", "--out", str(full_disk / "key.pem")]
    assert "No space left" in refuse(words, out=full_disk)


@pytest.mark.parametrize("action", ["build", "verify"])
def test_a_missing_pack_or_run_folder(action: str, tmp_path: Path, refuse: Refuse) -> None:
    """A folder that is not there ends with exit 3."""
    words = build(tmp_path / "pack", tmp_path / "nowhere")
    if action != "build":
        words = ["advanced", "evidence-pack", action, str(tmp_path / "nowhere")]
    assert str(tmp_path / "nowhere") in refuse(words, out=tmp_path)
