"""The machine that a run is made on. No host name, no variables."""

from typing import Annotated, Literal

from invarlock.documents.fields import Closed, Count, Text, about

TITLE = "state/environment.json"


class Environment(Closed):
    """The machine that a run is made on. No host name, no variables."""

    schema: Annotated[Literal["invarlock/environment-v1"], about("layout of this file")]
    platform: Annotated[Text, about("operating system, kernel and C library")]
    machine: Annotated[str, about("architecture")]
    python_version: Annotated[Text, about("version of Python")]
    libraries: Annotated[
        dict[str, str | None],
        about("versions of the libraries that results depend on; null: not installed"),
    ]
    cpu_model: Annotated[str | None, about("name of the processor; null: unknown")]
    gpu_count: Annotated[Count, about("number of NVIDIA GPUs")]
    gpus: Annotated[list[str], about("name and memory of each")]


DOCUMENT = Environment
