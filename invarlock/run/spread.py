"""One model on several devices: its layers in order, each device about as many bytes.

The layers run one after another, so this gives room, not speed. What lies around them (embeddings,
norms, the output head, which may share its matrix with the embedding) stays on the first device,
so that whoever feeds the model and reads its logits sees one device only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def spread(model: torch.nn.Module, devices: Sequence[str]) -> None:
    """Move ``model`` to ``devices`` in place and make each module take its inputs to its own."""
    layers = layers_of(model)
    homes = dict.fromkeys(model.modules(), devices[0])
    for layer, device in zip(layers, assigned(model, layers, devices), strict=True):
        homes |= dict.fromkeys(layer.modules(), device)
        _fetch_inputs(layer, device)
    moved: dict[torch.Tensor, torch.nn.Parameter] = {}  # a matrix that two modules share stays one
    for module, device in homes.items():
        _move(module, device, moved)
        if next(module.parameters(recurse=False), None) is not None:
            _fetch_inputs(module, device)


def _move(
    module: torch.nn.Module, device: str, moved: dict[torch.Tensor, torch.nn.Parameter]
) -> None:
    """Move the tensors that the module itself holds."""
    from torch.nn import Parameter

    for name, old in list(module.named_parameters(recurse=False)):
        if old not in moved:
            moved[old] = Parameter(old.to(device), requires_grad=old.requires_grad)
        setattr(module, name, moved[old])
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The items of the outermost module lists, in order: the layers of encoder and decoder."""
    return [layer for stack in stacks_of(model) for layer in stack]


def stacks_of(model: torch.nn.Module) -> list[torch.nn.ModuleList]:
    """The outermost module lists, in order."""
    from torch.nn import ModuleList

    found: list[torch.nn.ModuleList] = []
    for child in model.children():
        found += [child] if isinstance(child, ModuleList) else stacks_of(child)
    return found


def assigned(
    model: torch.nn.Module, layers: Sequence[torch.nn.Module], devices: Sequence[str]
) -> list[str]:
    """The device of each layer, in order: the next one once its share of all bytes is reached."""
    sizes = [_nbytes(layer) for layer in layers]
    before = total = _nbytes(model)
    before -= sum(sizes)  # around the layers, on the first device
    result = []
    for size in sizes:
        middle = before + size / 2
        result.append(devices[min(len(devices) - 1, int(middle * len(devices) / max(1, total)))])
        before += size
    return result


def _nbytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _fetch_inputs(module: torch.nn.Module, device: str) -> None:
    def fetch(
        _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(_moved(value, device) for value in args), {
            name: _moved(value, device) for name, value in kwargs.items()
        }

    module.register_forward_pre_hook(fetch, with_kwargs=True)


def _moved(value: Any, device: str) -> Any:
    """``value`` with its tensors on ``device``."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    return value
