"""The arithmetic of every edit: known answers, brute force on small matrices, properties."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invarlock.edits.blocks import Loss, squared_norm, transform_rows
from invarlock.edits.kinds.fp8_quant import FP8_MAX, round_to_fp8_, to_fp8_
from invarlock.edits.kinds.lowrank_svd import EXACT_SIDE, low_rank_
from invarlock.edits.kinds.magnitude_prune import MagnitudePrune, prune_smallest_
from invarlock.edits.kinds.quant_rtn import round_to_nearest_
from invarlock.edits.specs import parse_edit_spec
from invarlock.errors import ConfigError, InputError

FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Seeded normal values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def values(rows: int, columns: int) -> st.SearchStrategy[torch.Tensor]:
    """Matrices of ordinary, tiny, equal and zero values."""
    number = st.one_of(
        st.floats(-8, 8, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 0.5])
    )
    flat = st.lists(number, min_size=rows * columns, max_size=rows * columns)
    return flat.map(lambda v: torch.tensor(v, dtype=torch.float32).view(rows, columns))


# --- round to nearest ----------------------------------------------------------------------


def plain_rtn(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The definition as a loop, in single precision."""
    out = weight.float().clone()
    levels = 2 ** (bits - 1) - 1
    group = group or weight.shape[1]
    for row in out:
        for start in range(0, len(row), group):
            part = row[start : start + group]
            scale = part.abs().max() / levels
            if scale > 0:
                for i, value in enumerate(part.tolist()):
                    ratio = torch.tensor(value) / scale
                    part[i] = round(float(ratio)) * scale  # Python rounds half to even
    return out.to(weight.dtype)


def test_rtn_known_answer() -> None:
    """Three bits: scale 1, levels -3 to 3, half to even."""
    weight = torch.tensor([[3.0, 0.5, 1.5, -2.5, 0.2, -0.6]])
    round_to_nearest_(weight, 3, 0)
    assert weight.tolist() == [[3.0, 0.0, 2.0, -2.0, 0.0, -1.0]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 8), (2, 4), (3, 24)])
def test_rtn_equals_the_plain_loop(bits: int, group: int, dtype: torch.dtype) -> None:
    """Bit-identical to the definition, for every storage dtype and grouping."""
    weight = random(7, 24, dtype=dtype)
    expected = plain_rtn(weight, bits, group)
    round_to_nearest_(weight, bits, group)
    assert torch.equal(weight, expected)


def test_rtn_of_a_transposed_view_works_on_its_rows() -> None:
    """A matrix stored (inputs, outputs) is quantized per output all the same."""
    stored = random(24, 6, seed=3)
    expected = plain_rtn(stored.T.contiguous(), 4, 8)
    round_to_nearest_(stored.T, 4, 8)
    assert torch.equal(stored.T, expected)


@settings(max_examples=60, deadline=None)
@given(values(3, 8), st.integers(2, 8), st.sampled_from([0, 4]))
def test_rtn_error_is_at_most_half_a_scale(weight: torch.Tensor, bits: int, group: int) -> None:
    """|w' - w| <= scale / 2 in every group (plus rounding of the product, and of a scale that is
    itself among the smallest numbers of float32)."""
    original = weight.clone()
    round_to_nearest_(weight, bits, group)
    groups = original.view(3, -1, group or 8)
    scale = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (weight.view_as(groups) - groups).abs()
    smallest = torch.tensor(2.0**-149)
    assert bool((error <= scale * 0.5 * (1 + 1e-5) + 2 ** (bits - 1) * smallest).all())


@settings(max_examples=60, deadline=None)
@given(values(3, 8), st.integers(2, 8))
def test_rtn_is_idempotent_in_bfloat16(weight: torch.Tensor, bits: int) -> None:
    """Quantizing a quantized matrix changes no bit."""
    once = weight.bfloat16()
    round_to_nearest_(once, bits, 0)
    twice = once.clone()
    round_to_nearest_(twice, bits, 0)
    assert torch.equal(once, twice)


def test_rtn_uses_every_symmetric_level() -> None:
    """Four bits have 15 levels and no sixteenth."""
    weight = torch.linspace(-1, 1, 2001).view(1, -1)
    round_to_nearest_(weight, 4, 0)
    assert len(weight.unique()) == 15


# --- eight-bit floats ----------------------------------------------------------------------


def e4m3_table() -> list[float]:
    """All finite non-negative values of e4m3fn: bias 7, 3 mantissa bits, 0x7f is NaN."""
    table = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        table.append(
            mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        )
    return table


def e5m2_table() -> list[float]:
    """All finite non-negative values of e5m2: bias 15, 2 mantissa bits."""
    table = []
    for code in range(0x7C):
        exponent, mantissa = code >> 2, code & 3
        table.append(
            mantissa * 2.0**-16 if exponent == 0 else (1 + mantissa / 4) * 2.0 ** (exponent - 15)
        )
    return table


@pytest.mark.parametrize(("fmt", "table"), [("e4m3", e4m3_table()), ("e5m2", e5m2_table())])
def test_fp8_rounds_to_the_nearest_table_value(fmt: str, table: list[float]) -> None:
    """With the channel's maximum equal to the format's, the scale is 1 and the table decides."""
    weight = torch.cat([torch.tensor([[max(table)]]), random(1, 400) * 3], dim=1)
    original = weight.clone()
    to_fp8_(weight, fmt)
    grid = torch.tensor(sorted({s * v for v in table for s in (1, -1)}))
    best = (original.view(-1, 1) - grid).abs().amin(1)
    assert torch.equal((weight - original).abs().view(-1), best)


@pytest.mark.parametrize(
    ("fmt", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)]
)
def test_fp8_rounds_as_a_cast_does(fmt: str, dtype: torch.dtype) -> None:
    """At every number of the format, in the middle between two, beside both, and elsewhere."""
    largest = FP8_MAX[fmt]
    codes = torch.arange(128, dtype=torch.uint8).view(dtype).to(torch.float32)
    grid = codes[codes.isfinite()]
    middles = (grid[1:] + grid[:-1]) / 2
    at = torch.cat([grid, middles, middles / 2**10])
    bits = at.view(torch.int32)
    near = torch.cat([(bits + d).clamp(min=0).view(torch.float32) for d in (-1, 0, 1)])
    spread = torch.cat([random(5000, seed=7).abs() * 2.0**e for e in range(-30, 16, 3)])
    magnitudes = torch.cat([near, spread]).clamp(max=largest)
    expected = magnitudes.to(dtype).to(torch.float32)
    round_to_fp8_(magnitudes, fmt, torch.empty_like(magnitudes))
    assert torch.equal(magnitudes.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("fmt", ["e4m3", "e5m2"])
def test_fp8_scale_spares_small_channels(fmt: str) -> None:
    """A channel a million times smaller keeps the same relative error: unscaled it would vanish."""
    weight = random(2, 64)
    weight[1] = weight[0] * 2.0**-20
    to_fp8_(weight, fmt)
    assert torch.equal(weight[1], weight[0] * 2.0**-20)


def test_fp8_keeps_the_extremes_of_a_channel() -> None:
    """The largest magnitude maps to the format's maximum and back; zero channels stay zero."""
    weight = torch.tensor([[0.25, -1.0, 0.0], [0.0, 0.0, 0.0]])
    to_fp8_(weight, "e4m3")
    assert weight.tolist() == [[0.25, -1.0, 0.0], [0.0, 0.0, 0.0]]


# --- pruning -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 7, 100, 599, 600])
def test_prune_equals_a_stable_sort(count: int, dtype: torch.dtype) -> None:
    """The zeroed entries are the first ``count`` of a stable sort by magnitude."""
    weight = (random(20, 30) * 2).round().div(8).to(dtype)  # few distinct values: many ties
    expected = weight.clone().view(-1)
    order = torch.sort(expected.abs(), stable=True).indices
    expected[order[:count]] = 0
    loss = prune_smallest_(weight, count)
    assert torch.equal(weight.view(-1), expected)
    assert loss.zeros == count


@settings(max_examples=60, deadline=None)
@given(values(4, 6), st.integers(0, 24))
def test_prune_zeroes_exactly_the_count(weight: torch.Tensor, count: int) -> None:
    """Survivors keep their bits, and no survivor is smaller than a pruned entry."""
    original = weight.clone()
    assert prune_smallest_(weight, count).zeros == count
    same = weight == original
    assert int((~same).sum()) <= count
    pruned, kept = original[~same].abs(), original[(weight != 0)].abs()
    if len(pruned) and len(kept):
        assert pruned.max() <= kept.min()


@pytest.mark.parametrize(
    ("n", "sparsity", "count"), [(100, 0.29, 29), (10, 0.7, 7), (7, 0.5, 3), (9, 1.0, 9)]
)
def test_prune_count_is_the_floor_of_the_written_decimal(
    n: int, sparsity: float, count: int
) -> None:
    """0.29 of 100 is 29, though the product of doubles is below 29."""
    spec = parse_edit_spec(f"magnitude_prune:{sparsity}:all")
    assert isinstance(spec, MagnitudePrune)
    assert spec.count(n) == count


# --- low rank ------------------------------------------------------------------------------


def best_error(weight: torch.Tensor, rank: int) -> float:
    """Smallest Frobenius error of any rank-``rank`` matrix (Eckart-Young)."""
    return float(torch.linalg.svdvals(weight.double())[rank:].square().sum().sqrt())


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (30, 30)])
@pytest.mark.parametrize("rank", [1, 5, 23])
def test_low_rank_is_optimal(shape: tuple[int, int], rank: int) -> None:
    """Rank is at most r, and the error is the least possible, to single precision."""
    weight = random(*shape)
    original = weight.double()
    loss = low_rank_(weight, rank, 0)
    assert torch.linalg.matrix_rank(weight.double(), rtol=1e-5) == rank
    error = float(torch.linalg.norm(weight.double() - original))
    assert error == pytest.approx(best_error(original, rank), rel=1e-5)
    assert loss.relative == pytest.approx(error / float(original.norm()), rel=1e-5)


@pytest.mark.parametrize(("decay", "excess"), [(0.0, 1e-3), (0.5, 1e-6)])
def test_randomized_low_rank_is_nearly_optimal(decay: float, excess: float) -> None:
    """Above the exact size the documented excess over the optimum holds."""
    columns = EXACT_SIDE + 16
    weight = random(columns + 100, columns)
    if decay:
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        weight = left * torch.arange(1, columns + 1).pow(-decay) @ right
    original = weight.double()
    low_rank_(weight, 32, 5)
    error = float(torch.linalg.norm(weight.double() - original))
    optimum = best_error(original, 32)
    assert optimum * (1 - 1e-6) <= error <= optimum * (1 + excess)


def one_large_column(weight: torch.Tensor) -> torch.Tensor:
    """As activations with an outlier channel make them."""
    weight[:, 3] *= 1000
    return weight


def steep(weight: torch.Tensor) -> torch.Tensor:
    """Singular values that fall so fast that a power of the matrix has few that count."""
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    return left * torch.arange(1, weight.shape[1] + 1).pow(-2.0) @ right


@pytest.mark.parametrize(
    ("made", "excess"),
    [
        (one_large_column, 1e-3),  # beside it there is white noise
        (steep, 1e-6),
        (lambda weight: random(len(weight), 40) @ random(weight.shape[1], 40).T, 1e-6),
        (lambda weight: torch.cat([weight[:10], torch.zeros_like(weight[10:])]), 1e-6),
    ],
    ids=["outlier column", "steep", "rank 40", "rank 10"],
)
def test_randomized_low_rank_holds_where_powers_lose_rank(
    made: Callable[[torch.Tensor], torch.Tensor], excess: float
) -> None:
    """Where blocks of the Krylov space are rank-deficient the documented excess holds as well."""
    weight = made(random(EXACT_SIDE + 116, EXACT_SIDE + 16))
    original = weight.double()
    low_rank_(weight, 32, 5)
    error = float(torch.linalg.norm(weight.double() - original))
    floor = 1e-6 * float(original.norm())
    assert error <= best_error(original, 32) * (1 + excess) + floor


def test_randomized_low_rank_is_a_function_of_the_seed() -> None:
    """The same seed gives the same bytes, another seed others."""
    results = []
    for seed in (1, 1, 2):
        weight = random(EXACT_SIDE + 1, EXACT_SIDE + 1)
        low_rank_(weight, 4, seed)
        results.append(weight)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# --- all of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_weights_are_refused(bad: float) -> None:
    """No edit passes NaN or infinity on as if it were a weight."""
    kernels = [
        lambda w: round_to_nearest_(w, 8, 0),
        lambda w: to_fp8_(w, "e4m3"),
        lambda w: prune_smallest_(w, 3),
        lambda w: low_rank_(w, 2, 0),
    ]
    for kernel in kernels:
        weight = random(6, 6)
        weight[3, 3] = bad
        with pytest.raises(InputError, match="NaN or infinity"):
            kernel(weight)


def test_a_result_out_of_range_is_refused() -> None:
    """Rounded up beyond the largest float16, an infinity would be written."""
    weight = torch.full((4, 4), 65504.0, dtype=torch.float16)
    weight[0, 0] = 60000.0
    with pytest.raises(InputError, match="float16"):
        transform_rows(weight, lambda work, _: work * 1.01)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 0.02, 1e12, 1e25])
def test_squared_norms_hold_where_float32_does_not(size: float) -> None:
    """Values whose squares float32 cannot hold count as well; one row beside small ones too."""
    block = random(7, 300) * size
    block[3] *= 1e3
    exact = float(block.double().square().sum())
    assert squared_norm(block) == pytest.approx(exact, rel=1e-6)
    assert squared_norm(block.view(-1)) == pytest.approx(exact, rel=1e-12)
    assert squared_norm(torch.zeros(2, 3)) == 0.0


def test_loss_is_relative_to_the_original() -> None:
    """Sums of squares add up over matrices before the root is taken."""
    loss = Loss(error=9.0, norm=100.0)
    loss.add(Loss(error=7.0, norm=300.0))
    assert loss.relative == pytest.approx(0.2)
    assert Loss().relative == 0.0


# --- specs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quant_rtm:8:0:all", "did you mean quant_rtn"),
        ("squeeze", "known: fine_tune, .*noop"),
        ("quant_rtn:8:all", "quant_rtn:<bits>:<group_size>:<scope>"),
        ("quant_rtn:tuned", "tuned parameters"),
        ("quant_rtn:x:0:all", "a whole number"),
        ("quant_rtn:1:0:all", "2 to 8"),
        ("quant_rtn:4:-1:all", "0 or more"),
        ("quant_rtn:4:0:mlp", "ffn, attn, all, embed"),
        ("quant_rtn:4:0:ffn@layer=x", "not a scope"),
        ("quant_rtn:4:0:ffn@layer=03", "not a scope"),
        ("fp8_quant:e3m4:all", "e4m3 or e5m2"),
        ("magnitude_prune:nan:all", "above 0"),
        ("magnitude_prune:1.5:all", "above 0"),
        ("lowrank_svd:0:ffn", "1 or more"),
        ("noop:all", "found 1 parameter$"),
        ("lora_merge:0:8:attn", "rank is out of range"),
        ("lora_merge:4:0:attn", "alpha is out of range"),
        ("lora_merge:4:inf:attn", "alpha is out of range"),
        ("lora_merge:4:8", "not a complete edit"),
        ("lora_merge:4:8:head", "'head' is not a scope"),
        ("fine_tune:0:1:ffn", "learning_rate is out of range"),
        ("fine_tune:nan:1:ffn", "learning_rate is out of range"),
        ("fine_tune:0.1:0:ffn", "steps is out of range"),
        ("fine_tune:0.1:1.5:ffn", "not a number"),
        ("fine_tune:0.1:100000:ffn", "expected 1 to 1000"),
    ],
)
def test_impossible_specs_are_configuration_errors(text: str, message: str) -> None:
    """Each mistake has one line that says what was expected."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_edit_spec(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scope", ["ffn", "attn@layer=3", "all@layers=2", "embed"])
def test_scopes_are_written_as_they_were_read(scope: str) -> None:
    """The recorded scope is the one of the spec."""
    spec = parse_edit_spec(f"lowrank_svd:4:{scope}")
    assert str(getattr(spec, "scope", "")) == scope
    assert spec.parameters() == {"rank": 4}
