"""The container image of a run, resolved outside of it."""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, Digest, Sha256, Text, about, matches

TITLE = "state/image.json"


class Label(Closed):
    """The label file of the image, /usr/local/share/invarlock/image.json in it."""

    schema: Annotated[Literal["invarlock/image-label-v1"], about("layout of this object")]
    version: Annotated[Text, about("version of the package in the image")]
    code: Annotated[Sha256, about("digest over all files of that package and its contracts")]
    packages: Annotated[Sha256, about("digest over the lists of Debian and Python packages")]
    build: Annotated[
        str,
        matches(r"^[0-9a-f]{32}$"),
        about("random name of this build, so that no two images share a label"),
    ]


class Image(Closed):
    """The container image of a run, resolved outside of it."""

    schema: Annotated[Literal["invarlock/image-v1"], about("layout of this file")]
    reference: Annotated[
        str,
        matches(r"^[^/].*@sha256:[0-9a-f]{64}$"),
        about("name without any path, pinned: NAME@sha256:..."),
    ]
    digest: Annotated[
        Digest, about("digest of the image: of the bytes of a .sif file, or the registry's")
    ]
    label: Label


DOCUMENT = Image
