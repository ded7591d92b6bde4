"""docs/results.md is made of what runs left: readings, tables and words."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pack_factory as packs
import pytest
import report_factory as factory
from report_factory import make_crashed, make_rejected, make_report
from repository_copy import ROOT

from invarlock.cli.verdict import write_verdict
from invarlock.files import write_json
from invarlock.scenarios import load_catalogue
from invarlock.verdict.records import Evaluation

UP = "model.layers.2.mlp.up_proj"
DOWN = "model.layers.2.mlp.down_proj"
IDS = (*packs.IDS, "rmt_norm_noise")
TOLD = (*("noop_clean", "lora_rank8_stress", "spectral_moderate_scale", "rmt_norm_noise_strong"),
        "spectral_moderate_scale_attn_l31_o_s105")  # fmt: skip


@pytest.fixture(scope="module")
def readings() -> Iterator[ModuleType]:
    """What a report says of each check."""
    sys.path.insert(0, str(ROOT / "tools"))
    import detection_readings

    yield detection_readings
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def pages(readings: ModuleType) -> ModuleType:
    """The tool that writes the page."""
    import results_page

    return results_page


# --- what a report says ----------------------------------------------------------------------


def test_readings_are_those_of_the_planted_change(readings: ModuleType) -> None:
    """Statistic over threshold, by hand, for a change of each kind."""
    report = make_report(
        scale={f"{UP}.weight": 1.5}, edge={DOWN: 1.5}, spread={DOWN: 1 / 0.81}, gain=0.05
    )
    sigma = readings.spectral_reading(report)
    limit = report["resolved_policy"]["spectral"]["deadband"]
    assert sigma.margin == pytest.approx(math.log(1.5) / math.log1p(limit), rel=1e-4)
    rmt = readings.rmt_reading(report)
    assert rmt.value == pytest.approx(0.5)
    assert rmt.margin == pytest.approx(0.5 / rmt.threshold)
    variance = readings.variance_reading(report)
    assert variance.value == pytest.approx(0.9)
    assert variance.margin == pytest.approx(0.1 / variance.threshold)
    assert readings.spoke(report) == ["spectral", "rmt", "variance"]
    assert readings.spoke(make_report()) == []
    assert readings.refusing(make_report()) == []
    assert readings.refusing(make_report(edge={DOWN: 1.5})) == ["rmt"]
    # a cap that the tier allows is told, and decides nothing
    capped = make_report(scale={f"{UP}.weight": 1.5})
    assert (readings.spoke(capped), readings.refusing(capped)) == (["spectral"], [])
    rank = readings.spectral_reading(make_report(rank={f"{UP}.weight": 0.05}))
    assert (rank.what, rank.margin) == ("stable rank ratio", pytest.approx(0.25 / 0.05))
    assert readings.metric_reading(make_report(ratio=2.0)).margin > 1


def test_what_was_not_measured_has_no_reading(readings: ModuleType) -> None:
    """A subject that was not run says nothing but what the invariants found."""
    for report in (make_rejected(), make_crashed()):
        others = [read(report) for name, read in readings.READINGS.items() if name != "invariants"]
        assert others == [None] * 4
    assert readings.spoke(make_rejected()) == ["invariants"]
    assert "invariants" in readings.refusing(make_rejected())
    assert readings.invariants_reading(make_rejected()).more == "non_finite_tensor (fatal)"
    assert readings.spoke(make_crashed()) == []


def test_every_guard_of_the_registry_has_a_reading(readings: ModuleType) -> None:
    """Of a guard without words of its own, the number that it decides by."""
    found = readings.reading_of("overhead", make_report())
    assert found is None or math.isfinite(found.value)
    for name in readings.BY_NAME:
        readings.reading_of(name, make_report())


# --- clean edits and damage ------------------------------------------------------------------


def measured(pages: ModuleType, name: str, report: Any, seed: int = 101, **outcome: Any) -> Any:
    """An evaluation of suite ``detection``."""
    catalogue = load_catalogue(ROOT / "scenarios/detection.json")
    (scenario,) = catalogue.select("detection", [name])
    if report is not None:
        report["dataset"]["windows"]["seed"] = seed
    evaluation = factory.make_evaluation(scenario, report, **outcome)
    cost = {"time_ratio": 0.03 + (seed - 101) * 0.02, "memory_ratio": 1.05}
    return pages.Measured(scenario, evaluation, cost)


@pytest.fixture
def results(pages: ModuleType) -> list[Any]:
    """Two clean evaluations, one of them noisy, and damage that was found, missed, not run."""
    return [
        measured(pages, "noop_clean", make_report()),
        measured(pages, "nan_injection", make_rejected()),
        measured(pages, "norm_collapse_half", None),
        measured(pages, "rmt_norm_noise", make_report(edge={DOWN: 1.05})),
        measured(pages, "rmt_norm_noise_double", make_report(edge={DOWN: 1.6})),
        measured(pages, "rmt_norm_noise_strong", make_report(edge={DOWN: 1.6})),
        measured(pages, "rank1_projection", make_report(rank={f"{DOWN}.weight": 0.05})),
        measured(pages, "quant_8bit_clean", make_report(edge={DOWN: 1.5}), 102),
        measured(pages, "noop_clean", make_report(), 102),
    ]


def test_summary_counts_what_the_reports_say(pages: ModuleType, results: list[Any]) -> None:
    """Found, missed with its margin, false alarms; a crash is no find, the impossible not asked."""
    text = "\n".join(pages.summary(*pages.sorted_out(results)))
    assert "refused 1 of 3 (1 - 91 %) of the clean evaluations" in text
    assert "`quant_rtn:8:0:all`, seed 102: rmt (edge growth 0.5, threshold 0.2)" in text
    assert "spoke on 1 of 3 (1 - 91 %) of them" in text
    assert "`quant_rtn:8:0:all`, seed 102: rmt spoke" in text
    assert "(some check refused 2 of 2 (16 - 100 %) of them)" in text
    assert "3 of 4 (19 - 99 %) at published strength" in text
    assert "2 of 2 (16 - 100 %) of those that" in text
    assert "0 of 1 (0 - 98 %) at half strength" in text
    assert "1 of 1 (3 - 100 %) at double strength" in text
    assert "rank 1: the metric says pass; found by spectral." in text
    assert "`rmt_norm_noise` (rmt): edge growth 0.05, threshold 0.2, margin 0.25" in text
    assert "nan_injection" not in text


def test_nothing_missed_is_said(pages: ModuleType, results: list[Any]) -> None:
    """Without a miss and without a false alarm the page says so."""
    assert "refused 0 of 1" in "\n".join(pages.summary(*pages.sorted_out(results[:1])))
    text = "\n".join(pages.summary(*pages.sorted_out(results[:2])))
    assert "spoke on 0 of 1" in text
    assert "Nothing escaped" in text


def test_tables_have_a_row_for_everything(pages: ModuleType, results: list[Any]) -> None:
    """Rows of equal width with statistic, threshold, margin and who spoke, in the suite's order."""
    clean, damaged = pages.sorted_out(results)
    tables = pages.clean_table(clean), pages.damage_table(damaged)
    for made, rows in zip(tables, (clean, damaged), strict=True):
        assert len(made) == len(rows) + 2
        assert len({line.count(" |") for line in made}) == 1
    assert tables[0][2].startswith("| `noop` | 101 | 1.0000 [1.0000, 1.0000] pass | 0 / ")
    assert tables[0][2].endswith("| none |")
    assert tables[0][3].startswith("| `noop` | 102 |")
    assert "1.500 / 1.200" in tables[0][4]
    nan, norm, rmt, more, strong, impossible, rank = tables[1][2:]
    assert "findings 1; non_finite_tensor (fatal) | 0 | - | yes |" in nan
    assert "| half, matrices 16 | spectral | crashed | none | not measured |" in norm
    assert "edge growth 0.05 | 0.2 | 0.25 | no |" in rmt
    assert "| double, blend 1, blend ends at 1 | rmt |" in more
    assert "| published, blend 1 | rmt |" in strong
    assert "| double, not possible: blend is 1 | rmt |" in impossible
    assert "stable rank ratio 0.05 | 0.25 | 5 | yes |" in rank


def write_run(folder: Path, results: list[Any]) -> Path:
    """What the page reads of a finished run of suite ``detection``."""
    evaluations: list[Evaluation] = [result.evaluation for result in results]
    for result in results:
        place = factory.write_evaluation(result.evaluation, folder)
        write_json(
            place / "runtime.manifest.json", {"context": {"guard_overhead": result.overhead}}
        )
    catalogue = load_catalogue(ROOT / "scenarios/detection.json")
    chosen = [result.scenario.id for result in results]
    manifest = factory.effective_manifest(catalogue, "detection", chosen)
    write_json(folder / "state/scenarios.json", manifest)
    write_json(folder / "state/source_repo.json", {"commit": "abc", "dirty": False})
    libraries = {"torch": "2", "transformers": "5", "numpy": "2"}
    machine = {"python_version": "3.11", "libraries": libraries, "cpu_model": "EPYC", "gpus": []}
    write_json(folder / "state/environment.json", machine)
    keys = tuple(evaluation.key for evaluation in evaluations)
    write_verdict(manifest, evaluations, keys, folder / "reports", folder / "analysis")
    return folder


def test_the_page_is_made_of_run_folders(
    pages: ModuleType, results: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every section is there, costs with their range; the other suite's part stays as it is."""
    runs = write_run(tmp_path / "101", results[:-2]), write_run(tmp_path / "102", results[-2:])
    file, marked = tmp_path / "results.md", f"{pages.BEGIN}\nold\n{pages.END}"
    file.write_text(f"# Old\n\n{marked}\n")
    monkeypatch.setattr(sys, "argv", ["results_page.py", *map(str, runs), "--page", str(file)])
    pages.main()
    text = file.read_text()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert [head.split()[1] for head in heads] == ["What", "Summary", "Clean", "Damage:", "Cost"]
    assert text.endswith(f"{marked}\n")
    assert "# Old" not in text
    assert "180 + 180 windows of 145 tokens" in text
    assert "tier balanced, with the preset" in text
    assert text.count("* measured at commit abc") == 1
    assert "* time: 0.050 (0.030 - 0.050), wanted at most 0.35" in text
    assert "{" not in text
    assert max(len(x) for x in text.splitlines() if not x.startswith("|")) < 140


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (48.32, "48.3"), (1e-6, "1.0e-6"), (123456.0, "1.2e5"),
     (float("inf"), "infinite"), (float("nan"), "-")],
)  # fmt: skip
def test_numbers_are_short(pages: ModuleType, value: float, text: str) -> None:
    """Three digits; an exponent only where it is needed."""
    assert pages.number(value) == text


# --- every scenario of a suite ---------------------------------------------------------------


def test_the_numbers_are_those_of_the_verdict(pages: ModuleType, tmp_path: Path) -> None:
    """Every evaluation is a row with its ratio, who spoke and what came of it."""
    run = packs.write_suite(tmp_path / "out", IDS, packs.failed_clean)
    verdict = json.loads((run / "reports/final_verdict.json").read_text())
    text = pages.part(pages.Run(run))
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(verdict["records"]) == len(IDS)
    for row, record in zip(rows, verdict["records"], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[0] == f"`{record['name']}`"
        assert cells[1] == record["category"]
        required = record["name"] == "rmt_norm_noise"
        assert cells[2] == ("informational, guard" if required else record["strictness"])
        ratio = record["ratio_vs_baseline"]
        assert cells[4].startswith("-" if ratio is None else f"{ratio:.4f}")
        assert ("**not as expected**" in cells[6]) == (not record["as_expected"])
        for guard in ("invariants", "spectral", "rmt", "primary_metric"):
            assert (guard in cells[5].split(", ")) == record["guard_flags"][guard]
    assert "verdict\nFAIL" in text
    detected = verdict["detection"]["invariants"]
    assert f"invariants {detected['detected']} of {detected['total']} (" in text
    assert "clean_all_pass: " in text


def informational(pages: ModuleType, out: Path, probe: float) -> tuple[str, dict[str, list[str]]]:
    """The part, and its rows by scenario; the spectral probe's ratio is ``probe``."""
    evaluations = []
    for scenario in factory.catalogue().select("smoke-all", TOLD):
        report = factory.expected_report(scenario)
        if scenario.id == "spectral_moderate_scale":
            report = factory.make_report(scenario.id, probe, scale={factory.DOWN + ".weight": 1.5})
        evaluations.append(factory.make_evaluation(scenario, report))
    manifest = factory.manifest("smoke-all", TOLD)
    write_json(out / "state/scenarios.json", manifest)
    keys = tuple(e.key for e in evaluations)
    write_verdict(manifest, evaluations, keys, out / "reports", out / "analysis")
    text = pages.part(pages.Run(out))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return text, {cells[0].strip("`"): cells for cells in rows}


def test_what_is_informational_is_told_as_the_verdict_takes_it(
    pages: ModuleType, tmp_path: Path
) -> None:
    """A required guard is marked, a control is no signal, and a probe that fails is not fine."""
    text, rows = informational(pages, tmp_path / "good", 1.03)
    assert rows["spectral_moderate_scale"][2::4] == ["informational, guard", "hit"]
    assert rows["rmt_norm_noise_strong"][2::4] == ["informational", "hit"]
    assert rows["lora_rank8_stress"][6] == "missed"
    assert rows["spectral_moderate_scale_attn_l31_o_s105"][6] == "control held"
    assert "negative controls aside: 2 of 3." in text
    text, rows = informational(pages, tmp_path / "bad", 1.5)
    assert rows["spectral_moderate_scale"][6].startswith("**not as expected**: spectral spoke")
    assert "negative controls aside: 1 of 3." in text


def test_the_page_says_what_the_tool_says(pages: ModuleType) -> None:
    """The words over the published table are those of the tool."""
    page = " ".join(pages.PAGE.read_text().split())
    words = pages.HEAD.partition("*Asked for*")[2].partition("\n\n")[0]
    assert " ".join(words.split()) in page


def test_tuned_edits_show_their_numbers(pages: ModuleType, tmp_path: Path) -> None:
    """A tuned spec is shown as it was used: from the metadata of the edit."""
    folder = tmp_path / "acme__m/edits/prune_clean"
    folder.mkdir(parents=True)
    metadata = {"parameters": {"sparsity": 0.08}, "scope": "ffn"}
    (folder / "edit_metadata.json").write_text(json.dumps(metadata))
    (scenario,) = factory.catalogue().select("subset", ["prune_clean"])
    record = {"model": "acme/m", "name": "prune_clean"}
    assert pages.what(tmp_path, record, scenario) == "magnitude_prune:0.08:ffn"


def test_only_the_part_between_the_markers_changes(pages: ModuleType) -> None:
    """It is put at the end at first, replaced later, and survives a new page."""
    first = f"{pages.BEGIN}\none\n{pages.END}"
    page = pages.place("# Results\n", first)
    assert page == f"# Results\n\n{first}\n"
    second = f"{pages.BEGIN}\ntwo \\1\n{pages.END}"
    assert pages.place(page, second) == f"# Results\n\n{second}\n"
    assert pages.kept(page, "# New\n") == f"# New\n\n{first}\n"
    assert pages.kept("# Old\n", "# New\n") == "# New\n"
