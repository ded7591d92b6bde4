"""`invarlock evaluate` with a preset, a strict claim and the telemetry line, on a tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from measuring_factory import World, change, read
from test_preset import stats

from invarlock.checkpoints import Checkpoint
from invarlock.cli import main
from invarlock.files import write_json
from invarlock.preset import derive, read_preset
from invarlock.reporting.replay import replay
from invarlock.reporting.signals import pass_reasons

pytestmark = pytest.mark.usefixtures("in_this_process")


def scaled(world: World, factor: float) -> Path:
    """A subject of which eight operators are scaled; the tier admits five caps."""
    folder = shutil.copytree(world.baseline, world.root / f"scaled {factor}")
    parts = ("gate_proj", "down_proj", "q_proj", "o_proj")
    return change(folder, lambda t: [t[n].mul_(factor) for n in t if any(p in n for p in parts)])


def preset(world: World, name: str, sha256: str = "", sigma: float = 1e-3) -> Path:
    """A preset of the baseline whose null edits moved ln sigma_max by about ``sigma``."""
    recorded = stats(sigma=sigma)
    recorded["checkpoint_sha256"] = sha256 or Checkpoint.open(world.baseline).digest()
    for run in recorded["runs"]:
        run["spectral"]["ffn"] = run["spectral"]["attn"]
    path = world.root / name
    write_json(path, derive(recorded, "balanced", name))
    return path


def judged(world: World, subject: Path, out: Path, *more: str) -> dict:
    """The report of a subject."""
    assert world.evaluate(subject, out, *more) == 0
    report = read(out)
    assert replay(report) == []
    return report


@pytest.mark.parametrize(
    ("factor", "sigma", "by_tier", "by_preset"),
    [(1.07, 1e-3, [], ["spectral_fail"]), (1.15, 0.06, ["spectral_fail"], [])],
    ids=["tightened", "loosened"],
)
def test_a_preset_decides_in_both_directions(world, tmp_path, factor, sigma, by_tier, by_preset):
    """A change the tier lets pass fails by a tight preset; one it refuses passes by a loose one."""
    subject, path = scaled(world, factor), preset(world, f"{sigma}.json", sigma=sigma)
    plain = judged(world, subject, tmp_path / "tier")
    other = judged(world, subject, tmp_path / "preset", "--preset", str(path))
    assert (pass_reasons(plain), pass_reasons(other)) == (by_tier, by_preset)
    digest = read_preset(path).sha256
    assert other["policy_provenance"]["preset_sha256"] == digest
    assert read(tmp_path / "preset", "outcome.json")["preset_sha256"] == digest
    sources = {o["source"] for o in other["policy_provenance"]["overrides"]}
    assert sources == {f"preset:{digest[:12]}"}


def test_the_preset_of_another_baseline_is_refused(world, tmp_path, capfd) -> None:
    """One line, and no outcome that could be taken for a result."""
    other = preset(world, "other.json", sha256="b" * 64)
    assert world.evaluate(world.baseline, tmp_path / "out", "--preset", str(other)) != 0
    error = capfd.readouterr().err.strip()
    assert "another baseline checkpoint" in error
    assert "\n" not in error
    assert not (tmp_path / "out" / "outcome.json").exists()


@pytest.mark.parametrize("more", [("--tier", "aggressive"), ("--preset", "absent.json")])
def test_a_preset_that_does_not_fit_costs_no_measurement(world, tmp_path, capfd, more) -> None:
    """Another tier than it was derived for, or no such file."""
    asked = ("--preset", str(preset(world, "mine.json")), *more)
    assert world.evaluate(world.baseline, tmp_path / "out", *asked) != 0
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    "more",
    [("--profile", "ci"), ("--profile", "dev"), ("--profile", "ci", "--tier", "none")],
    ids=" ".join,
)
def test_a_strict_claim_on_a_host_is_refused(world, tmp_path, capsys, more) -> None:
    """Before anything is measured, in one line."""
    words = world.command(world.baseline, tmp_path, "--assurance", "strict", *more)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "strict assurance" in line


@pytest.mark.parametrize("wanted", [True, False])
def test_the_telemetry_line_is_printed_on_request(world, tmp_path, capfd, monkeypatch, wanted):
    """With INVARLOCK_TELEMETRY=1, and without it never."""
    monkeypatch.setenv("INVARLOCK_TELEMETRY", "1" if wanted else "0")
    report = judged(world, world.baseline, tmp_path / "out")
    printed = capfd.readouterr().out.splitlines()
    assert (report["telemetry"]["summary_line"] in printed) is wanted


def test_a_tail_mode_is_recorded_as_the_users(world, tmp_path) -> None:
    """--tail-mode fail is an override whose source is the configuration."""
    report = judged(world, world.baseline, tmp_path / "out", "--tail-mode", "fail")
    assert report["policy_provenance"]["overrides"] == [
        {"path": "tail.mode", "value": "fail", "tier_value": "warn", "source": "config"}
    ]
    assert report["primary_metric_tail"]["mode"] == "fail"
