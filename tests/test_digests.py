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
from invarlock.edits.apply import apply_edit
from invarlock.edits.metadata import edit_metadata
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import InputError


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


SPEC = parse_edit_spec("quant_rtn:8:0:ffn@layer=0")  # of three shards it leaves some


def edited(folder: Path, out: Path) -> dict[str, object]:
    """The metadata of an edit."""
    checkpoint = Checkpoint.open(folder)
    return edit_metadata(checkpoint, apply_edit(checkpoint, SPEC, out))


def test_an_edit_takes_recorded_digests(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same metadata and bytes as without; what it does not rewrite is not even read."""
    Checkpoint.open(folder).digest()
    hashed: list[str] = []
    original = Checkpoint.chunks

    def chunks(self: Checkpoint, name: str, size: int = 1 << 20) -> object:
        hashed.extend([name] if name not in self._digests else [])
        return original(self, name, size)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "chunks", chunks)
        found = edited(folder, tmp_path / "found")
    assert hashed == []
    monkeypatch.setenv(SWITCH, "none")
    assert found == edited(folder, tmp_path / "plain")
    one, other = (Checkpoint.open(tmp_path / name).digest() for name in ("found", "plain"))
    assert one == other == found["subject_checkpoint_sha256"]


@pytest.mark.parametrize("shard", range(3))
@pytest.mark.parametrize("at_once", [True, False])
def test_a_baseline_that_changes_under_an_edit_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int, at_once: bool
) -> None:
    """Before the edit reads a shard, or when it has read it: nothing is written."""
    Checkpoint.open(folder).digest()
    checkpoint, place = Checkpoint.open(folder), sorted(folder.glob("*.safetensors"))[shard]
    original = Checkpoint.take_recorded

    def take(self: Checkpoint) -> None:
        original(self)
        data = bytearray(place.read_bytes())
        data[-1] ^= 1
        before = place.stat()
        place.write_bytes(data)
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))

    if at_once:
        take(checkpoint)
    else:
        monkeypatch.setattr(Checkpoint, "take_recorded", take)
    with pytest.raises(InputError, match="were changed while they were read"):
        apply_edit(checkpoint, SPEC, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_that_somebody_makes_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """A hard link changes the state of a file and not its content."""
    Checkpoint.open(folder).digest()
    checkpoint = Checkpoint.open(folder)
    checkpoint.take_recorded()
    for place in folder.glob("*.safetensors"):
        os.link(place, tmp_path / place.name)
    apply_edit(checkpoint, SPEC, tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()
