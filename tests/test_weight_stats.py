"""Largest singular values and friends, against exact decompositions."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from invarlock.guards.weight_stats import measure, rounded, rounded_column, sigma_max


def matrices():
    """Shapes and spectra on which a power iteration goes wrong."""
    g = torch.Generator().manual_seed(0)
    spike = torch.randn(96, 1, generator=g) @ (torch.randn(1, 384, generator=g))
    q, _ = torch.linalg.qr(torch.randn(128, 128, generator=g))
    return {
        "gaussian square": torch.randn(256, 256, generator=g),
        "gaussian wide": torch.randn(96, 384, generator=g),
        "gaussian tall": torch.randn(384, 96, generator=g),
        "spike": torch.randn(96, 384, generator=g) + 0.2 * spike,
        "orthogonal": q,
        "rank one": spike,
        "two close": q @ torch.diag(torch.tensor([1.0, 0.9999] + [0.5] * 126)) @ q.T,
        "row": torch.randn(1, 64, generator=g),
        "column": torch.randn(64, 1, generator=g),
        "tiny values": 1e-20 * torch.randn(64, 64, generator=g),
        "huge values": 1e15 * torch.randn(64, 64, generator=g),
    }


@pytest.mark.parametrize("name", matrices())
def test_sigma_max_is_exact_to_a_thousandth(name):
    """Within 1e-3 relative of the exact SVD."""
    weight = matrices()[name]
    exact = float(torch.linalg.svdvals(weight.double())[0])
    assert sigma_max(weight) == pytest.approx(exact, rel=1e-3)


def test_sigma_max_of_all_matrices_of_the_real_model(smollm2):
    """Every projection of every fifth layer of the real model, against the exact SVD."""
    from invarlock.checkpoints import Checkpoint

    checkpoint = Checkpoint.open(smollm2)
    names = [n for n in checkpoint.tensors if ".layers." in n and "_proj" in n]
    chosen = [n for n in names if int(n.split(".")[2]) % 5 == 0]
    assert len(chosen) == 42
    for name in chosen:
        weight = checkpoint.load(name).float()
        exact = float(torch.linalg.svdvals(weight)[0])
        assert sigma_max(weight) == pytest.approx(exact, rel=1e-3), name


def test_the_same_matrix_gives_the_same_number():
    """No state is kept between calls: bit for bit."""
    weight = matrices()["gaussian wide"]
    torch.manual_seed(1)
    first = sigma_max(weight)
    torch.manual_seed(2)
    assert sigma_max(weight) == first


def test_zero_matrix():
    """A wiped matrix measures zero and does not divide by it."""
    stats = measure(torch.zeros(8, 16))
    assert (stats.sigma_max, stats.stable_rank, stats.row_min, stats.column_min) == (0, 0, 0, 0)


def test_stable_rank_and_norms():
    """An identity has full stable rank; a halved row shows in the row norms only."""
    eye = torch.eye(16)
    eye[3] *= 0.5
    stats = measure(eye)
    assert stats.stable_rank == pytest.approx(15.25, rel=1e-4)
    assert stats.row_min == pytest.approx(0.5)
    assert stats.column_min == pytest.approx(0.5)
    assert measure(matrices()["rank one"]).stable_rank == pytest.approx(1.0, rel=1e-3)


def test_bfloat16_is_measured_in_float32():
    """The storage type does not enter the arithmetic."""
    weight = matrices()["gaussian square"].bfloat16()
    assert measure(weight) == measure(weight.float())


def test_huge_values_are_measured_like_ordinary_ones() -> None:
    """Values whose squares overflow float32: statistics scale exactly with the matrix."""
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(3))
    ordinary, huge = measure(weight), measure(weight * 2.0**80)
    assert huge.sigma_max == pytest.approx(ordinary.sigma_max * 2.0**80, rel=1e-6)
    assert huge.frobenius == pytest.approx(ordinary.frobenius * 2.0**80, rel=1e-6)
    assert huge.stable_rank == pytest.approx(ordinary.stable_rank, rel=1e-5)
    assert huge.row_min == pytest.approx(ordinary.row_min, rel=1e-5)


# Recorded numbers, their neighbours, powers of ten and their neighbours, and any others.
DECIMALS = st.builds(
    lambda digits, places: float(f"{digits}e{places}"),
    st.integers(-(10**10), 10**10),
    st.integers(-40, 30),
)
ANY = DECIMALS | DECIMALS.map(lambda x: math.nextafter(x, math.inf)) | st.floats()


@settings(max_examples=1000)
@given(st.lists(ANY, max_size=5))
@example([])
@example([0.0, -0.0, 999999999.5, 1e9, 1e-22, 1e-23, 0.1, math.inf, math.nan, 5e-324])
@example([math.nextafter(10.0**n, 0) for n in range(-30, 30)])
def test_a_column_is_rounded_as_its_numbers_are(values):
    """Bit for bit, together and one by one: what is not looked at has no more digits."""
    assert repr(rounded_column(values)) == repr([rounded(value) for value in values])
    assert [repr(rounded_column([v])) for v in values] == [repr([rounded(v)]) for v in values]
