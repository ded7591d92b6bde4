"""Mixture-of-experts guard: do the routers still decide, and is every expert still reached?

Per router, over the tokens of the calibration windows: the mean entropy of its distribution,
``H = -sum p ln p`` in nats (ln of the number of experts for an undecided router, 0 for a
collapsed one), and each expert's share of the top-k choices. The published report carries such
numbers and never tests them; here a router blocks where its entropy fell by more than
``entropy_drop_max`` of the baseline's, and the mixture where more than ``new_dead_experts_max``
experts that the baseline used are chosen by no token any more.

The routers are watched by forward hooks that only read: softmax and top-k from the logits in
float32, summed in float64, whatever the model runs in, without the tokens that the model's
``attention_mask`` excludes.

An expert counts as used from ``MIN_CHOICES`` choices on: where the baseline expects 10, none
occur by chance with a probability of exp(-10) (Poisson).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import UNSET, UnsetType

from invarlock.documents.fields import Count, Decided, about
from invarlock.guards.block_outputs import ROUTER, module_shown
from invarlock.guards.guard import Block, CheckpointRun, Guard, Probe, Run, Runs
from invarlock.guards.weight_stats import rounded
from invarlock.pages.changes import ModuleChange, log_ratio, module_plot
from invarlock.pages.parts import (
    Advice,
    Check,
    Section,
    Table,
    not_evaluated,
    status_of,
    unmeasured,
)
from invarlock.pages.reading import BASELINE, Report, block, columns, evaluated
from invarlock.pages.wording import fixed, number, share
from invarlock.policy import MoePolicy, Policy
from invarlock.roles import Role, layer_of, role_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from invarlock.formats.execution import Engine, Written
else:
    from invarlock import numpy_on_use as np

MIN_CHOICES = 10  # of an expert by the baseline's tokens, before its death can be seen


@dataclass(frozen=True)
class RouterStats:
    """What one router did with the tokens it saw."""

    name: str
    layer: int | None
    entropy: float  # nats, mean over tokens; not finite where a logit was not
    tokens: int
    utilization: tuple[float, ...]  # share of the top-k choices, per expert; sums to 1

    @property
    def dead(self) -> tuple[int, ...]:
        """The experts that no token chose."""
        return tuple(i for i, share in enumerate(self.utilization) if share == 0)


def to_table(routers: Sequence[RouterStats], prefix: str = "") -> dict[str, list[Any]]:
    """Routers as columns, sorted by name; ``prefix`` of the columns of numbers."""
    ordered = sorted(routers, key=lambda r: r.name)
    return {
        "name": [r.name for r in ordered],
        "layer": [r.layer for r in ordered],
        prefix + "tokens": [r.tokens for r in ordered],
        prefix + "entropy": [rounded(r.entropy) for r in ordered],
        prefix + "dead": [list(r.dead) for r in ordered],
        prefix + "utilization": [[rounded(u) for u in r.utilization] for r in ordered],
    }


def from_table(table: Mapping[str, Sequence[Any]], prefix: str = "") -> list[RouterStats]:
    """The inverse of :func:`to_table`."""
    columns = [table[prefix + key] for key in ("entropy", "tokens", "utilization")]
    return [
        RouterStats(
            str(name), layer, math.nan if entropy is None else float(entropy), int(tokens),
            tuple(map(float, shares)),
        )
        for name, layer, entropy, tokens, shares in zip(
            table["name"], table["layer"], *columns, strict=True
        )
    ]  # fmt: skip


def judge(
    baseline: Sequence[RouterStats], subject: Sequence[RouterStats], policy: MoePolicy, top_k: int
) -> dict[str, Any]:
    """Compare the routers of two runs; one that only one of them has, or other tokens, block.

    Args:
        baseline, subject: of the same calibration windows, as recorded (:func:`from_table`).
        policy: the tier's limits.
        top_k: experts per token.

    Returns:
        the report's ``moe`` block.
    """
    before = {r.name: r for r in baseline}
    pairs = [(before[s.name], s) for s in sorted(subject, key=lambda r: r.name) if s.name in before]
    complete = len(pairs) == len(before) == len(subject) > 0
    complete &= all(
        (b.tokens, len(b.utilization)) == (s.tokens, len(s.utilization)) for b, s in pairs
    )
    drops = [_drop(b.entropy, s.entropy) for b, s in pairs]
    dead = [
        {"type": "dead_expert", "router": s.name, "expert": expert}
        for b, s in pairs
        for expert in s.dead
        if expert < len(b.utilization)
        # an expert that the baseline hardly chose may miss these few tokens by chance
        and round(b.utilization[expert] * b.tokens * top_k) >= MIN_CHOICES
    ]
    fallen = [
        {"type": "entropy_drop", "router": s.name, "drop": rounded(drop)}
        for (_, s), drop in zip(pairs, drops, strict=True)
        if not drop <= policy.entropy_drop_max
    ]
    too_many = len(dead) > policy.new_dead_experts_max
    passed = complete and not fallen and not too_many
    return {
        "evaluated": True,
        "passed": passed,
        "decision": "allow" if passed and not dead else "monitor" if passed else "block",
        "top_k": top_k,
        "router_entropy": _mean([s.entropy for _, s in pairs]),
        "delta_router_entropy": _mean([s.entropy - b.entropy for b, s in pairs]),
        "utilization_mean": _mean([u for _, s in pairs for u in s.utilization]),
        "utilization_count": sum(len(s.utilization) for _, s in pairs),
        "max_entropy_drop": rounded(max(drops, default=0.0)),
        "entropy_drop_max": policy.entropy_drop_max,
        "new_dead_experts": len(dead),
        "new_dead_experts_max": policy.new_dead_experts_max,
        "routers_missing": len(before) + len(subject) - 2 * len(pairs),
        "violations": [*fallen, *dead],
        "routers": to_table([s for _, s in pairs])
        | to_table([b for b, _ in pairs], prefix=BASELINE),
    }


def _drop(baseline: float, subject: float) -> float:
    """Relative fall of the entropy, negative for a rise; infinity where it was lost."""
    if not (math.isfinite(baseline) and math.isfinite(subject)):
        return math.inf
    return 1 - subject / baseline if baseline > 0 else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return rounded(math.fsum(values) / len(values)) if values else None


class _Sums:
    """Of one router: tokens, their entropy in nats, and the choices of each expert."""

    def __init__(self, experts: int) -> None:
        self.tokens = 0
        self.entropy = 0.0
        self.choices: NDArray[np.int64] = np.zeros(experts, dtype=np.int64)


class RouterProbe(Probe):
    """Hooks on the routers of a model, and what they saw; a model without routers costs nothing.

    ``top_k`` is the number of experts per token; 0 before a router was seen.
    """

    def __init__(self) -> None:
        self.top_k = 0
        self._sums: dict[str, _Sums] = {}
        self._mask: torch.Tensor | None = None

    def attached(self, run: CheckpointRun) -> AbstractContextManager[Any]:
        """Watch the pass over the calibration windows."""
        if run.engine is not None:
            return self._shown_by(run.engine, run.checkpoint.config)
        return nullcontext() if run.model is None else self.attach(run.model, run.checkpoint.config)

    def record(self, run: CheckpointRun) -> Block | None:
        """The routers as columns; None for a model that is no mixture."""
        routers = self.results()
        return {**to_table(routers), "top_k": self.top_k} if routers else None

    @contextmanager
    def attach(self, model: Any, config: Mapping[str, Any]) -> Iterator[RouterProbe]:
        """Watch the forward passes made inside the block; several add up.

        ``config``: of the checkpoint, by which routers are known.
        """
        routers = [
            (name, module)
            for name, module in model.named_modules()
            if role_of(f"{name}.weight", config) is Role.ROUTER
        ]
        self.top_k = experts_per_token(model.config) if routers else 0
        routers = routers if self.top_k else []
        hooks = [module.register_forward_hook(self._hook(name)) for name, module in routers]
        if routers:
            body = getattr(model, model.base_model_prefix, model)
            hooks.append(body.register_forward_pre_hook(self._see_mask, with_kwargs=True))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            self._mask = None

    @contextmanager
    def _shown_by(self, engine: Engine, config: Mapping[str, Any]) -> Iterator[None]:
        """Take what an engine shows of routers, in the windows that it runs inside the block."""
        import torch

        def take(written: Written) -> None:
            if written.kind == ROUTER:
                self.top_k = engine.experts_per_token
                self._see(module_shown(written.name, config), torch.from_numpy(written.values))

        with engine.watching(take):
            yield

    def results(self) -> list[RouterStats]:
        """One entry per router, sorted by name."""
        return [
            RouterStats(
                name=name,
                layer=layer_of(name),
                entropy=sums.entropy / max(1, sums.tokens),
                tokens=sums.tokens,
                utilization=tuple((sums.choices / max(1, sums.choices.sum())).tolist()),
            )
            for name, sums in sorted(self._sums.items())
        ]

    def _see_mask(self, _module: object, _args: object, kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")

    def _hook(self, name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            logits = logits_of(module, inputs, output, self.top_k)
            if logits is not None:
                self._see(name, logits)

        return hook

    def _see(self, name: str, logits: torch.Tensor) -> None:
        """Add the tokens of one pass; ``logits`` (..., experts)."""
        import torch

        flat = logits.detach().reshape(-1, logits.shape[-1])
        if self._mask is not None:
            flat = flat[self._mask.reshape(-1).to(flat.device) != 0]
        sums = self._sums.setdefault(name, _Sums(flat.shape[-1]))
        probabilities = flat.float().softmax(dim=-1)  # (tokens, experts)
        chosen = probabilities.topk(self.top_k, dim=-1).indices
        entropy = torch.special.entr(probabilities).sum(dim=-1)
        sums.tokens += len(flat)
        sums.entropy += float(entropy.cpu().double().sum())
        sums.choices += np.bincount(chosen.cpu().numpy().ravel(), minlength=flat.shape[-1])


# What configurations call the number of experts that a token is sent to.
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts",
    "moe_k", "top_k",
)  # fmt: skip


def logits_of(module: Any, inputs: Any, output: Any, top_k: int) -> torch.Tensor | None:
    """What a router says of every expert, (..., experts); None where it does not return it.

    Routers return logits alone, or among scores and indices of the chosen; scores may be as wide.
    """
    rows = len(module.weight)
    parts = output if isinstance(output, tuple | list) else (output,)
    floats: list[torch.Tensor] = [
        part for part in parts if getattr(part, "is_floating_point", bool)()
    ]
    wide = [part for part in floats if part.shape[-1] == rows]
    if len(wide) > 1:
        from torch.nn.functional import linear

        given = inputs[0].reshape(-1, inputs[0].shape[-1]).to(module.weight.dtype)
        product = linear(given, module.weight, getattr(module, "bias", None))
        return min(
            wide, key=lambda part: float((part.reshape(product.shape) - product).abs().sum())
        )
    # of a matrix with further rows, such as for experts that all tokens go to, the logits are fewer
    narrower = [part for part in floats if top_k < part.shape[-1] < rows]
    return next(iter([*wide, *narrower]), None)


def experts_per_token(config: Any) -> int:
    """The number of experts a token is sent to, as a model's configuration has it; 0 if nowhere.

    Where it differs from layer to layer (a list, as HunYuan's ``moe_topk``), it is the largest.
    """
    parts = (config, getattr(config, "text_config", None), getattr(config, "ffn_config", None))
    for part in parts:
        for key in EXPERTS_PER_TOKEN:
            value = getattr(part, key, None)
            if isinstance(value, int):
                return value
            if isinstance(value, list | tuple) and value:
                return int(max(value))
    return 0


class MoeBlock(Decided):
    """Routers of a mixture of experts; absent for other models."""

    evaluated: Annotated[bool | UnsetType, about("the routers were seen")] = UNSET
    passed: Annotated[
        bool | UnsetType,
        about("no router lost its spread and no expert died"),
    ] = UNSET
    top_k: Annotated[Count | UnsetType, about("experts a token is sent to")] = UNSET
    router_entropy: Annotated[
        float | UnsetType | None,
        about("mean entropy of the subject's routers, nats"),
    ] = UNSET
    delta_router_entropy: Annotated[
        float | UnsetType | None,
        about("subject - baseline, nats"),
    ] = UNSET
    utilization_mean: Annotated[float | UnsetType | None, about("mean share of an expert")] = UNSET
    utilization_count: Annotated[Count | UnsetType, about("experts over all routers")] = UNSET
    max_entropy_drop: Annotated[float | UnsetType | None, about("largest relative fall")] = UNSET
    entropy_drop_max: Annotated[float | UnsetType, about("largest allowed")] = UNSET
    new_dead_experts: Annotated[
        Count | UnsetType,
        about("used by the baseline and by no token of the subject"),
    ] = UNSET
    new_dead_experts_max: Annotated[Count | UnsetType, about("allowed")] = UNSET
    routers_missing: Annotated[Count | UnsetType, about("routers that only one run has")] = UNSET
    violations: Annotated[list[Any] | UnsetType, about("routers and experts over a limit")] = UNSET
    routers: Annotated[
        dict[str, Any] | UnsetType,
        about("entropy and shares of both runs as parallel lists"),
    ] = UNSET


class Moe(Guard):
    """Routers and experts of a mixture; other models have no block of it."""

    name = "moe"
    title = "Mixture of experts"
    advice = Advice(
        "A router sends tokens elsewhere",
        "Leave the router that is named as it was: routers are small and gain nothing from fewer"
        " bits.",
    )
    block = MoeBlock
    flag_texts: ClassVar[Mapping[str, str]] = {
        "moe_identity_ok": "the experts' identities are kept",
        "moe_observed": "a mixture of experts was seen",
    }
    flag = "moe_identity_ok"
    fails_as = "moe_fail"
    every_model = False
    policy_key = "moe"
    beside = "routers"
    believed = ("/moe/routers", "/moe/top_k")

    def probe(self) -> Probe:
        """A fresh probe for one run."""
        return RouterProbe()

    def measured(self, runs: Runs) -> bool:
        """Routers that the subject does not have count against it."""
        return runs.ran

    def judge(self, runs: Runs, policy: Policy) -> Block:
        """The routers of both runs."""
        top_k = int(self.recorded(runs.baseline).get("top_k", 0))
        return judge(self._routers(runs.baseline), self._routers(runs.subject), policy.moe, top_k)

    def _routers(self, run: Run) -> list[RouterStats]:
        recorded = self.recorded(run)
        return from_table(recorded) if recorded else []

    def flags(self, block: Mapping[str, Any]) -> dict[str, bool]:
        """The two flags: every router was compared, and none of them blocks."""
        evaluated = block.get("evaluated") is True
        seen = bool(block.get("routers", {}).get("name")) and block.get("routers_missing") == 0
        return {
            "moe_observed": evaluated and seen,
            self.flag: evaluated and block.get("passed") is True,
        }

    def subject_records(self, report: Report) -> Iterator[Block]:
        """The subject's routers, whose columns have no prefix; none where it was not run."""
        if self.name in report and report[self.name].get("routers"):
            yield self._columns(report, "")

    def baseline_record(self, report: Report) -> Block | None:
        """The baseline's routers, whose columns have the prefix; empty where nothing was run."""
        if self.name not in report:
            return None
        if not report[self.name].get("routers"):
            return {**to_table([])}
        return self._columns(report, BASELINE)

    def _columns(self, report: Report, prefix: str) -> Block:
        mixture = report[self.name]
        own = {
            key.removeprefix(prefix): column
            for key, column in mixture["routers"].items()
            if key in ("name", "layer") or key.startswith(BASELINE) == bool(prefix)
        }
        return own | {"top_k": mixture["top_k"]}

    def impossible(self, report: Report) -> Iterator[str]:
        """A line where a mixture of experts has no block of this guard."""
        families = block(block(report, "spectral"), "modules").get("family", ())
        if "router" in families and self.name not in report:
            yield f"/{self.name} is missing, although the model has routers"

    def check(self, report: Report) -> Check:
        """Entropy and dead experts."""
        section = block(report, self.name)
        if not evaluated(report, self.name):
            return unmeasured(report, self.name, self.title, self.flag)
        change = number(section.get("delta_router_entropy"))
        measured = f"router entropy {fixed(section.get('router_entropy'))} nats"
        measured += f" ({change:+.4f})" if change is not None else ""
        drop = number(section.get("max_entropy_drop"))
        most = number(section.get("entropy_drop_max"))
        note = ""
        if drop is not None and most is not None:
            side = "below" if drop <= most else "above"
            note = f"the largest fall of a router's entropy is {share(drop)}, "
            note += f"{share(abs(most - drop))} {side} the limit"
        return Check(
            name=self.title,
            status=status_of(report, self.flag, self.name),
            measured=f"{measured}, {section.get('new_dead_experts', '-')} new dead experts",
            threshold=f"entropy falls by at most {share(most)}, at most "
            f"{section.get('new_dead_experts_max', '-')} new dead experts",
            note=note,
            flag=self.flag,
        )

    def section(self, report: Report) -> Section:
        """Each router, baseline and subject."""
        section = block(report, self.name)
        if not evaluated(report, self.name):
            return not_evaluated(report, self.name, self.title)
        routers = block(section, "routers")
        shown = ("name", "baseline_entropy", "entropy", "baseline_dead", "dead")
        rows = [
            (str(name), fixed(base), fixed(mine), _experts(dead), _experts(died))
            for name, base, mine, dead, died in columns(routers, shown)
        ]
        changes = [
            ModuleChange(
                name=str(name),
                family="router",
                layer=layer if isinstance(layer, int) else None,
                log_ratio=log_ratio(number(mine), number(base)),
            )
            for name, layer, mine, base in columns(
                routers, ("name", "layer", "entropy", "baseline_entropy")
            )
        ]
        return Section(
            id=self.name,
            title=self.title,
            facts=(
                ("Experts a token is sent to", str(section.get("top_k", "-"))),
                ("Mean router entropy, nats", fixed(section.get("router_entropy"))),
                ("Change of the mean", fixed(section.get("delta_router_entropy"))),
                (
                    "Largest fall of a router's entropy",
                    f"{share(section.get('max_entropy_drop'))}, at "
                    f"most {share(section.get('entropy_drop_max'))}",
                ),
                (
                    "New dead experts",
                    f"{section.get('new_dead_experts', '-')}, at most "
                    f"{section.get('new_dead_experts_max', '-')}",
                ),
                ("Mean utilization", fixed(section.get("utilization_mean"))),
            ),
            plots=module_plot("routers", "Router entropy per layer", changes, _limits(section)),
            tables=(
                Table(
                    caption="Routers: entropy in nats, experts that no token chose",
                    header=("Router", "Baseline", "Subject", "Dead, baseline", "Dead, subject"),
                    rows=tuple(rows),
                ),
            ),
        )


def _limits(section: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """ln(entropy ratio) of the largest fall that is allowed."""
    drop = number(section.get("entropy_drop_max"))
    return {"router": (math.log1p(-drop), math.inf)} if drop and 0 < drop < 1 else {}


def _experts(dead: object) -> str:
    return ", ".join(map(str, dead)) or "none" if isinstance(dead, list) else "-"
