"""Text whose tokens are marked by a number: how each is drawn, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from invarlock.pages.wording import visible

STEPS = (0.1, 0.5, 2.0)  # nats from which a change is marked, more and most
# In order, so that a mark reads without its colour: worse is a solid line, better a dotted one.
WORSE, BETTER = ("worse-1", "worse-2", "worse-3"), ("better-1", "better-2", "better-3")
PART = "\N{WHITE SMALL SQUARE}"  # a token that holds a part of a character
NEWLINE, TAB = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\N{RIGHTWARDS ARROW TO BAR}"


class Legend(Struct, frozen=True):
    """What the marks mean."""

    words: str
    worse: tuple[str, ...] = WORSE
    better: tuple[str, ...] = BETTER


LEGEND = Legend(
    "Marked by the change of a token's loss, subject minus baseline, from "
    f"{STEPS[0]:g} (1), {STEPS[1]:g} (2) and {STEPS[2]:g} nats (3) on: worse"
)


class Mark(Struct, frozen=True):
    """A piece of text; without a style it is not marked."""

    text: str
    style: str = ""
    words: str = ""
    ends_line: bool = False


class Passage(Struct, frozen=True):
    """A stretch of text with its marks."""

    caption: str
    marks: tuple[Mark, ...]


def style_of(change: float) -> str:
    """How a change of a loss is marked, nats; empty: not at all."""
    step = sum(abs(change) >= least for least in STEPS)
    return (WORSE if change > 0 else BETTER)[step - 1] if step else ""


def passage(caption: str, tokens: Sequence[str], changes: Sequence[float]) -> Passage:
    """Tokens as they read together, neighbours without a mark as one piece.

    Args:
        caption: where the text is from.
        tokens: the text of each; empty where the next one completes its character.
        changes: of the loss of each, nats.
    """
    marks: list[Mark] = []
    for token, change in zip(tokens, changes, strict=True):
        style = style_of(change)
        for line in token.splitlines(keepends=True) or [""]:
            text, ends = shown(line), line.endswith("\n")
            last = marks[-1] if marks else None
            if style:
                marks.append(Mark(text or PART, style, f"{change:+.2f} nats", ends))
            elif last is None or last.style or last.ends_line:
                marks.append(Mark(text, ends_line=ends))
            else:
                marks[-1] = Mark(last.text + text, ends_line=ends)
    return Passage(caption, tuple(marks))


def shown(token: str) -> str:
    """The text of a token with signs in place of line ends and tabs."""
    return visible(token.replace("\r\n", "\n").replace("\n", NEWLINE).replace("\t", TAB))


def quoted(token: str) -> str:
    """The text of a token for a table, its ends visible."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{shown(token) or PART}\N{RIGHT DOUBLE QUOTATION MARK}"
