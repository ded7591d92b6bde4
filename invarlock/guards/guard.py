"""What a guard is: one class that holds everything which is said or done about it.

A guard records statistics of one run, compares those of two runs, and says what it found: as block
of the report, flag, warning, detector, row and section of a page. The registry is ``GUARDS`` in
:mod:`invarlock.guards`; whoever needs guards goes over it and names none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Protocol

from msgspec import UNSET, Struct, UnsetType, field

from invarlock.documents.fields import Closed, Decided, Judged, Open, about
from invarlock.files import contract_hash
from invarlock.guards.detector import Detector, Reader, Reading, read_member
from invarlock.pages.parts import FAIL, PASS, Advice, Check, Section, status_of
from invarlock.pages.plots import Plot
from invarlock.pages.reading import Report, block, evaluated, refused
from invarlock.policy import Policy

if TYPE_CHECKING:
    from invarlock.checkpoints import Checkpoint
    from invarlock.formats.execution import Engine

Block = dict[str, Any]  # a part of a report
Run = Mapping[str, Any]  # a run report
RUN_SCHEMA = "invarlock/run-report-v1"  # which says so
# The reason of a block that only a run with the baseline's at hand could have filled.
NEEDS_BOTH = "each run measured its own model; this needs both (invarlock evaluate)"
SEPARATE = "separate"  # what a report of such runs says of them (context.runs)
# The reason of what a subject does not show that only a running server holds, and its word there.
NO_WEIGHTS = "a running server shows log-probabilities of prompts, no weights and no activations"
SERVED = "server"
NAME_WEIGHTS = "evaluate the folder or file that the server loads"  # what then to do
STATISTICS = "statistics of weights, activations and routers, and where they were taken"


class Runs(Protocol):
    """Two runs that are compared, as they were recorded."""

    @property
    def baseline(self) -> Run:
        """The run report of the baseline."""

    @property
    def subject(self) -> Run:
        """The run report of the subject; it holds no windows where the subject was not run."""

    @property
    def ran(self) -> bool:
        """Whether the subject was measured."""

    @property
    def reason_not_run(self) -> str:
        """Why the subject was not measured; empty where it was."""

    @property
    def separate(self) -> bool:
        """Whether each run measured its own model, and nothing of the other's."""

    @property
    def served(self) -> bool:
        """Whether the subject is a running server, of which only losses are known."""

    @property
    def invariants_evaluated(self) -> bool:
        """Whether the files of the subject were looked at."""

    @property
    def accepted(self) -> Sequence[str]:
        """Names of findings that the user accepts."""

    @property
    def contracts(self) -> Mapping[str, Mapping[str, Any]]:
        """How the guards measured, by their names: today's way, or that of an older report."""


class Statistic(NamedTuple):
    """The number that a guard decides by, where it is closest to its limit."""

    name: str
    value: float
    threshold: float


class ProbeFile(Struct, frozen=True):
    """A file of its own with a guard's evidence, written where a scenario's detector reads it."""

    file: str
    contract: str
    detector: str  # the kind of detector that reads it
    members: tuple[str, ...]  # of the guard's block, that the sweep over probes repeats
    write: Callable[[Mapping[str, Any]], Block]  # from the guard's block


class CheckpointRun(Struct):
    """A loaded checkpoint in the middle of its run, and what guards leave for one another."""

    checkpoint: Checkpoint
    model: Any  # None where an engine runs it
    device: str
    calibration: Sequence[str]  # ids of the windows that hooks watch
    limits: Policy | None = None  # None: nothing is tried
    # the baseline's, as it recorded them; None where this is the baseline
    baseline_activations: Sequence[Any] | None = None
    baseline_arrays: Mapping[str, Any] | None = None  # what its probes kept, by name
    baseline_checkpoint: Checkpoint | None = None  # its rows are compared where it is given
    baseline_weights: Any = None  # statistics of its weights (operators.Weights)
    # runs a share of all windows again, held-out ones and inside the context that is given
    again: Callable[[AbstractContextManager[Any], float], Block | None] | None = None
    activations: list[Any] = field(default_factory=list)
    seconds: float = 0.0  # spent in hooks that count as their guard's
    probe_bytes: int = 0  # most that the hooks held at a time
    trial_tokens: int = 0  # run a second time
    bare_nll: Sequence[float] = ()  # nats, of the calibration windows without hooks
    engine: Engine | None = None  # what runs it in place of transformers


class Probe:
    """What a guard does during a run, in the order of the methods; each may do nothing."""

    def weigh(self, run: CheckpointRun) -> None:
        """Look at the weights, in the files and in memory."""

    def attached(self, run: CheckpointRun) -> AbstractContextManager[Any]:
        """Watch the pass over the calibration windows that is made inside the block."""
        return nullcontext()

    def after(self, run: CheckpointRun) -> None:
        """Try something once the pass is over."""

    def record(self, run: CheckpointRun) -> Block | None:
        """What the run report holds of it; None: nothing that this guard looks at."""
        return None

    def arrays(self) -> Mapping[str, Any]:
        """NumPy arrays that subjects' runs are held against, by a name that says whose they are.

        A baseline's run keeps them beside its report, and gives them to those of its subjects.
        """
        return {}


class Guard:
    """Everything about one guard. Without evidence a guard neither passes nor fires."""

    name: ClassVar[str]  # of its block in a report
    title: ClassVar[str]  # of its row and section
    block: ClassVar[type[Decided]] = Judged  # of a report
    advice: ClassVar[Advice | None] = None  # on what it finds; None: it finds nothing to mend
    # --- what it decides
    _sharing: ClassVar[dict[str, list[str]]] = {}  # names of guards, by flag
    flag: ClassVar[str] = ""  # the validation flag that says it passed; empty: it only reports
    gates: ClassVar[bool] = True  # whether the flag decides, in tiers that enforce guards
    fails_as: ClassVar[str] = ""  # the reason of a report that does not pass because of it
    # It looks at the files before anything is run: it decides in every tier and is named first.
    of_files: ClassVar[bool] = False
    every_model: ClassVar[bool] = True  # False: it has a block only where ``applies``
    core: ClassVar[bool] = False  # one of the published guards that scenarios aim at
    policy_key: ClassVar[str] = ""  # its limits in the tier table; empty: it has none
    # Reports of the first published versions know nothing of it. One without its block is judged
    # by the rules of its time, which are those of today without this guard.
    added: ClassVar[bool] = False
    # What each of its flags means: one that decides, and those that only tell.
    flag_texts: ClassVar[Mapping[str, str]] = {}
    # The detectors that it brings, each a form that a scenario may ask for; see ``detectors``.
    detector_forms: ClassVar[tuple[type[Closed], ...]] = ()
    # --- what it records
    contract: ClassVar[Mapping[str, Any] | None] = None  # how it measures
    # How it measured before: reports that state one of these are judged by the rule of their time.
    earlier_contracts: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    phase: ClassVar[str] = ""  # of a run, in the list of its guards
    beside: ClassVar[str] = ""  # the member of a run report that holds it outside that list
    # Whether what it records of a subject is taken against the baseline: separate runs lack it.
    needs_both: ClassVar[bool] = False
    tries: ClassVar[bool] = False  # whether a subject's run tries something by this guard's limits
    whole: ClassVar[bool] = True  # whether a report repeats all that it recorded
    believed: ClassVar[tuple[str, ...]] = ()  # pointers of what only the run can know
    believed_as: ClassVar[str] = STATISTICS  # the subject under which ``verify`` prints them
    probe_file: ClassVar[ProbeFile | None] = None

    def __init_subclass__(cls) -> None:
        if cls.flag:
            Guard._sharing.setdefault(cls.flag, []).append(cls.name)

    # --- a run -------------------------------------------------------------------------------

    def probe(self) -> Probe:
        """A fresh probe for one run."""
        return Probe()

    def recorded(self, run: Run) -> Mapping[str, Any]:
        """What a run recorded for this guard; empty where the guard did not run."""
        if self.beside:
            return run.get(self.beside) or {}
        return next((guard for guard in run["guards"] if guard["name"] == self.name), {})

    def contract_fields(self, contract: Mapping[str, Any] | None = None) -> Block:
        """The measurement contract and its hash, as both kinds of report state them.

        Args:
            contract: one of ``earlier_contracts``; None: today's.
        """
        stated = contract or self.contract
        if stated is None:
            return {}
        return {"measurement_contract": stated, "measurement_contract_hash": contract_hash(stated)}

    # --- two runs ----------------------------------------------------------------------------

    def applies(self, runs: Runs) -> bool:
        """Whether a report of these runs has a block for this guard."""
        return self.every_model or bool(self.recorded(runs.baseline))

    def measured(self, runs: Runs) -> bool:
        """Whether the subject was run and its run recorded this guard."""
        return runs.ran and not self.lacking(runs) and bool(self.recorded(runs.subject))

    def lacking(self, runs: Runs) -> str:
        """Why runs of this kind have no evidence for this guard; empty where they have."""
        if runs.served:
            return NO_WEIGHTS
        return NEEDS_BOTH if self.needs_both and runs.separate else ""

    def judged(self, runs: Runs, policy: Policy) -> Block:
        """The decisions in this guard's block, or why there are none."""
        if not self.measured(runs):
            return {"evaluated": False, "reason": self.lacking(runs) or runs.reason_not_run}
        return self.judge(runs, policy)

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The decisions on two runs that were measured. A pure function: a verifier repeats it."""
        raise NotImplementedError

    def limits(self, policy: Policy) -> Mapping[str, Any]:
        """This guard's limits in the tier table."""
        row: Mapping[str, Any] = policy.resolved[self.policy_key]
        return row

    def stated_limits(self, policy: Policy, contract: Mapping[str, Any] | None = None) -> Block:
        """This guard's limits as a report states them; ``contract`` as in ``contract_fields``."""
        fields = self.contract_fields(contract)
        fields.pop("measurement_contract_hash", None)
        return {**self.limits(policy), **fields}

    def statistics(self, runs: Runs) -> Block:
        """The statistics of both runs, which the block holds beside the decisions."""
        return {}

    def evidence(self, runs: Runs) -> Block:
        """Statistics and measurement contracts, which the block holds beside the decisions."""
        if not self.measured(runs):
            return {}
        fields = self.contract_fields(runs.contracts.get(self.name))
        if fields:
            theirs = self.recorded(runs.baseline).get("measurement_contract_hash")
            fields["baseline_measurement_contract_hash"] = theirs
            same = fields["measurement_contract_hash"] == theirs
            fields["measurement_contract_match"] = same
        return fields | self.statistics(runs)

    def flags(self, block: Mapping[str, Any]) -> dict[str, bool]:
        """The validation flags that this guard sets in a report."""
        return {self.flag: block.get("passed") is True} if self.flag else {}

    def warnings(self, block: Mapping[str, Any]) -> Iterator[Block]:
        """The guard warnings of a report, made by :func:`warning`."""
        yield from ()

    # --- a report, read back -----------------------------------------------------------------

    def subject_records(self, report: Report) -> Iterator[Block]:
        """What the subject's run recorded, once for every time that it ran."""
        yield from ()

    def baseline_record(self, report: Report) -> Block | None:
        """What the baseline's run recorded; None where nothing of it is read."""
        return None

    def spared(self, block: Mapping[str, Any]) -> bool:
        """Whether a block that is not evaluated says that the model has nothing to look at."""
        return False

    def impossible(self, report: Report) -> Iterator[str]:
        """Evidence that no run can have recorded, as ``/pointer: ...`` lines."""
        yield from ()

    def refused(self, report: Report) -> bool:
        """Whether its flag is false, and not because of another guard alone that shares it."""
        others = [block(report, name) for name in self._sharing[self.flag] if name != self.name]
        passed = block(report, self.name).get("passed") is True
        spared = passed and any(
            other.get("passed") is False or other.get("reason") in (NEEDS_BOTH, NO_WEIGHTS)
            for other in others
        )
        return refused(report, self.flag, self.name) and not spared

    def fired(self, report: Report) -> dict[str, bool]:
        """Whether the guard measured something and found it bad, by published name; empty where the
        report is of a version without the guard."""
        if self.added and self.name not in report:
            return {}
        if self.flag:
            return {self.name: self.refused(report)}
        found = block(report, self.name)
        return {self.name: evaluated(report, self.name) and found.get("passed") is False}

    def statistic(self, block: Mapping[str, Any]) -> Statistic | None:
        """The number that decided an evaluated block; None where there is no single one."""
        return None

    def detectors(self) -> Mapping[str, Reader]:
        """The kinds of detector that read this guard, by published name."""
        if self.probe_file is None:
            return {}
        return {
            self.probe_file.detector: lambda detector, report, _: read_member(
                self.name, detector, report
            )
        }

    def fired_since(self, detector: Detector, report: Report, noop: Report) -> Reading | None:
        """The reading against the no-op's report, where a detector asks for more than whether the
        guard fired; None where it does not ask."""
        return None

    # --- a page ------------------------------------------------------------------------------

    def status(self, report: Report) -> str:
        """The result of its flag, as far as that is this guard's."""
        found = status_of(report, self.flag, self.name)
        false = block(report, "validation").get(self.flag) is False
        return PASS if found == FAIL and false and not self.refused(report) else found

    def check(self, report: Report) -> Check:
        """This guard's row in the table of checks."""
        raise NotImplementedError

    def where(self, report: Report) -> tuple[Plot, ...]:
        """Pictures of where in the model this guard saw a change."""
        return ()

    def section(self, report: Report) -> Section:
        """This guard's section of the page."""
        raise NotImplementedError


class Warning(Open):
    """One warning."""

    policy_gate: Annotated[
        str | UnsetType, about("fail where the guard does not pass because of it, else pass")
    ] = UNSET


def guarded_windows(report: Report) -> list[str]:
    """The ids of the warm-up windows that guards look at: all, or those of the first slice."""
    rows = report["evaluation_windows"]["preview"]
    ids: list[str] = rows["window_ids"]
    names = rows.get("slices")  # of each window, in the order of the slices
    return [i for i, name in zip(ids, names, strict=False) if name == names[0]] if names else ids


def warning(guard: str, kind: str, message: str) -> Block:
    """A warning that alone blocks nothing; ``verify --warning-policy fail`` refuses any.

    ``policy_gate``: ``fail`` where the guard does not pass because of it, as its own gate says.
    """
    found = {"guard": guard, "kind": kind, "severity": "warning", "message": message}
    return found | {"policy_gate": "pass"}


def place(item: Mapping[str, Any], block: Mapping[str, Any], text: str) -> Block:
    """The members of a warning that say where a violation is and whether the guard fails by it."""
    found = {"module": item["module"], "family": item["family"]}
    if block["passed"]:
        return found
    return found | {"policy_gate": "fail", "message": f"{text}; the guard does not pass"}


def statistic(name: str, value: float | None, threshold: float | None) -> Statistic | None:
    """A statistic; None where there is no number or no limit."""
    if value is None or threshold is None:
        return None
    return Statistic(name, float(value), float(threshold))


def worst_family(
    families: Mapping[str, Any],
    key: str,
    limit: Callable[[Mapping[str, Any]], float | None],
    name: str,
) -> Statistic | None:
    """The family that is furthest beyond its limit, or closest to it."""
    found = [
        one
        for family, values in sorted(families.items())
        if (one := statistic(f"{name}:{family}", values.get(key), limit(values)))
    ]
    return max(found, key=lambda s: s.value - s.threshold, default=None)
