"""From where the pass of a subject ran, as reports say it in ``meta.started``."""

from __future__ import annotations

from typing import NamedTuple


class Started(NamedTuple):
    """A pass that began behind the first block, from hidden states of the baseline's run."""

    block: int  # the first that ran for these windows, counted from 0; ``blocks``: none did
    blocks: int  # of the model
    windows: int  # that ran from it
    checked: int  # others, that ran whole, too, and gave the same bits
