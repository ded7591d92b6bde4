"""A folder that the library does not load: one line, never a crash or lost memory."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tiny_folder
from measuring_factory import World, entry, read
from repository_copy import invarlock

from invarlock.cli.evaluate import how_killed, oom_kills
from invarlock.errors import ConfigError, InputError
from invarlock.loading_faults import lacks_memory, library
from invarlock.run.loading import Target, check_loadable, load_model

CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown rope": (
        {"rope_parameters": {"rope_type": "yarn2", "rope_theta": 1e4}},
        ["yarn2", "config.json has at /rope_parameters/rope_type"],
    ),
    "unknown activation": ({"hidden_act": "swooosh"}, ["swooosh", "/hidden_act"]),
    "unknown architecture": ({"model_type": "nonesuch"}, ["nonesuch"]),
    "size that is text": ({"hidden_size": "sixteen"}, ["hidden_size"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_fault_of_loading_is_a_line(tmp_path: Path, case: str) -> None:
    """With the weights and without them, the same cause."""
    write_tiny_folder(tmp_path / "m")
    changes, words = CONFIGS[case]
    path = tmp_path / "m/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for call in (
        lambda: load_model(tmp_path / "m", Target("cpu", "float32")),
        lambda: check_loadable(tmp_path / "m", False),
    ):
        with pytest.raises(InputError, match="transformers cannot load it") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None  # with --debug all of it is seen
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_the_library_raises_becomes_a_line() -> None:
    """Any exception but lack of memory; a missing package says what to do."""
    with pytest.raises(InputError, match="install what is missing"), library(Path("m")):
        raise ImportError("\nneeds the foo library\nbut it was not found")
    with pytest.raises(InputError, match="AttributeError: no x"), library(Path("m")):
        raise AttributeError("no x")
    with pytest.raises(InputError, match="RuntimeError"), library(Path("m")):
        raise RuntimeError
    with pytest.raises(ConfigError, match="allow_remote_code"), library(Path("m")):
        raise ValueError("pass trust_remote_code=True")
    for error in (MemoryError(), RuntimeError("CUDA out of memory"), OSError(12, "no memory")):
        assert lacks_memory(error)
        with pytest.raises(type(error)), library(Path("m")):
            raise error
    with pytest.raises(KeyboardInterrupt), library(Path("m")):
        raise KeyboardInterrupt


def test_a_subject_that_does_not_load_is_described_as_that(tmp_path: Path) -> None:
    """Before the baseline is measured: the command that compares the two folders says it."""
    for name in ("base", "mine"):
        write_tiny_folder(tmp_path / name)
    path = tmp_path / "mine/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CONFIGS["unknown rope"][0]))
    words = ["edit", "--baseline", str(tmp_path / "base"), "--spec", "custom"]
    words += ["--subject", str(tmp_path / "mine"), "--metadata", str(tmp_path / "m.json")]
    done = invarlock(*words)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "yarn2" in line
    assert not (tmp_path / "m.json").exists()


def test_a_fault_of_loading_is_told_once(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line and exit 3; the next attempt records it and starts no process."""
    broken = shutil.copytree(world.baseline, tmp_path / "broken")
    config = read(broken, "config.json") | {"pad_token_id": 9999}
    (broken / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    words = ("--scenario", entry("quant_4bit_stress"), "--edit-label", "noop")
    assert world.evaluate(broken, out, *words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "Padding_idx" in line
    monkeypatch.setattr("invarlock.cli.evaluate._supervise", None)
    again = ("--attempt", "2", *words)
    assert world.evaluate(broken, out, *again) == 3
    assert capsys.readouterr().err.strip() == f"{line} (not tried again)"
    assert world.evaluate(broken, out, *again, "--record-failure") == 0
    outcome = read(out, "outcome.json")
    assert (outcome["status"], outcome["attempt"]) == ("crashed", 1)  # the one that was made
    assert "transformers cannot load it: AssertionError: Padding_idx" in outcome["error"]
    assert str(tmp_path) not in outcome["error"]


# --- killed ---------------------------------------------------------------------------------------


def test_a_kill_is_called_what_the_kernel_says(tmp_path: Path) -> None:
    """The count of the control group, of either version, before that of the machine."""
    assert signal.SIGKILL == 9
    assert "perhaps" in how_killed(None, None)
    assert "perhaps" in how_killed(3, 3)
    assert "by the kernel" in how_killed(3, 4)
    assert oom_kills(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/vmstat").write_text("nr_free 9\noom_kill 7\n")
    assert oom_kills(tmp_path) == 7
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job\n0::/unit\n")
    second = tmp_path / "sys/fs/cgroup/unit"
    second.mkdir(parents=True)
    (second / "memory.events").write_text("low 0\noom 2\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job\n")
    first = tmp_path / "sys/fs/cgroup/memory/job"
    first.mkdir(parents=True)
    (first / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert oom_kills(tmp_path) == 5
