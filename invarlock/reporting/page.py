"""The parts of a rendered report; cells are text, the templates escape them for their format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from invarlock.reporting.plots import Plot
from invarlock.reporting.signals import NOT_RUN, Report, block

LISTED = 10  # rows of a list of the worst; the JSON holds all


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row names it. ``status`` is the column of a status word."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    status: int | None = None


@dataclass(frozen=True)
class Section:
    """A titled part; empty parts are left out of the page."""

    id: str
    title: str
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Outline:
    """The whole page."""

    title: str
    verdict: str
    headline: str
    digest: str
    dashboard: Table
    sections: tuple[Section, ...]


def reason(report: Report, name: str) -> str:
    """Why a block was not evaluated."""
    found = str(block(report, name).get("reason") or "not part of this report")
    return f"the subject was not run ({found.replace('_', ' ')})" if found in NOT_RUN else found


def not_evaluated(report: Report, name: str, title: str) -> Section:
    """The section of a block that holds no measurement."""
    return Section(
        name.replace("_", "-"), title, notes=(f"Not evaluated: {reason(report, name)}.",)
    )


def objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list of a report."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []
