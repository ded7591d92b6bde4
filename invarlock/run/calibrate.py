"""What null edits change in the measurements of a baseline: the input of a preset."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.checkpoints import Checkpoint
from invarlock.edits.apply import apply_edit
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError, MeasurementError
from invarlock.files import temporary_sibling
from invarlock.guards.caps import log_ratio
from invarlock.guards.operators import MATRIX, Operator, measure_weights
from invarlock.guards.representation import null_excesses
from invarlock.guards.spectral import change
from invarlock.guards.weight_stats import rounded
from invarlock.preset import NULL_EDITS, STATISTICS, STATS_SCHEMA
from invarlock.run.forward import ArmResult
from invarlock.run.loading import Target, device_name, load_model
from invarlock.run.measure import Observation, RunWindows, observe
from invarlock.run.tasks import task_for

Document = dict[str, Any]
Row = tuple[str, str, float]  # a module's name, family and value


@dataclass(frozen=True)
class Calibration:
    """The baseline and how it is measured."""

    model_id: str
    baseline: Checkpoint
    windows: Sequence[RunWindows]  # one a seed, all of one geometry and text
    target: Target
    token_budget: int


def calibrate(plan: Calibration, scratch: Path) -> Document:
    """Measure baseline and null edits on the windows of every seed.

    Each set of weights is loaded once and its matrices are measured once; the no-op is the
    baseline's own weights in smaller batches.

    Args:
        plan: what to measure.
        scratch: name for a folder that holds an edited checkpoint while it is measured.

    Returns:
        the content of ``calibration_stats.json``.

    Raises:
        ConfigError: window files of equal seeds, or of different geometry or text.
        MeasurementError: a measurement that is not finite.
    """
    dataset = _dataset(plan.windows)
    # a no-op in the same batches would be the same computation, and show no noise
    halved = max(1, plan.token_budget // 2)
    weights = _Weights(plan, plan.baseline)
    dtype, device = weights.loaded.dtype, device_name(weights.loaded.device)
    before = weights.observe(plan.token_budget)
    after = {"noop": weights.observe(halved)}
    for edit in NULL_EDITS:
        if edit not in after:
            del weights  # one model in memory at a time
            with _edited(plan, edit, scratch) as subject:
                weights = _Weights(plan, subject)
                after[edit] = weights.observe(plan.token_budget)
    runs = [
        {
            "edit": edit,
            "seed": windows.content.seed,
            "windows_sha256": windows.sha256,
            **changes(mine, theirs),
        }
        for edit in NULL_EDITS
        for windows, mine, theirs in zip(plan.windows, before, after[edit], strict=True)
    ]
    return {
        "schema": STATS_SCHEMA,
        "model_id": plan.model_id,
        "checkpoint_sha256": plan.baseline.digest(),
        "dtype": dtype,
        "device": device,
        "dataset": dataset,
        "null_edits": list(NULL_EDITS),
        "seeds": [windows.content.seed for windows in plan.windows],
        "runs": runs,
    }


@dataclass(frozen=True)
class Observed:
    """One set of weights on the windows of one seed."""

    operators: Sequence[Operator]  # the weights' own, the same for every seed
    on_windows: Observation


class _Weights:
    """A checkpoint in memory, with the statistics of its operators."""

    def __init__(self, plan: Calibration, checkpoint: Checkpoint) -> None:
        first = plan.windows[0]
        task = task_for(checkpoint.folder, first.content, first.pictures)
        self.plan, self.checkpoint = plan, checkpoint
        self.loaded = load_model(checkpoint.folder, plan.target, task.metric.adapter)
        self.operators = measure_weights(checkpoint, self.loaded.device).operators

    def observe(self, token_budget: int) -> list[Observed]:
        """A pass over the windows of every seed."""
        return [
            Observed(self.operators, observe(self.loaded, self.checkpoint, windows, token_budget))
            for windows in self.plan.windows
        ]


@contextlib.contextmanager
def _edited(plan: Calibration, edit: str, scratch: Path) -> Iterator[Checkpoint]:
    """The baseline after a null edit, on disk for as long as it is used."""
    stage = temporary_sibling(scratch)
    try:
        made = stage / "subject"  # in the stage, with whatever a kill leaves of it
        apply_edit(plan.baseline, parse_edit_spec(edit), made)
        yield Checkpoint.open(made)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _dataset(windows: Sequence[RunWindows]) -> Document:
    """The head that all window files share."""
    contents = [w.content for w in windows]
    heads = [
        {
            "provider": f"{c.source.kind}:{c.source.name}",
            "split": c.source.split,
            "seq_len": c.seq_len,
            "stride": c.stride,
            "preview_n": len(c.preview),
            "final_n": len(c.final),
        }
        for c in contents
    ]
    if any(head != heads[0] for head in heads):
        raise ConfigError("the window files differ in geometry or text", hint="cut them alike")
    if len({c.seed for c in contents}) < len(contents):
        raise ConfigError("two window files have the same seed", expected="one file a seed")
    return heads[0]


def changes(baseline: Observed, subject: Observed) -> Document:
    """ln of subject over baseline: drift, and by family the operators' sigma, the edge risks.

    Raises:
        MeasurementError: a value is not finite.
    """
    before, after = baseline.on_windows, subject.on_windows
    own = any(after.columns.values())
    result: Document = {
        # accuracies drift in percentage points, whose limit is the tier's: nothing to derive
        "drift": 0.0 if own else rounded(_spread(after.arms) - _spread(before.arms)),
        "spectral": _operators(baseline.operators, subject.operators),
        "rmt": _by_family(
            {a.name: a.edge for a in before.activations},
            [(a.name, a.family, a.edge) for a in after.activations],
        ),
        "representation": {
            kind: [rounded(math.log1p(far)) for far in found]
            for kind, found in null_excesses(before.arrays, after.arrays).items()
        },
    }
    values = [result["drift"]]
    values += [v for guard in STATISTICS for vs in result[guard].values() for v in vs]
    if None in values:
        raise MeasurementError("a null edit or the baseline itself has losses that are not finite")
    return result


def _spread(arms: Mapping[str, ArmResult]) -> float:
    """ln(final / preview) of the perplexities."""
    means = {arm: math.fsum(r.losses()) / sum(r.n_tokens()) for arm, r in arms.items()}
    return means["final"] - means["preview"]


def _operators(
    before: Sequence[Operator], now: Sequence[Operator]
) -> dict[str, list[float | None]]:
    """Changes of the operators that are judged by them, by family."""
    reference = {operator.name: operator for operator in before}
    families: dict[str, list[float | None]] = {}
    for operator in sorted(now, key=lambda o: o.name):
        if operator.kind != MATRIX:
            moved = rounded(change(reference[operator.name].stats, operator.stats))
            families.setdefault(operator.family, []).append(moved)
    return families


def _by_family(before: Mapping[str, float], now: Iterable[Row]) -> dict[str, list[float | None]]:
    families: dict[str, list[float | None]] = {}
    for name, family, value in sorted(now):
        change = rounded(log_ratio(value, before[name]))
        families.setdefault(family, []).append(change)
    return families
