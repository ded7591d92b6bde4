"""In which container image this runs, if any: found out, not claimed.

Three things have to agree: a container engine's mark in the file system, the label that our
images carry, and the record of the image that was resolved outside. No variable is read. Whoever
may write to the root of a machine can still plant marks and label (docs/limits.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from invarlock import __version__
from invarlock.code_digest import PACKAGE, package_digest
from invarlock.contracts import decoded, validate
from invarlock.documents.image import Image, Label
from invarlock.errors import ConfigError, InputError
from invarlock.files import read_json, read_json_object, sha256_bytes, sha256_file
from invarlock.run import oci

# Docker, Podman, Apptainer and Singularity.
MARKS = (".dockerenv", "run/.containerenv", ".singularity.d")
LABEL = "usr/local/share/invarlock/image.json"
HOST = "host"  # the image reference of a run outside every image

APPTAINER = ("apptainer", "singularity")  # what snakemake starts containers with
SIF = "images/invarlock-runtime.sif"  # what make image makes for them
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://(?P<name>.+)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BUILD = "run: make image"


class Execution(Struct, frozen=True):
    """Where this process runs. Outside every image ``reason`` says what was not as it must be."""

    image_ref: str = HOST
    image_digest: str = ""  # sha256:<hex>; empty outside
    reason: str = ""

    @property
    def mode(self) -> str:
        """``container`` or ``host-bypass``, as runtime manifests name it."""
        return "container" if self.image_digest else "host-bypass"


def detect(record: Path | None, root: Path = Path("/"), package: Path = PACKAGE) -> Execution:
    """Find out where this process runs.

    Args:
        record: what :func:`resolve` wrote outside; None: nobody resolved an image.
        root: root of the file system.
        package: folder of the code that runs.

    Raises:
        InputError: the record cannot be read or is none.
    """
    if record is None:
        return Execution(reason="no record of an image was given")
    image = decoded(read_json_object(record), Image, str(record))
    reason = _departure(image.label, root, package)
    return Execution(reason=reason) if reason else Execution(image.reference, image.digest)


def _departure(expected: Label, root: Path, package: Path) -> str:
    """What speaks against running in the image that has this label; empty: nothing."""
    if not any((root / mark).exists() for mark in MARKS):
        return "there is no mark of a container engine in the file system"
    label = root / LABEL
    if not label.is_file():
        return f"there is no label of an image at /{LABEL}"
    if read_json(label) != to_builtins(expected):
        return "the label here is not that of the image that was resolved"
    # a label or a package that was mounted into another root lies on another device
    if len({folder.stat().st_dev for folder in (root, label.parent, package)}) > 1:
        return "the label and the code that runs do not lie in the root of the image"
    if package_digest(package) != expected.code:
        return "the code that runs is not the code that the label names"
    return ""


# --- the image, seen from outside -----------------------------------------------------------


def new_label(packages: Iterable[Path]) -> dict[str, str]:
    """The label of a new image of this code and these package lists."""
    lists = "\n".join(f"{path.name} {sha256_file(path)}" for path in sorted(packages))
    return {
        "schema": "invarlock/image-label-v1",
        "version": __version__,
        "code": package_digest(),
        "packages": sha256_bytes(lists.encode()),
        "build": os.urandom(16).hex(),
    }


class Runtime(Struct, frozen=True):
    """What runs the image of a profile, and the image as Snakemake is told of it."""

    engine: str  # apptainer, podman or docker
    image: str
    digest: str = ""  # sha256:<hex> where the name or the engine says it; a file is read later


def check_engine(wanted: str = "auto") -> str:
    """The engine that starts containers; the first that is there where any will do.

    Raises:
        ConfigError: it is not on the PATH.
    """
    import shutil

    commands = {"apptainer": APPTAINER, **{name: (name,) for name in oci.ENGINES}}
    asked = commands if wanted == "auto" else {wanted: commands[wanted]}
    for engine, names in asked.items():
        if any(map(shutil.which, names)):
            return engine
    raise ConfigError(
        "the profile runs everything in a container, and there is no engine on the PATH",
        expected=" or ".join(name for names in asked.values() for name in names),
        hint="install Apptainer, Podman or Docker, or take another profile, such as profiles/cpu",
    )


def find_runtime(engine: str, image: str, expected: str = "") -> Runtime:
    """The engine and the image of a profile, before any job.

    Args:
        engine: ``container_engine``.
        image: ``container_image``: a .sif file, docker://NAME@sha256:..., or a name in the storage
            of podman or docker, which ``make image`` gives to the image that it makes for them.
        expected: ``container_digest``.

    Raises:
        ConfigError: no such engine, or an image that it does not run.
        InputError: there is no such image.
    """
    engine = check_engine(engine)
    if engine in oci.ENGINES and not _REMOTE.fullmatch(image):
        if image == SIF:  # the default, which is Apptainer's
            image = oci.NAME
        elif image.endswith(".sif") or Path(image).exists():
            raise ConfigError(
                f"container_image is a file, which {engine} does not run",
                expected=f"{oci.NAME} or docker://NAME@sha256:...",
                found=image,
                hint=f"run: make image {oci.VARIABLE}={engine}",
            )
        image = oci.LOCAL + image
    return Runtime(engine, image, check_reference(image, expected, engine))


def check_reference(image: str, expected: str = "", engine: str = "apptainer") -> str:
    """Refuse, without opening it, an image whose digest cannot be resolved.

    Returns:
        its digest, where its name or the engine says it.

    Raises:
        ConfigError: a name that may mean another image tomorrow, a folder, or another digest.
        InputError: there is no such file.
    """
    remote, digest = _REMOTE.fullmatch(image), ""
    if image.startswith(oci.LOCAL) and engine in oci.ENGINES:
        digest = oci.digest_of(engine, image.removeprefix(oci.LOCAL))
        _require(digest, expected)
    elif remote:
        _, _, digest = image.rpartition("@")
        if not _DIGEST.fullmatch(digest):
            raise ConfigError(
                "container_image names a tag, which may be another image tomorrow",
                expected="docker://NAME@sha256:...",
                found=image,
                hint="write the digest instead of the tag",
            )
        _require(digest, expected)
    elif Path(image).is_dir():
        raise ConfigError(
            "container_image is a folder, which has no digest",
            found=image,
            hint=f"make one file of it: apptainer build IMAGE.sif {image}",
        )
    elif not Path(image).is_file():
        raise InputError("there is no such container image", where=image, hint=_BUILD)
    return digest


def resolve(
    image: str, label: Path, expected: str = "", engine: str = "apptainer"
) -> dict[str, Any]:
    """Reference and digest of an image whose label was copied to ``label``.

    The reference holds no path: ``<file name>@sha256:...`` for a file, ``<name>@sha256:...`` for
    a pinned one and for one in the engine's own storage.

    Raises:
        ConfigError: no digest can be resolved, it is another than ``expected``, or the image
            holds other code than this.
        InputError: the image or its label is missing.
    """
    known = check_reference(image, expected, engine)
    remote = _REMOTE.fullmatch(image)
    if image.startswith(oci.LOCAL):
        name, digest = image.removeprefix(oci.LOCAL), known
    elif remote:
        name, _, digest = remote["name"].rpartition("@")
    else:
        name, digest = Path(image).name, f"sha256:{sha256_file(Path(image))}"
        _require(digest, expected)
    record: dict[str, Any] = {
        "schema": "invarlock/image-v1",
        "reference": f"{name}@{digest}",
        "digest": digest,
        "label": read_json_object(label),
    }
    validate(record, "image", image)
    if record["label"]["code"] != package_digest():
        raise ConfigError("the image holds other code than this checkout", where=image, hint=_BUILD)
    return record


def _require(digest: str, expected: str) -> None:
    if expected and digest != expected:
        raise ConfigError(
            "the image is not the one that container_digest names", expected=expected, found=digest
        )
