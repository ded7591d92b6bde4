"""Records of source and machine, and the script that builds the image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from repository_copy import ROOT, link_repository, quiet_environment

from invarlock.cli import main
from invarlock.code_digest import package_digest
from invarlock.contracts import violations


def test_source_and_machine_are_named_without_names(tmp_path: Path) -> None:
    """Commit, branch and digest; platform and libraries; no host, user, folder or address."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=Ada", "-c", "user.email=ada@host.example"]
    for words in (["init", "-q", "-b", "trunk"], ["remote", "add", "o", "https://u:p@h.example/r"],
                  ["commit", "-q", "--allow-empty", "-m", "first"]):  # fmt: skip
        subprocess.run([*git, *words], check=True)
    command = ["advanced", "provenance"]
    source, machine = tmp_path / "source.json", tmp_path / "machine.json"
    assert main([*command, "source", "--checkout", str(tmp_path), "--out", str(source)]) == 0
    assert main([*command, "environment", "--out", str(machine)]) == 0
    found = json.loads(source.read_text())
    assert violations(found, "source-repo") == []
    assert (found["branch"], found["dirty"], len(found["commit"])) == ("trunk", False, 40)
    assert violations(json.loads(machine.read_text()), "environment") == []
    text = source.read_text() + machine.read_text()
    for name in ("Ada", "example", str(tmp_path), os.uname().nodename, str(Path.home())):
        assert name not in text


def test_a_folder_that_is_no_checkout_is_named_by_its_code(tmp_path: Path) -> None:
    """An unpacked archive: no commit, and the digest of the code."""
    out = tmp_path / "source.json"
    command = ["advanced", "provenance", "source", "--checkout", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    found = json.loads(out.read_text())
    assert (found["commit"], found["dirty"], found["code"]) == (None, None, package_digest())


def test_digests_of_a_reference_are_a_checksum_file(tmp_path: Path) -> None:
    """``sha256sum --check`` in the model's folder finds what has changed."""
    (tmp_path / "runs").mkdir()
    files = [tmp_path / "windows.json", tmp_path / "runs/report.json"]
    for file in files:
        file.write_text(file.name)
    out = tmp_path / "reference.sha256"
    words = ["advanced", "provenance", "reference", "--files", *map(str, files), "--out", str(out)]
    assert main(words) == 0
    check = ["sha256sum", "--check", "--quiet", out.name]
    assert subprocess.run(check, cwd=tmp_path, check=False).returncode == 0
    files[1].write_text("other")
    done = subprocess.run(check, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["runs/report.json: FAILED"]
    assert main([*words[:3], "--files", __file__, "--out", str(out)]) == 3


def programs(folder: Path, without: set[str]) -> Path:
    """A PATH of one folder: everything that is installed but these."""
    folder.mkdir()
    for place in ("/usr/sbin", "/usr/bin", "/bin"):
        for program in Path(place).iterdir():
            link = folder / program.name
            if program.name not in without and not link.is_symlink():
                link.symlink_to(program)
    return folder


def test_a_missing_program_of_the_image_build_is_one_line(tmp_path: Path) -> None:
    """Which programs, and Debian's packages that bring them."""
    repository = link_repository(tmp_path / "repository")
    (repository / "envs").symlink_to(ROOT / "envs")
    path = programs(tmp_path / "bin", {"mmdebstrap", "mksquashfs", "apptainer"})
    done = subprocess.run(
        ["bash", "tools/build_image.sh"],
        cwd=repository,
        env=quiet_environment() | {"PATH": str(path), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert "not found: mmdebstrap mksquashfs; install with: apt-get install mmdebstrap" in line
    assert not (repository / "images").exists()
