"""pin, baseline and windows from the command line: what they write, and pickled weights.

What they refuse is in ``test_bad_input.py``.
"""

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

    (here / "tiny/model.safetensors").unlink()
    (here / "tiny/pytorch_model.bin").write_bytes(pickle.dumps(os.system, protocol=2))
    words = ["--model", "org/tiny=local:tiny", "--text", "local:t.txt", "--out", "r.json"]
    assert main(["pin", "--suite", "s", *words, "--allow-pickle"]) == 0
    refused(capsys, baseline("--allow-pickle"), 3, "not a readable pickle")


# --- slices -------------------------------------------------------------------------------------


def write_documents(path: Path, word: str, length: int) -> None:
    """12 documents of so many characters, each different."""
    texts = ["".join(f"{word}{i}.{j};" for j in range(length))[:length] for i in range(12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def pin_two(text: str, length: int = 300) -> None:
    """Place the baseline, and pin ``prose.jsonl`` and ``code.jsonl``."""
    for name in ("prose", "code"):
        write_documents(Path(f"{name}.jsonl"), name, length)
    words = ["pin", "--suite", "s", "--model", "org/tiny=local:tiny", "--out", "r.json"]
    words += [word for source in text.split(",") for word in ("--text", source.partition("=")[2])]
    assert (main(words), baseline()) == (0, 0)


def test_slices_and_long_windows_are_cut_from_their_texts(here: Path) -> None:
    """The windows are divided; long ones, as long as the context, are of the first text."""
    text = "prose=local:prose.jsonl,code=local:code.jsonl"
    pin_two(text)
    assert windows("--text", text, "--preview", "8", "--final", "16", "--long", "5") == 0
    found = json.loads((here / "w.json").read_text())
    counts = [(p["counts"]["preview"], p["counts"]["final"]) for p in found["slices"]]
    parts = [(p["name"], p["seq_len"], *n) for p, n in zip(found["slices"], counts, strict=True)]
    assert parts == [("prose", 16, 3, 6), ("code", 16, 3, 5), ("long", 128, 2, 5)]
    names = [p["source"]["name"] for p in found["slices"]]
    assert names == ["prose.jsonl", "code.jsonl", "prose.jsonl"]
    assert (found["counts"], found["source"]) == (
        {"preview": 8, "final": 16},
        found["slices"][0]["source"],
    )


def test_a_slice_of_too_few_documents_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before anything is measured."""
    text = "prose=local:prose.jsonl,code=local:code.jsonl"
    pin_two(text)
    refused(
        capsys, windows("--text", text, "--preview", "8", "--final", "9"), 3, "too few documents"
    )
    assert not (here / "w.json").exists()


def test_one_text_without_long_windows_gives_the_bytes_that_it_always_gave(here: Path) -> None:
    """Whether it has a name or not, and where there is too little of it for long windows."""
    assert (pin(), baseline(), windows()) == (0, 0, 0)
    plain = (here / "w.json").read_bytes()
    assert b"slices" not in plain
    assert windows("--text", "prose=local:t.txt") == 0
    assert (here / "w.json").read_bytes() == plain


@pytest.mark.parametrize(
    ("length", "final", "long", "words"),
    [
        (100, 12, 5, "too few windows of 128 tokens"),
        (300, 12, 4, "they would be of 4 documents, 5 are needed"),
        (300, 10, 6, "there would be fewer others"),
    ],
)
def test_long_windows_that_could_not_be_judged_are_not_cut(
    here: Path, capsys: pytest.CaptureFixture[str], length: int, final: int, long: int, words: str
) -> None:
    """The log says so, and the other windows are as many as were asked for."""
    text = "prose=local:prose.jsonl,code=local:code.jsonl"
    pin_two(text, length=length)
    arms = ("--preview", str(final), "--final", str(final))
    assert windows("--text", text, *arms, "--long", str(long)) == 0
    assert f"no long windows: {words}" in capsys.readouterr().out
    found = json.loads((here / "w.json").read_text())
    assert [p["name"] for p in found["slices"]] == ["prose", "code"]
    assert found["counts"] == {"preview": final, "final": final}
