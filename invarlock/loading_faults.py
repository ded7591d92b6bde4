"""The boundary to transformers while it loads: what it says and raises becomes one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

from invarlock.errors import ConfigError, InputError, InvarlockError
from invarlock.files import read_json_object


class LoadingError(InputError):
    """The library does not load what the folder describes; another start would not either."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch's allocators say it in words alone."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextmanager
def library(folder: Path) -> Iterator[None]:
    """The one boundary to the library while it loads ``folder``: what it raises becomes a line.

    Models, quantizers and packages that they ask for raise what they like: KeyError for a kind of
    rope that is not known, ImportError, AttributeError. None of it is a fault of this program, or
    lasts less than the folder and the environment do. Lack of memory goes through, and lines of
    this program's own do.

    Progress bars and warnings are dropped, which quantizers write whatever they are told.

    Raises:
        LoadingError: the folder's fault; the exception is its cause.
        InputError, ConfigError: a package is missing, or code of the model's own is not allowed.
    """
    try:
        with redirect_stderr(StringIO()):
            yield
    except Exception as error:
        if lacks_memory(error) or isinstance(error, InvarlockError):
            raise
        raise loading_fault(folder, error) from error


def loading_fault(folder: Path, error: Exception) -> InvarlockError:
    """The line for a folder that the library does not load: the cause, and what to do."""
    if "trust_remote_code" in str(error):
        return ConfigError(
            "the model needs code from its repository",
            where=str(folder),
            hint="set allow_remote_code: true if you trust it",
        )
    told = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not isinstance(error, ValueError | OSError | ImportError) or not told:
        told = f"{type(error).__name__}: {told}".removesuffix(": ")
    if isinstance(error, KeyError) and error.args:
        told += _place_of(folder, error.args[0])
    what = f"transformers cannot load it: {told[:300]}"
    if isinstance(error, ImportError):  # the environment's fault, not the folder's
        hint = "install what is missing where the measurement runs, and repeat the command"
        return InputError(what, where=str(folder), hint=hint)
    return LoadingError(what, where=str(folder))


def _place_of(folder: Path, value: object) -> str:
    """Where ``config.json`` has a value that the library does not know; empty where it has not."""

    def places(part: object, path: str) -> Iterator[str]:
        if isinstance(part, dict):
            for key, inner in part.items():
                yield from places(inner, f"{path}/{key}")
        elif part == value:
            yield path

    path = folder / "config.json"
    try:
        found = next(places(read_json_object(path), ""), "")
    except InputError:
        return ""
    return f", which config.json has at {found}" if found else ""
