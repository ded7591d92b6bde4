"""One evaluation: the options of ``invarlock evaluate``, and the job of its measuring process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invarlock.cli.judging import Judging
from invarlock.cli.measuring import MeasuringOptions, Permissions
from invarlock.cli.options import option
from invarlock.reporting.assurance import MODES
from invarlock.run.container import Execution

EXIT_OUT_OF_MEMORY, EXIT_NOT_LOADED = 75, 76  # of the measuring process


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasuringOptions, Judging, Permissions):
    """Options of ``invarlock evaluate``."""

    baseline: Path = option(metavar="DIR", help="baseline checkpoint")
    subject: Path | None = option(
        None, metavar="DIR", help="edited checkpoint: a folder, or a file of a format that is one"
    )
    backend: str = option(
        "",
        metavar="openai:URL[#MODEL]",
        help="in place of --subject: a running server, of which the metric alone is measured",
    )
    baseline_report: Path | None = option(
        None,
        metavar="DIR",
        help="folder of invarlock run on the baseline (default: measured first, in OUT/baseline)",
    )
    assurance: str = option(
        "off", choices=MODES, help="strict makes the full claim", setting="assurance"
    )
    edit_label: str = option(
        "",
        help="name of the edit (default: the scenario's; else that of --edit-config, or the edit "
        "that the subject's folder is called by; else noop where no weight differs, and custom "
        "where one does)",
    )
    edit_config: Path | None = option(
        None,
        metavar="FILE",
        help="YAML or JSON that names the edit: label, plan, parameters; the report repeats it",
    )
    accept: tuple[str, ...] = option(
        (),
        comma=True,
        metavar="NAME[,NAME]",
        help="differences of the subject that are meant: chat_template, generation_config, "
        "tokenizer_config, special_tokens, a field of config.json ...; the report says so",
    )
    excerpts: str = option(
        "auto",
        choices=("auto", "on", "off"),
        help="the windows that lost most in the report, token by token with their text; auto "
        "(default): not where a text is a file of this machine",
        setting="excerpts",
    )
    scenario: str = option("", metavar="JSON", help="the scenario's catalogue entry")
    edit_metadata: Path | None = option(
        None, metavar="FILE", help="metadata to keep with the report"
    )
    early_decision: bool = option(
        False,
        help="end the measurement of a control as soon as something refuses it: looked at when a "
        "tenth, a quarter, half and three quarters of the documents ran",
    )
    run_number: int = option(1, metavar="N")
    timeout_minutes: float = option(
        0, metavar="M", help="0: none (default)", setting="timeout_minutes"
    )
    attempt: int = option(
        1,
        metavar="N",
        help="how often this was started: when memory runs out, the batch is halved N - 1 times",
    )
    record_failure: bool = option(
        False, help="when the subject cannot be measured, record that as the outcome and exit 0"
    )
    finished: Path | None = option(
        None,
        metavar="DIR",
        help="of an evaluation that shares a job with others: folder where its results are kept "
        "until the run ends, and found where all of them are started again; and where memory runs "
        "out, it tries smaller batches at once",
    )
    execution_mode: str = option(
        "",
        choices=("", "host", "container"),
        help="host: say nothing of an image; container: refuse to run outside of it (default: "
        "whichever it is)",
    )
    require_container: bool = option(
        False,
        help="refuse to run outside the container image that was resolved",
        unless="allow_host_execution",
    )
    image: Path | None = option(
        None,
        metavar="FILE",
        help="the container image, resolved outside of it (invarlock advanced provenance image)",
        also=("--runtime-provenance",),
    )
    config_record: Path | None = option(
        None, metavar="FILE", help="effective configuration, to be named"
    )

    @property
    def named(self) -> str:
        """The subject, for lines about it."""
        return self.backend or str(self.subject)

    @property
    def reference(self) -> Path:
        """The folder of the baseline's run."""
        return self.baseline_report or self.out / "baseline"


@dataclass(frozen=True, kw_only=True)
class Job(EvaluateOptions):
    """An evaluation as the measuring process gets it, as JSON on its standard input: everything is
    looked up, ``attempt`` and ``token_budget`` are those of this try, and ``gpus`` are to be waited
    for once they are needed (0: the process has what it needs)."""

    image_ref: str
    image_digest: str  # empty: outside every image

    @property
    def execution(self) -> Execution:
        """Where the job runs, as the supervisor found out."""
        return Execution(self.image_ref, self.image_digest)

    @property
    def entry(self) -> dict[str, Any]:
        """The catalogue entry of the scenario; empty where there is none."""
        return dict(json.loads(self.scenario)) if self.scenario else {}

    @property
    def scenario_id(self) -> str | None:
        """The scenario's id."""
        return self.entry.get("id")
