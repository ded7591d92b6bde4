"""The only module that speaks to the Hugging Face hub (huggingface_hub 2.x).

Nothing is sent without ``net``; no token is ever sent, so that a pack never depends on what one
user may read. Downloads are of full commit hashes, and the library's cache is not believed:
every file is hashed against the pinned list each time it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from invarlock.documents.fields import File
from invarlock.errors import ConfigError, InputError
from invarlock.files import read_bytes, sha256_bytes
from invarlock.sources.hub_cache import RepoType

TIMEOUT = 60.0  # seconds for one question to the hub's API
WAITS = (1.0, 2.0)  # seconds before a question that the hub answered with 5xx is asked again

T = TypeVar("T")


class RemoteFile(NamedTuple):
    """A file of a repository; ``sha256`` only where the hub stores it as a large file."""

    size: int
    sha256: str | None
    blob_id: str | None  # git object id of a small file


@dataclass(frozen=True)
class RepoInfo:
    """What the hub says about one revision of a repository."""

    revision: str
    gated: bool
    private: bool
    license: str | None
    custom_code: bool
    files: dict[str, RemoteFile]


class Hub:
    """A door to the hub, shut unless ``net``; ``fill`` is the command that fills the cache."""

    def __init__(self, net: bool, fill: str = "invarlock pin ... --net") -> None:
        self.net = net
        self.fill = fill
        # Read once by the libraries when they are imported, so set before the first import.
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ[name] = "0" if net else "1"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"  # else asked for even a local file
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # how it ended is one line, and ours
        os.environ.setdefault("DATASETS_VERBOSITY", "critical")

    def require_net(self, where: str) -> None:
        """Refuse to go on where the network is off.

        Raises:
            InputError: names the command that is allowed to use the network.
        """
        if not self.net:
            raise InputError(
                "the hub is needed but the network is off", where=where, hint=f"run: {self.fill}"
            )

    def info(self, repo: str, revision: str | None, kind: RepoType) -> RepoInfo:
        """Ask the hub about ``repo`` at ``revision`` (or at its default branch).

        Raises:
            InputError: network off, no such repository or revision, hub unreachable.
            ConfigError: the repository is gated or private.
        """
        where = where_of(repo, revision)
        self.require_net(where)
        from huggingface_hub import HfApi

        with _hub_errors(where):
            api = HfApi(token=False)
            ask = api.model_info if kind == "model" else api.dataset_info
            answer = _patiently(
                lambda: ask(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
            )
        if answer.gated or answer.private:
            raise _closed(where, "gated" if answer.gated else "private")
        if answer.sha is None or (revision is not None and answer.sha != revision):
            raise InputError(
                "the hub answers with another revision",
                where=where,
                found=str(answer.sha),
                hint="pin the repository again",
            )
        licence = getattr(answer.card_data, "license", None)
        return RepoInfo(
            revision=answer.sha,
            gated=False,
            private=False,
            license=licence if isinstance(licence, str) else None,
            custom_code="custom_code" in (answer.tags or [])
            or "auto_map" in (getattr(answer, "config", None) or {}),
            files={
                file.rfilename: RemoteFile(
                    file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id
                )
                for file in answer.siblings or []
            },
        )

    def fetch(self, repo: str, revision: str, name: str, kind: RepoType) -> Path:
        """Path in the cache of file ``name`` at ``revision``; downloaded only with ``net``.

        Raises:
            InputError: not in the cache and the network is off, or the download failed.
        """
        from huggingface_hub import hf_hub_download

        where = f"{where_of(repo, revision)}/{name}"
        cold = f"run: {self.fill}" if not self.net else "check the connection and repeat"
        with _hub_errors(where, cold):
            path = _patiently(
                lambda: hf_hub_download(
                    repo,
                    name,
                    repo_type=kind,
                    revision=revision,
                    token=False,
                    local_files_only=not self.net,
                )
            )
        return Path(path)

    def pin_file(self, repo: str, info: RepoInfo, name: str, kind: RepoType) -> File:
        """Digest of a repository's file: the hub's for large files, else of the downloaded bytes.

        Raises:
            InputError: the downloaded bytes are not the ones of the commit.
        """
        remote = info.files[name]
        if remote.sha256 is not None:
            return File(remote.size, remote.sha256)
        data = read_bytes(self.fetch(repo, info.revision, name, kind))
        git_id = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if remote.blob_id is not None and git_id != remote.blob_id:
            raise InputError(
                "the downloaded file is not the one of the commit",
                where=f"{where_of(repo, info.revision)}/{name}",
                expected=f"git id {remote.blob_id}",
                found=git_id,
                hint="delete it from the hub cache and repeat",
            )
        return File(len(data), sha256_bytes(data))


def dataset_files(repo: str, revision: str, config: str | None, split: str) -> list[str]:
    """The files of one configuration and split, as the ``datasets`` library resolves them, sorted.

    Raises:
        InputError: the hub cannot be reached.
        ConfigError: no such configuration or split.
    """
    from datasets import load_dataset_builder
    from datasets.exceptions import DataFilesNotFoundError

    where = f"{where_of(repo, revision)}?config={config or ''}&split={split}"
    with _hub_errors(where):
        try:
            builder = load_dataset_builder(repo, config, revision=revision, token=False)
        except ValueError as error:  # unknown or missing configuration; the library lists them
            first = str(error).partition("\n")[0]
            raise ConfigError(f"the data set cannot be resolved: {first}", where=where) from error
        except DataFilesNotFoundError as error:
            raise InputError("the data set holds no data files", where=where) from error
    files = builder.config.data_files or {}
    if split not in files:
        known = ", ".join(sorted(str(name) for name in files))
        raise ConfigError("no such split", where=where, expected=f"one of {known}", found=split)
    prefix = f"hf://datasets/{repo}@{revision}/"
    return sorted(str(url).removeprefix(prefix) for url in files[split])


def _patiently(ask: Callable[[], T]) -> T:
    """The answer of the hub, asked again after a while where it failed (5xx)."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            time.sleep(wait)
    return ask()


def where_of(repo: str, revision: str | None) -> str:
    """A repository at a revision, for messages."""
    return f"hub:{repo}" + (f"@{revision}" if revision else "")


def _closed(where: str, how: str) -> ConfigError:
    return ConfigError(
        f"the repository is {how}; its packs could not be checked by others",
        where=where,
        hint="download it yourself and give it as local:FOLDER",
    )


@contextlib.contextmanager
def _hub_errors(where: str, cold: str = "check the connection and repeat") -> Iterator[None]:
    """Turn the library's errors into one line each."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise _closed(where, "gated") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError("no such public repository", where=where, hint="check the name") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            "the revision is not in the repository (moved or deleted)",
            where=where,
            hint="remove model_revisions.json and pin again, or name another revision",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise InputError("no such file at this revision", where=where) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        silent = " and the hub does not answer" if os.environ["HF_HUB_OFFLINE"] == "0" else ""
        raise InputError(f"not in the hub cache{silent}", where=where, hint=cold) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise InputError(f"the hub answered {status}", where=where, hint=cold) from error
    except httpx2.HTTPError as error:
        name = type(error).__name__
        raise InputError(f"the hub cannot be reached ({name})", where=where, hint=cold) from error
    except OSError as error:
        raise InputError(f"the download failed: {error}", where=where, hint=cold) from error
    except json.JSONDecodeError as error:
        raise InputError("the hub's answer is not JSON", where=where, hint=cold) from error
