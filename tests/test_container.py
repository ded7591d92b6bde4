"""In which image a run was: detection, what evaluate records, the image seen from outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import another_file_system
from measuring_factory import read
from repository_copy import ROOT, engine_of_a_version, quiet_environment, snakemake

from invarlock.cli import main
from invarlock.code_digest import package_digest
from invarlock.errors import InvarlockError
from invarlock.files import sha256_file, write_json
from invarlock.run import container
from invarlock.run.container import LABEL, check_reference, detect, new_label, resolve

DIGEST = "sha256:" + "5" * 64
LISTS = (ROOT / "envs/debian-packages.txt", ROOT / "envs/requirements.lock")
SITE = "usr/local/lib/python3.11/dist-packages"
# What engines and other programs set; none of them may count.
CLAIMS = {
    "INVARLOCK_CONTAINER_EXECUTION": "1",
    "INVARLOCK_RUNTIME_IMAGE_DIGEST": DIGEST,
    "APPTAINER_CONTAINER": "/images/invarlock-runtime.sif",
    "SINGULARITY_CONTAINER": "/images/invarlock-runtime.sif",
    "container": "podman",
}
IMAGE = ROOT / "images/invarlock-runtime.sif"
ENGINE = shutil.which("apptainer", path=f"{os.environ['PATH']}:{ROOT}/.tools/apptainer/usr/bin")


class Inside:
    """A folder that looks like the root of our image, and the record made outside of it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.record = folder / "root", folder / "image.json"
        self.package = self.root / SITE / "invarlock"
        shutil.copytree(ROOT / "invarlock", self.package)
        shutil.copytree(ROOT / "contracts", self.package / "contracts")
        (self.root / ".singularity.d").mkdir()
        (self.root / LABEL).parent.mkdir(parents=True)
        self.label = new_label(LISTS)
        write_json(self.root / LABEL, self.label)
        write_json(self.record, as_record(self.label))

    def detect(self) -> container.Execution:
        """What the code in that root finds out."""
        return detect(self.record, self.root, self.package)


def as_record(label: object) -> dict[str, object]:
    """state/image.json for a label."""
    name = {"reference": f"invarlock-runtime.sif@{DIGEST}", "digest": DIGEST}
    return {"schema": "invarlock/image-v1", **name, "label": label}


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    """A root of its own for each test."""
    return Inside(tmp_path)


# --- detection ------------------------------------------------------------------------------


def test_mark_label_and_record_make_a_container(inside: Inside) -> None:
    """All three agree: the record's reference and digest are what is recorded."""
    found = inside.detect()
    assert (found.mode, found.reason) == ("container", "")
    assert (found.image_ref, found.image_digest) == (f"invarlock-runtime.sif@{DIGEST}", DIGEST)


def other_label(inside: Inside) -> None:
    write_json(inside.root / LABEL, new_label(LISTS))


def other_code(inside: Inside) -> None:
    (inside.package / "extra.py").write_text("x = 1\n")


def mounted_package(inside: Inside) -> None:
    other = another_file_system(inside.root) / f"invarlock-{os.getpid()}"
    inside.package = Path(shutil.copytree(inside.package, other))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda i: (i.root / ".singularity.d").rmdir(), "no mark"),
        (lambda i: (i.root / LABEL).unlink(), "no label"),
        (other_label, "not that of the image"),
        (other_code, "not the code that the label names"),
        (mounted_package, "do not lie in the root"),
    ],
)
def test_each_departure_is_a_host_run(
    inside: Inside, change: Callable[[Inside], object], reason: str
) -> None:
    """One of them missing or different: host-bypass, without a digest, and why."""
    before = inside.package
    change(inside)
    try:
        found = inside.detect()
    finally:
        if inside.package != before:
            shutil.rmtree(inside.package)
    assert (found.mode, found.image_ref, found.image_digest) == ("host-bypass", "host", "")
    assert reason in found.reason


def test_without_a_record_there_is_no_image(inside: Inside) -> None:
    """Marks and label alone say nothing: nobody resolved a digest outside."""
    assert detect(None, inside.root, inside.package).mode == "host-bypass"


def test_a_record_that_is_none_is_refused(inside: Inside) -> None:
    """A reference with a folder in it would name the machine."""
    write_json(inside.record, as_record(inside.label) | {"reference": f"/home/a/b.sif@{DIGEST}"})
    with pytest.raises(InvarlockError, match="reference"):
        inside.detect()


@pytest.mark.parametrize("mark", container.MARKS)
def test_the_mark_of_each_engine_counts(inside: Inside, mark: str) -> None:
    """Docker, Podman, Apptainer."""
    (inside.root / ".singularity.d").rmdir()
    (inside.root / mark).parent.mkdir(exist_ok=True)
    (inside.root / mark).touch()
    assert inside.detect().mode == "container"


def test_variables_alone_change_nothing(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every variable that claims a container, the missing mark is still missing."""
    for name, value in CLAIMS.items():
        monkeypatch.setenv(name, value)
    (inside.root / ".singularity.d").rmdir()
    assert inside.detect().mode == "host-bypass"
    assert detect(None).mode == "host-bypass"
    assert detect(inside.record).mode == "host-bypass"


# --- evaluate records it ----------------------------------------------------------------------


def test_an_image_named_on_the_host_is_not_believed(world, inside, tmp_path, monkeypatch, capfd):
    """Record, variables and all: host-bypass with one warning; allowances and settings as given."""
    for name, value in CLAIMS.items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "config.json"
    write_json(config, {"values": {"suite": "smoke"}})
    more = ["--image", str(inside.record), "--config-record", str(config), "--allow-network"]
    assert world.evaluate(world.baseline, tmp_path / "out", *more) == 0
    warning = next(line for line in capfd.readouterr().err.splitlines() if "host-bypass" in line)
    assert "recorded as host-bypass: there is no" in warning
    manifest = read(tmp_path / "out", "runtime.manifest.json")
    assert manifest["execution_mode"] == manifest["context"]["execution_mode"] == "host-bypass"
    assert manifest["runtime"] == {
        "image_ref": "host",
        "image_digest": None,
        "container_execution": False,
        "allow_network": True,
        "allow_remote_code": False,
        "allow_third_party_plugins": False,
    }
    assert manifest["config"] == {
        "path": "config.json", "sha256": sha256_file(config), "source": "file",
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_demanded_container_is_refused_with_the_reason(world, inside, tmp_path, capsys):
    """Before anything is measured."""
    more = ["--image", str(inside.record), "--require-container"]
    assert world.evaluate(world.baseline, tmp_path / "out", *more) == 2
    assert "this is not the image: there is no" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quiet", [True, False])
def test_no_plugin_of_torch_is_loaded(tmp_path: Path, quiet: bool) -> None:
    """A package that registers itself as a backend is imported by torch, but not under us."""
    (tmp_path / "intruder.py").write_text("print('LOADED')\ndef start():\n    pass\n")
    info = tmp_path / "intruder-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: intruder\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nintruder = intruder:start\n")
    program = "from invarlock.run import determinism as d\n"
    program += "d.set_environment('strict', 1, False)\n" if quiet else ""
    program += "import torch\nprint('ALLOWED', d.plugins_allowed())\n"
    environment = quiet_environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    environment.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # an evaluation in this process set it
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("LOADED" in done.stdout) is not quiet, done.stderr
    assert f"ALLOWED {not quiet}" in done.stdout


# --- the image, seen from outside -------------------------------------------------------------


def test_the_digest_of_the_code_is_that_of_the_installed_package(inside: Inside) -> None:
    """Checkout and installed package agree, byte code aside; a changed contract shows."""
    (inside.package / "__pycache__").mkdir(exist_ok=True)
    (inside.package / "__pycache__/x.cpython-311.pyc").write_bytes(b"")
    assert package_digest(inside.package) == package_digest()
    contract = inside.package / "contracts/image.schema.json"
    contract.write_text(contract.read_text() + " ")
    assert package_digest(inside.package) != package_digest()


def test_a_file_is_resolved_to_the_digest_of_its_bytes(inside: Inside, tmp_path: Path) -> None:
    """By its name, without its folder."""
    image = tmp_path / "some.sif"
    image.write_bytes(b"image")
    digest = f"sha256:{sha256_file(image)}"
    record = resolve(str(image), inside.root / LABEL, digest)
    assert (record["reference"], record["digest"]) == (f"some.sif@{digest}", digest)
    assert record["label"] == inside.label


def test_a_pinned_name_is_its_own_digest(inside: Inside) -> None:
    """Nothing is fetched for it."""
    record = resolve(f"docker://ghcr.io/acme/run:1@{DIGEST}", inside.root / LABEL)
    assert (record["reference"], record["digest"]) == (f"ghcr.io/acme/run:1@{DIGEST}", DIGEST)


@pytest.mark.parametrize(
    ("image", "expected", "line"),
    [
        ("docker://ghcr.io/acme/run:1", "", "write the digest instead of the tag"),
        ("docker://ghcr.io/acme/run@sha256:12", "", "write the digest instead of the tag"),
        (f"docker://ghcr.io/acme/run@{DIGEST}", "sha256:" + "6" * 64, "container_digest"),
        (".", "", "apptainer build"),
        ("no/such.sif", "", "make image"),
    ],
)
def test_an_image_without_a_digest_is_refused(image: str, expected: str, line: str) -> None:
    """One line that says what to do."""
    with pytest.raises(InvarlockError, match=line) as caught:
        check_reference(image, expected)
    assert "\n" not in str(caught.value)


def test_an_image_of_other_code_or_bytes_is_refused(inside: Inside, tmp_path: Path, capsys) -> None:
    """By the command that the workflow calls: exit 2 and one line."""
    image, out = tmp_path / "some.sif", tmp_path / "out.json"
    image.write_bytes(b"image")
    command = ["advanced", "provenance", "image", "--image", str(image), "--out", str(out)]
    command += ["--label", str(inside.root / LABEL)]
    assert main([*command, "--expected-digest", DIGEST]) == 2
    assert "container_digest" in capsys.readouterr().err
    write_json(inside.root / LABEL, inside.label | {"code": "0" * 64})
    assert main(command) == 2
    assert "other code than this checkout; run: make image" in capsys.readouterr().err
    assert not out.exists()


# --- the workflow -----------------------------------------------------------------------------


def plan(repository: Path, *config: str) -> subprocess.CompletedProcess[str]:
    """A dry run with the container profile; Snakemake asks an engine for its version, no more."""
    path = f"{engine_of_a_version(repository).parent}:{os.environ['PATH']}"
    words = ("-n", "--profile", "profiles/container", "--quiet", "progress")
    config = ("suite=smoke", "scenarios=noop_clean", *config)
    return snakemake(repository, *words, config=config, PATH=path)


def test_a_tag_stops_the_workflow_before_any_job(repository: Path) -> None:
    """One line on standard error."""
    done = plan(repository, "container_image=docker://ghcr.io/acme/run:1")
    assert done.returncode == 2
    profile, line = done.stderr.splitlines()
    assert "container" in profile
    assert "write the digest instead of the tag" in line


def test_the_image_comes_before_what_measures(repository: Path) -> None:
    """Its record is an input of the baseline's run, the calibration and every evaluation."""
    (repository / "image.sif").write_bytes(b"image")
    done = plan(repository, "container_image=image.sif")
    assert done.returncode == 0, done.stderr
    jobs = done.stdout.split("\nlocalrule ")
    jobs = [job for part in jobs for job in part.split("\nrule ")]
    needing = {
        job.split(":")[0] for job in jobs if "state/image.json" in job.partition("output")[0]
    }
    assert needing == {"environment", "baseline_report", "calibrate", "evaluate"}


# --- a real image -----------------------------------------------------------------------------

MADE = IMAGE.with_name(IMAGE.name + ".made")  # the digests of its packages and of its code
REAL = pytest.mark.skipif(
    not (ENGINE and MADE.is_file() and MADE.read_text().split()[-1] == package_digest()),
    reason="needs apptainer and the image of this code: make image",
)
ASK = (
    "from pathlib import Path; from invarlock.run.container import detect;"
    "found = detect(Path('record.json')); print(found.mode, found.image_digest, found.reason)"
)


def in_image(folder: Path, *words: str) -> str:
    """Run a command in the image, in ``folder``."""
    command = [str(ENGINE), "--silent", "exec", "--cleanenv", "--home", str(folder)]
    done = subprocess.run(
        [*command, *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@REAL
def test_the_real_image_is_recognised_inside(tmp_path: Path) -> None:
    """With the record of its label; not with that of another build."""
    label = json.loads(in_image(tmp_path, str(IMAGE), "cat", f"/{LABEL}"))
    write_json(tmp_path / "record.json", as_record(label))
    ask = (str(IMAGE), "python", "-c", ASK)
    assert in_image(tmp_path, *ask).split()[:2] == ["container", DIGEST]
    write_json(tmp_path / "record.json", as_record(label | {"build": "0" * 32}))
    assert "not that of the image" in in_image(tmp_path, *ask)


@REAL
def test_a_label_or_code_mounted_into_the_real_image_is_seen(tmp_path: Path) -> None:
    """They lie on another file system than the root."""
    label = json.loads(in_image(tmp_path, str(IMAGE), "cat", f"/{LABEL}"))
    write_json(tmp_path / "record.json", as_record(label))
    shutil.copytree(ROOT / "invarlock", tmp_path / "invarlock")
    shutil.copytree(ROOT / "contracts", tmp_path / "invarlock/contracts")
    unsafe = ("--env", "PYTHONSAFEPATH=", str(IMAGE), "python", "-c", ASK)
    assert "do not lie in the root of the image" in in_image(tmp_path, *unsafe)
    (tmp_path / "label").mkdir()
    write_json(tmp_path / "label/image.json", label)
    mounted = ("--bind", f"{tmp_path}/label:/usr/local/share/invarlock", str(IMAGE))
    found = in_image(tmp_path, *mounted, "python", "-c", ASK)
    assert "do not lie in the root of the image" in found
