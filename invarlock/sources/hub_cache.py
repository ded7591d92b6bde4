"""Where the hub's cache keeps a file, by path alone: nothing here imports the hub's library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

RepoType = Literal["model", "dataset"]


def cache_folder() -> Path:
    """Where downloads go: HF_HUB_CACHE, or ``hub`` in HF_HOME, or in the user's cache folder."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if own:
        return Path(os.path.expandvars(own)).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(user, "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def cached_file(repo: str, revision: str, name: str, kind: RepoType) -> Path:
    """The path of a file of a repository; it is there once the file was downloaded."""
    folder = f"{kind}s--" + repo.replace("/", "--")
    return cache_folder() / folder / "snapshots" / revision / name
