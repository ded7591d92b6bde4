"""Judge all evaluations of a suite: summaries, final_verdict.json and final_verdict.txt.

FAIL and INCONCLUSIVE are results, so the exit code is 0; ``invarlock gate`` turns it into another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.cli.options import option
from invarlock.errors import ConfigError
from invarlock.files import read_json_object, write_json, write_text
from invarlock.scenarios import expected_evaluations, parse_catalogue
from invarlock.verdict.records import Evaluation, load_evaluation


@dataclass(frozen=True, kw_only=True)
class VerdictOptions:
    """Options of ``invarlock verdict``."""

    scenarios: Path = option(help="effective manifest")
    evaluation: tuple[Path, ...] = option(metavar="DIR", help="run_<n> folders")
    model: tuple[str, ...] = option(
        (),
        repeated=True,
        metavar="ID",
        help="model that has to be there; those of the evaluations always have to; repeatable",
    )
    out_dir: Path = option(help="folder of the verdict", writes=True)
    analysis_dir: Path = option(help="folder of the analysis", writes=True)


OPTIONS = VerdictOptions


def main(options: VerdictOptions) -> int:
    """Run the command."""
    from invarlock.verdict.text import word_of

    for path in written(options.out_dir, options.analysis_dir):  # a refusal leaves no older verdict
        path.unlink(missing_ok=True)
    manifest = read_json_object(options.scenarios)
    scenarios = parse_catalogue(manifest, str(options.scenarios)).scenarios
    evaluations = [load_evaluation(folder) for folder in options.evaluation]
    known = {s.id for s in scenarios}
    for folder, evaluation in zip(options.evaluation, evaluations, strict=True):
        if evaluation.scenario not in known:
            raise ConfigError(
                f"scenario {evaluation.scenario} is not in {options.scenarios}", where=str(folder)
            )
    models = {e.model for e in evaluations} | set(options.model)
    expected = expected_evaluations(scenarios, models, {e.run for e in evaluations})
    verdict = write_verdict(manifest, evaluations, expected, options.out_dir, options.analysis_dir)
    print(f"{options.out_dir / 'final_verdict.json'}: {word_of(verdict)}")
    return 0


def written(out_dir: Path, analysis_dir: Path) -> list[Path]:
    """Every file that this command writes."""
    from invarlock.verdict.summaries import ANALYSIS, DOCUMENTS

    found = [out_dir / "final_verdict.json", out_dir / "final_verdict.txt"]
    for name in DOCUMENTS:
        short = name.removeprefix(ANALYSIS)
        found.append((out_dir if short == name else analysis_dir) / f"{short}.json")
    return found


def write_verdict(
    manifest: dict[str, Any],
    evaluations: list[Evaluation],
    expected: tuple[tuple[str, str, int], ...],
    out_dir: Path,
    analysis_dir: Path,
) -> dict[str, Any]:
    """Compile the verdict and write it with its summaries; returns the verdict document."""
    from invarlock.contracts import validate
    from invarlock.verdict.summaries import ANALYSIS, documents
    from invarlock.verdict.text import render_verdict
    from invarlock.verdict.verdict import compile_verdict

    verdict = compile_verdict(manifest, evaluations, expected)
    scenarios = parse_catalogue(manifest, "scenarios").scenarios
    found = documents(verdict, scenarios, evaluations)
    files: list[tuple[Path, str, object]] = []
    for name, document in found.items():
        short = name.removeprefix(ANALYSIS)
        folder = out_dir if short == name else analysis_dir
        files.append((folder / f"{short}.json", short.replace("_", "-"), document))
    files.append((out_dir / "final_verdict.json", "final-verdict", verdict))
    for path, contract, document in files:
        validate(document, contract, str(path))
    for path, _, document in files:
        write_json(path, document)
    write_text(out_dir / "final_verdict.txt", render_verdict(verdict))
    return verdict
