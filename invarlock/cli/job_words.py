"""What the settings say of a job's command line: the words that a rule, or ``compare``, passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from invarlock.cli.options import words
from invarlock.cli.scenarios import ScenariosOptions
from invarlock.cli.windows import WindowsOptions
from invarlock.config import Settings
from invarlock.scenarios import CUSTOM_SPEC
from invarlock.sources.spec import parse_slices
from invarlock.written import split_slices


class Wildcards(Protocol):
    """What a job is for."""

    model: str  # folder name
    scenario: str  # id
    set: str  # of a search's windows: selection or confirmation


@dataclass(frozen=True)
class JobWords:
    """Words of commands, by the settings in force."""

    settings: Settings

    @property
    def text_sources(self) -> list[str]:
        """What is pinned of the text: the source of each slice, each data set once."""
        sources = split_slices(self.settings.text).values()
        parsed = parse_slices(self.settings.text).values()
        return list({p.dataset_id: s for p, s in zip(parsed, sources, strict=True)}.values())

    @property
    def guarded_text(self) -> str:
        """The text of null edits, of training and of searches: the first slice, as guards see."""
        return next(iter(split_slices(self.settings.text).values()))

    def options(self, record: type, *names: str, **given: object) -> str:
        """What the settings say of a command's options; see :func:`invarlock.cli.options.words`."""
        return words(record, self.settings, *names, **given)

    def measuring(self, record: type, wildcards: Wildcards, **given: object) -> str:
        """The same for a command that measures a model."""
        model = self.settings.model(wildcards.model)
        return self.options(record, model_id=model.model_id, **given)

    def cut(
        self, wildcards: Wildcards, preview: int, final: int | None = None, **given: object
    ) -> str:
        """How windows are cut that are not judged, from the first text: as many for the final arm
        where no other number is given."""
        return self.options(
            WindowsOptions,
            seq_len=self.settings.model(wildcards.model).seq_len,
            preview=preview,
            final=preview if final is None else final,
            **{"text": self.guarded_text, **given},
        )

    def judged_cut(self, wildcards: Wildcards) -> str:
        """How the windows are cut that scenarios are judged on: of every text, some long ones."""
        model, long = self.settings.model(wildcards.model), self.settings.long_windows
        given = {"long": long.final, "long_seq_len": long.seq_len} if long.final else {}
        return self.cut(wildcards, model.preview, model.final, text=self.settings.text, **given)

    def of_scenario(self, wildcards: Wildcards) -> dict[str, Any]:
        """Options of an evaluation that are its scenario's; controls are judged as they are."""
        scenario, values = self.settings.scenario(wildcards.scenario), self.settings.values
        own = scenario.edit_spec == CUSTOM_SPEC
        return {
            "scenario": scenario.text,
            "edit_label": values["edit_label"] if own else scenario.label,
            "accept": values["accept"] if own else (),
            "early_decision": values["early_decision"] and scenario.is_control,
        }

    def selection(self) -> str:
        """Options of the scenario manifest: which scenarios, and how often each is evaluated."""
        s, values = self.settings, self.settings.values
        chosen = values["scenarios"] or values["categories"] or s.narrowed
        return self.options(
            ScenariosOptions,
            scenario=[scenario.id for scenario in s.scenarios] if chosen else (),
            runs=[f"{category}={n}" for category, n in values["runs"].items()],
        )
