"""llama.cpp as the engine of GGUF models, over the C functions that llama-cpp-python binds.

Its batch interface gives the logits of every position of a window in one call. Blocks are watched
by its own callback, which is asked for each tensor of the graph before the tensor is computed and
shown it afterwards; the names that its graphs give to what attention and feed-forward blocks write
to the stream are a table here. To watch changes no bit of the result.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from invarlock.errors import InputError, MeasurementError
from invarlock.formats.execution import (
    Around,
    Described,
    Engine,
    EngineSettings,
    Written,
    require_package,
    version_of,
)
from invarlock.formats.gguf.architectures import architecture_of
from invarlock.formats.gguf.reading import Gguf
from invarlock.loading_faults import LoadingError

ERROR = 4  # level of a log line (ggml_log_level)
LINES = 2048  # kept of the log
F32 = 4  # bytes
# What the activations are turned into before weights of a type multiply them.
ACTIVATIONS = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_1": "Q8_1", "Q5_1": "Q8_1", "Q4_0": "Q8_0",
    "Q5_0": "Q8_0", "Q8_0": "Q8_0", "IQ4_NL": "Q8_0", "MXFP4": "Q8_0", "NVFP4": "Q8_0",
}  # fmt: skip
IN_SUPERBLOCKS = "Q8_K"  # the same for all types of blocks of 256
# How graphs name what a feed-forward block writes, what enters the stream and what leaves it.
# Where a norm follows a block (Gemma 2 and 3, OLMo 2), it is still what the projection gave.
FFN_WRITES, ENTERS, LEAVES = "ffn_out", "embd", "l_out"
# Of a mixture: what its experts give together, which is all that it writes unless all tokens go to
# one more; and what its router says of them.
EXPERTS_WRITE, ROUTER_SAYS = "ffn_moe_out", "ffn_moe_logits"
# The modules of a mixture in transformers, whatever checkpoints call them.
MIXTURE, ROUTER = "mlp", "mlp.gate"
# What the attention's projection is given. What comes out has no name of its own in most graphs: it
# is what follows, after its bias where there is one.
ATTENTION_READS = "kqv_out"
# Where it has one, with its kind: in graphs with delta nets, in other layers of which that is the
# name of something else.
BLOCK_WRITES = {
    "linear_attn_out": ("ssm_out", "mixer"),
    "attn_output": ("attn_output", "attention"),
}
WITH_DELTA_NETS = ("qwen35", "qwen35moe")
# Where what the embedding module of transformers gives has another name: it is scaled, or lies in
# wider rows by then, which hold what pictures add to later layers. Granite's has none.
EMBEDS = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), "inp_scaled"), "granite": "",
    "qwen3vl": "node_0", **dict.fromkeys(WITH_DELTA_NETS, "model.input_embed"),
}  # fmt: skip
LAYER_NORMS = {"starcoder2", "stablelm"}  # the norms take the mean over the features away
_NAME = re.compile(r"(?P<what>\w+)-(?P<layer>\d+)")
_BUFFER = re.compile(r"(\w+) model buffer size = +([\d.]+ \w+)")
# The log is the library's, not a model's, and it is written to as long as the process lives.
_LOG: deque[tuple[int, str]] = deque(maxlen=LINES)
_KEPT: list[Any] = []
Place = tuple[str, str, int | None, bool]  # module, kind, layer, whether it is of a mixture


class LlamaCpp(Engine):
    """A model that llama.cpp has loaded into memory; the cache is emptied before every window.

    Raises:
        InputError: the package is missing.
        LoadingError: llama.cpp does not load the file; its own last error is the line.
    """

    name: ClassVar[str] = "llama.cpp"
    dtype: ClassVar[str] = "float32"  # of sums and of what passes between products

    def __init__(self, gguf: Gguf, settings: EngineSettings) -> None:
        require_package("llama_cpp", "gguf", "GGUF models", str(gguf.source))
        import llama_cpp.llama_cpp as binding

        self._llama: Any = binding
        self._base = _tensor_functions(Path(binding.__file__).parent / "lib")
        self._gguf = gguf
        self._settings = settings
        _LOG.clear()
        self._take: Callable[[Written], None] | None = None
        self._wanted: dict[int, Place] = {}  # tensors of the graph that are to be shown
        self._until: tuple[int, int] | None = None  # tensors to an attention's output, and layer
        # C keeps the pointer; the object has to live as long
        self._on_tensor = binding.ggml_backend_sched_eval_callback(self._shown)
        _KEPT.append(binding.llama_log_callback(_logged))
        binding.llama_log_set(_KEPT[-1], ctypes.c_void_p(0))
        binding.llama_backend_init()
        self._names = architecture_of(gguf).block
        self.centred = gguf.architecture in LAYER_NORMS
        self.experts_per_token = int(gguf.of_model("expert_used_count") or 0)
        self._model = self._load()
        found = (_BUFFER.search(text) for _, text in _LOG)
        self._buffers = {one[1]: one[2] for one in found if one}
        self._vocabulary = binding.llama_model_get_vocab(self._model)
        self._tokens = int(binding.llama_vocab_n_tokens(self._vocabulary))
        self._layers = int(binding.llama_model_n_layer(self._model))
        self._room = max(1, settings.context)
        self._context = self._context_of()
        self._memory = binding.llama_get_memory(self._context)
        self._batch = binding.llama_batch_init(self._room, 0, 1)

    def _load(self) -> Any:
        options = self._llama.llama_model_default_params()
        # read, not mapped: the file may be replaced, and what is resident shall be the model's
        options.load_mode = self._llama.LLAMA_LOAD_MODE_NONE
        options.n_gpu_layers = -1 if self._on_gpu() else 0
        options.use_extra_bufts = not self._has_amx
        model = self._llama.llama_model_load_from_file(str(self._gguf.paths[0]).encode(), options)
        if not model:
            raise self._refused("llama.cpp does not load it")
        return model

    def _context_of(self) -> Any:
        options = self._llama.llama_context_default_params()
        # one window is one batch, so that a position's sums do not depend on how it was cut
        options.n_ctx = options.n_batch = options.n_ubatch = self._room
        options.n_threads = options.n_threads_batch = max(1, self._settings.threads)
        options.cb_eval = self._on_tensor
        options.no_perf = True
        context = self._llama.llama_init_from_model(self._model, options)
        if not context:
            raise self._refused("llama.cpp has no room for a window of it")
        return context

    def _on_gpu(self) -> bool:
        asked = self._settings.device.startswith("cuda")
        return asked and bool(self._llama.llama_supports_gpu_offload())

    @property
    def _has_amx(self) -> bool:
        """Whether it would multiply by AMX, whose kernels end the process: compilers drop the
        setting of the tiles (ggml-org/llama.cpp issue 20824, pull request 26954)."""
        return "AMX_INT8 = 1" in self._llama.llama_print_system_info().decode()

    def _refused(self, what: str) -> InputError:
        told = [text for level, text in _LOG if level == ERROR]
        # the first is the cause, what follows says that loading failed
        cause = re.sub(r"^\w+: |error loading model[\w ]*: ", "", told[0]) if told else ""
        cause = cause or "it does not say why"
        return LoadingError(f"{what}: {cause[:200]}", where=str(self._gguf.source))

    def __del__(self) -> None:
        for name, free in (
            ("_batch", "llama_batch_free"),
            ("_context", "llama_free"),
            ("_model", "llama_model_free"),
        ):
            if getattr(self, name, None):
                getattr(self._llama, free)(getattr(self, name))

    # --- windows ------------------------------------------------------------------------------

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self._forget()
        self._decode(ids, 0, True)
        return self._rows(len(ids)).copy()

    def greedy(self, ids: Sequence[int], count: int) -> Iterator[int]:
        self._forget()
        given, at = list(ids)[-max(1, self._room - count) :], 0
        for _ in range(min(count, self._room - len(given))):
            self._decode(given, at, False)
            at += len(given)
            given = [int(self._rows(1)[0].argmax())]
            yield given[0]

    def around(self) -> Around:
        plain, whole = (self.tokenize("a", special) for special in (False, True))
        at = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
        ends = self._llama.llama_vocab_is_eog
        return Around(
            before=tuple(whole[:at]),
            after=tuple(whole[at + len(plain) :]),
            ends=frozenset(i for i in range(self._tokens) if ends(self._vocabulary, i)),
        )

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """See :meth:`Engine.tokenize`; ``special``: with what stands around a text."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        found = self._llama.llama_tokenize(
            self._vocabulary, data, len(data), room, len(room), special, False
        )
        if found < 0:
            raise MeasurementError(
                "llama.cpp gives no ids for a text", where=self._gguf.source.name
            )
        return list(room[:found])

    def _forget(self) -> None:
        self._llama.llama_memory_clear(self._memory, True)

    def _decode(self, ids: Sequence[int], at: int, every: bool) -> None:
        """Run some tokens at positions from ``at``; logits are of every one, or of the last."""
        if not 0 < len(ids) <= self._room or not 0 <= min(ids) <= max(ids) < self._tokens:
            raise MeasurementError(
                f"llama.cpp cannot run these {len(ids)} tokens", where=self._gguf.source.name,
                expected=f"at most {self._room}, with ids below {self._tokens}",
            )  # fmt: skip
        batch = self._batch
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = at + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = every or place == len(ids) - 1
        code = self._llama.llama_decode(self._context, batch)
        if code:
            raise MeasurementError(
                f"llama.cpp stopped with code {code}", where=self._gguf.source.name
            )

    def _rows(self, count: int) -> NDArray[np.float32]:
        """Logits of the last call, which the next one overwrites."""
        found = self._llama.llama_get_logits(self._context)
        flat = np.ctypeslib.as_array(found, shape=(count * self._tokens,))
        rows: NDArray[np.float32] = flat.reshape(count, self._tokens)
        return rows

    # --- blocks -------------------------------------------------------------------------------

    @contextmanager
    def watching(self, take: Callable[[Written], None]) -> Iterator[None]:
        before = self._take
        # guards are attached one inside the other, and each is shown everything
        self._take = take if before is None else _both(before, take)
        try:
            yield
        finally:
            self._take = before
            self._wanted.clear()

    def _shown(self, tensor: int, ask: bool, _data: object) -> bool:
        """The callback of llama.cpp: asked whether a tensor is wanted, then shown it."""
        if self._take is None:
            return not ask  # not wanted; and the pass goes on
        if ask:
            place = self._place(self._base.ggml_get_name(tensor).decode(errors="replace"))
            if place is not None:
                self._wanted[tensor] = place
            return place is not None
        shown = self._wanted.pop(tensor, None)
        count, size = self._base.ggml_nelements(tensor), self._base.ggml_nbytes(tensor)
        if shown is not None and size == F32 * count:
            rows = self._base.ggml_nrows(tensor)
            values = np.empty((rows, count // rows), np.float32)
            self._base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, size)
            name, kind, layer, mixture = shown
            self._take(Written(name, kind, layer, values, mixture))
        return True

    def _place(self, name: str) -> Place | None:
        """Module, kind and layer of the next tensor of the graph; None where nobody looks."""
        if self._until is not None:
            left, layer = self._until
            self._until = (left - 1, layer) if left > 1 else None
            if left == 1:
                return _of(layer, self._names["attn_output"]), "attention", layer, False
        if name == EMBEDS.get(self._gguf.architecture, ENTERS):
            return "model.embed_tokens", "embed", None, False
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        what, layer = found["what"], int(found["layer"])
        part, kind = BLOCK_WRITES.get(what, ("", ""))
        named = self._gguf.architecture in WITH_DELTA_NETS
        if named and f"blk.{layer}.{part}.weight" in self._gguf.tensors:
            return _of(layer, self._names[part]), kind, layer, False
        if what == ATTENTION_READS:
            biased = f"blk.{layer}.attn_output.bias" in self._gguf.tensors
            self._until = 1 + biased, layer
        if what == ROUTER_SAYS:
            return _of(layer, ROUTER), "router", layer, True
        mixture = f"blk.{layer}.ffn_gate_inp.weight" in self._gguf.tensors
        shared = f"blk.{layer}.ffn_up_shexp.weight" in self._gguf.tensors
        if what == (EXPERTS_WRITE if mixture and not shared else FFN_WRITES):
            module = MIXTURE if mixture else self._names["ffn_down"]
            return _of(layer, module), "ffn", layer, mixture
        if what == LEAVES and layer == self._layers - 1:
            return "model.norm", "stream", None, False
        return None

    # --- what runs ----------------------------------------------------------------------------

    def describe(self) -> Described:
        system = self._llama.llama_print_system_info().decode()
        features = sorted(re.findall(r"(\w+) = 1", system))
        kernels: dict[str, int] = {}
        for stored in self._gguf.tensors.values():
            looked_up = stored.name == "token_embd.weight" and "output.weight" in self._gguf.tensors
            if len(stored.shape) >= 2 and not looked_up:
                key = f"{stored.kind} x {ACTIVATIONS.get(stored.kind, IN_SUPERBLOCKS)}"
                kernels[key] = kernels.get(key, 0) + math.prod(stored.shape[:-2])  # of each expert
        detail = {
            "features": " ".join(features),
            "cache": "F16",
            **({"amx": "not used: llama.cpp's kernels for it crash"} if self._has_amx else {}),
            "threads": str(self._settings.threads),
            **{f"buffer {name}": size for name, size in sorted(self._buffers.items())},
        }
        versions = {"llama-cpp-python": version_of("llama-cpp-python")}  # gguf only reads
        device = "cuda" if self._on_gpu() else "cpu"
        return Described(self.name, versions, dict(sorted(kernels.items())), device, detail)


def _of(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{module}"


def _logged(level: int, text: bytes, _data: object) -> None:
    _LOG.append((level, text.decode(errors="replace").strip()))


def _both(
    first: Callable[[Written], None], second: Callable[[Written], None]
) -> Callable[[Written], None]:
    def take(written: Written) -> None:
        first(written)
        second(written)

    return take


def _tensor_functions(folder: Path) -> ctypes.CDLL:
    """Functions of ggml over a tensor, which the binding has no names for."""
    path = next(iter(sorted(folder.glob("*ggml-base.*"))))
    base = ctypes.CDLL(str(path))
    tensor = ctypes.c_void_p
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_char_p, [tensor]),
        ("ggml_nelements", ctypes.c_int64, [tensor]),
        ("ggml_nrows", ctypes.c_int64, [tensor]),
        ("ggml_nbytes", ctypes.c_size_t, [tensor]),
        ("ggml_backend_tensor_get", None, [tensor, tensor, ctypes.c_size_t, ctypes.c_size_t]),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    return base
