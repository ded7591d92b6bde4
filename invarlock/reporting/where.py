"""The section that says where a subject changed: in which text, slices and layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invarlock.guards import GUARDS
from invarlock.metrics.excerpts import CHARACTERS, TOKENS, WINDOWS
from invarlock.metrics.kinds import metric_named
from invarlock.pages.parts import Section, Table
from invarlock.pages.passages import Passage, passage, quoted
from invarlock.pages.plots import Plot
from invarlock.pages.reading import Report, block, columns, objects
from invarlock.pages.wording import fixed, number, pair
from invarlock.reporting import figures

TITLE = "Where it changed"
LISTED = 5  # tokens of an excerpt that a table repeats
AHEAD = 16  # characters before a token there


def where(report: Report) -> tuple[Section, ...]:
    """Excerpts, slices and layers; none where there is nothing to say."""
    excerpts = [_Excerpt(report, one) for one in objects(report.get("excerpts"))[:WINDOWS]]
    excerpts = [one for one in excerpts if one.tokens]
    section = Section(
        id="where",
        title=TITLE,
        passages=tuple(one.passage() for one in excerpts),
        plots=tuple(_plots(report)),
        tables=tuple(one.table() for one in excerpts),
    )
    return (section,) if section.passages or section.plots else ()


class _Excerpt:
    """An excerpt as a page shows it, whatever the report holds."""

    def __init__(self, report: Report, found: Mapping[str, Any]) -> None:
        rows = columns(found, ("tokens", "nll", "baseline_nll"))[:TOKENS]
        read = [(str(token)[:CHARACTERS], number(mine), number(base)) for token, mine, base in rows]
        self.tokens = [
            (token, mine, base, mine - base)
            for token, mine, base in read
            if mine is not None and base is not None
        ]
        window = found.get("window_id")
        final = block(block(report, "evaluation_windows"), "final")
        places = dict(columns(final, ("window_ids", "clusters")))
        self.place = str(places.get(window, "-"))  # with the name of its slice, where there are any
        self.before = number(found.get("before")) or 0

    def passage(self) -> Passage:
        """The text with its marks."""
        change = sum(c for *_, c in self.tokens) / len(self.tokens)
        start = f", after {self.before:g} others" if self.before else ""
        caption = (
            f"Document {self.place}: {len(self.tokens)} tokens{start}, {change:+.3f} nats a token"
        )
        return passage(caption, [t for t, *_ in self.tokens], [c for *_, c in self.tokens])

    def table(self) -> Table:
        """The tokens that lost most, in numbers."""
        ordered = sorted(enumerate(self.tokens), key=lambda one: (-one[1][3], one[0]))
        rows = tuple(
            (
                quoted(token),
                self._ahead(row),
                f"{fixed(base, 2)} to {fixed(mine, 2)}",
                f"{change:+.2f}",
            )
            for row, (token, mine, base, change) in ordered[:LISTED]
        )
        caption = f"Tokens whose loss grew most, document {self.place}, nats"
        header = ("Token", "After", "Loss", "Change")
        return Table(caption, header, rows, narrow=True)

    def _ahead(self, row: int) -> str:
        """The end of the text before a token."""
        text = "".join(token for token, *_ in self.tokens[max(0, row - AHEAD) : row])
        return quoted(text[-AHEAD:]) if text else "-"


def _plots(report: Report) -> Iterator[Plot]:
    metric = block(report, "primary_metric")
    slices = [
        figures.SliceResult(
            str(part.get("name")),
            number(part.get("ratio_vs_baseline")),
            pair(part.get("display_ci")),
        )
        for part in objects(metric.get("slices"))
    ]
    noun = metric_named(metric.get("kind")).noun
    plot = figures.slices_plot(slices, number(metric.get("limit")), noun)
    if plot is not None:
        yield plot
    for guard in GUARDS:
        yield from guard.where(report)
