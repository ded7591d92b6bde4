"""Load a checkpoint folder as a model, and say what did not match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invarlock.checkpoints import Checkpoint
from invarlock.errors import ConfigError
from invarlock.files import read_json_object
from invarlock.formats.execution import (
    TRANSFORMERS,
    Described,
    Engine,
    EngineSettings,
    kernels_of,
    version_of,
)
from invarlock.formats.kind import Format
from invarlock.formats.packed import DENSE, QUANTIZED
from invarlock.library_classes import loader_of
from invarlock.library_log import quiet
from invarlock.loading_faults import library
from invarlock.metrics.kinds import BY_WINDOWS, DEFAULT, METRICS, metric_of
from invarlock.run.spread import spread

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "bfloat16", "float16", "float32")
LOADERS = {kind.adapter: kind.loader for kind in (*METRICS.values(), *BY_WINDOWS.values())}
# Heads of BERT's pre-training that its masked-LM model does not have.
UNUSED_HEADS = ("bert.pooler.", "cls.seq_relationship.")


@dataclass(frozen=True)
class Target:
    """Where and how a model is run."""

    device: str  # auto | cpu | cuda | cuda:N | mps
    dtype: str  # one of DTYPES
    allow_remote_code: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode with what loading reported."""

    model: Any  # a transformers PreTrainedModel; None where an engine runs it
    device: str
    dtype: str
    missing: list[str]
    unexpected: list[str]
    engine: Engine | None = None
    packages: tuple[str, ...] = ()  # that run it beside transformers
    detail: Mapping[str, str] = field(default_factory=dict)  # of its format
    dense_because: str = ""  # why dense kernels run it in place of those of its format

    def describe(self) -> Described:
        """What runs."""
        if self.engine is not None:
            return self.engine.describe()
        versions = {name: version_of(name) for name in (TRANSFORMERS, "torch", *self.packages)}
        detail = self.detail
        if self.dense_because:
            detail = {
                **detail,
                "weights": "dequantized",
                "kernels": f"dense {self.dtype} ones, not those that will serve",
                "because": self.dense_because,
            }
        kernels, device = kernels_of(self.model), device_name(self.device)
        return Described(TRANSFORMERS, versions, kernels, device, detail)


def resolve_target(target: Target) -> tuple[str, torch.dtype]:
    """Turn ``auto`` into a device and a dtype.

    bfloat16 where the hardware multiplies it natively (any CUDA device, CPUs with AVX512-BF16 or
    AMX), float32 elsewhere: emulated bfloat16 is slower than float32 and no more exact.

    Raises:
        ConfigError: an unknown dtype, or a device that is not there.
    """
    import torch

    if target.dtype not in DTYPES:
        raise ConfigError(f"{target.dtype!r} is not a dtype", expected=", ".join(DTYPES))
    device = target.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch sees none", hint="use device: cpu")
    if target.dtype != "auto":
        dtype: torch.dtype = getattr(torch, target.dtype)
    elif device.startswith("cuda") or (device == "cpu" and _native_bfloat16()):
        dtype = torch.bfloat16
    else:
        dtype = torch.float32
    return device, dtype


def arithmetic(target: Target) -> tuple[str, str]:
    """The dtype and the device that a model will run with, as reports name them.

    Raises:
        ConfigError: see :func:`resolve_target`.
    """
    device, dtype = resolve_target(target)
    return str(dtype).removeprefix("torch."), device_name(device)


def device_name(device: str) -> str:
    """The device as reports name it: with the model of a GPU."""
    import torch

    if device.startswith("cuda"):
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device


def _native_bfloat16() -> bool:
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_loadable(folder: Path, allow_remote_code: bool) -> None:
    """Build the model that ``folder`` describes without its weights, to see whether one can.

    Raises:
        InputError, ConfigError: see :func:`load_model`.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    quiet()
    written = read_json_object(folder / "config.json")
    auto_model: Any = getattr(transformers, loader_of(written, metric_of(written).loader))
    with library(folder):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=allow_remote_code, local_files_only=True
        )
        with torch.device("meta"):
            auto_model.from_config(config, trust_remote_code=allow_remote_code)


def _attention(auto_model: Any, config: Any) -> str:
    """The kernel of attention: torch's own, but where the class has none that uses it."""
    mapping = auto_model._model_mapping
    if type(config) not in mapping:  # code of its own
        return "sdpa"
    found = mapping[type(config)]
    model_class = found[0] if isinstance(found, tuple) else found
    return "sdpa" if getattr(model_class, "_supports_sdpa", True) else "eager"


def load_checkpoint(
    checkpoint: Checkpoint, target: Target, context: int, adapter: str = DEFAULT.adapter
) -> Loaded:
    """Load a checkpoint for what runs models of its format.

    Args:
        checkpoint: what is loaded.
        target: device and dtype; an engine has a dtype of its own.
        context: tokens of the longest window.
        adapter: the kind of model.

    Raises:
        See :func:`load_model`.
    """
    import torch

    device, _ = resolve_target(target)
    settings = EngineSettings(device, torch.get_num_threads(), context)
    engine = checkpoint.form.engine(checkpoint.source, settings)
    if engine is not None:
        return Loaded(None, device, engine.dtype, [], [], engine)
    return load_model(checkpoint, target, adapter)


def _dense(
    auto_model: Any, checkpoint: Checkpoint, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A model of dense modules that holds what a checkpoint's weights stand for.

    They go through memory, once as they are and once in the dtype of the run, and through no file.
    """
    import torch

    config = options["config"]
    for key in QUANTIZED:
        if hasattr(config, key):
            delattr(config, key)
    with torch.device("meta"):
        kind = type(auto_model.from_config(config, trust_remote_code=options["trust_remote_code"]))
    state = {name: checkpoint.load(name) for name in checkpoint.tensors}
    model, info = kind.from_pretrained(None, state_dict=state, **options)
    return model, info


def load_model(place: Checkpoint | Path, target: Target, adapter: str = DEFAULT.adapter) -> Loaded:
    """Load a language model of the kind ``adapter`` from safetensors, without the network.

    Args:
        place: a checkpoint, or a folder of one.
        target: device and dtype.
        adapter: the kind of model.

    Raises:
        InputError: the library does not load it, whatever its parts raise; the cause is chained.
        MemoryError, OSError, RuntimeError: there is not enough memory (:func:`lacks_memory`).
        ConfigError: see :func:`resolve_target`; or remote code without the switch.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    form: Format = DENSE
    if isinstance(place, Checkpoint):
        folder, source, form = place.folder, place.source, place.form
    else:
        folder = source = place
    written = read_json_object(folder / "config.json")
    loader = loader_of(written, LOADERS[adapter])
    # the library's loader returns a pair when asked to, which its annotations do not know
    auto_model: Any = getattr(transformers, loader)
    quiet()
    device, dtype = resolve_target(target)
    with library(folder):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=target.allow_remote_code, local_files_only=True
        )
        options: dict[str, Any] = {
            "config": config,
            "dtype": dtype,
            "attn_implementation": _attention(auto_model, config),
            "use_safetensors": True,
            "local_files_only": True,
            "trust_remote_code": target.allow_remote_code,
            "output_loading_info": True,
        }
        because = form.dense_because(source, written)
        if because and isinstance(place, Checkpoint):
            model, info = _dense(auto_model, place, options)
        else:
            options |= form.loading(source, written, device)
            dtype = options["dtype"]
            model, info = auto_model.from_pretrained(folder, **options)
        model = form.loaded(model, source)
    model.requires_grad_(False)
    model.eval()
    visible = torch.cuda.device_count()  # as many as were asked for
    if device == "cuda" and visible > 1 and "device_map" not in options:
        spread(model, [f"cuda:{number}" for number in range(visible)])
    elif "device_map" not in options:  # with it the model lies where it belongs
        model.to(device)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    missing = [
        name for name in info["missing_keys"] if not (tied and name.endswith("lm_head.weight"))
    ]
    assert isinstance(dtype, torch.dtype)
    return Loaded(
        model=model,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        missing=sorted(missing),
        unexpected=sorted(n for n in info["unexpected_keys"] if not n.startswith(UNUSED_HEADS)),
        packages=() if because else tuple(package.module for package in form.packages),
        detail=form.detail(model),
        dense_because=because,
    )
