"""The parts of a rendered report; cells are text, the templates escape them for their format."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from invarlock.pages.passages import Passage
from invarlock.pages.plots import Plot
from invarlock.pages.reading import NOT_RUN, Report, block, evaluated

LISTED = 10  # rows of a list of the worst; the JSON holds all
PASS, FAIL, INCONCLUSIVE, WARNING = "pass", "fail", "inconclusive", "warning"
REPORTED = "reported"  # measured, and held against nothing
NOT_EVALUATED, NOT_MEASURED = "not evaluated", "not measured"


class Table(Struct, frozen=True):
    """Rows of text; the first cell of a row names it.

    ``status`` is the column of a status word. On a phone the rows of a ``stacked`` table, and of
    one with a status, become blocks; a ``narrow`` one has short cells, so that it fits; any other
    scrolls in its own box.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    status: int | None = None
    stacked: bool = False
    narrow: bool = False


class Check(Struct, frozen=True):
    """One row: what was measured, what it is held against, how far it is from that."""

    name: str
    status: str
    measured: str
    threshold: str
    note: str
    flag: str = ""  # the validation flag that carries the result


class Advice(NamedTuple):
    """A kind of finding in words, and the next step of whoever made the subject."""

    finding: str
    step: str


LESS = "leave it out of the edit, or edit it less (more bits, smaller groups, lower sparsity)"


class Section(Struct, frozen=True):
    """A titled part; empty parts are left out of the page."""

    id: str
    title: str
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    passages: tuple[Passage, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    part: str = ""  # of the page that it belongs to, by its title


class Outline(Struct, frozen=True):
    """The whole page."""

    title: str
    verdict: str
    headline: str
    digest: str
    judged: str  # weights and what ran them, in a line; empty where they are dense
    dashboard: Table
    sections: tuple[Section, ...]
    folded: tuple[str, ...] = ()  # ids of sections whose tables a reader opens where he wants to


def reason(report: Report, name: str) -> str:
    """Why a block was not evaluated."""
    found = str(block(report, name).get("reason") or "not part of this report")
    return f"the subject was not run ({found.replace('_', ' ')})" if found in NOT_RUN else found


def not_evaluated(report: Report, name: str, title: str) -> Section:
    """The section of a block that holds no measurement."""
    return Section(
        name.replace("_", "-"), title, notes=(f"Not evaluated: {reason(report, name)}.",)
    )


def status_of(report: Report, flag: str, evidence: str) -> str:
    """The result of a flag; what has no evidence neither passes nor fails."""
    if not evaluated(report, evidence):
        return missing(report)
    return PASS if block(report, "validation").get(flag) is True else FAIL


def missing(report: Report) -> str:
    """The result of a check without evidence: because the subject was not run, or otherwise."""
    ran = block(report, "primary_metric").get("degraded_reason") not in NOT_RUN
    return NOT_EVALUATED if ran else NOT_MEASURED


def unmeasured(report: Report, name: str, title: str, flag: str = "") -> Check:
    """The row of a block that holds no measurement."""
    note = f"{reason(report, name)}; counts neither as passed nor as failed"
    return Check(title, missing(report), "-", "-", note, flag)
