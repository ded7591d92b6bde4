"""Whether a verdict that cannot be recomputed speaks of the reports that lie beside it.

It can be recomputed only with the scenarios and outcomes of its run. Without them it is believed;
but every report of the pack has to be one that it speaks of: the same model, scenario, subject,
numbers and flags, each once. Evaluations of which the pack holds no report are absent evidence.
Verdicts of published versions name model and scenario in their own way, and no digests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import asdict

from invarlock.errors import InputError
from invarlock.evidence import escape
from invarlock.evidence.findings import dig
from invarlock.evidence.layout import ReportPlace, places
from invarlock.evidence.tree import MAX_REPORTS, Tree
from invarlock.files import digest_json
from invarlock.shown import listed
from invarlock.verdict import MEASURED, VERDICT_SCHEMA

SHOWN = 3  # evaluations that are named
# A digest of a record, and where a report holds the same.
DIGESTS = {
    "baseline_sha256": "baseline_ref/checkpoint_sha256",
    "subject_sha256": "meta/checkpoint_sha256",
}
Document = Mapping[str, Any]


class Spoken(NamedTuple):
    """What a verdict says that the reports contradict, and what it says that no report shows."""

    wrong: list[str]
    absent: list[str]


class _Beside(NamedTuple):
    """A report of the pack."""

    place: ReportPlace
    report: Document

    @property
    def models(self) -> list[str]:
        """Every name that it has for its model."""
        named = (dig(self.report, "meta", "model_id"), dig(self.report, "baseline_ref", "model_id"))
        found = [name for name in named if isinstance(name, str) and name]
        return found if self.place.scenario is None else [*found, self.place.folder.split("/")[1]]

    @property
    def scenario(self) -> str | None:
        """What was done to it, where it says so."""
        named = dig(self.report, "edit", "scenario")
        return named if isinstance(named, str) else self.place.scenario


def check(tree: Tree, verdict: Document) -> Spoken:
    """Compare a believed verdict with the reports of its pack."""
    records = verdict.get("records")
    reports = _reports(tree)
    if not isinstance(records, list) or not all(isinstance(r, Mapping) for r in records):
        stated = dig(verdict, "counts", "records_total")
        return _counted(stated, len(reports)) if type(stated) is int else Spoken([], [])
    if len(records) > MAX_REPORTS:
        return Spoken([f"speaks of {len(records)} evaluations; a pack has up to {MAX_REPORTS}"], [])
    wrong = list(_contradictions(verdict, records))
    about = _own if verdict.get("schema") == VERDICT_SCHEMA else _published
    strangers, left = about(reports, records)
    wrong += strangers[:SHOWN]
    if len(strangers) > SHOWN:
        wrong.append(f"does not speak of {len(strangers) - SHOWN} more reports either")
    missing = [r for r in left if r.get("status", MEASURED[0]) in MEASURED]
    if not missing or wrong:
        return Spoken(wrong, [])
    names = listed([_name(record) for record in missing], SHOWN)
    line = f"speaks of {len(records)} evaluations; {len(missing)} have no report here: {names}"
    return Spoken([], [line])


def _reports(tree: Tree) -> list[_Beside]:
    found = []
    for place in places(tree):
        try:
            found.append(_Beside(place, tree.outline(place.report)))
        except InputError:
            continue  # the step of the reports says so
    return found


def _counted(stated: int, found: int) -> Spoken:
    line = f"counts {stated} evaluations; the pack holds {found} reports"
    return Spoken([line] if stated < found else [], [line] if stated > found else [])


def _contradictions(verdict: Document, records: Sequence[Document]) -> Iterator[str]:
    """Where the verdict departs from its own records."""
    stated = dig(verdict, "counts", "records_total")
    if type(stated) is int and stated != len(records):
        yield f"/counts/records_total is {stated}; there are {len(records)} records"
    if verdict.get("verdict") != "PASS":
        return
    failed = verdict.get("failed_requirements")
    if isinstance(failed, list) and failed:
        yield f"says PASS, and that {escape(failed[0])[:80]} failed"
    bad = next((r for r in records if r.get("as_expected") is False), None)
    if bad is not None:
        yield f"says PASS, and that {_name(bad)} is not as expected"


Matched = tuple[list[str], list[Document]]  # lines about reports, and the records that are left


def _own(reports: Sequence[_Beside], records: Sequence[Document]) -> Matched:
    """Findings where a record of our own format departs from its report or its outcome."""
    left: dict[str, list[Document]] = {}
    for record in records:
        left.setdefault(_key(record), []).append(record)
    strangers = []
    for beside in reports:
        said = _said(beside)
        keys = [_key({**said, **dict.fromkeys(unstated)}) for unstated in ((), tuple(DIGESTS))]
        found = next((key for key in keys if left.get(key)), None)
        if found is None:
            near = next((r for r in records if r.get("name") == said["name"]), {})
            strangers.append(_stranger(beside, said, near))
        else:
            left[found].pop(0)
    return strangers, [record for rest in left.values() for record in rest]


def _said(beside: _Beside) -> Document:
    """What the record of a report has to say."""
    from invarlock.reporting import signals
    from invarlock.verdict.records import stated_by

    report = beside.report
    digests = {name: dig(report, *pointer.split("/")) for name, pointer in DIGESTS.items()}
    found = asdict(stated_by(report)) | digests | {"reasons": signals.pass_reasons(report)}
    return {"model": next(iter(beside.models), None), "name": beside.scenario, **found}


def _key(record: Document) -> str:
    from invarlock.reporting.documents.final_verdict import Stated
    from invarlock.verdict.records import NOT_EXACT

    # what a record of ours repeats of its report
    recorded = ("model", "name", "reasons", *Stated.__struct_fields__, *DIGESTS)
    members = {name: record.get(name) for name in recorded}
    reasons = record.get("reasons")
    if isinstance(reasons, list):
        members["reasons"] = [reason for reason in reasons if reason != NOT_EXACT]
    return digest_json(members)


def _published(reports: Sequence[_Beside], records: Sequence[Document]) -> Matched:
    """The records about a report: of the same model and, where the report names one, scenario."""
    left = [(_plain(record.get("model")), record) for record in records]
    strangers = []
    for beside in reports:
        models, name = [*map(_plain, beside.models)], beside.scenario
        about = (
            index
            for index, (model, record) in enumerate(left)
            if (name is None or record.get("name") == name)
            and any(model in own or own in model for own in models)
        )
        found = next(about, None)
        if found is None:
            said = {"model": next(iter(beside.models), None), "name": name}
            near = next((r for r in records if name in (None, r.get("name"))), {})
            strangers.append(_stranger(beside, said, near))
        else:
            del left[found]
    return strangers, [record for _, record in left]


def _stranger(beside: _Beside, said: Document, near: Document) -> str:
    """The line about a report that the verdict does not speak of, with the nearest record."""
    differ = next((n for n, v in said.items() if digest_json(v) != digest_json(near.get(n))), None)
    line = f"does not speak of {escape(beside.place.report)}"
    if not near or differ is None:
        return line
    return f"{line}: its {differ} is {_short(said[differ])}, there {_short(near.get(differ))}"


def _short(value: object) -> str:
    return escape(value)[:80]


def _name(record: Document) -> str:
    words = (record.get("model"), record.get("name"), f"run_{record.get('run_num')}")
    return " ".join(escape(word)[:60] for word in words)


def _plain(name: object) -> str:
    """A name without case and punctuation: published records shorten the id of their model."""
    return "".join(c for c in str(name).casefold() if c.isalnum())
