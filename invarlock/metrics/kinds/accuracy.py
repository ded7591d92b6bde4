"""Accuracy on labelled records: how a record is answered, and what two runs' answers say.

An answer's tokens are predicted after its prompt. An exact answer is right when every token of it
is the most likely one, which is when greedy decoding gives it; a choice is right when its total
log-probability is above that of every other (a tie is wrong).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Struct, UnsetType

from invarlock.documents.fields import Count, Open, about
from invarlock.errors import ConfigError
from invarlock.files import read_json_object
from invarlock.library_classes import IMAGE_TEXT, reads_images
from invarlock.metrics import ARMS
from invarlock.metrics.accuracy import (
    AccuracyPolicy,
    AccuracyResult,
    Examples,
    compare_accuracy,
    labelled,
)
from invarlock.metrics.bootstrap import PLAIN
from invarlock.metrics.kind import (
    Block,
    Columns,
    Example,
    Facts,
    Floor,
    Judged,
    Metric,
    MetricEvidence,
    Picture,
    Shortage,
    ToExample,
    drift_block,
    interval_block,
)
from invarlock.metrics.kinds.ppl_causal import PplCausal
from invarlock.metrics.perplexity import Arm
from invarlock.pages.reading import Report, block
from invarlock.pages.wording import fixed, number, pair
from invarlock.records import PICTURED

if TYPE_CHECKING:
    from invarlock.documents.windows import PicturedRecord, Record
    from invarlock.pictures import Pictures
    from invarlock.policy import ConfidencePolicy, Policy


class AccuracyMembers(Open):
    """The members of a primary metric that are an accuracy's."""

    counts_source: Annotated[
        Literal["measured", "pseudo_config"] | UnsetType, about("where counts come from")
    ] = UNSET
    n_final: Annotated[Count | UnsetType, about("scored examples; accuracy only")] = UNSET
    mcnemar_p: Annotated[
        float | UnsetType | None, about("McNemar's test of the answers that changed; accuracy only")
    ] = UNSET


class AccuracyWindows(Open):
    """What an accuracy records of windows."""

    correct: Annotated[
        list[Any] | UnsetType,
        about("whether each example was answered right (booleans); accuracy only"),
    ] = UNSET
    baseline_correct: Annotated[list[Any] | UnsetType, about("the baseline's answers")] = UNSET


class AccuracyCounts(Open):
    """Counts behind an accuracy."""

    classification: Annotated[
        dict[str, Any] | UnsetType, about("right answers and examples, warm-up and scored apart")
    ] = UNSET


class Accuracy(Metric):
    """Share of labelled records answered correctly, in percentage points against the baseline."""

    name: ClassVar[str] = "accuracy"
    windows: ClassVar[str] = "records"
    pictured: ClassVar[str] = PICTURED
    labelled: ClassVar[bool] = True
    adapter: ClassVar[str] = PplCausal.adapter
    loader: ClassVar[str] = PplCausal.loader
    loss_type: ClassVar[str] = "classification"
    mode: ClassVar[str] = "classification"
    columns: ClassVar[tuple[str, ...]] = ("correct",)
    exact: ClassVar[bool] = False
    one_piece: ClassVar[bool] = False
    unit: ClassVar[str] = "accuracy"
    direction: ClassVar[str] = "higher"
    scope: ClassVar[str] = "example"
    bound: ClassVar[str] = "lower"
    basis: ClassVar[str] = "correct_fraction"
    floor: ClassVar[str] = "examples"
    to_decide: ClassVar[str] = "examples_to_decide"
    limits: ClassVar[str] = "accuracy"
    # no example can be further out than one that is lost, so none is added
    interval: ClassVar[str] = PLAIN
    family: ClassVar[str] = "accuracy"
    members: ClassVar[Mapping[str, type[Open]]] = {
        "primary_metric": AccuracyMembers,
        "windows": AccuracyWindows,
        "metrics": AccuracyCounts,
    }
    noun: ClassVar[str] = "difference"
    suffix: ClassVar[str] = " pp"
    short: ClassVar[tuple[str, str, str]] = ("accuracy", "+.2f", " points")
    points: ClassVar[str] = "points"
    shows: ClassVar[str] = "Accuracy on these records"
    leaves_open: ClassVar[str] = "other task"
    by_losses: ClassVar[bool] = False

    # --- a run ----------------------------------------------------------------------------------

    def require_model(self, trained: Metric, folder: Path) -> None:
        if trained.adapter != self.adapter:
            raise ConfigError(
                "labelled records need a causal language model",
                where=str(folder),
                found=trained.loss_type,
            )

    def on(self, windows: str) -> Metric:
        return PicturedAccuracy() if windows == self.pictured else self

    def reader(
        self, folder: Path, config: Mapping[str, Any], seed: int, pictures: Pictures | None = None
    ) -> ToExample:
        return asked

    def others(
        self, windows: Sequence[Record], example: ToExample
    ) -> tuple[list[Example], list[int]]:
        """The choices that are not the right ones, and the index of each one's record."""
        owned = [
            (example(record, number), index)
            for index, record in enumerate(windows)
            for number in range(len(record.answers))
            if number != record.label
        ]
        return [example for example, _ in owned], [index for _, index in owned]

    def recorded(
        self,
        examples: Sequence[Example],
        nll: Mapping[int, float],
        top1: Mapping[int, Any],
        others: Mapping[int, Sequence[float]],
    ) -> dict[str, list[Any]]:
        answers = [
            Answered(nll[i], top1[i].tolist() == list(example.targets), others.get(i, []))
            for i, example in enumerate(examples)
        ]
        return {"correct": [answer.correct for answer in answers]}

    def value(self, columns: Columns) -> float | None:
        correct = columns["correct"]
        return sum(correct) / len(correct)

    # --- two runs -------------------------------------------------------------------------------

    def judge(
        self, preview: Arm, final: Arm, evidence: MetricEvidence, policy: Policy
    ) -> Judged | None:
        result = compare_accuracy(*_examples(evidence), policy, evidence.bootstrap)
        return Judged(
            block=_block(result, policy),
            acceptable=result.acceptable,
            drift_ok=result.drift_ok,
            hysteresis_applied=result.hysteresis_applied,
            floors=(Floor(self.floor, result.n_final, AccuracyPolicy.of(policy).min_examples),),
        )

    def baseline_points(self, evidence: MetricEvidence) -> dict[str, float]:
        both = zip(ARMS, _examples(evidence), strict=True)
        return {arm: float(examples.baseline.mean()) for arm, examples in both}

    def hysteresis(self, policy: Policy) -> dict[str, float]:
        return {"accuracy_delta_pp": AccuracyPolicy.of(policy).hysteresis_delta_pp}

    def width_limit(self, policy: ConfidencePolicy) -> tuple[str, float]:
        return "accuracy", policy.accuracy_delta_pp_width_max

    def shortage(self, arms: tuple[int, int], length: int, policy: Policy) -> Shortage | None:
        least = (
            policy.coverage.preview,
            max(policy.coverage.final, AccuracyPolicy.of(policy).min_examples),
        )
        if arms[0] >= least[0] and arms[1] >= least[1]:
            return None
        return Shortage(
            expected=f"{least[0]} preview and {least[1]} final records",
            found=f"{arms[0]} and {arms[1]}",
            windows=f"{{preview: {least[0]}, final: {least[1]}}}",
        )

    # --- a report -------------------------------------------------------------------------------

    def counts(self, windows: Mapping[str, Columns]) -> Block:
        by_arm = {
            arm: {
                "correct_total": sum(windows[arm]["correct"]),
                "total": len(windows[arm]["correct"]),
            }
            for arm in ARMS
        }
        return {
            "classification": {
                **by_arm,
                "n_correct": by_arm["final"]["correct_total"],
                "n_total": by_arm["final"]["total"],
                "counts_source": "measured",
            }
        }

    def as_ratio(self, value: float) -> float:
        return 1 + value / 100  # accuracies are compared by their difference

    # --- words ----------------------------------------------------------------------------------

    def words(self, value: float) -> str:
        return f"{value:+.2f}"

    def threshold(self, limit: float) -> str:
        return f"lower bound at least {limit:+.2f} pp"

    def passed(self, low: float, high: float, limit: float) -> str:
        return f"the lower bound is {low - limit:.2f} pp above the limit"

    def failed(self, low: float, high: float, limit: float) -> str:
        return f"the whole interval is below the limit, by {limit - high:.2f} pp or more"

    def drift_words(self, ratio: float) -> str:
        return f"{(ratio - 1) * 100:+.2f} pp"

    def facts(self, report: Report) -> Facts:
        metric = block(report, "primary_metric")
        reference = block(block(report, "baseline_ref"), "primary_metric")
        difference = number(metric.get("ratio_vs_baseline"))
        interval = pair(metric.get("display_ci"))
        facts = [
            ("Kind", "accuracy, share of the examples answered correctly"),
            *(
                (f"{side}, scored windows", "-" if value is None else f"{value * 100:.2f} %")
                for side, value in (
                    ("Subject", number(metric.get("final"))),
                    ("Baseline", number(reference.get("final"))),
                )
            ),
            ("Difference", "-" if difference is None else f"{difference:+.2f} percentage points"),
        ]
        if interval:
            ends = f"{interval[0]:+.2f} to {interval[1]:+.2f} percentage points"
            facts.append(("Interval", ends))
        counted = (
            ("n_final", "Examples scored"),
            ("gained", "Wrong before, right now"),
            ("lost", "Right before, wrong now"),
        )
        return [
            *facts,
            *((name, str(metric[key])) for key, name in counted if metric.get(key) is not None),
            ("McNemar's exact p (no difference)", fixed(metric.get("mcnemar_p"))),
        ]

    def plot_limit(self, limit: float | None) -> float | None:
        return None  # of answers, and the picture is of losses


class PicturedAccuracy(Accuracy):
    """The same of records with pictures, which a model for images and text reads."""

    adapter: ClassVar[str] = "hf_image_text"
    loader: ClassVar[str] = IMAGE_TEXT

    def require_model(self, trained: Metric, folder: Path) -> None:
        config = read_json_object(folder / "config.json")
        if not reads_images(config):
            raise ConfigError(
                "records with pictures need a model for images and text",
                where=str(folder / "config.json"),
                expected=f"a class of {IMAGE_TEXT} in architectures",
                found=f"{config.get('model_type')}: {config.get('architectures')}",
            )

    def reader(
        self, folder: Path, config: Mapping[str, Any], seed: int, pictures: Pictures | None = None
    ) -> ToExample:
        if pictures is None:
            raise ConfigError(
                "records with pictures are for measuring, and nothing is trained or weighed on"
                " them",
                where=str(folder),
                hint="leave out edits that need a text",
            )
        return partial(shown, pictures)


class Answered(Struct, frozen=True):
    """What a model made of a record: its loss on the right answer and on the other choices."""

    right_nll: float  # nats
    greedy: bool  # every token of the right answer is the most likely one
    wrong_nll: Sequence[float]  # nats; empty: exact match

    @property
    def correct(self) -> bool:
        """Whether the record counts; a loss that is not a number never does."""
        if not math.isfinite(self.right_nll):
            return False
        if not self.wrong_nll:
            return self.greedy
        return all(self.right_nll < other for other in self.wrong_nll)


def asked(record: Record, number: int | None = None) -> Example:
    """An answer of a record, the right one by default, after its prompt."""
    return continuation(record.prompt, record.answers[record.label if number is None else number])


def shown(pictures: Pictures, record: PicturedRecord, number: int | None = None) -> Example:
    """The same, with the picture that is part of the prompt."""
    plain, seen = asked(record, number), pictures.seen(record)
    before = len(record.prompt) - len(seen.tokens)  # a begin-of-text token
    after = len(plain.inputs["input_ids"]) - len(record.prompt)
    # what a processor says of each token is 0 for text
    more = {name: [*[0] * before, *ids, *[0] * after] for name, ids in seen.by_token.items()}
    return Example(
        {**more, **plain.inputs},
        plain.positions,
        plain.targets,
        Picture(seen.shapes, lambda: pictures.seen(record).arrays),
    )


def continuation(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """The answer's tokens, each from the prompt and the answer's tokens before it."""
    positions = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return Example({"input_ids": [*prompt, *answer[:-1]]}, positions, answer)


def _examples(evidence: MetricEvidence) -> tuple[Examples, Examples]:
    """Both runs' answers on preview and final.

    Raises:
        InputError: an example without true or false.
    """
    preview, final = (_joined(*evidence.columns[arm]) for arm in ARMS)
    return preview, final


def _joined(baseline: Columns, subject: Columns) -> Examples:
    ids = subject["window_ids"]
    return Examples(
        ids=ids,
        clusters=subject["clusters"],
        subject=labelled(ids, subject["correct"]),
        baseline=labelled(ids, baseline["correct"]),
    )


def _block(result: AccuracyResult, policy: Policy) -> Block:
    raw, drift = result.final - result.preview, result.drift_pp / 100
    most = AccuracyPolicy.of(policy).drift_max_pp / 100
    return {
        "preview": result.preview,
        "final": result.final,
        "ratio_vs_baseline": result.delta_pp,
        "delta_pp": result.delta_pp,
        "decision": result.decision,
        "limit": result.limit_pp,
        "counts_source": "measured",
        "n_final": result.n_final,
        "gained": result.gained,
        "lost": result.lost,
        "mcnemar_p": result.mcnemar_p,
        "drift": drift_block(1 + drift, 1 + raw, (1 - most, 1 + most)),
        "drift_band": {"min": 1 + raw - drift - most, "max": 1 + raw - drift + most},
        "coverage_ok": result.coverage_ok,
        "examples_ok": result.examples_ok,
        **interval_block(result.interval, result.examples_needed, float),
    }
