"""Recorded digests: not computed again for an unchanged file, and never believed for another."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from checkpoint_factory import make_llama

from invarlock.checkpoints import Checkpoint
from invarlock.code_digest import modules_behind
from invarlock.digests import SWITCH, FileState, Seen


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the records, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "invarlock" / "digests"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of three shards that has rested for as long as the clock of this disk needs."""
    monkeypatch.setattr("invarlock.digests.SETTLED", 0.1)
    made = make_llama(tmp_path / "model", shards=3)
    time.sleep(0.2)
    return made


def read_and_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """The digest of a folder as another process finds it, and how many tensors it read."""
    read: list[str] = []
    original = Checkpoint.chunks

    def chunks(self: Checkpoint, name: str, size: int = 1 << 20) -> object:
        read.append(name)
        return original(self, name, size)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "chunks", chunks)
        return Checkpoint.open(folder).digest(), len(read)


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest without any record."""
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "none")
        return Checkpoint.open(folder).digest()


def test_an_unchanged_file_is_read_once(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process reads no tensor; one record a shard, for its user alone."""
    first, count = read_and_digest(folder, monkeypatch)
    assert count == len(Checkpoint.open(folder).tensors)
    assert read_and_digest(folder, monkeypatch) == (first, 0)
    assert first == fresh(folder, monkeypatch)
    assert len(list(cache.iterdir())) == 3
    assert cache.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", ["in place", "replaced", "mapped"])
def test_a_file_written_over_is_noticed(
    folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, with its old time set again: only that shard is read, and found changed."""
    import mmap

    before, _ = read_and_digest(folder, monkeypatch)
    shard = sorted(folder.glob("*.safetensors"))[1]
    old, data = shard.stat(), bytearray(shard.read_bytes())
    data[-1] ^= 1
    if how == "in place":
        with open(shard, "r+b") as handle:
            handle.seek(-1, os.SEEK_END)
            handle.write(data[-1:])
    elif how == "mapped":
        with open(shard, "r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped:
            mapped[-1] = data[-1]
            mapped.flush()
    else:
        other = shard.with_name("other")
        other.write_bytes(data)
        os.replace(other, shard)
    os.utime(shard, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (shard.stat().st_size, shard.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    after, count = read_and_digest(folder, monkeypatch)
    names = {info.file for info in Checkpoint.open(folder).tensors.values()}
    assert len(names) == 3
    assert 0 < count < len(Checkpoint.open(folder).tensors)
    assert after != before
    assert after == fresh(folder, monkeypatch)


def test_a_file_that_was_just_written_is_not_recorded(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next change could bear the same time."""
    folder = make_llama(tmp_path / "new")
    assert read_and_digest(folder, monkeypatch)[1] > 0
    assert not cache.exists()
    assert read_and_digest(folder, monkeypatch)[1] > 0


def test_a_file_that_changes_while_it_is_hashed_is_not_recorded(folder: Path, cache: Path) -> None:
    """Nor is a record believed by a process that saw another file."""
    shard = sorted(folder.glob("*.safetensors"))[0]
    seen = Seen.now(shard)
    seen.record({"a": "0" * 64})
    assert seen.recorded() == {"a": "0" * 64}
    os.chmod(shard, 0o600)  # any change of the inode
    assert seen.recorded() == {}
    for path in cache.iterdir():
        path.unlink()
    seen.record({"a": "0" * 64})
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["{", "[]", "state", "tensors"])
def test_a_damaged_record_is_not_believed(
    folder: Path, cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken, of another shape, of another state, or without some of the tensors."""
    right, count = read_and_digest(folder, monkeypatch)
    for path in cache.iterdir():
        document = json.loads(path.read_text())
        if damage == "state":
            document["state"]["inode"] += 1
        elif damage == "tensors":
            document["tensors"].popitem()
        else:
            document = None
        path.write_text(damage if document is None else json.dumps(document))
    assert read_and_digest(folder, monkeypatch) == (right, count)
    assert read_and_digest(folder, monkeypatch) == (right, 0)  # and made anew


def test_without_a_place_everything_is_hashed(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned off, a folder that cannot be made, and no home."""
    monkeypatch.setenv(SWITCH, "none")
    right, count = read_and_digest(folder, monkeypatch)
    assert read_and_digest(folder, monkeypatch) == (right, count)
    assert not cache.exists()
    monkeypatch.delenv(SWITCH)
    for home in ("/dev/null", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert read_and_digest(folder, monkeypatch) == (right, count)


def test_a_state_is_equal_only_to_itself(folder: Path) -> None:
    """A file and its copy with the same times differ in their inode."""
    import shutil

    shard = sorted(folder.glob("*.safetensors"))[0]
    copy = Path(shutil.copy2(shard, folder / "copy"))
    a, b = FileState.of(shard), FileState.of(copy)
    assert a is not None
    assert b is not None
    assert (a.size, a.mtime_ns) == (b.size, b.mtime_ns)
    assert a != b
    assert FileState.of(folder / "none") is None


def test_no_verifier_asks_for_a_recorded_digest() -> None:
    """Nothing behind the commands that check imports the records."""
    verbs = ("verify", "evidence_pack", "proof_pack", "runtime_verify", "gate", "verdict", "report")
    for verb in verbs:
        assert "invarlock.digests" not in modules_behind(f"invarlock.cli.{verb}"), verb
