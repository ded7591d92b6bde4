"""The table of every scenario in docs/results.md, from a verdict to the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pack_factory as packs
import pytest
from repository_copy import ROOT, program

IDS = (*packs.IDS, "rmt_norm_noise")


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The tool as a module."""
    return program("tools/catalogue_table.py")


def test_the_numbers_are_those_of_the_verdict(table: ModuleType, tmp_path: Path) -> None:
    """Every evaluation is a row with its ratio, who spoke and what came of it."""
    run = packs.write_suite(tmp_path / "out", IDS, packs.failed_clean)
    verdict = json.loads((run / "reports/final_verdict.json").read_text())
    text = table.part(run)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(verdict["records"]) == len(IDS)
    for row, record in zip(rows, verdict["records"], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[0] == f"`{record['name']}`"
        assert cells[1:3] == [record["category"], record["strictness"]]
        ratio = record["ratio_vs_baseline"]
        assert cells[4].startswith("-" if ratio is None else f"{ratio:.4f}")
        assert ("**not as expected**" in cells[6]) == (not record["as_expected"])
        for guard in ("invariants", "spectral", "rmt", "primary_metric"):
            assert (guard in cells[5].split(", ")) == record["guard_flags"][guard]
    assert "verdict\nFAIL" in text
    detected = verdict["detection"]["invariants"]
    assert f"invariants {detected['detected']} of {detected['total']} (" in text
    assert "clean_all_pass: " in text


def test_tuned_edits_show_their_numbers(table: ModuleType, tmp_path: Path) -> None:
    """A tuned spec is shown as it was used: from the metadata of the edit."""
    folder = tmp_path / "acme__m/edits/prune_clean"
    folder.mkdir(parents=True)
    metadata = {"parameters": {"sparsity": 0.08}, "scope": "ffn"}
    (folder / "edit_metadata.json").write_text(json.dumps(metadata))
    (scenario,) = table.load_catalogue(ROOT / "scenarios/scenarios.json").select(
        "subset", ["prune_clean"]
    )
    record = {"model": "acme/m", "name": "prune_clean"}
    assert table.what(tmp_path, record, scenario) == "magnitude_prune:0.08:ffn"


def test_only_the_part_between_the_markers_changes(table: ModuleType) -> None:
    """It is put at the end at first, replaced later, and survives a new page."""
    first = f"{table.BEGIN}\none\n{table.END}"
    page = table.place("# Results\n", first)
    assert page == f"# Results\n\n{first}\n"
    second = f"{table.BEGIN}\ntwo \\1\n{table.END}"
    assert table.place(page, second) == f"# Results\n\n{second}\n"
    assert table.kept(page, "# New\n") == f"# New\n\n{first}\n"
    assert table.kept("# Old\n", "# New\n") == "# New\n"
