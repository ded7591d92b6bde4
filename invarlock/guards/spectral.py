"""Spectral guard: did the largest singular value or the rank of an operator change?

Judged are products of weights that every parametrization of the same function shares
(``invarlock.guards.operators``); the statistics of the matrices themselves are description.
Of an operator's sigma that of the largest member counts, or the geometric mean over the members,
whichever moved further; caps follow from it (``invarlock.guards.caps``). An operator with a member
that became zero or of rank one blocks at once, and so does one whose stable rank or weakest member
fell below its fatal ratio to the baseline, and a row of an embedding, head or position table that
changed far beyond the others (``invarlock.guards.rows``). A matrix that belongs to no known
operator is judged by its rank alone. Reports that hold no operators are judged by the rule of their
time (``invarlock.guards.matrices``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, UnsetType

from invarlock.counts import counted
from invarlock.documents.fields import Closed, Count, Measured, NotNegative, Positive, about
from invarlock.guards import matrices, operators, rows, weight_stats
from invarlock.guards.caps import (
    CAPPED,
    Change,
    collapsed,
    decide,
    family_caps,
    fell,
    log_ratio,
)
from invarlock.guards.detector import NO_NOOP, NOT_EVALUATED, Detector, Reader, Reading
from invarlock.guards.guard import (
    Block,
    CheckpointRun,
    Guard,
    Probe,
    Run,
    Runs,
    Statistic,
    place,
    warning,
    worst_family,
)
from invarlock.guards.operators import (
    MATRIX,
    Known,
    Module,
    Operator,
    OperatorStats,
    Weights,
    measure_weights,
)
from invarlock.guards.weight_stats import WeightStats, rounded_column
from invarlock.pages.changes import largest_changes, module_changes, module_plot
from invarlock.pages.parts import (
    FAIL,
    LESS,
    LISTED,
    Advice,
    Check,
    Section,
    Table,
    not_evaluated,
    status_of,
    unmeasured,
)
from invarlock.pages.reading import BASELINE, Report, block, evaluated, objects, refused
from invarlock.pages.wording import fixed, number, percent
from invarlock.policy import Policy, SpectralPolicy
from invarlock.severity import worst_first

CONTRACT = {**weight_stats.CONTRACT, "operators": operators.CONTRACT, "rows": rows.CONTRACT}
HEAD = ("name", "family", "layer")  # columns that say which module a row is of
OPERATOR_HEAD = (*HEAD, "kind")
TEXTS = ("name", "family", "kind")
# Both tables of a report: columns that name, and statistics, which a baseline's have a prefix of.
# Reports from before there were operators hold the first alone.
TABLES = {
    "modules": (HEAD, WeightStats.fields()),
    "operators": (OPERATOR_HEAD, OperatorStats.fields()),
}
# Rank one: all singular values but the largest, squared, are together less than this share of its
# square, that is 3 % of its length: rounding to bf16 leaves 1e-6 of a matrix, to 8 bits 1e-4.
RANK_ONE = 1e-3
RANK_MORE = 10 * RANK_ONE  # the baseline's share has to be above it, to have had more than one


def to_table(modules: Sequence[Module]) -> dict[str, list[Any]]:
    """Modules as columns: compact, sorted by name, numbers as they are recorded."""
    ordered = sorted(modules, key=lambda m: m.name)
    table: dict[str, list[Any]] = {
        "name": [m.name for m in ordered],
        "family": [m.family for m in ordered],
        "layer": [m.layer for m in ordered],
    }
    for field in WeightStats.fields():
        table[field] = rounded_column([getattr(m.stats, field) for m in ordered])
    return table


def table_again(
    table: Mapping[str, Sequence[Any]], head: Sequence[str], fields: Sequence[str]
) -> dict[str, list[Any]]:
    """A table as its rows are recorded, read from it: ``to_table(from_table(table))``."""
    read = [map(str, table[key]) if key in TEXTS else table[key] for key in head]
    ordered = sorted(
        zip(*read, *(map(float, table[key]) for key in fields), strict=True), key=itemgetter(0)
    )
    columns = zip(*ordered, strict=True) if ordered else iter([()] * (len(head) + len(fields)))
    again: dict[str, list[Any]] = {key: list(next(columns)) for key in head}
    numbers = rounded_column(list(itertools.chain.from_iterable(columns)))
    rows = len(ordered)
    return again | {key: numbers[i * rows : (i + 1) * rows] for i, key in enumerate(fields)}


def from_table(table: Mapping[str, Sequence[Any]]) -> list[Module]:
    """The inverse of :func:`to_table`."""
    columns = (map(float, table[field]) for field in WeightStats.fields())
    stats = map(WeightStats._make, zip(*columns, strict=True))
    head = (table[key] for key in ("name", "family", "layer"))
    return [
        Module(str(name), str(family), layer, one)
        for name, family, layer, one in zip(*head, stats, strict=True)
    ]


def operators_to_table(products: Sequence[Operator]) -> dict[str, list[Any]]:
    """Operators as columns, sorted by name."""
    ordered = sorted(products, key=lambda o: o.name)
    table: dict[str, list[Any]] = {key: [getattr(o, key) for o in ordered] for key in OPERATOR_HEAD}
    for field in OperatorStats.fields():
        table[field] = rounded_column([getattr(o.stats, field) for o in ordered])
    return table


def operators_from_table(table: Mapping[str, Sequence[Any]]) -> list[Operator]:
    """The inverse of :func:`operators_to_table`."""
    columns = (map(float, table[field]) for field in OperatorStats.fields())
    stats = map(OperatorStats._make, zip(*columns, strict=True))
    head = (table[key] for key in OPERATOR_HEAD)
    return [
        Operator(str(name), str(family), layer, str(kind), one)
        for name, family, layer, kind, one in zip(*head, stats, strict=True)
    ]


def judge(
    baseline: Sequence[Operator],
    subject: Sequence[Operator],
    policy: SpectralPolicy,
    row_tables: Sequence[rows.RowTable] = (),
    modules_checked: int = 0,
    accepted: Collection[str] = (),
) -> dict[str, Any]:
    """Compare the operators of two runs, both lists of the same names, and the rows of tables.

    Returns:
        the decided part of the report's ``spectral`` block.
    """
    reference = {operator.name: operator for operator in baseline}
    pairs = [(reference[one.name], one) for one in sorted(subject, key=lambda o: o.name)]
    changes = [
        Change(s.name, s.family, change(b.stats, s.stats), s.stats.sigma_max, b.stats.sigma_max)
        for b, s in pairs
        if s.kind != MATRIX
    ]
    found = [finding for b, s in pairs for finding in _degeneracy(b, s, policy)]
    counts = {"modules_checked": modules_checked, "operators_checked": len(changes)}
    return decide(changes, found, policy, row_tables, counts, accepted)


def change(baseline: OperatorStats, subject: OperatorStats) -> float:
    """ln of subject over baseline: of the largest sigma, or of the members' mean if that moved
    further."""
    return max(
        log_ratio(subject.sigma_max, baseline.sigma_max),
        log_ratio(subject.sigma_mean, baseline.sigma_mean),
        key=abs,
    )


def _degeneracy(b: Operator, s: Operator, policy: SpectralPolicy) -> list[dict[str, Any]]:
    """Rank and weakest member of one operator against the baseline's, warn or fatal."""
    before, now = b.stats.stable_rank - 1, s.stats.stable_rank - 1
    zero = s.stats.sigma_max == 0 < b.stats.sigma_max
    if zero or (before > RANK_MORE and now < RANK_ONE):
        least = RANK_ONE / max(before, RANK_MORE)  # a baseline of rank one can still become zero
        left = 0.0 if zero else max(now, 0.0) / before
        return [collapsed(s.name, s.family, "rank", left, least, "fatal")]
    if s.kind == MATRIX:  # its other numbers belong to the parametrization
        return []
    fields = ("stable_rank", "sigma_min")
    values = [(field, getattr(b.stats, field), getattr(s.stats, field)) for field in fields]
    return fell(s.name, s.family, values, policy)


# --- a run -------------------------------------------------------------------------------------


class WeightProbe(Probe):
    """Statistics of the weights as they were stored, and rows held against the baseline's."""

    def __init__(self) -> None:
        self.weights = Weights([], [])
        self.row_tables: list[rows.RowTable] | None = None  # of a baseline: nothing to compare

    def weigh(self, run: CheckpointRun) -> None:
        """Read the files; not the loaded model, whose dtype and names are others."""
        known = None
        if run.baseline_checkpoint is not None and run.baseline_weights is not None:
            known = Known(run.baseline_checkpoint, run.baseline_weights)
        self.weights = measure_weights(run.checkpoint, run.device, known)
        if run.baseline_checkpoint is not None:
            from invarlock.guards.row_changes import measure_rows

            self.row_tables = measure_rows(run.baseline_checkpoint, run.checkpoint, run.device)
            # a head that the baseline has not is judged as operator and by its rows
            held = run.baseline_checkpoint.tensors
            own = [m for m in self.weights.modules if m.name.partition("[")[0] in held]
            self.weights = self.weights._replace(modules=own)

    def record(self, run: CheckpointRun) -> Block:
        """Modules and operators as columns, and the rows."""
        tables = self.row_tables
        return {
            "modules": to_table(self.weights.modules),
            "operators": operators_to_table(self.weights.operators),
            **({} if tables is None else {"row_tables": rows.to_json(tables)}),
        }


def weights_of(run: Run) -> Weights | None:
    """The statistics that a run recorded; None where the probe did not run."""
    found = Spectral().recorded(run)
    if not found:
        return None
    return Weights(from_table(found["modules"]), operators_from_table(found["operators"]))


# --- a report ----------------------------------------------------------------------------------


class ListedRow(Closed):
    """One row."""

    row: Annotated[Count, about("number of the row: the token's id")]
    token: Annotated[str | None, about("the token's text, printable ASCII")]
    change: Annotated[NotNegative, about("relative change")]
    nearest: Annotated[Count, about("the other row of the baseline that it is closest to")]
    nearest_token: Annotated[str | None, about("that row's token")]
    nearest_change: Annotated[NotNegative, about("distance from that row, in the unit of change")]
    special: Annotated[
        Literal[True] | UnsetType,
        about("the token is a special one of the baseline's tokenizer; absent: it is none"),
    ] = UNSET


class RowTable(Closed):
    """How far the rows of one table moved."""

    name: Annotated[str, about("tensor of the baseline")]
    family: Annotated[str, about("family of the guards")]
    kind: Annotated[Literal["token", "other"], about("what a row stands for")]
    rows: Annotated[Count, about("rows compared")]
    baseline_only: Annotated[Count, about("rows that the subject lacks")]
    subject_only: Annotated[Count, about("rows that the baseline lacks; judged by nothing")]
    transform: Annotated[
        Literal["shift", "rotation"],
        about("what all rows have in common and was taken away"),
    ]
    typical: Annotated[
        NotNegative,
        about("median change of a row, relative to its distance from the mean row"),
    ]
    above: Annotated[
        list[Count],
        Meta(max_length=40),
        about("rows that changed by more than 0.05, 0.10, ...; zeros at the end left out"),
    ]
    listed: Annotated[
        list[ListedRow],
        Meta(max_length=32),
        about("rows of the largest change, and rows closer to another row than to their own"),
    ]


class SpectralBlock(Measured):
    """Spectrum of the weights."""

    caps_applied: Annotated[Count | UnsetType, about("modules over their cap")] = UNSET
    max_caps: Annotated[Count | UnsetType, about("allowed number of caps")] = UNSET
    modules: Annotated[
        Any | UnsetType,
        about("per-module statistics of both runs as a compact table; description"),
    ] = UNSET
    operators: Annotated[
        Any | UnsetType,
        about(
            "products of weights that every parametrization of the function shares, statistics "
            "of both runs as a compact table: these are judged"
        ),
    ] = UNSET
    row_tables: Annotated[
        list[RowTable] | UnsetType,
        about(
            "how far the rows of embedding, head and position tables moved: counts by "
            "change, and the rows of the largest"
        ),
    ] = UNSET
    row_changes: Annotated[
        list[Any] | UnsetType,
        about("per table of row_tables: limit, and the rows that changed beyond it or moved"),
    ] = UNSET
    fatal_violations: Annotated[
        Count | UnsetType,
        about("matrices that collapsed, and tables with rows that changed far beyond the others"),
    ] = UNSET
    violations: Annotated[
        list[Any] | UnsetType,
        about("capped and degenerate modules, and tables with rows far beyond the others"),
    ] = UNSET
    accepted: Annotated[
        list[str] | UnsetType,
        about("names by which the user accepted fatal findings; absent: none"),
    ] = UNSET
    family_caps: Annotated[
        dict[str, Any] | UnsetType,
        about("per family: kappa, and tau in |ln(sigma_s / sigma_b)|"),
    ] = UNSET
    family_z_summary: Annotated[
        dict[str, Any] | UnsetType,
        about("largest and mean |z| per family"),
    ] = UNSET
    multiple_testing: Annotated[
        dict[str, Any] | UnsetType,
        about("method, level and number of tests"),
    ] = UNSET
    deadband: Annotated[
        float | UnsetType,
        about("relative change of sigma_max that counts as none"),
    ] = UNSET
    summary: Annotated[
        dict[str, Any] | UnsetType,
        about("number of modules and largest changes"),
    ] = UNSET


class CapsForm(Closed, tag_field="kind", tag="spectral_caps_applied"):
    """True when at least this many modules were capped."""

    min: Annotated[Positive, about("caps")]


class CapsSinceForm(Closed, tag_field="kind", tag="spectral_caps_baseline_relative"):
    """True when the subject's caps exceed those of the no-op."""

    min_new_modules: Annotated[
        Count,
        about("at least this many capped modules that the no-op did not cap"),
    ]
    min_delta_count: Annotated[Count, about("at least this many more caps than the no-op")]


class Spectral(Guard):
    """Largest singular values and ranks of the weights, and rows of tables."""

    name = "spectral"
    title = "Spectral (weights)"
    advice = Advice(
        "A weight matrix has another scale, rank or other rows",
        f"Begin with the matrix that is named: {LESS}. Where rows are named, look at the embedding"
        " of these tokens.",
    )
    block = SpectralBlock
    detector_forms = (
        CapsForm,
        CapsSinceForm,
    )
    flag_texts: ClassVar[Mapping[str, str]] = {
        "spectral_stable": "spectral caps are within their limit"
    }
    flag = "spectral_stable"
    fails_as = "spectral_fail"
    core = True
    policy_key = "spectral"
    contract = CONTRACT
    earlier_contracts = (matrices.CONTRACT,)
    phase = "weights"
    needs_both = True  # rows are compared one by one, which no statistic of one run can replace
    believed = ("/spectral/modules", "/spectral/operators")

    def probe(self) -> Probe:
        """A fresh probe for one run."""
        return WeightProbe()

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The weights of both runs, and the subject's rows."""
        recorded = self.recorded(runs.subject)
        tables = rows.from_json(recorded["row_tables"])
        if self._of_matrices(runs):
            before, mine = (self._modules(run) for run in (runs.baseline, runs.subject))
            return matrices.judge(before, mine, policy.spectral, tables, runs.accepted)
        return judge(
            self._operators(runs.baseline), self._operators(runs.subject), policy.spectral,
            tables, len(recorded["modules"]["name"]), runs.accepted,
        )  # fmt: skip

    def _of_matrices(self, runs: Runs) -> bool:
        """Whether the runs are those of a report from before there were operators."""
        return runs.contracts.get(self.name) == matrices.CONTRACT

    def _operators(self, run: Run) -> list[Operator]:
        recorded = self.recorded(run)
        return operators_from_table(recorded["operators"]) if recorded else []

    def _modules(self, run: Run) -> list[Module]:
        recorded = self.recorded(run)
        return from_table(recorded["modules"]) if recorded else []

    def stated_limits(self, policy: Policy, contract: Mapping[str, Any] | None = None) -> Block:
        """The limits, with kappa and tau of every family."""
        stated = super().stated_limits(policy, contract)
        return {**stated, "family_caps": family_caps(policy.spectral)}

    def statistics(self, runs: Runs) -> Block:
        """The numbers of both runs side by side, for equal sets of weights, and the rows."""
        before, mine = self.recorded(runs.baseline), self.recorded(runs.subject)
        wanted = ("modules",) if self._of_matrices(runs) else ("operators", "modules")
        found: Block = {}
        for name in wanted:
            head, fields = TABLES[name]
            base = table_again(before[name], head, fields)
            numbers = {BASELINE + field: base[field] for field in fields}
            found[name] = table_again(mine[name], head, fields) | numbers
        return found | {"row_tables": mine["row_tables"]}

    def warnings(self, block: Mapping[str, Any]) -> Iterator[Block]:
        """A warning for each cap, each collapsed matrix and each table with changed rows."""
        through = block.get("accepted", [])
        for item in block.get("violations", []):
            kind = "new_capped_module" if item["type"] == CAPPED else item["type"]
            if item.get("accept") in through:
                yield warning(self.name, kind, rows.sentence(item, through=through))
                continue
            named = item["type"] in rows.ROW_FINDINGS
            if item["severity"] != "fatal" or named:
                text = rows.sentence(item) if named else f"{item['module']}: {kind}"
                yield warning(self.name, kind, text) | place(item, block, text)

    def subject_records(self, report: Report) -> Iterator[Block]:
        """The subject's numbers, whose columns have no prefix, and its rows."""
        recorded = report[self.name]
        yield {
            table: {key: recorded[table][key] for key in (*head, *fields)}
            for table, (head, fields) in TABLES.items()
            if table in recorded
        } | {"row_tables": recorded["row_tables"]}

    def baseline_record(self, report: Report) -> Block | None:
        """The baseline's numbers, whose columns have the prefix."""
        return {
            table: {key: report[self.name][table][key] for key in head}
            | {field: report[self.name][table][BASELINE + field] for field in fields}
            for table, (head, fields) in TABLES.items()
            if table in report[self.name]
        }

    def impossible(self, report: Report) -> Iterator[str]:
        """Lines about row tables whose numbers contradict each other."""
        for line in rows.contradictions(rows.from_json(report[self.name]["row_tables"])):
            yield f"/{self.name}/row_tables: {line}"

    def fired(self, report: Report) -> dict[str, bool]:
        """Whether the guard fails or any module was capped, even where the tier allows that cap."""
        return {
            self.name: refused(report, self.flag, self.name) or (caps_applied(report) or 0) >= 1
        }

    def detectors(self) -> Mapping[str, Reader]:
        """Two detectors: the number of caps, and the caps that the no-op does not have."""
        return {
            "spectral_caps_applied": _caps,
            "spectral_caps_baseline_relative": _caps_since,
        }

    def fired_since(self, detector: Detector, report: Report, noop: Report) -> Reading | None:
        """The caps that the no-op does not have, where a detector asks for a number of them."""
        asked = "min_new_modules" in detector or "min_delta_count" in detector
        return _caps_since(detector, report, noop) if asked else None

    def statistic(self, block: Mapping[str, Any]) -> Statistic | None:
        """|z| of the family closest to its cap."""
        families = block.get("family_z_summary")
        found = families if isinstance(families, Mapping) else {}
        return worst_family(found, "max", lambda family: family.get("kappa"), "z")

    def check(self, report: Report) -> Check:
        """Largest singular values and ranks of the weights."""
        section, caps = block(report, self.name), caps_applied(report)
        if caps is None:
            return unmeasured(report, self.name, self.title, self.flag)
        status = status_of(report, self.flag, self.name)
        found = objects(section.get("violations"))
        degenerate = sum(
            v.get("severity") == "fatal" and v.get("type") not in rows.ROW_FINDINGS for v in found
        )
        tables = objects(section.get("row_changes"))  # of published reports there are none
        beyond = sum(int(number(table.get("rows")) or 0) for table in tables)
        through = section.get("accepted") or ()
        accepted = all(v.get("accept") in through for v in row_findings(report))
        meant = ", accepted by name" if through and accepted else ""
        return Check(
            name=self.title,
            status=status,
            measured=f"{caps} capped, {counted(degenerate, 'degenerate module')}"
            + (f", {counted(beyond, 'row')} far beyond the others{meant}" if tables else ""),
            threshold=f"at most {section.get('max_caps', '-')} capped, none degenerate"
            + (", no such row" if tables else ""),
            note=_why(report, section) if status == FAIL else _largest_change(section),
            flag=self.flag,
        )

    def section(self, report: Report) -> Section:
        """The weights: largest singular value and stable rank of each operator."""
        title, section = "Spectral guard (weights)", block(report, self.name)
        judged = "operators" if "operators" in section else "modules"
        word = judged.capitalize()
        changes = module_changes(report, self.name, "sigma_max", judged)
        if not changes:
            return not_evaluated(report, self.name, title)
        caps = _limits(section)
        families = tuple(
            (
                str(name),
                str(row.get("count", "-")),
                fixed(row.get("max"), 3),
                fixed(row.get("mean"), 3),
                fixed(row.get("kappa"), 3),
                percent(math.exp(caps[name][1])) if name in caps else "-",
                str(row.get("violations", "-")),
            )
            for name, row in sorted(block(section, "family_z_summary").items())
            if isinstance(row, Mapping)
        )
        header = ("Family", word, "Largest |z|", "Mean |z|", "Cap (kappa)", "As change")
        moved = [c for c in changes if c.log_ratio != 0.0 or c.stable_rank_ratio not in (None, 1.0)]
        found = objects(section.get("violations"))
        through = section.get("accepted") or ()
        return Section(
            id=self.name,
            title=title,
            notes=(
                *(() if moved else ("No weight matrix changed.",)),
                *(rows.sentence(v, through=through) for v in row_findings(report)),
            ),
            plots=module_plot(
                "spectral",
                f"Largest singular value of the {judged}, per layer and family",
                changes,
                caps,
            ),
            tables=(
                Table("Families", (*header, "Capped"), families),
                *_violations([v for v in found if v.get("type") not in rows.ROW_FINDINGS]),
                *_row_tables(objects(section.get("row_changes"))),
                *largest_changes(moved, (word[:-1], "Family", "Sigma", "Stable rank")),
            ),
        )


def caps_applied(report: Report) -> int | None:
    """How many modules were capped; None where the guard did not run."""
    caps = block(report, Spectral.name).get("caps_applied")
    known = isinstance(caps, int) and not isinstance(caps, bool)
    return caps if known and evaluated(report, Spectral.name) else None


def _caps(detector: Detector, report: Report, _: Report | None) -> Reading:
    caps = caps_applied(report)
    label = f"spectral_caps_applied>={detector['min']}"
    if caps is None:
        return Reading(label, False, NOT_EVALUATED)
    return Reading(label, caps >= detector["min"])


def _caps_since(detector: Detector, report: Report, noop: Report | None) -> Reading:
    least_new, least_more = detector.get("min_new_modules", 0), detector.get("min_delta_count", 0)
    label = f"spectral_caps_baseline_relative>={least_new} new,>={least_more} more"
    caps = caps_applied(report)
    before = caps_applied(noop) if noop is not None else None
    if caps is None or before is None or noop is None:
        return Reading(label, False, NO_NOOP if noop is None else NOT_EVALUATED)
    new = capped_modules(report) - capped_modules(noop)
    return Reading(label, len(new) >= least_new and caps - before >= least_more)


def capped_modules(report: Report) -> set[str]:
    """Names of the modules that were capped."""
    if not evaluated(report, Spectral.name):
        return set()
    found = objects(block(report, Spectral.name).get("violations"))
    return {str(item.get("module")) for item in found if item.get("type") == CAPPED}


def row_findings(report: Report) -> list[Mapping[str, Any]]:
    """Tables with rows that changed far beyond the others; of a shape that can be put in words."""
    found = block(report, "spectral").get("violations")
    return [
        v
        for v in (found if isinstance(found, list) else [])
        if isinstance(v, Mapping)
        and v.get("type") in rows.ROW_FINDINGS
        and None not in [number(v.get(key)) for key in ("rows", "compared", "typical", "limit")]
        and isinstance(listed := v.get("listed"), list)
        and all(isinstance(row, Mapping) and {"row", "token"} <= row.keys() for row in listed)
    ]


def _limits(section: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """ln(sigma ratio) of each family beyond which a module is capped: kappa * tau."""
    deadband = number(section.get("deadband"))
    found = {}
    for family, row in block(section, "family_caps").items():
        kappa, tau = (number(row.get(key)) for key in ("kappa", "tau"))
        if kappa is not None and tau is not None:
            found[family] = (-kappa * tau, kappa * tau)
        elif deadband is not None:
            found[family] = (-math.log1p(deadband), math.log1p(deadband))
    return found


def _why(report: Report, section: Mapping[str, Any]) -> str:
    """Why the guard fails; rows come first, since users know tokens better than matrices."""
    through = section.get("accepted") or ()
    found = [v for v in row_findings(report) if v.get("accept") not in through]
    if not found:
        return _worst_violation(section)
    return rows.sentence(max(found, key=lambda v: int(v["rows"])))


def _largest_change(section: Mapping[str, Any]) -> str:
    largest = number(block(section, "summary").get("max_abs_log_ratio"))
    if largest is None:
        return ""
    note = f"sigma moved by at most {math.expm1(largest) * 100:.3g} %"
    z, kappa = _closest_family(section)
    return note + (f"; largest |z| {fixed(z, 2)}, capped beyond {fixed(kappa, 3)}" if kappa else "")


def _closest_family(section: Mapping[str, Any]) -> tuple[float, float | None]:
    """|z| and kappa of the family that is closest to its cap."""
    families = [
        (z, kappa)
        for row in block(section, "family_z_summary").values()
        if isinstance(row, Mapping)
        and (z := number(row.get("max"))) is not None
        and (kappa := number(row.get("kappa")))
    ]
    return max(families, key=lambda row: row[0] / row[1], default=(0.0, None))


def _worst_violation(section: Mapping[str, Any]) -> str:
    """The violation that blocks: a degenerate module, or the largest of too many caps."""
    found = objects(section.get("violations"))
    through = section.get("accepted") or ()
    fatal = [v for v in found if v.get("severity") == "fatal" and v.get("accept") not in through]
    if fatal:
        worst = min(fatal, key=lambda v: (v.get("ratio", 0.0), str(v.get("module"))))
        kind = str(worst.get("type", "")).removeprefix("degenerate_").replace("_", " ")
        if kind == "rank":
            return f"{worst.get('module')} became zero or of rank one"
        return (
            f"{worst.get('module')}: {kind} is {fixed(worst.get('ratio'))} of the baseline's, "
            f"fatal below {fixed(worst.get('threshold'), 2)}"
        )
    caps = [v for v in found if v.get("type") == CAPPED]
    if not caps:
        return ""
    worst = max(caps, key=lambda v: (abs(v.get("z_score", 0.0)), str(v.get("module"))))
    return (
        f"{len(caps)} caps; largest |z| {fixed(abs(worst.get('z_score', 0.0)), 2)} "
        f"in {worst.get('module')}, cap at {fixed(worst.get('kappa'), 3)}"
    )


def _violations(found: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    if not found:
        return
    listed = worst_first(found)[: 2 * LISTED]
    yield Table(
        caption=f"Violations ({len(listed)} of {len(found)})",
        header=("Module", "Kind", "Severity", "Measured", "Threshold"),
        rows=tuple(
            (
                str(v.get("module", "-")),
                str(v.get("type", "-")),
                str(v.get("severity", "-")),
                f"z {fixed(v['z_score'], 2)}" if "z_score" in v else f"x {fixed(v.get('ratio'))}",
                f"|z| {fixed(v['kappa'], 3)}"
                if "kappa" in v
                else f"x {fixed(v.get('threshold'), 2)}",
            )
            for v in listed
        ),
    )


def _row_tables(judged: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The tables of embedding, head and positions, and the rows of them that are findings."""
    if not judged:
        return
    yield Table(
        caption="Rows of embedding, head and positions: change relative to the baseline's row",
        header=("Table", "Rows compared", "Half within", "Largest", "Limit", "Beyond, or moved"),
        rows=tuple(
            (
                str(t.get("module", "-")),
                str(t.get("compared", "-")),
                fixed(t.get("typical"), 3),
                f"at most {rows.STEP}" if t.get("largest") is None else fixed(t.get("largest"), 3),
                fixed(t.get("limit"), 2),
                str(t.get("rows", "-")),
            )
            for t in judged
        ),
    )
    for table in judged:
        listed = objects(table.get("listed"))
        if listed:
            yield Table(
                caption=f"Rows of {table.get('module')} ({len(listed)} of {table.get('rows')})",
                header=("Row", "Token", "Change", "Now closest to"),
                rows=tuple(
                    (
                        str(row.get("row", "-")),
                        str(row.get("token") or "-"),
                        fixed(row.get("change"), 3),
                        " ".join(str(row.get(key) or "") for key in ("closest", "closest_token"))
                        if "closest" in row
                        else "-",
                    )
                    for row in listed
                ),
            )
