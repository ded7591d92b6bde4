"""Inputs rounded as kernels of few bits round them, against definitions and another package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.mlx_modelopt import e2m1

from invarlock.formats import rounded_inputs as module


def numbers(seed: int, columns: int = 64) -> torch.Tensor:
    """Two texts of three tokens, of which some columns are large and one group is zero."""
    made = torch.randn(2, 3, columns, generator=torch.Generator().manual_seed(seed))
    made[..., 5] *= 40
    made[1, 2, :32] = 0
    return made


@settings(deadline=None, max_examples=200)
@given(st.floats(-8, 8, width=32))
def test_fp4_is_the_nearest_number(value: float) -> None:
    found = float(module.nearest_fp4(torch.tensor([value])))
    distances = (e2m1().double() - value).abs()
    assert abs(found - value) == float(distances.min())


def test_e4m3_is_what_torch_makes_of_every_float() -> None:
    """All float32 numbers of some exponents in steps, both signs, the ends and what is beyond."""
    steps = torch.arange(0x30000000, 0x44000000, 1013, dtype=torch.int32).view(torch.float32)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (every[:-1] + every[1:]) / 2
    for given_numbers in (steps, every[every.isfinite()], middles[middles.isfinite()]):
        for signed in (given_numbers, -given_numbers):
            expected = signed.clamp(-448, 448).to(torch.float8_e4m3fn).float()
            assert torch.equal(module.nearest_e4m3(signed), expected)
    assert module.nearest_e4m3(torch.tensor([float("nan")])).isnan().all()


def test_of_two_as_near_fp4_takes_the_even_one() -> None:
    """The mantissa has one bit: 0, 1, 2 and 4 are even."""
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(module.nearest_fp4(middles), even)
    assert torch.equal(module.nearest_fp4(-middles), -even)
    assert module.nearest_fp4(torch.tensor([1e9])).item() == 6


@pytest.mark.parametrize("scale", [0.01, 0.5])
def test_one_scale_cuts_what_is_beyond_it(scale: float) -> None:
    """Where the scale is small enough, the largest FP8 or int8 number stands for all above it."""
    shared, given_numbers = torch.tensor(scale), numbers(1)
    fp8, int8 = (f(given_numbers, shared) for f in (module.to_fp8, module.to_int8))
    assert float(fp8.abs().max()) <= 448 * scale * 1.00001
    codes = int8 / scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert -128 <= round(float(codes.min())) <= round(float(codes.max())) <= 127
    inside = given_numbers.abs() < 127 * scale
    assert float((int8 - given_numbers)[inside].abs().max()) <= scale / 2 * 1.0001


def test_each_token_has_its_own_scale() -> None:
    """A token that is alone comes out the same, and its largest number is kept."""
    made = module.to_fp8_by_token(numbers(2), None)
    alone = module.to_fp8_by_token(numbers(2)[1, 1], None)
    assert torch.equal(made[1, 1], alone)
    largest = numbers(2).abs().amax(-1)
    torch.testing.assert_close(made.abs().amax(-1), largest)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_rounded_as_compressed_tensors_does(name: str, seed: int) -> None:
    if importlib.util.find_spec("compressed_tensors") is None and not os.environ.get("CI"):
        pytest.skip("compressed-tensors is not installed")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    given_numbers = numbers(seed) + 0.01
    shared = given_numbers.abs().max() / 6 / 448
    own: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    if name == "nvfp4":
        args = QuantizationArgs(
            num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
            dynamic="local", scale_dtype=torch.float8_e4m3fn,
        )  # fmt: skip
        more, own = {"global_scale": 1 / shared}, module.to_nvfp4
    else:
        args = QuantizationArgs(
            num_bits=8, type="float", strategy="group", group_size=32, symmetric=True,
            dynamic=True, scale_dtype=torch.uint8,
        )  # fmt: skip
        more, own = {}, module.to_mxfp8
    scales, zeros = compute_dynamic_scales_and_zp(
        value=given_numbers, args=args, module=None, **more
    )
    theirs = fake_quantize(given_numbers, scales, zeros, args, **more)
    torch.testing.assert_close(own(given_numbers, shared), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rounding", [module.to_mxfp8, module.to_mxfp4])
def test_a_group_shares_the_least_power_of_two_that_cuts_nothing(
    rounding: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
) -> None:
    largest = 448.0 if rounding is module.to_mxfp8 else 6.0
    made, given_numbers = rounding(numbers(4), None), numbers(4)
    assert torch.equal(made[1, 2, :32], torch.zeros(32))
    for group, rounded in zip(given_numbers.view(-1, 32), made.view(-1, 32), strict=True):
        top = float(group.abs().max())
        powers = [2.0**n for n in range(-40, 20) if top <= largest * 2.0**n]
        codes = rounded / powers[0]
        assert float(codes.abs().max()) <= largest
        if top:
            assert top > largest * powers[0] / 2
        if largest == 6:
            assert bool((codes.unsqueeze(-1) == e2m1()).any(-1).all())


def test_a_model_rounds_the_inputs_that_are_named_and_says_so() -> None:
    """What multiplies the columns first is taken out again: the weights hold it already."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 64, bias=False), torch.nn.ReLU(), torch.nn.Linear(64, 64, bias=False)
    )
    model.dtype = torch.float32  # type: ignore[assignment]
    assert module.words_for(model) is None
    before, scale = torch.linspace(0.5, 2, 64), torch.tensor(0.05)
    module.round_inputs(
        model,
        [("0", module.to_int8, "int8"), ("1", module.to_int8, "int8"), ("no", module.to_fp8, "")],
        {"0": scale},
        {"0": before},
    )
    given_numbers = numbers(5)
    expected = ((given_numbers * before / scale).round().clamp(-128, 127) * scale) / before
    with torch.inference_mode():
        torch.testing.assert_close(model[0](given_numbers), expected @ model[0].weight.T)
    told = module.words_for(model)
    assert told == (
        "rounded before each product, which is of float32 (int8: 1 product); as they are in 2"
        " others"
    )
    assert set(model.state_dict()) == {"0.weight", "2.weight"}
