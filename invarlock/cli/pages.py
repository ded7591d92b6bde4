"""Write evaluation.md, evaluation.html and verify.json beside each evaluation report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.cli.report import read_report
from invarlock.errors import ContractError
from invarlock.evidence.findings import UNREADABLE
from invarlock.evidence.layout import VERIFIED
from invarlock.evidence.report_verify import envelope, page_options, verify_report
from invarlock.files import read_bytes, write_json, write_text
from invarlock.policy import PROFILES
from invarlock.reporting.runtime_manifest import NAME as RUNTIME_MANIFEST


@dataclass(frozen=True, kw_only=True)
class PagesOptions:
    """Options of ``invarlock advanced pages``."""

    report: tuple[Path, ...] = option(
        positional=True, metavar="REPORT", help="evaluation.report.json"
    )
    profile: str = option("dev", choices=PROFILES, help="what the re-check demands")


OPTIONS = PagesOptions


def main(options: PagesOptions) -> int:
    """Run the command; a report that does not pass its re-check is a result, and in verify.json."""
    for path in options.report:
        _pages(path, options.profile)
    return 0


def _pages(path: Path, profile: str) -> None:
    from invarlock.reporting import render

    report = read_report(path)
    try:
        markdown = render.render_report_markdown(report)
        html = render.render_report_html(report)
    except UNREADABLE as error:  # follows its schema, and holds records of an impossible shape
        raise ContractError(
            f"cannot be rendered: {type(error).__name__}", where=str(path)
        ) from error
    beside = path.with_name(RUNTIME_MANIFEST)
    manifest = read_bytes(beside) if beside.is_file() else None
    # by its name alone: it goes into packs, which name no folder of a machine
    checked = verify_report(read_bytes(path), manifest, path.name, page_options(profile))
    write_text(path.with_name("evaluation.md"), markdown)
    write_text(path.with_name("evaluation.html"), html)
    write_json(path.with_name(VERIFIED), envelope([checked], profile))
