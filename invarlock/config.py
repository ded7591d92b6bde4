"""The effective configuration: ``config/config.yaml``, the environment, and the suite tables.

Order of precedence: a value given on the command line, then an environment variable of the
shell harness that people come from, then the file. The effective value and its origin are
recorded. Everything is checked before any job starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from invarlock.contracts import validate
from invarlock.errors import ConfigError, InputError
from invarlock.files import slug
from invarlock.policy import tier_names
from invarlock.scenarios import Scenario, load_catalogue, load_tuned, resolve_spec

CUSTOM_SPEC = "custom"  # edit_spec of the subject that the user brings
PATH_KEYS = ("baseline", "subject", "out", "pack", "signing_key")  # values never recorded

Document = Mapping[str, Any]


def _flag(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")


# Environment variable -> (key, how to read it).
ENVIRONMENT: dict[str, tuple[str, Any]] = {
    "PACK_NET": ("net", lambda text: int(_flag(text))),
    "PACK_TUNED_EDIT_PARAMS_FILE": ("tuned_edit_params", str),
    "PACK_DETERMINISM": ("determinism", str),
    "PACK_BASELINE_STORAGE_MODE": ("baseline_storage", str),
    "PACK_CLEANUP_MODELS": ("keep_subjects", lambda text: not _flag(text)),
    "PACK_SIGNING_KEY": ("signing_key", str),
    "MIN_FREE_DISK_GB": ("min_free_disk_gb", float),
    "INVARLOCK_TIER": ("tier", str),
    "INVARLOCK_ALLOW_REMOTE_CODE": ("allow_remote_code", _flag),
    "INVARLOCK_ALLOW_HOST_EXECUTION": ("allow_host_execution", _flag),
}
MODEL_SLOTS = tuple(f"MODEL_{n}" for n in range(1, 9))


@dataclass(frozen=True)
class Model:
    """A model of the run with its geometry."""

    model_id: str
    slug: str
    source: str
    weights_gb: float
    seq_len: int
    preview: int
    final: int


@dataclass(frozen=True)
class Settings:
    """The effective configuration, checked."""

    values: Document
    origins: Mapping[
        str, str
    ]  # key -> "given" (profile or command line), "environment NAME" or "config"
    out: Path
    text: str
    min_free_disk_gb: float
    models: tuple[Model, ...]
    scenarios: tuple[Scenario, ...]
    edit_specs: Mapping[tuple[str, str], str]  # (model slug, scenario id) -> edit spec

    def scenario(self, scenario_id: str) -> Scenario:
        """The selected scenario of that id."""
        return next(s for s in self.scenarios if s.id == scenario_id)

    def model(self, model_slug: str) -> Model:
        """The model of that folder name."""
        return next(m for m in self.models if m.slug == model_slug)

    def runs(self, scenario: Scenario) -> range:
        """Run numbers of a scenario."""
        category = scenario.category if scenario.category in self.values["runs"] else "clean"
        return range(1, int(self.values["runs"][category]) + 1)

    def calibration_seeds(self) -> range:
        """Window seeds of the null edits: never the one that scenarios are judged on."""
        first = int(self.values["windows"]["seed"]) + 1
        return range(first, first + int(self.values["calibration"]["seeds"]))

    def recorded(self) -> dict[str, Any]:
        """The effective values and their origins, without paths of this machine."""
        values = {k: v for k, v in self.values.items() if k not in PATH_KEYS}
        for key in ("tuned_edit_params", "catalogue", "container_image"):
            values[key] = Path(values[key]).name
        if str(values["text"]).startswith("local:"):
            values["text"] = "local:" + Path(str(values["text"])).name
        return {
            "schema": "invarlock/effective-config-v1",
            "values": values,
            "origins": {k: v for k, v in sorted(self.origins.items()) if k not in PATH_KEYS},
        }


def effective_settings(
    given: Document,
    file: Document,
    suites: Document,
    environment: Mapping[str, str],
    spoken: Collection[str] = (),
) -> Settings:
    """Merge, check and expand the configuration.

    Args:
        given: the merged configuration as Snakemake holds it.
        file: ``config/config.yaml`` alone; where ``given`` differs, the command line spoke.
        suites: ``config/suites.yaml``.
        environment: ``os.environ``.
        spoken: keys that the command line or a profile names, also with the file's own value.

    Raises:
        ConfigError: an unknown key, suite, model, scenario, tier, or values that do not fit.
        InputError: a folder or file that was named is missing.
    """
    values, origins = _merge(given, file, environment, spoken)
    if isinstance(values["scenarios"], str):
        values["scenarios"] = [s.strip() for s in values["scenarios"].split(",") if s.strip()]
    if isinstance(values["models"], str):
        values["models"] = [m.strip() for m in values["models"].split(",") if m.strip()]
    validate(values, "config", "config/config.yaml", config=True)
    _one_of("tier", values["tier"], tier_names())
    _one_of("suite", values["suite"], list(suites["suites"]))
    _refuse_ignored(values)
    suite = suites["suites"][values["suite"]]
    models = _models(values, suites, suite)
    catalogue = load_catalogue(Path(values["catalogue"]))
    scenarios = tuple(
        s for s in catalogue.select(values["suite"], values["scenarios"]) if _has_subject(s, values)
    )
    _check_paths(values)
    return Settings(
        values=values,
        origins=origins,
        out=Path(values["out"] or f"evidence_pack_runs/{values['suite']}"),
        text=values["text"] or suite["text"],
        min_free_disk_gb=values["min_free_disk_gb"]
        if values["min_free_disk_gb"] >= 0
        else suite["min_free_disk_gb"],
        models=models,
        scenarios=scenarios,
        edit_specs=_edit_specs(values, models, scenarios),
    )


def _merge(
    given: Document, file: Document, environment: Mapping[str, str], spoken: Collection[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    values = {
        key: _typed(value) if isinstance(value, Mapping) else value for key, value in given.items()
    }
    origins = {k: "given" if k in spoken or values[k] != file.get(k) else "config" for k in values}
    for name, (key, read) in ENVIRONMENT.items():
        if environment.get(name) and origins.get(key) == "config":
            try:
                values[key] = read(environment[name])
            except ValueError as error:
                raise ConfigError(
                    f"{name} cannot be read", expected=f"a value for {key}",
                    found=repr(environment[name]),
                ) from error  # fmt: skip
            origins[key] = f"environment {name}"
    slots = [environment[name] for name in MODEL_SLOTS if environment.get(name)]
    if slots and origins.get("models") == "config":
        values["models"] = slots
        origins["models"] = "environment MODEL_1..MODEL_8"
    return values, origins


def _typed(section: Document) -> dict[str, Any]:
    """``--config 'windows={seq_len: 16}'`` arrives with every inner value as text."""
    return {k: yaml.safe_load(v) if isinstance(v, str) else v for k, v in section.items()}


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        raise ConfigError(
            f"/{key} is {value!r}",
            where="config/config.yaml",
            expected="one of " + ", ".join(known),
            hint=f"did you mean {near[0]}?" if near else "",
        )


def _models(values: Document, suites: Document, suite: Document) -> tuple[Model, ...]:
    if values["suite"] == "byoe":
        ids = [_byoe_id(values)]
        sources = {ids[0]: f"local:{values['baseline']}"}
    else:
        ids = list(values["models"] or suite["models"])
        sources = {}
    found: dict[str, Model] = {}
    for model_id in ids:
        if model_id not in suites["models"] and model_id not in sources:
            _one_of("models", model_id, list(suites["models"]))
        row = suites["models"].get(model_id, {"weights_gb": _folder_gb(values["baseline"])})
        geometry = {**suites["default_geometry"], **row}
        own = {k: values["windows"][k] or geometry[k] for k in ("seq_len", "preview", "final")}
        source = sources.get(model_id) or row["source"]
        model = Model(model_id, slug(model_id), source, float(row["weights_gb"]), **own)
        if model.slug in found:
            raise ConfigError(
                f"{model_id} and {found[model.slug].model_id} share the folder name {model.slug}",
                hint="run them in separate output folders",
            )
        found[model.slug] = model
    return tuple(found.values())


def _refuse_ignored(values: Document) -> None:
    """A setting that would have no effect is a mistake, not something to pass over."""
    ignored = ("models",) if values["suite"] == "byoe" else ("baseline", "subject")
    for key in ignored:
        if values[key]:
            raise ConfigError(
                f"/{key} has no effect with suite {values['suite']}",
                where="config/config.yaml",
                hint="remove it"
                if key == "models"
                else "snakemake pack --config suite=byoe baseline=DIR subject=DIR",
            )


def _byoe_id(values: Document) -> str:
    for key in ("baseline", "subject"):
        if not values[key]:
            raise ConfigError(
                f"suite byoe needs {key}",
                hint="snakemake pack --config suite=byoe baseline=DIR subject=DIR",
            )
    name = Path(values["baseline"]).resolve().name
    return name if slug(name) else "baseline"


def _has_subject(scenario: Scenario, values: Document) -> bool:
    return scenario.edit_spec != CUSTOM_SPEC or bool(values["subject"])


def _folder_gb(folder: str) -> float:
    if not folder or not Path(folder).is_dir():
        return 1.0
    return max(0.1, sum(f.stat().st_size for f in Path(folder).glob("*.safetensors")) / 1e9)


def _edit_specs(
    values: Document, models: Sequence[Model], scenarios: Sequence[Scenario]
) -> dict[tuple[str, str], str]:
    edits = [s for s in scenarios if s.is_edit]
    needs_table = any((s.edit_spec or "").endswith(":tuned") for s in edits)
    tuned = load_tuned(Path(values["tuned_edit_params"])) if needs_table else None
    return {(m.slug, s.id): resolve_spec(s, m.model_id, tuned) for m in models for s in edits}


def _check_paths(values: Document) -> None:
    """Paths the user gave are checked before the first job."""
    for key in ("baseline", "subject", "pack"):
        if values[key] and not Path(values[key]).is_dir():
            raise InputError(
                f"/{key} is not a folder", where="config/config.yaml", found=str(values[key])
            )
    if values["require_signature"] and not values["signing_key"]:
        raise ConfigError(
            "require_signature is on and no signing_key is given",
            where="config/config.yaml",
            hint="make one: invarlock advanced evidence-pack keygen --out KEY.pem",
        )
