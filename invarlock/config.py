"""The effective configuration: ``config/config.yaml``, the environment, and the suite tables.

Order of precedence: a value given on the command line or by a profile, then an environment
variable of the shell harness that people come from, then the files that ``include`` names (the
last first), then the file. Sections are merged key by key. The effective value and its origin are
recorded. Everything is checked before any job starts.
"""

from __future__ import annotations

import difflib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from invarlock.contracts import load_contract, validate, violations
from invarlock.errors import ConfigError, InputError
from invarlock.files import read_bytes
from invarlock.folders import named_file, no_folder
from invarlock.models import (
    LOCAL,
    Model,
    is_elsewhere,
    meant_elsewhere,
    one_of,
    resolve_models,
    slotted,
)
from invarlock.policy import tier_names
from invarlock.scenarios import CUSTOM_SPEC, Scenario, in_class, load_catalogue
from invarlock.tuned import read_or_empty, resolve_spec, tuned_type
from invarlock.variables import given_by
from invarlock.written import INCLUDE, ONE, listed, read_yaml, spelled, split_slices, texts

Document = Mapping[str, Any]


@functools.cache
def settings_with(*traits: str) -> tuple[str, ...]:
    """The settings of which ``config.yaml`` says one of these words, in its order."""
    known = load_contract("config")["properties"]
    return tuple(name for name, one in known.items() if {*traits} & {*one.get("traits", ())})


DEPLOYABLE_SUITE = "deployable"  # its scenarios are asked for by its name
AUTO = "auto"  # a new output folder at each start
OF_BYOE = (
    "baseline",
    "subject",
    "backend",
    "accept",
    "artifact_class",
)  # settings of that suite alone
OF_FOLDERS = {  # what a running server has no use for, and why
    "subject": "both are the subject",
    "accept": "it is about files, which a server does not show",
    "artifact_class": "it is about files, which a server does not show",
}
NOT_IN_INCLUDES = ("include", "allow_config_include_outside")


_PACKAGE = Path(__file__).resolve().parent
# Installed packages carry config/ and scenarios/ inside; a checkout has them at its top level.
SHIPPED = next(
    (p for p in (_PACKAGE / "settings", _PACKAGE.parent) if (p / "config/config.yaml").is_file()),
    _PACKAGE / "settings",
)
CPU_CONTEXT, CONTEXT = 1024, 4096  # most tokens of a long window


class LongWindows(NamedTuple):
    """The long windows of a run."""

    final: int  # scored ones, at most
    seq_len: int  # tokens, at most


@dataclass(frozen=True)
class Settings:
    """The effective configuration, checked."""

    values: Document
    # key -> "given" (profile or command line), "environment NAME", "include FILE" or "config"
    origins: Mapping[str, str]
    out: Path
    text: str
    min_free_disk_gb: float
    models: tuple[Model, ...]
    scenarios: tuple[Scenario, ...]
    narrowed: bool  # the suite holds scenarios of the deployable lane that are not asked for
    # (model slug, scenario id) -> edit spec, or why there is none
    edit_specs: Mapping[tuple[str, str], str | ConfigError]

    @property
    def token_budget(self) -> int:
        """Tokens of a batch."""
        on_gpu = self.values["device"] in ("cuda", "mps")
        return int(self.values["token_budget"]) or (16384 if on_gpu else 1024)

    @property
    def long_windows(self) -> LongWindows:
        """How many scored windows are long, and how long at most."""
        asked = self.values["long_context"]
        on_gpu = self.values["device"] in ("cuda", "mps")
        most = int(asked["seq_len"]) or (CONTEXT if on_gpu else CPU_CONTEXT)
        return LongWindows(int(asked["windows"]), most)

    def value(self, name: str) -> Any:
        """The value in force of a setting, ``key`` or ``section.key``: also where the setting says
        that it is the suite's, or the device's."""
        if name in ("text", "min_free_disk_gb", "token_budget"):
            return getattr(self, name)
        value: Any = self.values
        for key in name.split("."):
            value = value[key]
        return value

    def where(self, key: str) -> str:
        """The file or variable that a setting's value stands in."""
        return _where(self.origins[key])

    @property
    def fetching(self) -> tuple[str, ...]:
        """The settings that decide what is pinned, fetched, placed and cut, and where."""
        return settings_with("fetch")

    def scenario(self, scenario_id: str) -> Scenario:
        """The selected scenario of that id."""
        return next(s for s in self.scenarios if s.id == scenario_id)

    def model(self, model_slug: str) -> Model:
        """The model of that folder name."""
        return next(m for m in self.models if m.slug == model_slug)

    def edit_spec(self, model_slug: str, scenario_id: str) -> str:
        """The spec of an edit for one model.

        Raises:
            ConfigError: it takes tuned parameters, and the model has none.
        """
        found = self.edit_specs[model_slug, scenario_id]
        if isinstance(found, ConfigError):
            raise found
        return found

    def tuned_types(self) -> list[str]:
        """The edit types whose tuned parameters the selected scenarios take, sorted."""
        return sorted({edit_type for s in self.scenarios if (edit_type := tuned_type(s))})

    def runs(self, scenario: Scenario) -> range:
        """Run numbers of a scenario."""
        category = scenario.category if scenario.category in self.values["runs"] else "clean"
        return range(1, int(self.values["runs"][category]) + 1)

    def calibration_seeds(self) -> range:
        """Window seeds of the null edits: never the one that scenarios are judged on."""
        first = int(self.values["windows"]["seed"]) + 1
        return range(first, first + int(self.values["calibration"]["seeds"]))

    def recorded(self) -> dict[str, Any]:
        """The effective values and their origins, without paths of this machine and without how
        packs are verified: a pack must not change because somebody looks at it otherwise."""
        unsaid = settings_with("path", "secret", "check")
        values = {k: v for k, v in self.values.items() if k not in unsaid}
        for key in settings_with("file"):
            values[key] = Path(values[key]).name
        for trait, unplaced in (("source", _unplaced_source), ("files", _unplaced)):
            for key in settings_with(trait):
                value = values[key]
                values[key] = (
                    list(map(unplaced, value)) if isinstance(value, list) else unplaced(value)
                )
        return {
            "schema": "invarlock/effective-config-v1",
            "values": values,
            "origins": {k: v for k, v in sorted(self.origins.items()) if k not in unsaid},
        }


def shipped_settings(given: Document) -> Settings:
    """The effective configuration of the package's own files, with these settings over them.

    Raises:
        InvarlockError: see :func:`effective_settings`.
    """
    file = read_yaml(SHIPPED / "config/config.yaml")
    suites = yaml.safe_load(read_bytes(SHIPPED / "config/suites.yaml"))
    places = {key: str(SHIPPED / file[key]) for key in ("catalogue", "tuned_edit_params")}
    return effective_settings({**file, **places, **given}, {**file, **places}, suites, {}, given)


def effective_settings(
    given: Document,
    file: Document,
    suites: Document,
    environment: Mapping[str, str],
    spoken: Document | None = None,
    written: Mapping[str, str] | None = None,
) -> Settings:
    """Merge, check and expand the configuration.

    Args:
        given: the merged configuration as Snakemake holds it.
        file: ``config/config.yaml`` alone; where ``given`` differs, it comes from the command line.
        suites: ``config/suites.yaml``.
        environment: ``os.environ``.
        spoken: what the command line or a profile says by itself, also the file's own value.
        written: settings as they were written (:mod:`invarlock.written`).

    Raises:
        ConfigError: an unknown key, suite, model, scenario, tier, or values that do not fit.
        InputError: a folder or file that was named is missing.
    """
    written = written or {}
    given, file, spoken = (texts(d, written) for d in (given, file, spoken or {}))
    values, origins = _merge(given, file, environment, spoken)
    _validate(values, origins)
    one_of("tier", values["tier"], tier_names(), _where(origins["tier"]))
    one_of("suite", values["suite"], list(suites["suites"]), _where(origins["suite"]))
    suite = suites["suites"][values["suite"]]
    if origins["catalogue"] == "config":
        values["catalogue"] = suite.get("catalogue", values["catalogue"])
    if not origins["models"].startswith("given"):
        listed = values["models"] or suite["models"]
        slots, variables = slotted(listed, environment)
        if variables:
            values["models"], origins["models"] = slots, f"environment {variables}"
    _refuse_ignored(values, origins)
    _check_paths(values, origins)
    if values["suite"] == "byoe":
        entries = [_byoe_baseline(values)]
    else:
        entries = values["models"] or suite["models"]
    where = {key: _where(origins[key]) for key in ("models", "geometry")}
    models = resolve_models(entries, suites, values["geometry"], values["windows"], where)
    catalogue = load_catalogue(Path(values["catalogue"]))
    chosen = catalogue.select(values["suite"], values["scenarios"], values["categories"])
    scenarios = tuple(
        in_class(s, values["artifact_class"])
        for s in chosen
        if _has_subject(s, values) and _in_lane(s, values)
    )
    if not scenarios:
        raise ConfigError(
            "every selected scenario makes a deployable subject, and deploy_backends leaves none",
            where=_where(origins["deploy_backends"]),
            expected=", ".join(sorted({str(s.edit_type) for s in chosen})),
        )
    return Settings(
        values=values,
        origins=origins,
        out=_output_folder(values["out"], values["suite"]),
        text=values["text"] or suite["text"],
        min_free_disk_gb=values["min_free_disk_gb"]
        if values["min_free_disk_gb"] >= 0
        else suite["min_free_disk_gb"],
        models=models,
        scenarios=scenarios,
        narrowed=any(not _in_lane(s, values) for s in chosen),
        edit_specs=_edit_specs(values, models, scenarios),
    )


def _output_folder(out: str, suite: str) -> Path:
    """Where the run writes."""
    if out == AUTO:
        return Path(f"evidence_pack_runs/{suite}_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}")
    return Path(out or f"evidence_pack_runs/{suite}")


def check_release(settings: Settings, container: bool) -> None:
    """Refuse settings whose pack no release review would accept, all in one line.

    Args:
        settings: the effective configuration.
        container: whether a profile runs the rules in the image.

    Raises:
        ConfigError: what is not met.
    """
    values = settings.values
    rules = (
        (bool(values["signing_key"]), "a signing_key"),
        (values["profile"] != "dev", "profile ci or release, not dev"),
        (values["assurance"] == "strict", "assurance strict"),
        (bool(values["defer_rendering"]), "defer_rendering true"),
        (container, "the image for everything that measures"),
    )
    unmet = [what for holds, what in rules if not holds]
    if unmet:
        raise ConfigError(
            f"target release needs {'; '.join(unmet)}",
            hint="snakemake release --profile profiles/release --config signing_key=KEY.pem",
        )


def _merge(
    given: Document, file: Document, environment: Mapping[str, str], spoken: Document
) -> tuple[dict[str, Any], dict[str, str]]:
    values = {key: _from_command_line(value, file.get(key)) for key, value in given.items()}
    origins = {k: "given" if k in spoken or values[k] != file.get(k) else "config" for k in values}
    for name in filter(_is_list, file):  # on a command line A,B too
        values[name] = listed(values.get(name))
    for name, key, value in given_by(environment):
        if origins.get(key) == "config":
            values[key] = listed(value) if _is_list(key) else value
            origins[key] = f"environment {name}"
    _fill(values, origins, file)
    if isinstance(values.get("include"), list):
        _include(values, origins, file, spoken)
    return values, origins


def _include(
    values: dict[str, Any], origins: dict[str, str], file: Document, spoken: Document
) -> None:
    """Take the settings of the included files that nothing else sets; a later file wins."""
    for name in values["include"]:
        for key, value in _read_include(str(name), values, file).items():
            if origins[key] == "config" or origins[key].startswith("include "):
                values[key] = listed(value) if _is_list(key) else _merged(values[key], value)
                origins[key] = f"include {_unplaced(str(name))}"
            elif isinstance(value, Mapping) and isinstance(values[key], Mapping):
                said = _typed(_filled(spoken.get(key, values[key]), values))
                values[key] = _merged(_merged(values[key], value), said)


def _is_list(key: str) -> bool:
    known = load_contract("config")["properties"].get(key, {})
    return bool(known.get("type") == "array")


def _merged(lower: Any, upper: Any) -> Any:
    """A section over another, key by key; anything else replaces what is below it."""
    if not (isinstance(lower, Mapping) and isinstance(upper, Mapping)):
        return upper
    return {**lower, **{key: _merged(lower.get(key), value) for key, value in upper.items()}}


def _read_include(name: str, values: Document, file: Document) -> Document:
    found = _included(name, values)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError("holds no settings", where=name, expected="lines `key: value`")
    found = texts(found, spelled(read_bytes(Path(name))))
    for key in found:
        if key not in file or key in NOT_IN_INCLUDES:
            near = difflib.get_close_matches(str(key), list(file), n=1)
            guess = f"did you mean {near[0]}?" if near and near[0] != key else ""
            raise ConfigError(f"/{key} is no key of an included file", where=name, hint=guess)
    return found


def _included(name: str, values: Document, within: tuple[str, ...] = ()) -> Any:
    """What a file holds that settings include, with the files that it includes in their places."""
    path, here = Path(name), Path.cwd().resolve()
    outside = not path.resolve().is_relative_to(here)
    if outside and values.get("allow_config_include_outside") is not True:
        raise ConfigError(
            "include names a file outside the folder that snakemake runs in", where=name,
            expected=f"a file below {here}",
            hint="move it there, or allow it: allow_config_include_outside: true",
        )  # fmt: skip
    if name in within:
        raise ConfigError("includes itself", where=name, found=" -> ".join((*within, name)))
    return _filled(read_yaml(path, name), values, (*within, name))


def _filled(value: Any, values: Document, within: tuple[str, ...] = ()) -> Any:
    """A value with what files hold in the place of each ``!include FILE``."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, values, within) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values, within) for inner in value]
    if isinstance(value, str) and value.startswith(INCLUDE):
        return _included(value.removeprefix(INCLUDE).strip(), values, within)
    return value


def _fill(values: dict[str, Any], origins: dict[str, str], file: Document) -> None:
    """Put what files hold into the settings that name them by the tag ``!include``."""
    for key, value in values.items():
        found = _filled(value, values)
        if found is not value and found != value:
            below = _filled(file[key], values) if origins[key] != "config" else {}
            values[key] = _merged(below, found)
            if origins[key] == "config":
                origins[key] = f"include {_unplaced(_first_file(value))}"


def _first_file(value: Any) -> str:
    """The file that a value names by the tag, or the first that a part of it does."""
    if isinstance(value, str):
        return value.removeprefix(INCLUDE).strip() if value.startswith(INCLUDE) else ""
    parts = value.values() if isinstance(value, Mapping) else value
    return (
        next(filter(None, map(_first_file, parts)), "") if isinstance(value, Mapping | list) else ""
    )


def _unplaced_source(entry: str) -> str:
    """A model, a text, or every slice of one, without a path of this machine."""
    found = {name: _unplaced(source) for name, source in split_slices(entry).items()}
    if list(found) == [ONE] and not entry.startswith(f"{ONE}="):
        return found[ONE]
    return ",".join(f"{name}={source}" for name, source in found.items())


def _unplaced(entry: str) -> str:
    """An entry without a path of this machine: ``local:FOLDER`` keeps the folder's name."""
    if entry.startswith(LOCAL):
        return LOCAL + Path(entry.removeprefix(LOCAL)).name
    return Path(entry).name if entry.startswith(("/", "..")) else entry


def _from_command_line(value: Any, example: object) -> Any:
    """A value as the command line may hand it over: `true` is text there, and `key=` is None."""
    if isinstance(value, Mapping) or (isinstance(example, bool) and isinstance(value, str)):
        return _typed(value)
    return "" if value is None and isinstance(example, str) else value


def _typed(section: Any) -> Any:
    """``--config 'windows={seq_len: 16}'`` arrives with every inner value as text."""
    if isinstance(section, Mapping):
        return {key: _typed(value) for key, value in section.items()}
    plain = isinstance(section, str) and not section.startswith(INCLUDE)
    return yaml.safe_load(section) if plain else section


def _validate(values: Document, origins: Mapping[str, str]) -> None:
    """Refuse what departs from the contract, under the name of the file or variable it is in."""
    found = violations(values, "config")
    if found:
        key = found[0].split()[0].strip("/:").partition("/")[0]
        validate(values, "config", _where(origins.get(key, "config")), config=True)


def _where(origin: str) -> str:
    kind, _, name = origin.partition(" ")
    return {"config": "config/config.yaml", "given": "--config"}.get(kind, name)


def _refuse_ignored(values: Document, origins: Mapping[str, str]) -> None:
    """A setting that would have no effect is a mistake, not something to pass over."""
    ignored = ("models",) if values["suite"] == "byoe" else OF_BYOE
    for key in ignored:
        if values[key]:
            kind, _, names = origins[key].partition(" ")
            remove = f"unset {names.replace(',', '')}" if kind == "environment" else "remove it"
            raise ConfigError(
                f"/{key} has no effect with suite {values['suite']}",
                where=_where(origins[key]),
                hint=remove
                if key == "models"
                else "snakemake pack --config suite=byoe baseline=DIR subject=DIR",
            )
    if values["backend"]:
        for key, why in OF_FOLDERS.items():
            if values[key]:
                place = _where(origins[key])
                line = f"/{key} does not go with /backend: {why}"
                raise ConfigError(line, where=place, hint="name one of the two")
    if values["repeats"] == 1:  # one measurement is compared with nothing
        place = _where(origins["repeats"])
        raise ConfigError("repeats is 1", where=place, expected="0, or 2 and more")


def _byoe_baseline(values: Document) -> str:
    for key, given in (
        ("baseline", values["baseline"]),
        ("subject", values["subject"] or values["backend"]),
    ):
        if not given:
            raise ConfigError(
                f"suite byoe needs {key}",
                hint="snakemake pack --config suite=byoe baseline=DIR subject=DIR",
            )
    named = str(values["baseline"])
    return named if is_elsewhere(named) else LOCAL + named


def _has_subject(scenario: Scenario, values: Document) -> bool:
    return scenario.edit_spec != CUSTOM_SPEC or bool(values["subject"] or values["backend"])


def _in_lane(scenario: Scenario, values: Document) -> bool:
    """Whether a scenario is asked for whose subject a deployment backend packs; all others are."""
    if not scenario.is_packed_by_backend:
        return True
    asked = values["deployable_edits"] or values["suite"] == DEPLOYABLE_SUITE
    backends = values["deploy_backends"]
    return bool(asked and (not backends or scenario.edit_type in backends))


def _edit_specs(
    values: Document, models: Sequence[Model], scenarios: Sequence[Scenario]
) -> dict[tuple[str, str], str | ConfigError]:
    """The edit of every model and scenario; an error in place of one that cannot be resolved.

    The error is raised only when that edit is made: a search for missing tuned parameters has to
    be able to start without them.
    """
    edits = [s for s in scenarios if s.is_edit or s.is_packed_by_backend]
    path = Path(values["tuned_edit_params"])
    tuned = read_or_empty(path if any(map(tuned_type, edits)) else None)
    found: dict[tuple[str, str], str | ConfigError] = {}
    for model in models:
        for scenario in edits:
            try:
                found[model.slug, scenario.id] = resolve_spec(scenario, model.model_id, tuned)
            except ConfigError as error:
                found[model.slug, scenario.id] = error
    return found


def _check_paths(values: Document, origins: Mapping[str, str]) -> None:
    """Paths the user gave are checked before the first job."""
    for key in settings_with("path", "file", "source"):
        if {"{", "}"} & set(str(values[key])):
            what, place = f"/{key} holds a brace, a wildcard to Snakemake", _where(origins[key])
            raise ConfigError(what, where=place, expected="no { and }", found=str(values[key]))
    for key in ("baseline", "subject", "pack"):
        elsewhere = key == "baseline" and is_elsewhere(values[key])
        alone = key == "subject" and named_file(Path(values[key]))  # a file that is a model
        if values[key] and not (elsewhere or alone) and not Path(values[key]).is_dir():
            meant = meant_elsewhere(values[key]) if key == "baseline" else ""
            raise InputError(
                f"/{key} is not a folder", where=_where(origins[key]), found=str(values[key]),
                hint=meant or no_folder(Path(values[key])).hint,
            )  # fmt: skip
    # a received pack is verified, and nothing is signed
    if values["require_signature"] and not values["signing_key"] and not values["pack"]:
        raise ConfigError(
            "require_signature is on and no signing_key is given",
            where=_where(origins["require_signature"]),
            hint="make one: invarlock advanced evidence-pack keygen --out KEY.pem",
        )
