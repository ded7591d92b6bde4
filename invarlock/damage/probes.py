"""Guard probes: small damage, aimed at one guard, that the perplexity should survive.

Which matrices are hit is a seeded draw among those of a family, of some layers and projections;
how, a seeded draw per matrix. Of a stack of experts only the first matrix is hit, so that one
parameter is one matrix however the experts are stored.
"""

from __future__ import annotations

import dataclasses
import random
import zlib

import torch

from invarlock.checkpoints import Checkpoint, TensorInfo
from invarlock.damage import kernels
from invarlock.damage.specs import RmtNormNoise, SpectralModerateScale, VeMlpScaleSkew
from invarlock.damage.targets import (
    block_matrices,
    ffn_output,
    is_named,
    layer_count,
)
from invarlock.edits.apply import Kernel, rewritten_matrices
from invarlock.edits.blocks import Loss
from invarlock.edits.stream import Change
from invarlock.errors import ConfigError
from invarlock.roles import Role, is_transposed, layer_of, role_of
from invarlock.shards import FLOAT_DTYPES

Probe = RmtNormNoise | SpectralModerateScale | VeMlpScaleSkew

_ROLES = {"attn": (Role.ATTN,), "ffn": (Role.FFN, Role.EXPERT), "mlp": (Role.FFN, Role.EXPERT)}
_ATTN_OUTPUT = ("o_proj", "c_proj", "output.dense", "o")
# The linear projection into a gated block, and the one out of it.
_INVERSE = {"up_proj": "down_proj", "w3": "w2", "wi_1": "wo"}


def settle_probe(probe: RmtNormNoise) -> RmtNormNoise:
    """The probe with its mode's defaults made explicit."""
    defaults = RmtNormNoise.mode_defaults[probe.mode]
    return dataclasses.replace(
        probe,
        row_frac=probe.row_frac or float(defaults["row_frac"]),
        max_params=probe.max_params or int(defaults["max_params"]),
        layers=probe.layers or str(defaults["layers"]),
    )


def probe_change(baseline: Checkpoint, probe: Probe) -> Change:
    """The change that a settled ``probe`` means.

    Raises:
        ConfigError: the checkpoint has no target for it.
        InputError: no role table for its architecture.
    """
    hit = {info.name: (info, _kernel(baseline, probe, info)) for info in _targets(baseline, probe)}
    if isinstance(probe, SpectralModerateScale) and probe.pair_inverse:
        inverse = 1 / probe.factor
        for name in list(hit):
            partner = _partner(baseline, name)
            hit[partner.name] = (partner, lambda m: kernels.scale_(m, inverse))
    return Change(
        {
            name: rewritten_matrices(baseline, info, kernel, Loss(), only_first=True)
            for name, (info, kernel) in hit.items()
        }
    )


def layers_of(text: str, count: int) -> frozenset[int]:
    """The layers of a model of ``count`` that ``all``, ``31``, ``0-3``, ``last4`` or ``-1`` names.

    A range ends at the last layer; a single layer that is not there names none.
    """
    if text == "all":
        return frozenset(range(count))
    if text.startswith("last"):
        return frozenset(range(max(0, count - int(text[4:])), count))
    first, dash, last = text.partition("-")
    if not first:
        return frozenset({count - int(last)} & set(range(count)))
    return frozenset(range(int(first), min(count, int(last if dash else first) + 1)))


def _targets(baseline: Checkpoint, probe: Probe) -> list[TensorInfo]:
    """At most ``max_params`` of the tensors the probe means, drawn by its seed."""
    layers = layers_of(probe.layers, layer_count(baseline))
    found = [i for i in _candidates(baseline, probe) if layer_of(i.name) in layers]
    if not found:
        raise ConfigError(
            f"{probe.error_type} finds no target in layers {probe.layers}",
            where=str(baseline.folder),
            hint=f"the checkpoint has {layer_count(baseline)} layers, counted from 0",
        )
    random.Random(probe.seed).shuffle(found)
    return found[: probe.max_params]


def _candidates(baseline: Checkpoint, probe: Probe) -> list[TensorInfo]:
    """What the probe may hit in any layer, in model order."""
    if isinstance(probe, VeMlpScaleSkew):
        return _matrices(baseline, "mlp", (ffn_output(baseline),))
    if isinstance(probe, RmtNormNoise) and probe.mode == "norm_noise":
        return [
            info
            for name, info in baseline.tensors.items()
            if role_of(name, baseline.config) is Role.NORM
            and name.endswith("weight")
            and len(info.shape) == 1
            and info.dtype in FLOAT_DTYPES
        ]
    named = tuple(probe.params.split(",")) if probe.params else ()
    if isinstance(probe, SpectralModerateScale) and probe.family == "attn":
        named = () if probe.qkv else named or _ATTN_OUTPUT
    return _matrices(baseline, probe.family, named)


def _matrices(baseline: Checkpoint, family: str, projections: tuple[str, ...]) -> list[TensorInfo]:
    found = block_matrices(baseline, *_ROLES[family])
    return [i for i in found if not projections or any(is_named(i.name, p) for p in projections)]


def _partner(baseline: Checkpoint, name: str) -> TensorInfo:
    """The projection that leaves the gated block which ``name`` enters."""
    stem, dot, last = name.removesuffix(".weight").rpartition(".")
    partner = f"{stem}{dot}{_INVERSE.get(last, '?')}.weight"
    if partner not in baseline.tensors:
        raise ConfigError(
            f"no projection undoes a scale of {name}",
            where=str(baseline.folder),
            expected="params of " + ", ".join(_INVERSE),
        )
    return baseline.tensors[partner]


def _kernel(baseline: Checkpoint, probe: Probe, info: TensorInfo) -> Kernel:
    """The arithmetic for one tensor; draws depend on the seed and the name only."""
    if not isinstance(probe, RmtNormNoise):
        factor = probe.factor
        return lambda stored: kernels.scale_(stored, factor)
    transposed = is_transposed(info.name, baseline.config)

    def noise(stored: torch.Tensor) -> Loss:
        generator = torch.Generator().manual_seed(probe.seed + zlib.crc32(info.name.encode()))
        if probe.mode == "norm_noise":
            return kernels.noisy_(stored, probe.noise, generator)
        matrix = stored.T if transposed else stored  # rows are outputs
        total = matrix.shape[0]
        # Of one row alone there is nothing to align.
        count = min(total, probe.max_rows, max(2, int(probe.row_frac * total)))
        rows = kernels.choose_rows(matrix, probe.rows, count, generator)
        if probe.mode == "row_scale":
            return kernels.scale_rows_(matrix, rows, probe.row_factor)
        return kernels.align_rows_(
            matrix,
            rows,
            probe.blend,
            probe.jitter,
            keep_norms=probe.preserve_row_norms,
            generator=generator,
        )

    return noise
