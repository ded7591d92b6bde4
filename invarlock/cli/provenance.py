"""Record where results come from: the container image, the source, the machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from invarlock.contracts import validate
from invarlock.files import write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``invarlock advanced provenance``."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("--out", type=Path, required=True, metavar="FILE")
        return command

    label = add("label", "label of a new image of this code (invarlock's own image recipes)")
    label.add_argument("--packages", type=Path, nargs="+", required=True, metavar="FILE")
    image = add("image", "resolve reference and digest of an image, outside of it")
    image.add_argument("--image", required=True, help="a .sif file or docker://NAME@sha256:...")
    image.add_argument(
        "--label", type=Path, required=True, metavar="FILE", help="copy of its label"
    )
    image.add_argument("--expected-digest", default="", metavar="sha256:...")
    source = add("source", "commit and code digest of this checkout")
    source.add_argument("--checkout", type=Path, default=Path(), metavar="DIR")
    add("environment", "platform, libraries, CPU and GPUs of this machine")


def main(args: argparse.Namespace) -> int:
    """Write the record that was asked for."""
    write_json(args.out, _record(args))
    return 0


def _record(args: argparse.Namespace) -> dict[str, Any]:
    from invarlock.run import container, surroundings

    if args.command == "label":
        return container.new_label(args.packages)
    if args.command == "image":
        return container.resolve(args.image, args.label, args.expected_digest)
    if args.command == "source":
        document = surroundings.source_repo(args.checkout)
        validate(document, "source-repo", str(args.out))
    else:
        document = surroundings.environment()
        validate(document, "environment", str(args.out))
    return document
