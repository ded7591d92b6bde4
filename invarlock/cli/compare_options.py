"""The options of ``invarlock compare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invarlock.cli.options import option
from invarlock.models import SCHEME

MOST_THREADS = 8  # more threads hardly make the models faster that a CPU is used for


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``invarlock compare``."""

    baseline: str = option(
        positional=True,
        metavar="BASELINE",
        help="folder, hub:OWNER/NAME or package:NAME",
    )
    subject: str = option(
        positional=True,
        metavar="SUBJECT",
        help="edited checkpoint; or a running server, openai:URL[#MODEL], which never passes",
    )
    out: Path | None = option(
        None,
        metavar="DIR",
        help="folder of report and page (default: a new one, compare-SUBJECT)",
        writes=True,
    )
    text: str = option(
        "",
        metavar="TEXT",
        help="your own text: a file (.jsonl or .parquet) or hub:OWNER/NAME; several as "
        "NAME=TEXT,NAME=TEXT (default: prose, code and words of many languages)",
    )
    quick: bool = option(
        False, help="fewer windows and no calibration: it can accuse, and never passes"
    )
    json: bool = option(False, help="print one JSON object")
    pack: Path | None = option(
        None, metavar="KEY", help="sign an evidence pack of it with this key (keygen), in DIR"
    )
    tier: str = option("balanced", help="tier of the policy (default: balanced)")
    accept: tuple[str, ...] = option(
        (),
        comma=True,
        metavar="NAME[,NAME]",
        help="differences of the subject that are meant, as of invarlock evaluate",
    )
    edit_label: str = option("", metavar="WORD", help="name of the edit, as of invarlock evaluate")
    device: str = option(
        "auto", choices=("auto", "cpu", "cuda", "mps"), help="where models run (default: auto)"
    )
    threads: int = option(
        0, metavar="N", help=f"CPU threads (default: as many as cores, at most {MOST_THREADS})"
    )
    seed: int = option(43, metavar="N", help="seed of the generators (default: 43)")
    net: bool = option(False, help="allow the network, which hub: sources need once")
    allow_remote_code: bool = option(False, help="run code that comes with the model")
    allow_pickle: bool = option(False, help="read a baseline's .bin weights")
    no_cache: bool = option(False, help="keep nothing of the baseline, and take nothing kept")

    @property
    def folder(self) -> Path | None:
        """The subject, where it is a folder or a file; None of a running server."""
        return None if self.backend else Path(self.subject)

    @property
    def backend(self) -> str:
        """The running server; empty where the subject is a folder or a file."""
        return self.subject if self.subject.startswith(SCHEME) else ""

    @property
    def name(self) -> str:
        """What the subject is called in answers."""
        return Path(self.subject).resolve().name if self.folder else self.subject
