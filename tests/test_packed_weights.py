"""Sorted weights of linear layers: the same products, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invarlock.run import packed_weights as module
from invarlock.run.packed_weights import packed_weights


def model_of(inside: int, outside: int, bias: bool = True) -> torch.nn.Module:
    """Two layers, the second tied to the first's weight where the shapes allow it."""
    torch.manual_seed(inside + outside)
    first = torch.nn.Linear(inside, outside, bias=bias)
    second = torch.nn.Linear(inside, outside, bias=False)
    second.weight = first.weight
    return torch.nn.ModuleList([first, second]).requires_grad_(False).eval()


@settings(deadline=None, max_examples=25)
@given(
    inside=st.sampled_from([1, 7, 64, 300]),
    outside=st.sampled_from([256, 513]),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=2),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_products_are_the_plain_ones_to_rounding(
    inside: int, outside: int, shape: list[int], bias: bool, seed: int
) -> None:
    """Any shape of inputs, none at all and strided ones among them."""
    model = model_of(inside, outside, bias)
    wide = torch.randn(*shape, 2 * inside, generator=torch.Generator().manual_seed(seed))
    inputs = wide[..., ::2]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(module, "WORTH_IT", 0)
        expected = [layer(inputs.double()) for layer in model.double()]  # type: ignore[operator]
        model.float()
        with packed_weights(model, 8):
            assert all("forward" in vars(layer) for layer in model)  # type: ignore[operator]
            found = [layer(inputs) for layer in model]  # type: ignore[operator]
    for mine, true in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-4 * inside**0.5)


def test_new_weights_count_after_the_block() -> None:
    """The sorted copy is gone with the block, also when something fails inside."""
    model = model_of(256, 512)
    inputs = torch.ones(3, 256)
    with pytest.raises(ZeroDivisionError), packed_weights(model, 3):
        raise ZeroDivisionError
    for parameter in model.parameters():
        parameter.zero_()
    assert not any(layer(inputs).abs().max() > 1 for layer in model)  # type: ignore[operator]
    assert not any("forward" in vars(layer) for layer in model)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_arithmetic_is_left_alone(dtype: torch.dtype) -> None:
    model = model_of(256, 512).to(dtype)
    with packed_weights(model, 3):
        assert not any("forward" in vars(layer) for layer in model)  # type: ignore[operator]


def test_a_model_too_large_to_stand_there_twice_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit counts a tied weight once."""
    model = model_of(256, 512)
    size = 4 * 256 * 512
    for limit, sorted_too in ((size, True), (size - 1, False)):
        monkeypatch.setattr(module, "LARGEST", limit)
        with packed_weights(model, 3):
            assert all(("forward" in vars(layer)) is sorted_too for layer in model)  # type: ignore[operator]


def test_a_product_that_somebody_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As quantizers of activations do: theirs runs inside the block and after it."""
    monkeypatch.setattr(module, "WORTH_IT", 0)
    model = model_of(256, 512)
    first = model[0]  # type: ignore[index]
    first.forward = lambda inputs: torch.full((*inputs.shape[:-1], 512), 7.0)
    for _ in range(2):
        with packed_weights(model, 3):
            assert (first(torch.ones(3, 256)) == 7).all()
    assert (first(torch.ones(3, 256)) == 7).all()
