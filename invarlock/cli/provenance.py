"""Record where results come from: the container image, the source, the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.contracts import validate
from invarlock.errors import InputError
from invarlock.files import sha256_file, write_bytes, write_json
from invarlock.run.oci import ENGINES


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions:
    """Options of ``invarlock advanced provenance environment``, and of all records."""

    out: Path = option(metavar="FILE", writes=True)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(EnvironmentOptions):
    """Options of ``invarlock advanced provenance label``."""

    packages: tuple[Path, ...] = option(metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class ImageOptions(EnvironmentOptions):
    """Options of ``invarlock advanced provenance image``."""

    image: str = option(help="a .sif file, docker://NAME@sha256:... or docker-daemon://NAME")
    label: Path = option(metavar="FILE", help="copy of its label")
    expected_digest: str = option("", metavar="sha256:...")
    engine: str = option("apptainer", choices=("apptainer", *ENGINES), help="what runs the image")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(EnvironmentOptions):
    """Options of ``invarlock advanced provenance source``."""

    checkout: Path = option(Path(), metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(EnvironmentOptions):
    """Options of ``invarlock advanced provenance reference``."""

    files: tuple[Path, ...] = option(metavar="FILE", help="below the folder of OUT")


def _label(options: LabelOptions) -> int:
    from invarlock.run import container

    write_json(options.out, container.new_label(options.packages))
    return 0


def _image(options: ImageOptions) -> int:
    from invarlock.run import container

    document = container.resolve(
        options.image, options.label, options.expected_digest, options.engine
    )
    write_json(options.out, document)
    return 0


def _source(options: SourceOptions) -> int:
    from invarlock.run import surroundings

    document = surroundings.source_repo(options.checkout)
    validate(document, "source-repo", str(options.out))
    write_json(options.out, document)
    return 0


def _environment(options: EnvironmentOptions) -> int:
    from invarlock.run import surroundings

    document = surroundings.environment()
    validate(document, "environment", str(options.out))
    write_json(options.out, document)
    return 0


def _reference(options: ReferenceOptions) -> int:
    from invarlock.evidence.checksums import render

    folder = options.out.parent.absolute()
    found: dict[str, str] = {}
    for path in options.files:
        if not path.absolute().is_relative_to(folder):
            raise InputError("not below the folder of OUT", where=str(path), expected=str(folder))
        found[str(path.absolute().relative_to(folder))] = sha256_file(path)
    write_bytes(options.out, render(found))
    return 0


ACTIONS = {
    "label": (
        LabelOptions,
        _label,
        "label of a new image of this code (invarlock's own image recipes)",
    ),
    "image": (ImageOptions, _image, "resolve reference and digest of an image, outside of it"),
    "source": (SourceOptions, _source, "commit and code digest of this checkout"),
    "environment": (
        EnvironmentOptions,
        _environment,
        "platform, libraries, CPU and GPUs of this machine",
    ),
    "reference": (
        ReferenceOptions,
        _reference,
        "digests of what the evaluations of a model are compared with",
    ),
}
