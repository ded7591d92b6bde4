"""Write the effective scenario manifest of a suite, or list its scenarios."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.errors import ConfigError
from invarlock.files import write_json
from invarlock.scenarios import CATEGORIES, effective_manifest, load_catalogue


@dataclass(frozen=True, kw_only=True)
class ScenariosOptions:
    """Options of ``invarlock scenarios``."""

    catalogue: Path = option(help="scenarios.json", setting="catalogue")
    suite: str = option(help="suite to select", setting="suite")
    scenario: tuple[str, ...] = option(
        (), repeated=True, metavar="ID", help="only this one; repeatable"
    )
    category: tuple[str, ...] = option(
        (),
        repeated=True,
        metavar="NAME",
        help=f"only this category ({', '.join(CATEGORIES)}); repeatable",
    )
    runs: tuple[str, ...] = option(
        (),
        repeated=True,
        metavar="CATEGORY=N",
        help="evaluations of each scenario of a category; repeatable",
    )
    artifact_class: str = option(
        "", help="class of the subject that the user brings", setting="artifact_class"
    )
    out: Path | None = option(None, help="file to write", writes=True)
    list: bool = option(False, help="print the selection")


OPTIONS = ScenariosOptions


def main(options: ScenariosOptions) -> int:
    """Run the command."""
    if options.out is None and not options.list:
        raise ConfigError("nothing to do", hint="give --out FILE, --list or both")
    catalogue = load_catalogue(options.catalogue)
    selection = catalogue.select(options.suite, options.scenario, options.category)
    if options.list:
        width = max(len(s.id) for s in selection)
        for s in selection:
            made_by = s.edit_spec or s.error_type
            print(f"{s.id:<{width}}  {s.category:<15}  {s.strictness:<13}  {made_by}")
    if options.out is not None:
        runs = dict(_runs(text) for text in options.runs)
        manifest = effective_manifest(
            catalogue,
            options.suite,
            options.scenario,
            options.category,
            runs,
            options.artifact_class,
        )
        write_json(options.out, manifest)
    return 0


def _runs(text: str) -> tuple[str, int]:
    category, _, number = text.partition("=")
    if category not in CATEGORIES or not number.isdecimal() or int(number) < 1:
        raise ConfigError(
            "is no number of runs", where="--runs", expected="CATEGORY=N", found=text[:60]
        )
    return category, int(number)
