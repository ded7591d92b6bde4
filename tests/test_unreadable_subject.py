"""A subject whose files are damaged is rejected by the invariants; the wrong folder is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_factory import make_llama

from invarlock.errors import InputError
from invarlock.guards.invariants import open_subject


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in three shards."""
    return make_llama(tmp_path_factory.mktemp("base") / "model", shards=3)


def _rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


LAST, INDEX = "model-00003-of-00003.safetensors", "model.safetensors.index.json"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "shorter than its length": (_rewrite(LAST, lambda b: b[:5]), "inside its header length"),
    "shorter than its header": (_rewrite(LAST, lambda b: b[:60]), "truncated inside its header"),
    "impossible header": (_rewrite(LAST, lambda b: b"\xff" * 8 + b[8:]), "impossible header"),
    "header is no JSON": (_rewrite(LAST, lambda b: b[:8] + b"#" + b[9:]), "not JSON"),
    "offsets beyond the end": (_rewrite(LAST, lambda b: b[:-1]), "the shard is truncated"),
    "longer than its header": (_rewrite(LAST, lambda b: b + b"\0"), "longer than its header"),
    "empty": (_rewrite(LAST, lambda b: b""), "inside its header length"),
    "missing shard": (lambda folder: (folder / LAST).unlink(), "named by the index but missing"),
    "broken index": (_rewrite(INDEX, lambda b: b[:-40]), "not JSON"),
    "broken configuration": (_rewrite("config.json", lambda b: b[:-2]), "not JSON"),
    "broken tokenizer": (_rewrite("tokenizer.json", lambda b: b[:-9]), "not JSON"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_every_unreadable_subject_is_a_finding(llama: Path, tmp_path: Path, damage: str) -> None:
    """One fatal finding with what is wrong and in which file, but no path of this machine."""
    subject = shutil.copytree(llama, tmp_path / "subject")
    change, expected = BROKEN[damage]
    change(subject)
    opened, (finding,) = open_subject(subject)
    assert opened is None
    assert (finding["type"], finding["severity"]) == ("unreadable_checkpoint", "fatal")
    assert expected in finding["message"]
    assert str(tmp_path) not in finding["message"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_a_checkpoint_is_an_input_error(tmp_path: Path, name: str) -> None:
    """The wrong folder was named: that says nothing about the edit."""
    subject = make_llama(tmp_path / "subject")
    (subject / name).unlink()
    with pytest.raises(InputError):
        open_subject(subject)
