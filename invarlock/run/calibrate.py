"""What null edits change in the measurements of a baseline: the input of a preset."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.checkpoints import Checkpoint
from invarlock.edits.apply import apply_edit
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError, MeasurementError
from invarlock.files import temporary_sibling
from invarlock.guards.spectral import log_ratio, rounded
from invarlock.preset import NULL_EDITS, STATS_SCHEMA
from invarlock.run.forward import ArmResult
from invarlock.run.loading import Target
from invarlock.run.measure import Measurement, RunWindows, measure_checkpoint

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
    baselines = [_measure(plan, plan.baseline, windows) for windows in plan.windows]
    runs: list[Document] = []
    for edit in NULL_EDITS:
        stage = temporary_sibling(scratch)
        try:
            subject = plan.baseline
            if edit != "noop":
                made = stage / "subject"  # in the stage, with whatever a kill leaves of it
                apply_edit(plan.baseline, parse_edit_spec(edit), made)
                subject = Checkpoint.open(made)
            for windows, baseline in zip(plan.windows, baselines, strict=True):
                # a no-op in the same batches would be the same computation, and show no noise
                budget = plan.token_budget // 2 if edit == "noop" else plan.token_budget
                measured = _measure(plan, subject, windows, baseline, max(1, budget))
                runs.append(
                    {
                        "edit": edit,
                        "seed": windows.content.seed,
                        "windows_sha256": windows.sha256,
                        **changes(baseline, measured),
                    }
                )
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return {
        "schema": STATS_SCHEMA,
        "model_id": plan.model_id,
        "checkpoint_sha256": plan.baseline.digest(),
        "dtype": baselines[0].dtype,
        "device": baselines[0].device,
        "dataset": dataset,
        "null_edits": list(NULL_EDITS),
        "seeds": [windows.content.seed for windows in plan.windows],
        "runs": runs,
    }


def _measure(
    plan: Calibration,
    checkpoint: Checkpoint,
    windows: RunWindows,
    baseline: Measurement | None = None,
    token_budget: int = 0,
) -> Measurement:
    return measure_checkpoint(
        checkpoint,
        windows,
        plan.target,
        token_budget=token_budget or plan.token_budget,
        against=baseline.reference_arrays() if baseline else None,
    )


def _dataset(windows: Sequence[RunWindows]) -> Document:
    """The head that all window files share."""
    contents = [w.content for w in windows]
    heads = [
        {
            "provider": f"{c.source['kind']}:{c.source['name']}",
            "split": c.source.get("split"),
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


def changes(baseline: Measurement, subject: Measurement) -> Document:
    """ln of subject over baseline: drift, and by family every module's sigma and edge risk.

    Raises:
        MeasurementError: a value is not finite.
    """
    accuracy = any(subject.correct.values())
    result: Document = {
        # accuracies drift in percentage points, whose limit is the tier's: nothing to derive
        "drift": 0.0 if accuracy else rounded(_spread(subject.arms) - _spread(baseline.arms)),
        "spectral": _by_family(
            {m.name: m.stats.sigma_max for m in baseline.modules},
            [(m.name, m.family, m.stats.sigma_max) for m in subject.modules],
        ),
        "rmt": _by_family(
            {a.name: a.edge for a in baseline.activations},
            [(a.name, a.family, a.edge) for a in subject.activations],
        ),
    }
    values = [result["drift"]]
    values += [v for guard in ("spectral", "rmt") for vs in result[guard].values() for v in vs]
    if None in values:
        raise MeasurementError("a null edit or the baseline itself has losses that are not finite")
    return result


def _spread(arms: Mapping[str, ArmResult]) -> float:
    """ln(final / preview) of the perplexities."""
    means = {arm: math.fsum(r.losses()) / sum(r.n_tokens()) for arm, r in arms.items()}
    return means["final"] - means["preview"]


def _by_family(before: Mapping[str, float], now: Iterable[Row]) -> dict[str, list[float | None]]:
    families: dict[str, list[float | None]] = {}
    for name, family, value in sorted(now):
        change = rounded(log_ratio(value, before[name]))
        families.setdefault(family, []).append(change)
    return families
