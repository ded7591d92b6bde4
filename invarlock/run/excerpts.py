"""The excerpts of a report: which tokens of the worst windows the subject predicts less well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from invarlock.metrics.excerpts import CHARACTERS, TOKENS, stretch, worst
from invarlock.run.forward import ArmResult, TopTokens
from invarlock.run.measure import RunWindows
from invarlock.run.tasks import task_for
from invarlock.tokenizer_meaning import NAME, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ON, OFF = "on", "off"
LOCAL = "local"  # kind of source of a text that is a file of this machine
CONTEXT = 16  # tokens before an excerpt that are decoded with it: a character may begin there
PARTIAL = "\N{REPLACEMENT CHARACTER}"  # what stands for bytes that are no whole character


def excerpts_of(
    setting: str, windows: RunWindows, folder: Path, base: TopTokens, final: ArmResult
) -> list[dict[str, Any]]:
    """The excerpts of a comparison, worst first; none where none are wanted.

    Args:
        setting: ``on``, ``off``, or ``auto``: on where no part of the text is a local file.
        windows: that were measured.
        folder: the baseline, whose tokenizer cut them.
        base: what the baseline's run kept of the scored windows.
        final: what the subject's run recorded of them.
    """
    content, tokenizer_file = windows.content, folder / NAME
    sources = [content.source, *(part.source for part in content.of_slices)]
    private = any(source.kind == LOCAL for source in sources)
    task = task_for(folder, content, windows.pictures)
    if (
        setting == OFF
        or (private and setting != ON)
        or not (task.metric.flows and tokenizer_file.is_file())
    ):
        return []
    tokenizer = read_tokenizer(tokenizer_file)
    ran = sorted(final.logprob)  # a control's measurement may have ended early
    scored: dict[int, Any] = {row: windows.arm("final")[row] for row in ran}
    counts, losses = final.n_tokens(), final.losses()
    before = [-_total(base.correct[base.rows([row])]) for row in ran]
    chosen = worst(
        {
            "window_ids": [scored[row].window_id for row in ran],
            "clusters": [scored[row].cluster for row in ran],
            "token_counts": counts,
            "nll_sum": losses,
            "baseline_nll_sum": before,
        }
    )
    rows = {scored[row].window_id: row for row in ran}
    return [
        _excerpt(
            window,
            task.example(scored[rows[window]]).targets,
            final.logprob[rows[window]],
            base.correct[base.rows([rows[window]])],
            tokenizer,
        )
        for window in chosen
    ]


def _excerpt(
    window_id: str,
    targets: Sequence[int],
    mine: NDArray[np.float32],
    base: NDArray[np.float32],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """One window, of which ``mine`` and ``base`` hold the log-probabilities of ``targets``."""
    start = stretch((base.astype(np.float64) - mine).tolist())
    end = min(start + TOKENS, len(targets))
    found: dict[str, Any] = {
        "window_id": window_id,
        "before": start,
        "tokens": texts(tokenizer, targets[:end], start),
        "nll": _losses(mine[start:end]),
        "baseline_nll": _losses(base[start:end]),
    }
    others = [*range(start), *range(end, len(targets))]
    if others:
        found["rest"] = {
            "tokens": len(others),
            "nll": max(0.0, -_total(mine[others])),
            "baseline_nll": max(0.0, -_total(base[others])),
        }
    return found


def _total(logprob: NDArray[np.float32]) -> float:
    return float(logprob.astype(np.float64).sum())


def _losses(logprob: NDArray[np.float32]) -> list[float]:
    """Losses, nats, as the shortest decimals that stand for the same float32."""
    return [max(0.0, -float(str(value))) for value in logprob]


def texts(tokenizer: Tokenizer, ids: Sequence[int], start: int) -> list[str]:
    """The text of each token from ``start`` on, as the tokenizer decodes them together.

    A character whose bytes several tokens hold is the text of the last of them; the others have
    none. Bytes that never become a character are shown as one replacement character.
    """
    return [_short(text) for text in _pieces(tokenizer, list(ids), start)]


def _pieces(tokenizer: Tokenizer, ids: list[int], start: int) -> Iterator[str]:
    first = max(0, start - CONTEXT)
    shown = tokenizer.decode(ids[first:start], skip_special_tokens=False)
    if start < len(ids) and shown.endswith(PARTIAL):
        shown = shown.rstrip(PARTIAL)
    for end in range(start + 1, len(ids) + 1):
        whole = tokenizer.decode(ids[first:end], skip_special_tokens=False)
        if not whole.startswith(shown):  # a decoder that rewrites what it has said
            yield tokenizer.id_to_token(ids[end - 1]) or PARTIAL
            shown = whole
            continue
        ready = whole if end == len(ids) else whole.rstrip(PARTIAL)
        yield ready[len(shown) :] if len(ready) >= len(shown) else ""
        shown = max(shown, ready, key=len)


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
