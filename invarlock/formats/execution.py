"""What a program other than transformers has to answer that runs a model of some format.

    class LlamaCpp(Engine):
        name = "llama.cpp"
        def logits(self, ids): ...

A format returns one from ``Format.engine``. It gives logits of every position, so that losses,
divergences and agreement are taken as of any other model, and shows what blocks write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from invarlock.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


TRANSFORMERS = "transformers"  # the backend of every model that no engine runs


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is to run."""

    device: str  # cpu, or cuda and cuda:N
    threads: int
    context: int  # tokens of the longest window


@dataclass(frozen=True)
class Written:
    """What one block wrote to the residual stream, what entered or left it, or what a router said
    of its experts, for one window."""

    name: str  # of the module, as transformers calls it: "model.layers.3.mlp.down_proj"
    kind: str  # attention, mixer, ffn, embed, stream (invarlock.guards.block_outputs), or router
    layer: int | None
    values: NDArray[np.float32]  # (tokens, features); of a router a logit for every expert
    mixture: bool = False  # the block is a mixture of experts, or decides in one


@dataclass(frozen=True)
class Described:
    """What ran: for the report, and for ``backend_inventory.json``."""

    backend: str  # transformers, llama.cpp
    versions: Mapping[str, str]  # of the packages that ran, by name
    kernels: Mapping[str, int]  # what multiplies -> how many matrices of the model it multiplies
    device: str
    detail: Mapping[str, str] = field(default_factory=dict)  # what else says which code ran


@dataclass(frozen=True)
class Around:
    """What a backend itself puts around a text, and where it ends what it writes; token ids."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    ends: frozenset[int]


class Engine:
    """A loaded model; one window at a time."""

    name: ClassVar[str]
    dtype: ClassVar[str]  # of its arithmetic, as reports name it
    centred: bool = False  # whether the norms of the model take the mean over the features away
    experts_per_token: int = 0  # that a token is sent to; 0: the model is no mixture

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position of one window: (tokens, vocabulary)."""
        raise NotImplementedError

    def watching(self, take: Callable[[Written], None]) -> AbstractContextManager[None]:
        """Windows inside the block are shown to ``take``, in the order in which blocks write."""
        raise NotImplementedError

    def greedy(self, ids: Sequence[int], count: int) -> Iterator[int]:
        """The ``count`` most likely tokens after a prompt, one by one, as the backend generates."""
        raise NotImplementedError

    def tokenize(self, text: str) -> list[int] | None:
        """The ids of a text without special ones; None where the backend has no tokenizer."""
        return None

    def around(self) -> Around | None:
        """What it puts around a text, and what ends one; None where it has no tokenizer."""
        return None

    def describe(self) -> Described:
        """What runs."""
        raise NotImplementedError


def require_package(module: str, extra: str, what: str, where: str) -> None:
    """Refuse in one line where a package is missing.

    Args:
        module: as it is imported.
        extra: of invarlock that installs it.
        what: what needs it, such as "GPTQ weights".
        where: the subject.

    Raises:
        InputError: with the command that installs it.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise InputError(
            f"{what} need the package {module}, which is not installed", where=where,
            hint=f'pip install "invarlock[{extra}]"',
        )  # fmt: skip


def version_of(package: str) -> str:
    """The installed version of a package; empty where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def kernels_of(model: Any) -> dict[str, int]:
    """What multiplies by a matrix in a torch model -> how many modules are of it.

    By the class of the module; where its weight is of a class of its own, which then multiplies, by
    that too.
    """
    found: dict[str, int] = {}
    for module in model.modules():
        kind = type(module)
        if list(module.children()):
            continue
        stacked = any(p.dim() == 3 for p in module.parameters())  # matrices of experts
        if not (stacked or "Linear" in kind.__name__ or hasattr(module, "in_features")):
            continue
        name = f"{kind.__module__}.{kind.__name__}"
        weight = type(getattr(module, "weight", None))
        if hasattr(weight, "__tensor_flatten__"):
            name += f" of {weight.__module__}.{weight.__name__}"
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
