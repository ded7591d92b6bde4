"""RMT guard: did the largest singular value of what a block writes grow?

The activations of calibration windows (tokens x features) are centred over the tokens and scaled as
a whole to a mean square of 1. Edge risk ``r = sigma_max / (sqrt(m) + sqrt(n))`` is 1 at the edge
that random matrix theory gives for independent entries of unit variance (Marchenko and Pastur,
Math. USSR Sb. 1, 1967; Geman, Ann. Probab. 8, 1980). Activations are not independent, so the
baseline's own value is the reference: a place violates where ``r_s > (1 + epsilon) r_b``, epsilon
by family.

Watched are places at which every parametrization of one function agrees but for the basis and the
scale of the stream, which the statistic does not see (``invarlock.guards.block_outputs``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from msgspec import UNSET, UnsetType

from invarlock.counts import counted
from invarlock.documents.fields import Closed, Count, Measured, Open, about
from invarlock.guards.block_outputs import (
    CONSTANT,
    WINDOW_TOKENS,
    Place,
    RowsProbe,
    block_outputs,
    stream_ends,
)
from invarlock.guards.guard import (
    Block,
    CheckpointRun,
    Guard,
    Probe,
    ProbeFile,
    Run,
    Runs,
    Statistic,
    guarded_windows,
    place,
    warning,
    worst_family,
)
from invarlock.guards.spectral import HEAD
from invarlock.guards.weight_stats import TOLERANCE, rounded, rounded_column, sigma_max
from invarlock.metrics.kinds import METRICS
from invarlock.pages.changes import largest_changes, log_ratio, module_changes, module_plot
from invarlock.pages.parts import (
    LESS,
    LISTED,
    Advice,
    Check,
    Section,
    Table,
    not_evaluated,
    unmeasured,
)
from invarlock.pages.reading import BASELINE, Report, block, evaluated, objects
from invarlock.pages.wording import fixed, number, yes
from invarlock.policy import Policy, RmtPolicy

if TYPE_CHECKING:
    import torch

CALIBRATION_WINDOWS = 8  # evenly spaced over the preview arm
CALIBRATION = ("windows", "tokens", "window_ids")  # what is recorded of them
MAX_TOKENS = 1024  # of the earlier contract: rows of its matrix, evenly spaced over all windows

CONTRACT = {
    "kind": "activation_edge_risk",
    "estimator": {
        "type": "golub_kahan_lanczos",
        "residual_tolerance": TOLERANCE,
        "centre": "over_tokens",
        "scale": "frobenius",
        "dtype": "float32",
    },
    "output": "of_the_last_projection_of_each_block_and_of_token_embeddings; input_of_last_norms",
    "activation_sampling": {
        "windows": {"count": CALIBRATION_WINDOWS, "arm": "preview"},
        "tokens": {"per_window": WINDOW_TOKENS, "indices_policy": "evenly_spaced"},
    },
}
# Before, every projection and norm was watched, and each column of its output scaled to unit
# deviation: a rotation of the columns moved the number.
BY_COLUMNS = {
    "kind": "activation_edge_risk",
    "estimator": {
        "type": "golub_kahan_lanczos",
        "residual_tolerance": TOLERANCE,
        "centre_and_scale": "own_columns",
        "dtype": "float32",
    },
    "activation_sampling": {
        "windows": {"count": CALIBRATION_WINDOWS, "arm": "preview"},
        "indices_policy": "evenly_spaced",
        "max_tokens": MAX_TOKENS,
    },
}


class Activation(NamedTuple):
    """What a probe saw at the output of one module."""

    name: str
    family: str
    layer: int | None
    edge: float  # edge risk, of a dimensionless matrix; infinity if not finite
    variance: float  # mean over features of the variance over tokens; infinity if not finite


def edge(tokens: int, features: int) -> float:
    """``sqrt(m) + sqrt(n)``: where sigma_max of an m x n standard Gaussian matrix lies."""
    return math.sqrt(tokens) + math.sqrt(features)


def to_table(activations: Sequence[Activation]) -> dict[str, list[Any]]:
    """Activations as columns, sorted by name; what is not finite becomes null."""
    ordered = sorted(activations, key=lambda a: a.name)
    return {
        "name": [a.name for a in ordered],
        "family": [a.family for a in ordered],
        "layer": [a.layer for a in ordered],
        "edge": rounded_column([a.edge for a in ordered]),
        "variance": rounded_column([a.variance for a in ordered]),
    }


def from_table(table: Mapping[str, Sequence[Any]]) -> list[Activation]:
    """The inverse of :func:`to_table`."""

    head = (table[key] for key in ("name", "family", "layer"))
    numbers = (
        [math.inf if value is None else float(value) for value in table[key]]
        for key in ("edge", "variance")
    )
    return [
        Activation(str(name), str(family), layer, edge, variance)
        for name, family, layer, edge, variance in zip(*head, *numbers, strict=True)
    ]


def judge(
    baseline: Sequence[Activation], subject: Sequence[Activation], policy: RmtPolicy
) -> dict[str, Any]:
    """Compare two runs' activations; a module that only one of them has blocks.

    Returns:
        the decided part of the report's ``rmt`` block.
    """
    before = {a.name: a for a in baseline}
    pairs = [(before[s.name], s) for s in subject if s.name in before]
    complete = len(pairs) == len(before) == len(subject)
    violations = [v for b, s in pairs if (v := _violation(b, s, policy)) is not None]
    families = {
        family: _family([(b, s) for b, s in pairs if s.family == family], policy.epsilon(family))
        for family in sorted({s.family for _, s in pairs})
    }
    changes = [(_ratio(b.edge, s.edge), s.edge - b.edge) for b, s in pairs]
    deltas = [delta for _, delta in changes if math.isfinite(delta)]
    stable = complete and not violations
    return {
        "evaluated": True,
        "passed": stable,
        "stable": stable,
        "decision": "allow" if stable else "block",
        "status": "stable" if stable else "unstable",
        "mode": "activation_edge_risk",
        "modules_compared": len(pairs),
        "modules_missing": len(before) + len(subject) - 2 * len(pairs),
        "epsilon_default": policy.epsilon_default,
        "epsilon_by_family": {family: policy.epsilon(family) for family in families},
        "epsilon_violations": violations,
        "edge_risk_by_family_base": {f: block["edge_base"] for f, block in families.items()},
        "edge_risk_by_family": {f: block["edge_cur"] for f, block in families.items()},
        "families": families,
        "max_edge_ratio": rounded(max((ratio for ratio, _ in changes), default=1.0)),
        "max_edge_delta": rounded(max(deltas, default=0.0)),
        "mean_edge_delta": rounded(sum(deltas) / len(deltas) if deltas else 0.0),
    }


def _ratio(baseline: float, subject: float) -> float:
    """subject / baseline; 1 where both are 0 and infinity where a number was lost."""
    if not math.isfinite(subject):
        return math.inf
    if baseline > 0 and math.isfinite(baseline):
        return subject / baseline
    return 1.0 if subject == baseline else math.inf


def _violation(b: Activation, s: Activation, policy: RmtPolicy) -> dict[str, Any] | None:
    epsilon = policy.epsilon(s.family)
    if _ratio(b.edge, s.edge) <= 1 + epsilon:
        return None
    return {
        "family": s.family,
        "module": s.name,
        "edge_base": rounded(b.edge),
        "edge_cur": rounded(s.edge),
        "delta": rounded(s.edge - b.edge),
        "allowed": rounded((1 + epsilon) * b.edge),
        "epsilon": epsilon,
    }


def _family(pairs: Sequence[tuple[Activation, Activation]], epsilon: float) -> dict[str, Any]:
    """The module of a family with the largest ratio; it decides for the family."""
    b, s = max(pairs, key=lambda pair: _ratio(pair[0].edge, pair[1].edge))
    return {
        "module": s.name,
        "modules": len(pairs),
        "edge_base": rounded(b.edge),
        "edge_cur": rounded(s.edge),
        "epsilon": epsilon,
        "allowed": rounded((1 + epsilon) * b.edge),
        "ratio": rounded(_ratio(b.edge, s.edge)),
        "delta": rounded(s.edge - b.edge),
    }


# --- a run -------------------------------------------------------------------------------------


class ActivationProbe(RowsProbe):
    """Edge risk and variance of what is written to the stream, and of what enters and leaves it.

    One place is worked on at a time: no activations are kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activations: list[Activation] = []
        self.tokens = 0  # most tokens that a place was looked at with

    def places(self, model: torch.nn.Module, config: Mapping[str, Any]) -> Sequence[Place]:
        """The outputs of blocks and of embeddings, and what the last norm reads."""
        return [*block_outputs(model, config), *stream_ends(model, config)]

    @contextmanager
    def attached(self, run: CheckpointRun) -> Iterator[None]:
        """Watch the pass; what was seen is left for others in ``run.activations``."""
        with super().attached(run):
            yield
        run.activations = self.activations

    @contextmanager
    def watching(
        self, model: torch.nn.Module, config: Mapping[str, Any], windows: int
    ) -> Iterator[None]:
        """As of the base; what was seen is sorted by name."""
        with super().watching(model, config, windows):
            yield
        self.activations.sort(key=lambda a: a.name)

    def record(self, run: CheckpointRun) -> Block:
        """Places as columns, and the windows that they saw."""
        return {
            "calibration": {
                "windows": len(run.calibration),
                "tokens": self.tokens,
                "window_ids": list(run.calibration),
            },
            "modules": to_table(self.activations),
        }

    def saw(self, place: Place, x: torch.Tensor) -> None:
        """Take down edge risk and variance."""
        if len(x) < 2:
            return
        self.tokens = max(self.tokens, len(x))
        risk, variance = measure(x)
        self.activations.append(Activation(place.name, place.family, place.layer, risk, variance))


def measure(x: torch.Tensor) -> tuple[float, float]:
    """Edge risk and variance of activations; both infinite where one is not finite.

    Args:
        x: (tokens, features) float32, at least two tokens; overwritten.
    """
    written = float(x.square().sum())
    x -= x.mean(dim=0)
    size = float(x.square().sum())
    variance = size / x.numel()
    if not math.isfinite(written):
        return math.inf, math.inf
    if size <= CONSTANT**2 * written:
        return 0.0, variance
    x /= math.sqrt(variance)
    return sigma_max(x) / edge(*x.shape), variance


# --- a report ----------------------------------------------------------------------------------


def paired_table(
    baseline: Sequence[Activation], subject: Sequence[Activation], column: str
) -> dict[str, list[Any]]:
    """``edge`` or ``variance`` of two runs; the baseline's names only where they differ."""
    base, mine = to_table(baseline), to_table(subject)
    table = {key: mine[key] for key in (*HEAD, column)} | {BASELINE + column: base[column]}
    if base["name"] != mine["name"]:
        table |= {BASELINE + key: base[key] for key in HEAD}
    return table


def activations_of(run: Run) -> list[Activation]:
    """What a run's probe saw; none where it did not run."""
    recorded = Rmt().recorded(run)
    return from_table(recorded["modules"]) if recorded else []


def by_columns(runs: Runs) -> bool:
    """Whether the runs are those of a report from before blocks' outputs alone were watched."""
    return runs.contracts.get(Rmt.name) == BY_COLUMNS


def calibration_ids(run: Run) -> list[str]:
    """The windows that its probe watched."""
    ids: list[str] = Rmt().recorded(run)["calibration"]["window_ids"]
    return ids


def _probe_document(block: Mapping[str, Any]) -> Block:
    """The members of ``rmt_probe.json``."""
    kept = ("epsilon_default", "epsilon_by_family", "epsilon_violations", "families")
    metrics = ("max_edge_ratio", "max_edge_delta", "mean_edge_delta", "modules_compared")
    return {
        "schema": "invarlock/rmt-probe-v1",
        "probe": "rmt_cross_model_v1",
        "passed": block["passed"],
        "action": block["decision"],
        "stable": block["stable"],
        "stable_guard": block["stable"],
        **{key: block[key] for key in kept},
        "metrics": {key: block[key] for key in metrics},
        "modules": block["modules"],
    }


class Calibration(Open):
    """The windows that activations were taken from."""

    windows: Annotated[Count | UnsetType, about("how many")] = UNSET
    tokens: Annotated[Count | UnsetType, about("rows of the activation matrices")] = UNSET
    window_ids: Annotated[list[Any] | UnsetType, about("their ids, all warm-up windows")] = UNSET


class RmtBlock(Measured):
    """Activations against the random-matrix edge."""

    mode: Annotated[str | UnsetType, about("mode")] = UNSET
    stable: Annotated[bool | UnsetType, about("no module violates and none is missing")] = UNSET
    modules_compared: Annotated[Count | UnsetType, about("modules that both runs have")] = UNSET
    modules_missing: Annotated[Count | UnsetType, about("modules that only one run has")] = UNSET
    epsilon_default: Annotated[
        float | UnsetType,
        about("allowed relative growth of the edge risk"),
    ] = UNSET
    epsilon_by_family: Annotated[dict[str, Any] | UnsetType, about("the same, by family")] = UNSET
    epsilon_violations: Annotated[
        list[Any] | UnsetType,
        about("modules whose edge risk grew by more: module, family, both values, allowed"),
    ] = UNSET
    edge_risk_by_family_base: Annotated[
        dict[str, Any] | UnsetType,
        about("the baseline's edge risk of the module that decides for a family"),
    ] = UNSET
    edge_risk_by_family: Annotated[dict[str, Any] | UnsetType, about("the subject's")] = UNSET
    families: Annotated[
        dict[str, Any] | UnsetType,
        about("per family: the module that decides, its edge risks, ratio and allowance"),
    ] = UNSET
    max_edge_ratio: Annotated[
        float | UnsetType | None,
        about("largest subject/baseline edge risk; null where one is not finite"),
    ] = UNSET
    max_edge_delta: Annotated[
        float | UnsetType | None,
        about("largest difference of edge risks"),
    ] = UNSET
    mean_edge_delta: Annotated[
        float | UnsetType | None,
        about("mean difference of edge risks"),
    ] = UNSET
    calibration: Calibration | UnsetType = UNSET
    modules: Annotated[
        dict[str, Any] | UnsetType,
        about(
            "name, family, layer and edge risk sigma_max / (sqrt(m) + sqrt(n)) of both runs"
            " as parallel lists"
        ),
    ] = UNSET


class ProbeForm(Closed, tag_field="kind", tag="rmt_probe"):
    """True when the field of rmt_probe.json is equal."""

    field: Annotated[str, about("a key of the sidecar")]
    expected: Annotated[bool | str | int | float, about("the value that counts as a hit")]


class Rmt(Guard):
    """Largest singular value of the activations, against the baseline's."""

    name = "rmt"
    title = "RMT (activations)"
    advice = Advice(
        "What a module puts out has another spread",
        f"Look at the module that is named and the matrices that feed it: {LESS}.",
    )
    block = RmtBlock
    detector_forms = (ProbeForm,)
    flag_texts: ClassVar[Mapping[str, str]] = {
        "rmt_stable": "activations are like the baseline's: edge ratios and Gram distances are "
        "within their limits"
    }
    flag = "rmt_stable"
    fails_as = "rmt_fail"
    core = True
    policy_key = "rmt"
    contract = CONTRACT
    earlier_contracts = (BY_COLUMNS,)
    phase = "activations"
    whole = False  # of the variances, only those of the variance guard's targets
    believed = ("/rmt/modules", "/rmt/calibration/tokens")
    probe_file = ProbeFile(
        file="rmt_probe.json",
        contract="rmt-probe",
        detector="rmt_probe",
        members=("stable", "decision", "max_edge_ratio"),
        write=_probe_document,
    )

    def probe(self) -> Probe:
        """A fresh probe for one run."""
        return ActivationProbe()

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The activations of both runs."""
        return judge(activations_of(runs.baseline), activations_of(runs.subject), policy.rmt)

    def statistics(self, runs: Runs) -> Block:
        """Edge risks of both runs, and the windows."""
        return {
            "calibration": self.recorded(runs.subject)["calibration"],
            "modules": paired_table(
                activations_of(runs.baseline), activations_of(runs.subject), "edge"
            ),
        }

    def warnings(self, block: Mapping[str, Any]) -> Iterator[Block]:
        """Every module beyond its limit."""
        for item in block.get("epsilon_violations", []):
            text = f"{item['module']}: edge risk {item['edge_cur']} over {item['allowed']}"
            yield warning(self.name, "new_epsilon_violation", text) | place(item, block, text)

    def subject_records(self, report: Report) -> Iterator[Block]:
        """Edge risks of all modules, variances of those that are judged by them."""
        calibration = {key: report[self.name]["calibration"][key] for key in CALIBRATION}
        yield {"calibration": calibration, "modules": _read_back(report, "")}

    def baseline_record(self, report: Report) -> Block | None:
        """The same of the baseline's columns."""
        return {"modules": _read_back(report, BASELINE)}

    def impossible(self, report: Report) -> Iterator[str]:
        """Windows of the preview arm (of its first slice), evenly spaced over it."""
        preview = set(guarded_windows(report))
        calibration = report[self.name]["calibration"]
        used = calibration["window_ids"]
        most = min(CALIBRATION_WINDOWS, len(preview))
        kind, length = METRICS[report["meta"]["metric"]], report["dataset"]["seq_len"]
        alike = not kind.labelled  # records differ in shape
        # of the place that saw most: in a model of two halves encoder and decoder see texts of
        # different lengths
        if report[self.name]["measurement_contract"] == BY_COLUMNS:
            step = len(used) * length if kind.one_piece else 1  # norms of queries saw a row a head
            tokens = {*range(step, MAX_TOKENS, max(step, 1)), MAX_TOKENS}
        else:
            # blocks may see more than a window (a prompt, streams of n-grams) or less (patches)
            tokens = {*range(1, len(used) * WINDOW_TOKENS + 1)}
        if not (
            set(used) <= preview
            and len(set(used)) == len(used) == calibration["windows"]
            and (len(used) == most if alike else 0 < len(used) <= most)
            and calibration["tokens"] in tokens
        ):
            yield f"/{self.name}/calibration does not name warm-up windows"

    def statistic(self, block: Mapping[str, Any]) -> Statistic | None:
        """The ratio of the family closest to its limit."""
        families = block.get("families")
        found = families if isinstance(families, Mapping) else {}
        return worst_family(found, "ratio", lambda family: 1 + family["epsilon"], "edge_ratio")

    def check(self, report: Report) -> Check:
        """Largest singular value of the activations against 1 + epsilon."""
        section = block(report, self.name)
        if not evaluated(report, self.name):
            return unmeasured(report, self.name, self.title, self.flag)
        violations = _violations(section)
        rows = {
            str(name): (number(row.get("ratio")), number(row.get("epsilon")))
            for name, row in block(section, "families").items()
            if isinstance(row, Mapping)
        }
        allowed = {f: 1 + e for f, (_, e) in sorted(rows.items()) if e is not None}
        words = [f"{family} {fixed(value)}" for family, value in allowed.items()]
        if len(set(allowed.values())) == 1:
            words = [fixed(next(iter(allowed.values())))]
        closest = max(
            (
                (r - allowed[f], f, r)
                for f, (r, _) in rows.items()
                if f in allowed and r is not None
            ),
            default=None,
        )
        note = ""
        if closest is not None:
            side = "below" if closest[0] <= 0 else "above"
            note = f"{closest[1]} is closest to its limit, {fixed(abs(closest[0]))} {side}"
        if violations:
            worst = str(violations[0].get("module"))
            note = f"{counted(len(violations), 'module')} beyond, the furthest {worst}"
        return Check(
            name=self.title,
            status=self.status(report),
            measured=f"largest edge ratio {fixed(section.get('max_edge_ratio'))}",
            threshold="ratio at most " + ", ".join(words) if words else "-",
            note=note,
            flag=self.flag,
        )

    def section(self, report: Report) -> Section:
        """The activations: edge risk of each probed module."""
        title, section = "RMT guard (activations)", block(report, self.name)
        if not evaluated(report, self.name):
            return not_evaluated(report, self.name, title)
        changes = module_changes(report, self.name, "edge")
        numbers = ("edge_base", "edge_cur", "ratio", "allowed", "epsilon")
        families = tuple(
            (str(name), *(fixed(row.get(key)) for key in numbers))
            for name, row in sorted(block(section, "families").items())
            if isinstance(row, Mapping)
        )
        violations = _violations(section)
        listed = tuple(
            (
                str(v.get("module", "-")),
                str(v.get("family", "-")),
                *(fixed(v.get(key)) for key in ("edge_base", "edge_cur", "allowed")),
            )
            for v in violations[: 2 * LISTED]
        )
        tables = [
            Table(
                caption="Families, by their module with the largest ratio",
                header=("Family", "Baseline", "Subject", "Ratio", "Allowed", "Epsilon"),
                rows=families,
            )
        ]
        if listed:
            tables.append(
                Table(
                    caption=f"Violations ({len(listed)} of {len(violations)})",
                    header=("Module", "Family", "Baseline", "Subject", "Allowed"),
                    rows=listed,
                )
            )
        moved = [c for c in changes if c.log_ratio != 0.0]
        calibration = block(section, "calibration")
        return Section(
            id=self.name,
            title=title,
            notes=() if moved else ("No activation changed.",),
            facts=(
                ("Calibration windows", str(calibration.get("windows", "-"))),
                ("Calibration tokens", str(calibration.get("tokens", "-"))),
                ("Same measurement in both runs", yes(section.get("measurement_contract_match"))),
            ),
            plots=module_plot(
                "edges", "Activation edge risk per layer and family", changes, _limits(section)
            ),
            tables=(*tables, *largest_changes(moved, ("Module", "Family", "Edge risk"))),
        )


def _read_back(report: Report, prefix: str) -> dict[str, list[Any]]:
    """What one run's probe saw, from the tables of both guards that use it."""
    edges, spread = report[Rmt.name]["modules"], report["variance"]["modules"]

    def names(table: Mapping[str, Any]) -> str:
        return BASELINE if prefix and BASELINE + "name" in table else ""

    head = names(edges)
    known = dict(zip(spread[names(spread) + "name"], spread[prefix + "variance"], strict=True))
    columns = {key: edges[head + key] for key in HEAD}
    variances = [known.get(name, 0.0) for name in columns["name"]]
    return columns | {"edge": edges[prefix + "edge"], "variance": variances}


def _violations(section: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The modules beyond 1 + epsilon, the furthest first; a lost number is furthest."""

    def excess(v: Mapping[str, Any]) -> tuple[float, str]:
        change = log_ratio(number(v.get("edge_cur")), number(v.get("allowed")))
        return -change, str(v.get("module"))

    return sorted(objects(section.get("epsilon_violations")), key=excess)


def _limits(section: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """ln(1 + epsilon) of each family of the RMT guard; activations may shrink."""
    epsilons = block(section, "epsilon_by_family").items()
    return {
        family: (-math.inf, math.log1p(epsilon))
        for family, value in epsilons
        if (epsilon := number(value)) is not None and epsilon > 0
    }
