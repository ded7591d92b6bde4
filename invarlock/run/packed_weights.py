"""Weights of linear layers in the order in which a CPU's matrix product reads them.

A product that gets a plain matrix sorts it into blocks every time; over the hundreds of batches of
a pass that is a fifth of the time of a block and a third of that of the output head. Sorted once,
the weights stand in memory twice, so that only as much is sorted as ``LARGEST`` allows.

Only float32 on a CPU: bfloat16 runs where the hardware multiplies it, through kernels that were not
measured here, and a GPU has no such order. The products sum in another order than the plain ones
do, so that a loss moves in its last digits; a baseline and its subjects run the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LARGEST = 1 << 30  # bytes of all sorted copies; a model that needs more runs unsorted
WORTH_IT = 1 << 16  # elements of a weight: small ones stay in the cache in any order


@contextmanager
def packed_weights(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Run the model's linear layers on sorted weights inside the block.

    The weights must not change meanwhile: the copies would not know.

    Args:
        model: on any device; only its plain ``Linear`` layers in float32 on a CPU are touched.
        rows: about how many tokens go through a layer at a time.
    """
    import torch

    onednn: Any = torch.backends.mkldnn
    linear = [m for m in model.modules() if type(m) is torch.nn.Linear and _sortable(m.weight)]
    # one whose product somebody replaced, such as by one of quantized activations, keeps it
    layers = [m for m in linear if "forward" not in vars(m)]
    size = sum({m.weight.data_ptr(): m.weight.nbytes for m in layers}.values())
    if not onednn.is_available() or size > LARGEST:
        layers = []
    sorted_ones: dict[int, torch.Tensor] = {}  # a tied head is sorted once
    try:
        for layer in layers:
            place = layer.weight.data_ptr()
            if place not in sorted_ones:
                sorted_ones[place] = torch.ops.mkldnn._reorder_linear_weight(layer.weight, rows)
            # an attribute of the instance hides the method, and hooks stay where they are
            vars(layer)["forward"] = _product(sorted_ones[place], layer.weight, layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _sortable(weight: torch.Tensor) -> bool:
    import torch

    if type(weight) is not torch.nn.Parameter:  # packed by a class of its own
        return False
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return on_cpu and weight.is_contiguous() and weight.numel() >= WORTH_IT


def _product(
    packed: torch.Tensor, plain: torch.Tensor, bias: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if not inputs.numel():  # the kernel knows no empty product
            return torch.nn.functional.linear(inputs, plain, bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, packed, bias, "none", [], ""
        )
        return product

    return forward
