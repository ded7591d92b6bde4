"""What a kind of primary metric is: one class that holds everything which is said or done about it.

    class PplPrefix(Perplexity):
        name: ClassVar[str] = "ppl_prefix"
        model_types: ClassVar[tuple[str, ...]] = ("prefix_lm",)
        ...

A file like that in ``invarlock/metrics/kinds`` is all that a new kind needs. It says which models
or windows it is for, what is predicted in a window, how two runs are compared and by which limit,
and how people read the result. Whoever needs a metric asks :mod:`invarlock.metrics.kinds`, and
names none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from msgspec import UNSET, Meta, Struct, UnsetType

from invarlock.documents.fields import Open, about
from invarlock.metrics.bootstrap import WIDENED, Interval
from invarlock.metrics.perplexity import Arm, Bootstrap
from invarlock.pages.reading import Report
from invarlock.pages.wording import fixed
from invarlock.records import TEXT

if TYPE_CHECKING:
    import torch

    from invarlock.pictures import Pictures
    from invarlock.policy import ConfidencePolicy, Policy

Block = dict[str, Any]  # a part of a report
Columns = Mapping[str, Any]  # what a run recorded of the windows of an arm
Facts = list[tuple[str, str]]  # rows of a page: what it is, and its value


class Picture(Struct, frozen=True):
    """The inputs of an example that are of a picture, each a batch of one; made when needed."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # by argument of the model
    arrays: Callable[[], Mapping[str, torch.Tensor]]


class Example(Struct, frozen=True):
    """One window as the model sees it; the last of ``inputs`` has the length of the logits."""

    inputs: Mapping[str, Sequence[int]]  # argument of the model -> token ids
    positions: Sequence[int]  # rows of the logits that predict
    targets: Sequence[int]  # the right token of each
    picture: Picture | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every input."""
        return tuple(map(len, self.inputs.values()))

    @property
    def alike(self) -> tuple[object, ...]:
        """Equal for examples that can share a batch."""
        return (self.shape, self.picture.shapes if self.picture else ())

    def start(self, tokens: int) -> Example:
        """The example cut after ``tokens``; whole where the tokens of a picture would be cut."""
        if self.picture:
            return self
        inputs = {name: list(ids[:tokens]) for name, ids in self.inputs.items()}
        return Example(inputs, (), ())


ToExample = Callable[..., Example]  # from a window; from a record, and the number of an answer


class SliceEvidence(Struct, frozen=True):
    """What both runs recorded on the windows of one slice."""

    name: str
    preview: Arm
    final: Arm
    kl_sum: Sequence[float | None] | None  # (windows,) of final, nats; None: not recorded


class MetricEvidence(Struct, frozen=True):
    """What both runs recorded for the primary metric."""

    kind: Metric
    preview: Arm | None  # None: the subject was not run
    final: Arm | None
    columns: Mapping[str, tuple[Columns, Columns]]  # of the baseline and the subject, by arm
    bootstrap: Bootstrap
    reason_not_run: str = ""
    slices: Sequence[SliceEvidence] = ()  # where the windows have any


class Floor(NamedTuple):
    """A number that the tier asks for; a row of ``evidence_needed`` where there is less."""

    what: str
    have: float
    need: float
    slice: str = ""  # of which; empty: of all windows

    @property
    def row(self) -> Block:
        """As a report states it."""
        row = self._asdict()
        return row if self.slice else {k: v for k, v in row.items() if k != "slice"}


class Compared(Open):
    """The members of the primary metric that every kind states."""

    unit: Annotated[str | UnsetType, about("unit")] = UNSET
    direction: Annotated[str | UnsetType, about("whether lower or higher is better")] = UNSET
    aggregation_scope: Annotated[str | UnsetType, about("token, window or record")] = UNSET
    gating_basis: Annotated[str | UnsetType, about("which bound decides")] = UNSET
    paired: Annotated[bool | UnsetType, about("differences are paired by window")] = UNSET
    preview: Annotated[float | UnsetType, about("value on the warm-up windows")] = UNSET
    final: Annotated[float | UnsetType, about("value on the scored windows")] = UNSET
    ratio_vs_baseline: Annotated[
        float | UnsetType, about("subject over baseline, or the difference in percentage points")
    ] = UNSET
    ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | UnsetType,
        about("interval of the logarithm of the ratio"),
    ] = UNSET
    display_ci: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | UnsetType,
        about("interval of the ratio"),
    ] = UNSET
    decision: Annotated[str | UnsetType, about("pass, fail or inconclusive")] = UNSET
    drift_band: Annotated[
        dict[str, Any] | list[Any] | UnsetType,
        about(
            "the band of drift.ratio as limits on drift.raw, the subject's own final over preview"
        ),
    ] = UNSET
    drift: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "ratio: final over preview of the subject relative to the baseline's, between "
            "min and max; raw: the subject's alone"
        ),
    ] = UNSET
    limit: Annotated[
        float | UnsetType, about("limit on the ratio, or on the difference in percentage points")
    ] = UNSET


class Judged(Struct, frozen=True):
    """What was decided of two runs that were measured."""

    block: Block  # the members of the primary metric that are this kind's own
    acceptable: bool
    drift_ok: bool
    hysteresis_applied: bool
    floors: Sequence[Floor]


class Shortage(NamedTuple):
    """Windows below the floors of a tier: what there has to be, what there is, and a remedy."""

    expected: str
    found: str
    windows: str  # the setting that would do


class Metric:
    """Base of all kinds; an object of it knows no run."""

    name: ClassVar[str]  # in reports
    # --- what it is of
    model_types: ClassVar[tuple[str, ...]] = ()  # architectures that are trained for it
    default: ClassVar[bool] = False  # whether it is that of every architecture no kind names
    # The kind of windows it is measured on. With any other than of a text it is asked for by name
    # (``?metric=NAME`` of a text source), whatever the model is trained for.
    windows: ClassVar[str] = TEXT
    pictured: ClassVar[str] = ""  # the kind of its windows that are records with pictures
    labelled: ClassVar[bool] = False  # whether windows are labelled records, each of its own length
    # --- how it is measured
    adapter: ClassVar[str]  # name of the kind of model in reports
    loader: ClassVar[str]  # class of transformers that loads such a model
    loss_type: ClassVar[str]  # in the telemetry
    mode: ClassVar[str] = "teacher_forced"  # how outputs are obtained
    columns: ClassVar[tuple[str, ...]] = ()  # of the windows, that it records beside the losses
    exact: ClassVar[bool] = True  # whether every window has ``predicted`` tokens, or at most all
    # Whether the predicted tokens of a window follow each other, so that they read as a text.
    flows: ClassVar[bool] = False
    one_piece: ClassVar[bool] = True  # whether the model reads a whole window in one sequence
    # --- how it is decided
    unit: ClassVar[str]
    direction: ClassVar[str]  # whether lower or higher is better
    scope: ClassVar[str]  # what is averaged: tokens or examples
    bound: ClassVar[str]  # of the interval, that is held against the limit
    basis: ClassVar[str]  # what is compared
    floor: ClassVar[str]  # what the tier asks a least number of: tokens or examples
    to_decide: ClassVar[str]  # of ``evidence_needed``: what more of would settle the interval
    limits: ClassVar[str]  # row of the tier table
    interval: ClassVar[str] = WIDENED  # method of the interval
    # How published verifiers recompute the point: ``ppl`` from losses, ``accuracy`` from counts.
    family: ClassVar[str]
    # Members that only reports of this kind have, by their block: primary_metric, windows (those of
    # one sample), telemetry or metrics.
    members: ClassVar[Mapping[str, type[Open]]] = {}
    # --- how people read it
    noun: ClassVar[str]  # what compares both runs: a ratio or a difference
    suffix: ClassVar[str]  # after such a number
    short: ClassVar[tuple[str, str, str]]  # in a line: its name, format and unit
    points: ClassVar[str]  # its name in the line of ``verify``
    shows: ClassVar[str]  # what a result is about
    leaves_open: ClassVar[str]  # what a reader may miss
    by_losses: ClassVar[bool] = True  # whether a page has to show losses of the windows

    # --- a run ----------------------------------------------------------------------------------

    def require_model(self, trained: Metric, folder: Path) -> None:
        """Refuse a model that cannot be measured so.

        Args:
            trained: what the model in ``folder`` is trained for.

        Raises:
            ConfigError: the metric was asked for, and the model is of another kind.
        """

    def on(self, windows: str) -> Metric:
        """The kind as it is measured on windows of a kind that it is measured on."""
        return self

    def reader(
        self, folder: Path, config: Mapping[str, Any], seed: int, pictures: Pictures | None = None
    ) -> ToExample:
        """What makes of a window what the model in ``folder`` has to predict.

        Args:
            config: its ``config.json``.
            seed: of the windows.
            pictures: those of the windows, where they have any.

        Raises:
            InputError: the folder lacks what the task needs.
        """
        raise NotImplementedError

    def others(self, windows: Sequence[Any], example: ToExample) -> tuple[list[Example], list[int]]:
        """What else the model is asked of these windows, and the index of each one's window.

        Args:
            example: of :meth:`reader`.
        """
        return [], []

    def recorded(
        self,
        examples: Sequence[Example],
        nll: Mapping[int, float],
        top1: Mapping[int, Any],
        others: Mapping[int, Sequence[float]],
    ) -> dict[str, list[Any]]:
        """``columns`` of an arm.

        Args:
            examples: what was asked, in the order of the windows.
            nll: of each, nats.
            top1: of each, the most likely token at every position, (tokens,).
            others: of those that have any, the losses of :meth:`others`, nats.
        """
        return {}

    def predicted(self, length: int) -> float:
        """The most tokens that are predicted in a window of ``length`` tokens (see ``exact``)."""
        return length

    def value(self, columns: Columns) -> float | None:
        """The metric of one run on an arm; None where it is not finite."""
        raise NotImplementedError

    # --- two runs -------------------------------------------------------------------------------

    def head(self) -> Block:
        """How a report describes the metric."""
        return {
            "kind": self.name,
            "unit": self.unit,
            "direction": self.direction,
            "aggregation_scope": self.scope,
            "paired": True,
            "gating_basis": self.bound,
            "analysis_basis": self.basis,
        }

    def judge(
        self, preview: Arm, final: Arm, evidence: MetricEvidence, policy: Policy
    ) -> Judged | None:
        """Decide two runs that were measured; None where a number is not finite."""
        raise NotImplementedError

    def baseline_points(self, evidence: MetricEvidence) -> dict[str, float]:
        """The baseline's own value of the metric on both arms; the subject was run."""
        raise NotImplementedError

    def hysteresis(self, policy: Policy) -> dict[str, float]:
        """The slack of its limit, as ``policy_digest`` states it."""
        raise NotImplementedError

    def width_limit(self, policy: ConfidencePolicy) -> tuple[str, float]:
        """In which terms an interval is wide, and up to which width confidence is High."""
        raise NotImplementedError

    def shortage(self, arms: tuple[int, int], length: int, policy: Policy) -> Shortage | None:
        """What of a tier's floors so many windows cannot reach; None where they can.

        Args:
            arms: windows of preview and final.
            length: tokens of a window.
        """
        raise NotImplementedError

    # --- a report -------------------------------------------------------------------------------

    def lints(self) -> list[Block]:
        """What a report has to satisfy beside the kind itself, for published verifiers."""
        return []

    def telemetry(self, tokens: Mapping[str, int]) -> Block:
        """Counts of its own, from the predicted tokens of both arms."""
        return {}

    def counts(self, windows: Mapping[str, Columns]) -> Block:
        """Counts behind the point, of the subject's windows; empty where losses are all."""
        return {}

    def as_ratio(self, value: float) -> float:
        """What compares both runs, so that 1 is no difference."""
        return value

    def passing(self, metric: Block, z: float) -> float:
        """The true value at which the estimate passes with the probability ``Phi(z)``.

        It is asked only of kinds whose interval is widened.

        It passes where the bound keeps to the limit, and the distance from the estimate to the
        bound is taken to be the same in every repetition; what varies is the estimate, normally,
        by the standard error.

        Args:
            metric: a primary metric of this kind, with an interval.
        """
        raise NotImplementedError

    # --- words ----------------------------------------------------------------------------------

    def words(self, value: float) -> str:
        """A number that compares both runs, or a bound of its interval."""
        return fixed(value)

    def threshold(self, limit: float) -> str:
        """What is held against the limit."""
        raise NotImplementedError

    def passed(self, low: float, high: float, limit: float) -> str:
        """By how much an interval is on the good side of the limit."""
        raise NotImplementedError

    def failed(self, low: float, high: float, limit: float) -> str:
        """By how much an interval is on the bad side of the limit."""
        raise NotImplementedError

    def drift_words(self, ratio: float) -> str:
        """The drift between both arms, whose ratio is 1 where there is none."""
        return fixed(ratio)

    def facts(self, report: Report) -> Facts:
        """The first rows of its section of a page."""
        raise NotImplementedError

    def plot_limit(self, limit: float | None) -> float | None:
        """The limit, where the picture of the windows' losses can show it."""
        return limit


def drift_block(ratio: float, raw: float, limits: tuple[float, float]) -> Block:
    """The ``drift`` block: relative to the baseline, its limits, and the subject's own."""
    low, high = limits
    relative = {"ratio": ratio, "min": low, "max": high, "basis": "baseline_relative"}
    return relative | {"raw": raw}


def interval_block(
    interval: Interval | None, needed: int | None, shown: Callable[[float], float]
) -> Block:
    """The members of an interval; nothing where there is none.

    Args:
        needed: windows that would settle an inconclusive comparison.
        shown: from the units of the statistic to those of the point.
    """
    block: Block = {}
    if interval is not None:
        block["ci"] = [interval.low, interval.high]
        block["display_ci"] = [shown(interval.low), shown(interval.high)]
        block["standard_error"] = interval.standard_error
        block["clusters"] = interval.n_clusters
        if interval.kurtosis is not None:
            block["kurtosis"] = interval.kurtosis
    if needed is not None:
        block["windows_needed"] = needed
    return block
