"""Tables of analysis/: every number is the report's, and other programs read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_factory import (
    catalogue,
    expected_report,
    make_evaluation,
    make_rejected,
    write_evaluation,
)
from repository_copy import ROOT

from invarlock.cli import main
from invarlock.verdict import tables
from invarlock.verdict.records import Evaluation


def found() -> list[Evaluation]:
    """A report of a good edit, one of a subject that was rejected, and one that crashed."""
    noop, nan, quant = catalogue().select(
        "smoke", ["noop_clean", "nan_injection", "quant_8bit_clean"]
    )
    crashed = {"status": "crashed", "injected": None, "error": "no memory"}
    chosen = {s.id: s for s in (noop, nan, quant)}
    return [
        make_evaluation(chosen["noop_clean"], expected_report(chosen["noop_clean"])),
        make_evaluation(chosen["nan_injection"], make_rejected()),
        make_evaluation(chosen["quant_8bit_clean"], None, **crashed),
    ]


def present(value: Any) -> Any:
    """None for a missing value of any dtype."""
    return None if pd.isna(value) else value


def test_a_row_an_evaluation() -> None:
    """The metric, its interval, the gates and who fired, as in the report."""
    whole, rejected, _ = found()
    frame = tables.evaluations(found())
    metric = (whole.report or {})["primary_metric"]
    row = frame.iloc[0]
    assert list(row[["model", "scenario", "run"]]) == list(whole.key)
    for name in ("preview", "final", "ratio_vs_baseline", "limit", "decision", "unit"):
        assert row[name] == metric[name], name
    assert [row["ratio_low"], row["ratio_high"]] == metric["display_ci"]
    for flag, value in (whole.report or {})["validation"].items():
        assert row[f"gate_{flag}"] == value
    assert not row["spectral_fired"]
    assert frame.iloc[1]["status"] == rejected.outcome["status"]
    assert frame.iloc[1]["invariants_fired"]
    assert present(frame.iloc[1]["ratio_vs_baseline"]) is None


def test_a_row_a_window() -> None:
    """Both runs' losses of every window of both arms; no row of a subject that was not run."""
    whole = found()[0]
    frame = tables.windows(found())
    arms = (whole.report or {})["evaluation_windows"]
    assert set(frame["scenario"]) == {"noop_clean"}
    for arm, columns in arms.items():
        rows = frame[frame["arm"] == arm]
        assert list(rows["position"]) == list(range(len(columns["window_ids"])))
        for name in tables.WINDOWS[len(tables.KEYS) + 2 :]:
            recorded = columns.get(tables.IN_REPORT.get(name.name, name.name))
            if recorded is None:
                assert rows[name.name].isna().all()
            else:
                assert list(rows[name.name]) == recorded, name
        assert set(columns) <= {tables.IN_REPORT.get(c.name, c.name) for c in tables.WINDOWS}


def test_a_row_a_module() -> None:
    """Every statistic of a guard's table stands under the guard's name, at its module."""
    report = found()[0].report or {}
    frame = tables.modules(found()).set_index("module")
    guards = {name: block["modules"] for name, block in report.items()
              if isinstance(block, dict) and isinstance(block.get("modules"), dict)}  # fmt: skip
    assert set(guards) == {"spectral", "rmt", "variance"}
    for guard, table in guards.items():
        for statistic in set(table) - {"name", "family", "layer"}:
            assert list(frame.loc[table["name"], f"{guard}_{statistic}"]) == table[statistic]
    assert list(frame.index) == list(dict.fromkeys(n for t in guards.values() for n in t["name"]))


@pytest.mark.parametrize("name", tables.TABLES)
def test_other_programs_read_the_files(name: str, tmp_path: Path) -> None:
    """Parquet and CSV hold what the table holds; the same reports give the same bytes."""
    folders = [str(write_evaluation(evaluation, tmp_path / "out")) for evaluation in found()]
    words = ["advanced", "analyze", "table", "--evaluation", *folders, "--out"]
    for suffix in ("parquet", "csv"):
        file, again = tmp_path / f"{name}.{suffix}", tmp_path / "again" / f"{name}.{suffix}"
        again.parent.mkdir(exist_ok=True)
        assert main([*words, str(file)]) == main([*words, str(again)]) == 0
        assert file.read_bytes() == again.read_bytes()
    frame = tables.TABLES[name](found())
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), frame)
    read = pd.read_csv(tmp_path / f"{name}.csv", dtype=dict(frame.dtypes))
    pd.testing.assert_frame_equal(read, frame)


def test_an_unknown_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the tables that there are."""
    file = tmp_path / "losses.parquet"
    assert main(["advanced", "analyze", "table", "--evaluation", "--out", str(file)]) == 2
    assert "expected evaluations, windows, modules with .parquet or .csv" in capsys.readouterr().err
    assert not file.exists()


def test_every_column_is_documented() -> None:
    """docs/reviewer.md has a row for each column, with its dtype and unit."""
    page = (ROOT / "docs/reviewer.md").read_text()
    columns = {*tables.EVALUATIONS, *tables.WINDOWS, *tables.MODULES}
    rows = [f"| `{c.name}` | {c.dtype} | {c.unit or '-'} | {c.meaning} |" for c in columns]
    assert not [row for row in rows if row not in page]
    bare = set(tables.modules(found()).columns) - {c.name for c in tables.MODULES}
    assert not [name for name in bare if f"`{name.replace('baseline_', '')}`" not in page]
