"""Promotion sentinels: kept subjects of a finished run, evaluated and verified again."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import warm
from measuring_factory import entry

from invarlock import __version__
from invarlock.cli import main
from invarlock.subject_metadata import spec_of_metadata

if TYPE_CHECKING:
    from measuring_factory import World

EDIT = "quant_8bit_clean"
VALUES = {
    "threads": 1, "determinism": "strict", "seed": 43, "tier": "balanced",
    "bootstrap": {"replicates": 1200, "alpha": 0.05}, "allow_remote_code": False,
}  # fmt: skip


def write(path: Path, document: Any) -> None:
    """A JSON file in a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves of one edit, whose subject was kept; the metric of it fails."""
    out = tmp_path_factory.mktemp("finished") / "run"
    folder = out / "acme__tiny"
    shutil.copytree(world.baseline, folder / "models/baseline")
    shutil.copytree(world.run, folder / "runs/baseline")
    shutil.copyfile(world.windows, folder / "windows.json")
    write(folder / "baseline.json", {})
    write(out / "state/config.json", {"values": VALUES})
    scenario = json.loads(entry(EDIT))
    write(out / "state/scenarios.json", {"scenarios": [scenario]})
    metadata = folder / f"edits/{EDIT}/edit_metadata.json"
    metadata.parent.mkdir(parents=True)
    words = ["edit", "--baseline", folder / "models/baseline", "--seed", 43, "--metadata", metadata]
    words += ["--spec", scenario["generation"]["edit_spec"], "--out", folder / f"models/{EDIT}"]
    assert main(list(map(str, words))) == 0
    return out


def sentinels(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, forked."""
    command = [warm.python(), "-m", "invarlock", "advanced", "sentinels", "--run", str(out)]
    command += ["--model", "acme/tiny", "--edit", EDIT, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_kept_and_made_again_are_the_same(finished: Path, tmp_path: Path) -> None:
    """Both are evaluated as the run did; of a subject that is gone the same bytes are made."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    place = out / f"sentinels/acme__tiny/{EDIT}"
    done = sentinels(out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{EDIT}: kept, evaluated and verified; ")
    verified = json.loads((place / "verify.json").read_text())
    assert verified["results"][0]["id"]
    kept = json.loads((place / "evaluation.report.json").read_text())
    assert kept["context"]["profile"] == "dev"
    assert kept["edit"]["scenario"] == EDIT
    shutil.rmtree(out / f"acme__tiny/models/{EDIT}")
    done = sentinels(out, "--mode", "saved-model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{EDIT}: made again, evaluated; ")
    again = json.loads((place / "evaluation.report.json").read_text())
    assert again["provenance"] == kept["provenance"]
    assert again["primary_metric"] == kept["primary_metric"]
    assert not (out / f"acme__tiny/models/{EDIT}").exists()
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def _other_bytes(out: Path) -> None:
    file = out / f"acme__tiny/models/{EDIT}/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _other_version(out: Path) -> None:
    file = out / "acme__tiny/runs/baseline/report.json"
    file.write_text(file.read_text().replace(__version__, "0.0.1"))


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no run": (lambda out: shutil.rmtree(out / "state"), (), "no run is here"),
    "another model": (lambda _: None, ("--model", "acme/large"), "found acme__tiny"),
    "another version": (_other_version, (), f"expected {__version__}; found 0.0.1"),
    "no such edit": (lambda _: None, ("--edit", "prune_clean"), "has no scenario prune_clean"),
    "not made": (lambda out: shutil.rmtree(out / "acme__tiny/edits"), (), "no edit was made"),
    "another subject": (_other_bytes, (), "is not the subject that the run evaluated"),
    "nothing quantizes": (
        lambda _: None, ("--edit", "prune_clean", "--mode", "public-quant"), "that quantizes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_one_line(
    case: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be answered is said in one line, and nothing is written."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    change, more, said = BAD[case]
    change(out)
    words = ["advanced", "sentinels", "--run", str(out), "--model", "acme/tiny", "--edit", EDIT]
    assert main([*words, *more]) in (2, 3)
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert not (out / "sentinels").exists()


@pytest.mark.parametrize(
    "spec", ["quant_rtn:8:128:all", "magnitude_prune:0.1:ffn@layer=3", "noop", "lowrank_svd:16:all"]
)
def test_specs_come_back(spec: str) -> None:
    """What metadata say of an edit is the spec that made it."""
    from invarlock.edits.specs import parse_edit_spec

    assert spec_of_metadata(dict(parse_edit_spec(spec).describe())) == spec
