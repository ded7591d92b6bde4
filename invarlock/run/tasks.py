"""What a model has to predict of its windows: the kind of metric says it for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invarlock.documents.windows import Record, Window, WindowSet
from invarlock.files import read_json_object
from invarlock.metrics.kind import Example, Metric, ToExample
from invarlock.metrics.kinds import metric_for, metric_of
from invarlock.pictures import Pictures


@dataclass(frozen=True)
class Task:
    """What is predicted in one run."""

    metric: Metric
    example: ToExample

    def examples(self, windows: Sequence[Window] | Sequence[Record]) -> list[Example]:
        """One example a window; of a record, its right answer.

        Raises:
            InputError: a window in which nothing can be predicted.
        """
        return [self.example(window) for window in windows]


def task_for(folder: Path, content: WindowSet, pictures: Pictures | None = None) -> Task:
    """The task of a checkpoint on these windows, of which ``pictures`` are the pictures.

    Raises:
        ConfigError: windows that a model of this kind cannot be measured on.
        InputError: the folder lacks what the task needs.
    """
    config = read_json_object(folder / "config.json")
    metric = metric_for(config, content.kind)
    metric.require_model(metric_of(config), folder)
    return Task(metric, metric.reader(folder, config, content.seed, pictures))


def commonest_shape(examples: Sequence[Example]) -> list[int]:
    """Indices of the examples of the shape that most have, the first such of equals."""
    shapes = [example.alike for example in examples]
    most = max(shapes, key=shapes.count)
    return [i for i, shape in enumerate(shapes) if shape == most]
