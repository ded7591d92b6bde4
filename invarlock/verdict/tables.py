"""Tidy tables of a suite's evaluations, for pandas, R or a spreadsheet.

Every table begins with the columns that name the evaluation: ``model``, ``scenario`` and ``run``.
The numbers are those of the evaluation reports, copied and never computed anew, so that a table
cannot disagree with the reports. What a report does not hold is a missing value, never a zero.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from invarlock.errors import ConfigError
from invarlock.files import write_bytes
from invarlock.pages.reading import BASELINE, Report, block
from invarlock.verdict.records import Evaluation, stated_by

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its name, the pandas dtype, the unit ("" for words and counts) and its meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


KEYS: Final = (
    Column("model", "str", "", "id of the model"),
    Column("scenario", "str", "", "id of the scenario"),
    Column("run", "Int64", "", "number of the run, from 1"),
)
EVALUATIONS: Final = (
    *KEYS,
    Column("status", "str", "", "how the evaluation ended: reported, rejected, crashed, ..."),
    Column("edit", "str", "", "name of the edit"),
    Column("metric", "str", "", "kind of the primary metric"),
    Column("unit", "str", "", "unit of the metric: ppl, accuracy, ..."),
    Column("preview", "float64", "unit", "the subject's metric on the warm-up windows"),
    Column("final", "float64", "unit", "the subject's metric on the scored windows"),
    Column("ratio_vs_baseline", "float64", "1", "the metric over the baseline's"),
    Column("ratio_low", "float64", "1", "lower end of the interval that is shown"),
    Column("ratio_high", "float64", "1", "upper end of the interval that is shown"),
    Column("limit", "float64", "1", "limit of the tier"),
    Column("decision", "str", "", "pass, fail or inconclusive, by the metric"),
    Column("invariants_status", "str", "", "what the invariants guard says"),
    Column("spectral_caps_applied", "Int64", "", "weights beyond their cap"),
)
WINDOWS: Final = (
    *KEYS,
    Column("arm", "str", "", "preview (warm-up) or final (scored)"),
    Column("position", "Int64", "", "place of the window in its sample, from 0"),
    Column("window_id", "str", "", "id of the window, the same in every evaluation"),
    Column("document", "str", "", "document of the window, the unit of resampling"),
    Column("tokens", "Int64", "tokens", "predicted tokens"),
    Column("nll_sum", "float64", "nats", "the subject's loss over the window"),
    Column("logloss", "float64", "nats/token", "the subject's loss a token"),
    Column("baseline_nll_sum", "float64", "nats", "the baseline's loss over the window"),
    Column("correct", "boolean", "", "whether the subject chose the right answer"),
    Column("baseline_correct", "boolean", "", "whether the baseline did"),
    Column("top1_agreement", "Int64", "tokens", "tokens of which both think the same likeliest"),
    Column("kl_sum", "float64", "nats", "Kullback-Leibler divergence from the baseline"),
    Column("probability_change_sum", "float64", "1", "change of the right token's probability"),
)
# The guards' numbers follow, one column a statistic: see :func:`modules`.
MODULES: Final = (
    *KEYS,
    Column("module", "str", "", "name of the module or weight"),
    Column("family", "str", "", "ffn, attn, embed, expert, router or other"),
    Column("layer", "Int64", "", "number of the layer, from 0; missing outside the layers"),
)
# What a sample of windows in a report calls the columns that a row names in the singular.
IN_REPORT: Final = {"window_id": "window_ids", "document": "clusters", "tokens": "token_counts"}


def evaluations(found: Iterable[Evaluation]) -> pd.DataFrame:
    """One row an evaluation.

    Beside :data:`EVALUATIONS`: a boolean ``gate_<flag>`` for each flag of ``validation``, and a
    boolean ``<guard>_fired`` for each guard (no report: missing).
    """
    rows = [_evaluation(evaluation) for evaluation in found]
    return _frame(rows, EVALUATIONS, "boolean")


def windows(found: Iterable[Evaluation]) -> pd.DataFrame:
    """One row a window and evaluation, with the losses of both runs (:data:`WINDOWS`)."""
    return _frame([row for one in found for row in _windows(one)], WINDOWS, "float64")


def modules(found: Iterable[Evaluation]) -> pd.DataFrame:
    """One row a module and evaluation, with each guard's numbers of it.

    Beside :data:`MODULES`: ``<guard>_<statistic>`` for the subject and
    ``<guard>_baseline_<statistic>`` for the baseline, float64, of every guard whose section of the
    report holds a table of modules. So a new guard appears here without a change. A weight and the
    module that it belongs to have names, and so rows, of their own.
    """
    return _frame([row for one in found for row in _modules(one)], MODULES, "float64")


def _keys(evaluation: Evaluation) -> Row:
    return dict(zip(("model", "scenario", "run"), evaluation.key, strict=True))


def _evaluation(evaluation: Evaluation) -> Row:
    report = evaluation.report or {}
    metric, stated = block(report, "primary_metric"), stated_by(evaluation.report)
    low, high = stated.display_ci or (None, None)
    copied = ("unit", "preview", "final", "limit")
    row = {
        **_keys(evaluation),
        "status": evaluation.outcome["status"],
        "edit": block(report, "edit").get("name"),
        "metric": stated.metric,
        **{name: metric.get(name) for name in copied},
        "ratio_vs_baseline": stated.ratio_vs_baseline,
        "ratio_low": low,
        "ratio_high": high,
        "decision": stated.decision,
        "invariants_status": stated.invariants_status,
        "spectral_caps_applied": stated.spectral_caps_applied,
    }
    row |= {f"gate_{flag}": value for flag, value in block(report, "validation").items()}
    known = evaluation.report is not None
    return row | {
        f"{guard}_fired": fired if known else None for guard, fired in stated.guard_flags.items()
    }


def _windows(evaluation: Evaluation) -> Iterator[Row]:
    for arm, columns in block(evaluation.report or {}, "evaluation_windows").items():
        here = {c.name: columns.get(IN_REPORT.get(c.name, c.name)) for c in WINDOWS}
        named = {name: values for name, values in here.items() if isinstance(values, list)}
        for position, values in enumerate(zip(*named.values(), strict=True)):
            head = {"arm": arm, "position": position}
            yield {**_keys(evaluation), **head, **dict(zip(named, values, strict=True))}


def _modules(evaluation: Evaluation) -> list[Row]:
    """The rows of one evaluation, in the order in which its report names the modules first."""
    report: Report = evaluation.report or {}
    rows: dict[str, Row] = {}
    for guard, section in report.items():
        table = section.get("modules") if isinstance(section, Mapping) else None
        if not isinstance(table, Mapping):  # also a count, as in the section of another guard
            continue
        head = {"name", "family", "layer"}
        statistics = [c for c in sorted(table) if c.removeprefix(BASELINE) not in head]
        for number, name in enumerate(table["name"]):
            place = {key: table[key][number] for key in ("family", "layer")}
            row = rows.setdefault(name, {**_keys(evaluation), "module": name, **place})
            row |= {f"{guard}_{column}": table[column][number] for column in statistics}
    return list(rows.values())


def _frame(rows: Sequence[Row], columns: Sequence[Column], other: str) -> pd.DataFrame:
    """The rows under the documented columns, then those that the rows bring, sorted by name."""
    dtypes = {column.name: column.dtype for column in columns}
    more = sorted({name for row in rows for name in row} - set(dtypes))
    dtypes |= dict.fromkeys(more, other)
    return pd.DataFrame(
        {
            name: pd.array([row.get(name) for row in rows], dtype=dtype)
            for name, dtype in dtypes.items()
        }
    )


# The tables by the name of the file that holds them.
TABLES: Final[Mapping[str, Callable[[Iterable[Evaluation]], pd.DataFrame]]] = {
    "evaluations": evaluations,
    "windows": windows,
    "modules": modules,
}


def write_table(path: Path, found: Iterable[Evaluation]) -> None:
    """Write the table that the file's name asks for, as Parquet or CSV by its suffix.

    The same reports give the same bytes. A number in CSV is the shortest text that reads back as
    the same float64; a missing value is an empty field.

    Raises:
        ConfigError: the name is none of ours, or the suffix is neither ``.parquet`` nor ``.csv``.
        InputError: the file cannot be written.
    """
    if path.stem not in TABLES or path.suffix not in (".parquet", ".csv"):
        raise ConfigError(
            "unknown table",
            where=str(path),
            expected=f"{', '.join(TABLES)} with .parquet or .csv",
        )
    frame = TABLES[path.stem](found)
    if path.suffix == ".csv":
        write_bytes(path, frame.to_csv(index=False, lineterminator="\n").encode())
        return
    buffer = io.BytesIO()
    frame.to_parquet(buffer, engine="pyarrow", index=False)
    write_bytes(path, buffer.getvalue())
