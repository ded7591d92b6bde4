"""The tier table of ``invarlock/data/tiers.yaml`` as typed values, with recorded overrides."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import asdict

from invarlock.differences import is_number
from invarlock.errors import ConfigError
from invarlock.files import digest_json

POLICY_PACK = "policy_pack.json"  # the copy of a policy pack beside a report
TIERS_FILE = Path(__file__).with_name("data") / "tiers.yaml"
T = TypeVar("T", bound=msgspec.Struct)
PROFILES = ("dev", "ci", "release")  # what report verification demands
ASSURANCE = ("off", "report", "strict")  # which claim it checks


class Override(msgspec.Struct, frozen=True):
    """One threshold that is not the tier's own, and where it came from."""

    # spectral.tau.FAMILY, rmt.epsilon.FAMILY, representation.limit.KIND, drift.min, drift.max or
    # tail.mode
    path: str
    value: float | str
    source: str  # "preset:<first 12 hex of its sha256>" or "config"


class Section(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a tier's row; decoding checks that the table holds these values and no others."""


class Ratios(Section):
    """Subject/baseline ratios below which a weight matrix counts as (nearly) collapsed."""

    warn_ratio: float
    fatal_ratio: float


class Degeneracy(Section):
    """Of which values of a matrix."""

    stable_rank: Ratios
    norm_collapse: Ratios


class MultipleTesting(Section):
    """How candidates of all modules are selected together."""

    method: str
    alpha: float


class RowPolicy(Section):
    """When a row of an embedding, head or position table is a finding; relative changes."""

    factor: float  # times the table's median change, kept within the two limits
    limit_min: float
    limit_max: float
    moved_min: float  # change from which on a row that is closer to another one has moved
    nearer: float  # at most this share of the distance to its own


class SpectralPolicy(Section, kw_only=True):
    """Thresholds of the spectral guard (method: ``docs/method.md``)."""

    deadband: float
    max_caps: int
    family_caps: dict[str, float]
    # from a preset; empty without one
    tau_by_family: dict[str, float] = msgspec.field(name="tau")
    multiple_testing: MultipleTesting
    degeneracy: Degeneracy
    rows: RowPolicy

    def kappa(self, family: str) -> float:
        """The |z| beyond which a module of ``family`` is a candidate for a cap."""
        return self.family_caps.get(family, self.family_caps["other"])

    def tau(self, family: str) -> float:
        """The unit of z, in ``|ln(sigma_s / sigma_b)|``: the preset's, or the deadband at kappa."""
        default = math.log1p(self.deadband) / self.kappa(family)
        return self.tau_by_family.get(family, default)


class TailPolicy(Section):
    """Thresholds of the tail of per-window differences (nats per token)."""

    mode: str  # warn or fail
    min_windows: int
    quantile: float
    quantile_max: float
    epsilon: float
    mass_max: float


class RmtPolicy(Section):
    """Allowed relative growth of the activation edge risk."""

    epsilon_default: float
    epsilon_by_family: dict[str, float]  # from a preset; empty without one

    def epsilon(self, family: str) -> float:
        """The allowance of ``family``."""
        return self.epsilon_by_family.get(family, self.epsilon_default)


class RepresentationPolicy(Section):
    """How far a block's Gram matrix may be from the baseline's for a reason of its own."""

    warn: float  # excess from which on a block is named
    limit_by_kind: dict[str, float | None]  # None: named, and never a reason to block

    def limit(self, kind: str) -> float | None:
        """The limit of a kind of block."""
        return self.limit_by_kind[kind]

    def beyond(self, kind: str, excess: float) -> bool:
        """Whether a block of this kind is beyond its limit; what is not finite always is."""
        limit = self.limit_by_kind[kind]
        return not math.isfinite(excess) or (limit is not None and not excess <= limit)


class VariancePolicy(Section):
    """Thresholds of the variance guard; gains in nats per token, ``alpha`` one-sided."""

    deadband: float
    min_effect_lognll: float
    max_adjusted_modules: int  # 0: no limit
    alpha: float


class MoePolicy(Section):
    """Thresholds of router statistics."""

    entropy_drop_max: float  # relative
    new_dead_experts_max: int


class DistributionPolicy(Section):
    """Limits on the shift of the predicted distribution; None (tier none): not gated."""

    kl_mean_max: float | None  # nats per token
    flip_fraction_max: float | None


class OverheadPolicy(Section):
    """Limits on what the guards change and cost, relative to the bare evaluation."""

    threshold: float
    work_max: float


class ConfidencePolicy(Section):
    """Interval widths up to which the confidence label is High."""

    ppl_ratio_width_max: float
    accuracy_delta_pp_width_max: float


class PresetPolicy(Section):
    """How a preset bounds what null edits do (``docs/method.md``)."""

    false_alarm: float  # of a family, over all its modules
    confidence: float


class RatioPolicy(Section):
    """Limits on the ratio of perplexities."""

    ratio_limit_base: float
    min_tokens: int
    hysteresis_ratio: float


class CoveragePolicy(Section):
    """Floors on windows and replicates, and the largest two-sided error of the interval."""

    preview: int
    final: int
    replicates: int
    alpha: float


class DriftPolicy(Section):
    """Band of the drift from warm-up to scored windows, relative to the baseline's."""

    min: float
    max: float


class Policy(Section, kw_only=True, dict=True):
    """Everything that decides, for one tier with its overrides.

    A row of the table that is no member here is that of a guard or a kind of metric, which reads it
    by :meth:`limits`.
    """

    tier: str
    enforce_guards: bool  # False: guards are measured and recorded but decide nothing
    pm_ratio: RatioPolicy
    coverage: CoveragePolicy
    drift: DriftPolicy
    tail: TailPolicy = msgspec.field(name="pm_tail")
    spectral: SpectralPolicy
    rmt: RmtPolicy
    representation: RepresentationPolicy
    variance: VariancePolicy
    moe: MoePolicy
    distribution: DistributionPolicy
    overhead: OverheadPolicy
    confidence: ConfidencePolicy
    preset: PresetPolicy
    overrides: tuple[Override, ...] = ()
    resolved: dict[str, Any]  # the tier's row with the overrides applied

    def limits(self, name: str, kind: type[T]) -> T:
        """A row of the table as the struct of the guard or kind of metric that decides by it.

        Raises:
            ValidationError: the row holds other values than the struct.
        """
        return msgspec.convert(self.resolved[name], kind)

    @functools.cached_property
    def digest(self) -> str:
        """First 16 hex of SHA-256 over the canonical JSON of all that decides."""
        overrides = [asdict(override) for override in self.overrides]
        content = {"tier": self.tier, "resolved": dict(self.resolved), "overrides": overrides}
        return digest_json(content)[:16]

    def override_records(self) -> list[dict[str, Any]]:
        """The overrides with the tier's own value beside each, as a report states them."""
        own = load_policy(self.tier)
        return [{**asdict(o), "tier_value": _value_at(own, o.path)} for o in self.overrides]


MEMBERS = frozenset(member.encode_name for member in msgspec.structs.fields(Policy))


@functools.cache
def _table() -> dict[str, Any]:
    import yaml

    # the parser in C, where it is there, takes a tenth of the time
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded = yaml.load(TIERS_FILE.read_text(), Loader=loader)
    assert isinstance(loaded, dict)  # our own packaged file
    return loaded


def tier_names() -> list[str]:
    """The tiers that exist, in the order of the file."""
    return list(_table())


def source_of(policy_pack_sha256: str) -> str:
    """Where a report says that a threshold of a policy pack comes from."""
    return f"policy-pack:{policy_pack_sha256[:12]}"


def one_of(value: str, known: Iterable[str], what: str) -> None:
    """Refuse a word that is none of those that are known, with a guess.

    Raises:
        ConfigError: see above.
    """
    known = list(known)
    if value not in known:
        import difflib

        near = difflib.get_close_matches(value, known, n=1)
        raise ConfigError(
            f"{value!r} is not a {what}",
            expected="one of " + ", ".join(known),
            hint=f"did you mean {near[0]}?" if near else "",
        )


def check_profile(profile: str) -> str:
    """The profile itself.

    Raises:
        ConfigError: no such profile.
    """
    one_of(profile, PROFILES, "profile")
    return profile


def load_policy(tier: str) -> Policy:
    """The policy of a tier without overrides.

    Raises:
        ConfigError: no such tier.
    """
    return resolve_policy(tier)


def resolve_policy(
    tier: str, overrides: Sequence[Override] = (), without: Sequence[str] = ()
) -> Policy:
    """The policy of a tier with ``overrides``, each within the tier's ``adjustable`` bounds.

    The verifier resolves what a report records, so that no report is judged by thresholds looser
    than the tier admits.

    Args:
        tier: one of :func:`tier_names`.
        overrides: thresholds that are not the tier's own.
        without: sections that the table did not have when a report was written; its digest and
            what it states of its limits do not hold them.

    Raises:
        ConfigError: no such tier, or an override that the tier does not admit.
    """
    return _resolve(tier, tuple(overrides), tuple(without))


@functools.cache
def _resolve(tier: str, overrides: tuple[Override, ...], without: tuple[str, ...]) -> Policy:
    one_of(tier, _table(), "tier")
    row = copy.deepcopy(_table()[tier])
    bounds = row.pop("adjustable")
    if len({override.path for override in overrides}) < len(overrides):
        raise ConfigError("a threshold is overridden twice", expected="one override a path")
    for override in overrides:
        _apply(override, row, bounds, tier)
    stated = {key: section for key, section in row.items() if key not in without}
    own = {key: value for key, value in row.items() if key in MEMBERS}
    policy = msgspec.convert({**own, "tier": tier, "resolved": stated}, Policy)
    policy.overrides = overrides
    return policy


def bounds_of(tier: str) -> dict[str, tuple[float, float]]:
    """The smallest and largest value an override may set, by quantity.

    ``spectral.threshold`` and ``rmt.epsilon`` are relative changes, ``drift.half_width`` is the
    distance of ``drift.min`` and ``drift.max`` from 1.

    Raises:
        ConfigError: no such tier.
    """
    one_of(tier, _table(), "tier")
    table = _table()[tier]["adjustable"]
    return {k: (v["min"], v["max"]) for k, v in table.items() if isinstance(v, dict)}


def _apply(override: Override, row: dict[str, Any], bounds: Mapping[str, Any], tier: str) -> None:
    """Write one override into the row, or refuse it."""
    path, value = override.path, override.value
    if path == "tail.mode":
        if value not in bounds[path]:
            raise _refused(override, tier, "one of " + ", ".join(bounds[path]))
        row["pm_tail"]["mode"] = value
        return
    group, _, name = path.rpartition(".")
    if group == "distribution" and name in row["distribution"]:
        if not _within(value, bounds[path]):
            raise _refused(override, tier, "from {min} to {max}".format(**bounds[path]))
        row["distribution"][name] = float(value)
        return
    caps = row["spectral"]["family_caps"]
    # where the value goes, which bound it has to keep, and the value in the unit of that bound
    places: dict[str, tuple[dict[str, Any], str, Any]] = {
        "spectral.tau": (
            row["spectral"]["tau"],
            "spectral.threshold",
            lambda tau: math.expm1(min(tau * caps[name], 700.0)),
        ),
        "rmt.epsilon": (row["rmt"]["epsilon_by_family"], "rmt.epsilon", float),
        "representation.limit": (
            row["representation"]["limit_by_kind"],
            "representation.limit",
            float,
        ),
        "drift": (row["drift"], "drift.half_width", lambda v: (v - 1) * (-1) ** (name == "min")),
    }
    names = {"drift": ("min", "max"), "representation.limit": ("attention",)}
    if group not in places or name not in names.get(group, caps):
        raise ConfigError(
            f"{path} cannot be overridden",
            expected="spectral.tau.FAMILY, rmt.epsilon.FAMILY, representation.limit.KIND,"
            " drift.min, drift.max, tail.mode, distribution.kl_mean_max or"
            " distribution.flip_fraction_max",
        )
    target, bound, measure = places[group]
    if not (is_number(value) and _within(measure(value), bounds[bound])):
        raise _refused(override, tier, bound + " from {min} to {max}".format(**bounds[bound]))
    target[name] = float(value)


def _within(value: Any, bound: Mapping[str, float]) -> bool:
    """Whether it is a number within the bound; the slack is for the rounding of a logarithm."""
    low, high = bound["min"] * (1 - 1e-9), bound["max"] * (1 + 1e-9)
    return is_number(value) and low <= value <= high


def _refused(override: Override, tier: str, expected: str) -> ConfigError:
    return ConfigError(
        f"{override.path} = {override.value!r} is outside what tier {tier} admits",
        where=override.source,
        expected=expected,
    )


def _value_at(policy: Policy, path: str) -> float | str | None:
    """The value a policy has at the path of an override."""
    group, _, name = path.rpartition(".")
    if group == "spectral.tau":
        return policy.spectral.tau(name)
    if group == "rmt.epsilon":
        return policy.rmt.epsilon(name)
    if group == "representation.limit":
        return policy.representation.limit(name)
    value: float | str | None = getattr(getattr(policy, group), name)
    return value
