"""What the invariants guard decides from its findings (no checkpoint needed)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.counts import counted
from invarlock.documents.fields import Closed, Judged, about
from invarlock.guards.detector import NOT_EVALUATED, Detector, Reader, Reading
from invarlock.guards.findings import Failure, nothing_edited
from invarlock.guards.guard import Block, Guard, Runs, Statistic, statistic, warning
from invarlock.pages.parts import Advice, Check, Section, Table, not_evaluated, status_of
from invarlock.pages.reading import Report, block, evaluated
from invarlock.policy import Policy
from invarlock.severity import NOTHING_EDITED, worst_first


def judge(failures: Sequence[Failure], accepted: Collection[str] = ()) -> dict[str, Any]:
    """The decided part of the report's ``invariants`` block.

    A fatal finding blocks, unless it has a name to accept it by and that is among ``accepted``.
    The worst is listed first.
    """
    fatal = [f for f in failures if f["severity"] == "fatal"]
    through = [f for f in fatal if f.get("accept") in accepted]
    blocking = len(fatal) - len(through)
    summary = {
        "violations_found": len(failures),
        "fatal_violations": blocking,
        "warning_violations": len(failures) - len(fatal),
    }
    block: dict[str, Any] = {
        "evaluated": True,
        "passed": not blocking,
        "decision": "block" if blocking else "monitor" if failures else "allow",
        "status": "fail" if blocking else "warn" if failures else "ok",
        "failures": worst_first(failures, accepted),
        "summary": summary,
    }
    if through:
        block["accepted"] = sorted({f["accept"] for f in through})
        summary["accepted_violations"] = len(through)
    return block


class InvariantsBlock(Judged):
    """Structure of the checkpoint."""

    failures: Annotated[
        list[Any] | UnsetType,
        about(
            "findings: type, severity, message and, where a user may accept it, the name to do so"
        ),
    ] = UNSET
    accepted: Annotated[
        list[str] | UnsetType,
        about("names by which the user accepted fatal findings; absent: none"),
    ] = UNSET
    summary: Annotated[dict[str, Any] | UnsetType, about("counts")] = UNSET


class StatusForm(Closed, tag_field="kind", tag="invariants_status"):
    """True when the invariants status is listed."""

    allowed: Annotated[
        list[Literal["ok", "warn", "fail", "error"]],
        Meta(min_length=1),
        about("statuses that count as a hit"),
    ]


class Invariants(Guard):
    """What the files of a subject and its loaded model must not have changed."""

    name = "invariants"
    title = "Invariants"
    advice = Advice(
        "A file or tensor is not what it has to be",
        "Mend what the finding names and make the subject again. A difference that is meant and"
        " has a name can be accepted by it: --accept NAME.",
    )
    block = InvariantsBlock
    detector_forms = (StatusForm,)
    flag_texts: ClassVar[Mapping[str, str]] = {"invariants_pass": "no invariant is broken"}
    flag = "invariants_pass"
    fails_as = "invariants_fail"
    of_files = True
    core = True
    needs_both = True
    whole = False  # the report joins the findings of both looks
    believed = ("/invariants/failures", "/context/execution_log/*/digest")
    believed_as = (
        "findings of the invariants, from files that are not here; digests of what guards ran"
    )

    def measured(self, runs: Runs) -> bool:
        """A subject that was not run was looked at all the same."""
        return runs.invariants_evaluated

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The findings of both looks; that nothing was edited is decided anew from digests."""
        looks = [guard for guard in runs.subject["guards"] if guard["name"] == self.name]
        found = [f for look in looks for f in look["failures"] if f["type"] != NOTHING_EDITED]
        label = str(runs.subject["edit"]["name"])
        before, after = runs.baseline["checkpoint"], runs.subject["checkpoint"]
        return judge([*found, *nothing_edited(label, before, after)], runs.accepted)

    def stated_limits(self, policy: Policy, contract: Mapping[str, Any] | None = None) -> Block:
        """It has none."""
        return {}

    def warnings(self, block: Mapping[str, Any]) -> Iterator[Block]:
        """Findings that do not refuse the subject, by themselves or because they were accepted."""
        accepted = block.get("accepted", [])
        for failure in block.get("failures", []):
            if failure["severity"] == "warning":
                yield warning(self.name, failure["type"], failure["message"])
            elif failure.get("accept") in accepted:
                text = f"{failure['message']}; accepted by name: {failure['accept']}"
                yield warning(self.name, failure["type"], text)

    def subject_records(self, report: Report) -> Iterator[Block]:
        """All findings with the first look, whichever found them."""
        yield {"failures": list(report[self.name].get("failures", []))}
        while True:
            yield {"failures": []}

    def fired(self, report: Report) -> dict[str, bool]:
        """Failures and warnings, apart and together."""
        status = status_in(report)
        failed = status in ("fail", "error") or super().fired(report)[self.name]
        warned = status == "warn"
        return {
            self.name: failed or warned,
            f"{self.name}_fail": failed,
            f"{self.name}_warn": warned,
        }

    def detectors(self) -> Mapping[str, Reader]:
        """Its status."""
        return {"invariants_status": _status}

    def statistic(self, block: Mapping[str, Any]) -> Statistic | None:
        """How many findings, against none."""
        summary = block.get("summary")
        found = summary.get("violations_found") if isinstance(summary, Mapping) else None
        return statistic("violations_found", found, 0)

    def check(self, report: Report) -> Check:
        """What the checkpoint and the loaded model must not have changed."""
        failures = findings(report)
        fatal = sum(f.get("severity") == "fatal" for f in failures)
        through = accepted_names(report)
        allowed = sum(f.get("severity") == "fatal" and f.get("accept") in through for f in failures)
        measured = "-"
        if evaluated(report, self.name):
            accepted = f"{allowed} accepted by name, " if allowed else ""
            measured = (
                f"{fatal - allowed} fatal, {accepted}{counted(len(failures) - fatal, 'warning')}"
            )
        return Check(
            name=self.title,
            status=status_of(report, self.flag, self.name),
            measured=measured,
            threshold="no fatal finding",
            note=str(failures[0].get("message", "")) if failures else "",
            flag=self.flag,
        )

    def section(self, report: Report) -> Section:
        """The findings on the checkpoint and the loaded model."""
        section = block(report, self.name)
        failures = findings(report)
        if failures:
            keys = ("type", "severity", "message", "accept")
            rows = tuple(tuple(str(f.get(key, "-")) for key in keys) for f in failures)
            table = Table("Findings", ("Finding", "Severity", "What", "Accepted by the name"), rows)
            notes = tuple(_sentence(note) for note in acceptance_notes(report))
            return Section(self.name, self.title, notes=notes, tables=(table,))
        if not section.get("evaluated"):
            return not_evaluated(report, self.name, self.title)
        agree = "Names, shapes, types, configuration, tokenizer, tying and finiteness agree."
        return Section(self.name, self.title, notes=(agree,))


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def findings(report: Report) -> list[Mapping[str, Any]]:
    """The findings of the invariants, the worst first: the first is the reason of a rejection."""
    listed = block(report, Invariants.name).get("failures")
    failures = listed if isinstance(listed, list) else []
    return worst_first([failure for failure in failures if isinstance(failure, Mapping)])


def status_in(report: Report) -> str | None:
    """``ok``, ``warn``, ``fail`` or ``error``; None when the guard did not run."""
    status = block(report, Invariants.name).get("status")
    return status if isinstance(status, str) and evaluated(report, Invariants.name) else None


def _status(detector: Detector, report: Report, _: Report | None) -> Reading:
    status = status_in(report)
    label = "invariants_status=" + "|".join(detector["allowed"])
    return Reading(label, status in detector["allowed"], "" if status else NOT_EVALUATED)


def accepted_names(report: Report) -> list[str]:
    """Names by which the user accepted findings that would have refused the subject, of whichever
    guard, sorted."""
    found = [block(report, name).get("accepted") for name in report]
    return sorted({str(name) for names in found if isinstance(names, list) for name in names})


def acceptance_notes(report: Report) -> list[str]:
    """What the user accepted by name, and what was named and not found."""
    through, asked = accepted_names(report), block(report, "context").get("accept")
    unused = sorted({*map(str, asked if isinstance(asked, list) else [])} - {*through})
    notes = [f"accepted by name: {', '.join(through)}"] if through else []
    return [*notes, f"accept names what was not found: {', '.join(unused)}"] if unused else notes


def blocking(report: Report) -> list[Mapping[str, Any]]:
    """The findings of the invariants guard that refuse the subject: fatal, and not accepted."""
    failures, through = block(report, Invariants.name).get("failures"), accepted_names(report)
    return [
        item
        for item in (failures if isinstance(failures, list) else [])
        if isinstance(item, Mapping)
        and item.get("severity") == "fatal"
        and item.get("accept") not in through
    ]


def unedited(report: Report) -> bool:
    """Whether the only thing that refuses the subject is that nothing was edited."""
    return {item.get("type") for item in blocking(report)} == {NOTHING_EDITED}
