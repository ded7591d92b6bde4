"""GGUF files: which files are a model, what its tensors stand for, and what is wrong with one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_factory import MODELS, as_converted, make_folder, write_gguf

from invarlock.alignment import align, of_language_model
from invarlock.checkpoints import Checkpoint, file_parts
from invarlock.effective_config import differences
from invarlock.errors import InputError, NotACheckpointError
from invarlock.formats.gguf.architectures import ARCHITECTURES, FACTORS
from invarlock.formats.gguf.reading import Gguf
from invarlock.formats.gguf.small_files import config_of, llama3_factors
from invarlock.guards.invariants import check_checkpoint, open_subject
from invarlock.model_folder import refuse_unusable


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer; it is not written to."""
    folder = tmp_path_factory.mktemp("gguf") / "llama"
    make_folder(folder)
    return folder


def findings(baseline: Path, subject: Path) -> list[dict[str, Any]]:
    """What the invariants guard finds, fatal or not."""
    opened, failures = open_subject(subject, baseline)
    return failures if opened is None else check_checkpoint(Checkpoint.open(baseline), opened)


def only(found: list[dict[str, Any]]) -> str:
    """The message of the one fatal finding; one line."""
    fatal = [each["message"] for each in found if each["severity"] == "fatal"]
    assert len(fatal) == 1, found
    assert "\n" not in fatal[0]
    return fatal[0]


# --- names and values -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_names_are_those_of_the_package(architecture: str) -> None:
    """Every name that a tensor is read under is one that the package gives that tensor."""
    import gguf

    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(kind, 3)
    known = ARCHITECTURES[architecture]
    for part in known.block:
        own = known.name_of(f"blk.2.{part}.weight")
        assert own is not None
        if gguf.MODEL_TENSORS[kind] and any(
            gguf.TENSOR_NAMES[t] == f"blk.{{bid}}.{part}" for t in gguf.MODEL_TENSORS[kind]
        ):
            found = names.get_name(as_converted(own), try_suffixes=(".weight",))
            assert found == f"blk.2.{part}.weight"
    for part in ("token_embd", "output_norm"):
        own = known.name_of(f"{part}.weight")
        assert own is not None
        assert names.get_name(own, try_suffixes=(".weight",)) == f"{part}.weight"


def test_the_page_lists_every_architecture() -> None:
    """By both names, and no other."""
    page = (Path(__file__).parents[1] / "docs/formats.md").read_text()
    listed = page.split("## Architectures of GGUF", 1)[1].split("\n## ", 1)[0]
    own = re.findall(r"`([^`]+)`(?: \(([\w, \n]+)\))?", listed.split(":\n", 1)[1])
    found = {name: tuple(re.split(r",\s+", kinds)) if kinds else (name,) for name, kinds in own}
    assert found == {name: known.model_types for name, known in ARCHITECTURES.items()}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_converted_model_is_its_own_baseline(model: str, tmp_path: Path) -> None:
    """Names, row order and shifted norms are undone: nothing differs but the format."""
    import torch

    make_folder(tmp_path / "m", model)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", model.split()[0], metadata=MODELS[model][2])
    baseline = Checkpoint.open(tmp_path / "m")
    subject = Checkpoint.open(tmp_path / "m.gguf", tmp_path / "m")
    aligned = align(baseline, subject).subject
    language = of_language_model(baseline.tensors, baseline)
    assert {*aligned.tensors} == language
    for name in language:
        # to add one to a norm's weight and to take it away again rounds it, as a power's logarithm
        shifted = model.startswith(("gemma", "qwen35")) and "norm" in name
        rounding = 3e-7 if shifted or name.endswith("A_log") else 0.0
        read, wanted = aligned.load(name), baseline.load(name)
        assert torch.allclose(read, wanted, rtol=0, atol=rounding), name
    told = [failure["type"] for failure in check_checkpoint(baseline, subject)]
    # what reads pictures is in another file
    assert told == ([] if len(language) == len(baseline.tensors) else ["language_model_only"])


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("F16", 16), ("BF16", 16), ("Q4_0", 4), ("Q4_1", 4), ("Q5_1", 5), ("Q8_0", 8)],
)
def test_values_are_the_packages(kind: str, bits: int, llama: Path, tmp_path: Path) -> None:
    """In chunks of any size, the bytes are those of the package's own dequantization."""
    import gguf

    write_gguf(llama, tmp_path / "m.gguf", kind=kind)
    baseline, subject = Checkpoint.open(llama), Checkpoint.open(tmp_path / "m.gguf", llama)
    name = "model.layers.1.mlp.down_proj.weight"
    as_kind = gguf.GGMLQuantizationType[kind]
    wanted = gguf.quants.dequantize(
        gguf.quants.quantize(baseline.load(name).numpy(), as_kind), as_kind
    )
    for size in (100, 4096, 1 << 22):
        chunks = [bytes(chunk) for chunk in subject.chunks(name, size)]
        assert {len(chunk) for chunk in chunks[:-1]} <= {size}
        assert len(b"".join(chunks)) == subject.tensors[name].nbytes
    assert np.array_equal(subject.load(name).float().numpy(), wanted)
    packing = subject.packing()
    assert packing["schemes"][kind]["tensors"] == 15  # 7 a layer, and the embedding
    assert packing["schemes"][kind]["bits"] == bits


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_experts_are_cut_from_the_stack(kind: str, tmp_path: Path) -> None:
    """Each expert's matrix is what the package makes of it alone, read in chunks of any size."""
    import gguf

    make_folder(tmp_path / "m", "qwen2moe")
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "qwen2moe", kind=kind)
    baseline = Checkpoint.open(tmp_path / "m")
    subject = Checkpoint.open(tmp_path / "m.gguf", tmp_path / "m")
    as_kind = gguf.GGMLQuantizationType[kind]
    for expert in range(5):
        name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"
        packed = gguf.quants.quantize(baseline.load(name).numpy(), as_kind)
        wanted = gguf.quants.dequantize(packed, as_kind)
        assert np.array_equal(subject.load(name).float().numpy(), wanted)
        assert b"".join(map(bytes, subject.chunks(name, 1000))) == wanted.tobytes()
    # attention, routers, and of experts and of the shared one three each; head and embedding
    assert subject.packing()["schemes"][kind]["tensors"] == 2 * (4 + 1 + 3 * 5 + 3 + 1) + 2


def test_columns_that_are_zero_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Of Qwen3.5 heads of values lie in another order, in rows and in columns: a block of zeros is
    told where the baseline has other numbers there, and there alone."""
    import torch
    from safetensors.torch import load_file, save_file

    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    make_folder(folder, "qwen35")
    name = "model.layers.1.linear_attn.out_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    for head in (1, 4):  # of six, two keys: side by side in the file, 32 columns
        tensors[name][:, 16 * head : 16 * (head + 1)] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    more = MODELS["qwen35"][2]
    write_gguf(folder, path, "qwen35", kind="Q8_0", metadata=more)
    assert findings(folder, path) == []

    def other_zeros(tensor: str, values: np.ndarray) -> np.ndarray:
        if tensor == name:
            values[:, [*range(16 * 2, 16 * 3), *range(16 * 5, 16 * 6)]] = 0
        return values

    write_gguf(folder, path, "qwen35", kind="Q8_0", metadata=more, change=other_zeros)
    assert "64 of 192 blocks have a scale of zero" in only(findings(folder, path))
    assert torch.equal(Checkpoint.open(path, folder).load(name)[:, 16:32], torch.zeros(64, 16))


@pytest.mark.parametrize("counts", [[0, 0, 0, 2], [0, 0, 0, 1]])
def test_layers_without_attention_count_no_heads(tmp_path: Path, counts: list[int]) -> None:
    """Some files give a number for each layer, and none to a delta net."""
    make_folder(tmp_path / "m", "qwen35")
    metadata = {**MODELS["qwen35"][2], "{arch}.attention.head_count_kv": counts}
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "qwen35", metadata=metadata)
    told = [f["message"] for f in findings(tmp_path / "m", tmp_path / "m.gguf")]
    wanted = [] if max(counts) == 2 else ["config.json: num_key_value_heads was 2, is 1"]
    assert told == wanted


def test_heads_of_values_that_do_not_divide_a_tensor(tmp_path: Path) -> None:
    """Metadata of another model are told in a line."""
    make_folder(tmp_path / "m", "qwen35")
    metadata = {**MODELS["qwen35"][2], "{arch}.ssm.time_step_rank": 5}
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "qwen35", metadata=metadata)
    told = [f["message"] for f in findings(tmp_path / "m", tmp_path / "m.gguf")]
    assert any("no heads of values as the metadata count them" in text for text in told)


FUSED = "model.language_model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture(scope="session")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3.5 mixture whose folder has the matrices of all experts as one tensor, as the
    published ones; the library loads both forms."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("fused") / "m"
    make_folder(folder, "qwen35moe pictured")
    tensors = load_file(folder / "model.safetensors")
    for layer in range(4):
        experts = f"model.language_model.layers.{layer}.mlp.experts"
        own = {
            part: torch.stack([tensors.pop(f"{experts}.{n}.{part}_proj.weight") for n in range(4)])
            for part in ("gate", "up", "down")
        }
        tensors[f"{experts}.gate_up_proj"] = torch.cat([own["gate"], own["up"]], 1)
        tensors[f"{experts}.down_proj"] = own["down"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_fused(folder: Path, path: Path, **more: Any) -> None:
    """As GGUF, which has gates and what they open as two tensors."""
    metadata = MODELS["qwen35moe pictured"][2]
    write_gguf(folder, path, "qwen35moe", metadata=metadata, **more)


def test_two_stored_tensors_that_are_one_of_the_model(fused: Path, tmp_path: Path) -> None:
    """Of each expert one after the other, in chunks of any size; each part is packed by itself."""
    import gguf

    write_fused(fused, tmp_path / "m.gguf", kind="Q8_0")
    baseline, subject = Checkpoint.open(fused), Checkpoint.open(tmp_path / "m.gguf", fused)
    kind = gguf.GGMLQuantizationType["Q8_0"]
    name = FUSED.replace("model.language_model", "model")
    packed = gguf.quants.quantize(baseline.load(FUSED).numpy(), kind)
    wanted = gguf.quants.dequantize(packed, kind)
    assert np.array_equal(subject.load(name).numpy(), wanted)
    for size in (1000, 1 << 20):
        assert b"".join(map(bytes, subject.chunks(name, size))) == wanted.tobytes()
    assert subject.packed[name].parts == (
        "blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight",
    )  # fmt: skip


@pytest.mark.parametrize("half", [0, 1])
def test_scales_of_zero_in_one_of_two_parts(fused: Path, tmp_path: Path, half: int) -> None:
    """Named by the model's tensor; zeros that the baseline has, too, are none."""
    import torch
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(fused, tmp_path / "m")
    tensors = load_file(base / "model.safetensors")
    tensors[FUSED][2, 32 * half + 5] = 0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    write_fused(base, tmp_path / "m.gguf", kind="Q8_0")
    told = findings(base, tmp_path / "m.gguf")
    assert [each["type"] for each in told] == ["language_model_only"]

    def zeroed(name: str, values: np.ndarray) -> np.ndarray:
        if name == FUSED:
            values[1, 32 * half + 7] = 0
        return values

    write_fused(base, tmp_path / "m.gguf", kind="Q8_0", change=zeroed)
    assert "gate_up_proj: 2 of 256 blocks have a scale of zero" in only(
        findings(base, tmp_path / "m.gguf")
    )
    assert not torch.equal(tensors[FUSED][1, 32 * half + 7], torch.zeros(64))


def test_parts_that_do_not_belong_together(fused: Path, tmp_path: Path) -> None:
    """Gates of more experts, and gates alone."""
    write_fused(fused, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for name, lost in (("blk.1.ffn_up_exps.weight", True), ("blk.1.ffn_up_exps.weight", False)):
        other = data.replace(name.encode(), b"blk.1.ffn_xx_exps.weight") if lost else data
        if not lost:  # four experts of 32 rows are called eight of 16
            at = data.index(name.encode()) + len(name) + 4
            sizes = np.frombuffer(data[at : at + 24], "<u8").tolist()
            assert sizes == [64, 32, 4]
            changed = np.array([64, 16, 8], "<u8").tobytes()
            other = data[:at] + changed + data[at + 24 :]
        (tmp_path / "m.gguf").write_bytes(other)
        told = [f["message"] for f in findings(fused, tmp_path / "m.gguf")]
        wanted = "experts.gate_up_proj" if lost else "do not belong together"
        assert any(wanted in text for text in told), told


def test_a_row_that_a_quantizer_stores_as_a_vector(tmp_path: Path) -> None:
    """llama.cpp's own writes the shared expert's gate without its dimension of one."""
    make_folder(tmp_path / "m", "qwen2moe")
    gate = "mlp.shared_expert_gate"
    write_gguf(
        tmp_path / "m", tmp_path / "m.gguf", "qwen2moe",
        change=lambda name, v: v[0] if gate in name else v,
    )  # fmt: skip
    assert findings(tmp_path / "m", tmp_path / "m.gguf") == []


def test_experts_that_are_not_stacked(tmp_path: Path) -> None:
    """A tensor of all experts with two dimensions is refused in a line."""
    make_folder(tmp_path / "m", "qwen3moe")
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "qwen3moe", merge=np.concatenate)
    assert "is no stack of matrices" in only(findings(tmp_path / "m", tmp_path / "m.gguf"))


def test_a_lost_expert_and_another_number_of_them(tmp_path: Path) -> None:
    """What the file lacks is named by expert, and the count by its setting."""
    make_folder(tmp_path / "m", "qwen3moe")
    write_gguf(
        tmp_path / "m", tmp_path / "m.gguf", "qwen3moe",
        merge=lambda rows: np.stack(rows[:3]), metadata={"qwen3moe.expert_used_count": 1},
    )  # fmt: skip
    told = [each["message"] for each in findings(tmp_path / "m", tmp_path / "m.gguf")]
    assert any("num_experts_per_tok was 3, is 1" in text for text in told)
    assert any("6 tensors are missing: model.layers.0.mlp.experts.3" in text for text in told)


def test_a_language_model_that_lacks_a_tensor_of_its_own(tmp_path: Path) -> None:
    """Beside what reads pictures, which stands elsewhere, everything has to be there."""
    make_folder(tmp_path / "m", "gemma3 pictured")
    lost = "language_model.model.layers.1.mlp.up_proj.weight"
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "gemma3", drop=(lost,))
    assert only(findings(tmp_path / "m", tmp_path / "m.gguf")) == f"1 tensor is missing: {lost}"


def test_settings_of_a_language_model_inside_another(tmp_path: Path) -> None:
    """They stand in a section of the baseline's configuration."""
    make_folder(tmp_path / "m", "gemma3 pictured")
    base = json.loads((tmp_path / "m/config.json").read_text())
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "gemma3",
               metadata={"gemma3.attention.sliding_window": 32})  # fmt: skip
    config = Checkpoint.open(tmp_path / "m.gguf", tmp_path / "m").config
    assert config["text_config"] == base["text_config"] | {"sliding_window": 32}
    assert {**config, "text_config": base["text_config"]} == base


@pytest.mark.parametrize("rows", [260, 264])
def test_a_language_model_may_end_before_the_tokens_of_pictures(tmp_path: Path, rows: int) -> None:
    """Gemma 3's rows are padded behind the token that stands for an image, and one converter
    writes all of them, another those of text alone; another token that is lost is told."""
    import torch
    from safetensors.torch import load_file, save_file

    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    make_folder(folder, "gemma3 pictured")
    table = "language_model.model.embed_tokens.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[table] = torch.cat([tensors[table], torch.zeros(4, 64)])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"], config["image_token_index"] = 264, 260
    (folder / "config.json").write_text(json.dumps(config))
    document = json.loads((folder / "tokenizer.json").read_text())
    ends = document["added_tokens"][0]
    document["added_tokens"].append({**ends, "id": 260, "content": "<image_soft_token>"})
    (folder / "tokenizer.json").write_text(json.dumps(document))
    names = {index: token for token, index in document["model"]["vocab"].items()}
    more = {259: "<eos>", 260: "<image_soft_token>"}
    tokens = [{**names, **more}.get(index, f"[PAD{index}]") for index in range(264)]

    def written(tokens: list[str]) -> dict[str, str]:
        write_gguf(folder, path, "gemma3", tokens=tokens,
                   change=lambda name, v: v[: len(tokens)] if name == table else v)  # fmt: skip
        return {f["type"]: f["severity"] for f in findings(folder, path)}

    padded = {"vocabulary_padded": "warning"} if rows == 260 else {}
    assert written(tokens[:rows]) == {"language_model_only": "warning", **padded}
    assert written(tokens[:259])["tokenizer_mismatch"] == "fatal"


def test_defaults_that_a_baseline_leaves_out_are_compared(tmp_path: Path) -> None:
    """Files of Gemma 3 state four sizes; what the class takes for the others holds all the same."""
    make_folder(tmp_path / "m", "gemma3 pictured")
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["text_config"].pop("rms_norm_eps") == 1e-6
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    key = "{arch}.attention.layer_norm_rms_epsilon"
    for stated, wanted in ((1e-6, []), (1e-5, ["text_config.rms_norm_eps"])):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf", "gemma3", metadata={key: stated})
        told = [f["message"] for f in findings(tmp_path / "m", tmp_path / "m.gguf")]
        named = [text.split()[1] for text in told if text.startswith("config.json")]
        assert named == wanted


@pytest.mark.parametrize(
    ("model", "other"), [("qwen2moe", True), ("qwen3moe", False), ("olmoe", True)]
)
def test_weights_of_experts_that_a_graph_has_one_way_for(
    model: str, other: bool, tmp_path: Path
) -> None:
    """Whether the weights of the experts chosen add up to one is the architecture's in GGUF."""
    make_folder(tmp_path / "m", model)
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"norm_topk_prob": other}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", model)
    text = f"norm_topk_prob was {other}, is {not other}"
    assert text in only(findings(tmp_path / "m", tmp_path / "m.gguf"))


def test_two_stored_tensors_of_one_name(llama: Path, tmp_path: Path) -> None:
    """Neither stands for the other."""
    name = "model.layers.0.self_attn.q_proj.weight"
    again = Checkpoint.open(llama).load(name).float().numpy().copy()
    write_gguf(llama, tmp_path / "m.gguf", extra={name: again})
    assert f"blk.0.attn_q.weight and {name} are both" in only(findings(llama, tmp_path / "m.gguf"))


# --- rotations --------------------------------------------------------------------------------

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}  # fmt: skip
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "long_factor": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0],
    "short_factor": [1.0] * 8,
}


def stretched(folder: Path, model: str, theta: float, **scaling: object) -> None:
    """A folder of small files in the older spelling, as hubs have it."""
    make_folder(folder, model)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters")
    config |= {"rope_theta": theta, **({"rope_scaling": scaling} if scaling else {})}
    (folder / "config.json").write_text(json.dumps(config))


def factors_of_the_library(folder: Path) -> np.ndarray:
    """What transformers divides each frequency by."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.from_pretrained(folder)
    rope, size = config.rope_parameters, config.hidden_size // config.num_attention_heads
    found, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    plain = rope["rope_theta"] ** (-np.arange(0, size, 2, dtype=np.float32) / size)
    return np.asarray(plain / found.numpy(), np.float32)


def rotation_told(folder: Path, path: Path) -> str:
    """What the files say of the rotation otherwise, or nothing."""
    told = [f["message"] for f in findings(folder, path) if f["severity"] == "fatal"]
    assert all("rope" in text for text in told)
    return "; ".join(told)


def test_factors_of_frequencies_are_those_of_the_configuration(tmp_path: Path) -> None:
    """Computed as transformers computes them; others, none at all, or some too many are told."""
    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    stretched(folder, "llama", 500000.0, **LLAMA3)
    right = factors_of_the_library(folder)
    assert 1.0 in right
    assert right.max() == pytest.approx(8.0)
    for values, told in (
        (right, False),
        (right * np.float32(1.001), True),
        (np.ones_like(right), True),
        (right[::-1].copy(), True),
        (right[:4], True),
        (None, True),
    ):
        more = {} if values is None else {"rope_freqs.weight": values}
        write_gguf(folder, path, extra=more)
        assert bool(rotation_told(folder, path)) == told


def test_factors_that_a_baseline_knows_nothing_of(tmp_path: Path) -> None:
    """In the spelling that says nothing of a rotation, a stored stretch is one."""
    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    stretched(folder, "llama", 10000.0)
    write_gguf(folder, path)
    assert not rotation_told(folder, path)
    write_gguf(folder, path, extra={"rope_freqs.weight": np.full(8, 4, np.float32)})
    assert "llama3" in rotation_told(folder, path)


@pytest.mark.parametrize("which", ["long", "short"])
def test_factors_of_long_and_short_texts(which: str, tmp_path: Path) -> None:
    """Two lists of the configuration, each of which is stored."""
    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    stretched(folder, "phi3", 10000.0, **LONG)
    stored = {
        f"rope_factors_{name}.weight": np.float32(LONG[f"{name}_factor"])
        for name in ("long", "short")
    }
    write_gguf(folder, path, "phi3", extra=stored)
    assert not rotation_told(folder, path)
    stored[f"rope_factors_{which}.weight"] = np.float32(LONG["long_factor"]) + 1
    write_gguf(folder, path, "phi3", extra=stored)
    assert f"{which}_factor" in rotation_told(folder, path)


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("rope.scaling.factor", 2.0, "factor"),
        ("rope.scaling.original_context_length", 64, "original_max_position_embeddings"),
        ("rope.scaling.yarn_beta_fast", 32.0, "beta_fast"),
        ("rope.scaling.yarn_beta_slow", 1.0, "beta_slow"),
        ("attention.temperature_scale", 0.1, "llama_4_scaling_beta"),
    ],
)
def test_each_number_of_a_stretched_rotation(
    key: str, value: float, field: str, tmp_path: Path
) -> None:
    """YaRN's, and what grows with the distance beside it."""
    make_folder(tmp_path / "m", "mistral3")
    metadata = {**MODELS["mistral3"][2], f"{{arch}}.{key}": value}
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "mistral3", metadata=metadata)
    assert field in rotation_told(tmp_path / "m", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("base", "told"), [(10000.0 * 1000.0 ** (16 / 14), False), (10000.0, True), (3e7, True)]
)
def test_a_base_that_alpha_stretches(base: float, told: bool, tmp_path: Path) -> None:
    """HunYuan: llama.cpp has no name for it, and converters write the base that comes of it."""
    folder, path = tmp_path / "m", tmp_path / "m.gguf"
    stretched(folder, "hunyuan-dense", 10000.0, type="dynamic", alpha=1000.0, factor=1.0)
    metadata = {"{arch}.rope.freq_base": base, "{arch}.rope.scaling.type": "none",
                "{arch}.rope.scaling.factor": 1.0, "{arch}.context_length": 262144,
                "{arch}.rope.scaling.original_context_length": 262144}  # fmt: skip
    write_gguf(folder, path, "hunyuan-dense", metadata=metadata)
    fatal = [f["message"] for f in findings(folder, path) if f["severity"] == "fatal"]
    assert any("rope" in text for text in fatal) == told == bool(fatal)


def test_a_model_without_a_baseline_is_read_alone(llama: Path, tmp_path: Path) -> None:
    """Configuration and tokenizer of a Llama follow from its metadata; of others they do not."""
    write_gguf(llama, tmp_path / "m.gguf")
    alone = Checkpoint.open(tmp_path / "m.gguf")
    wanted = Checkpoint.open(llama)
    for name in ("hidden_size", "num_key_value_heads", "intermediate_size", "tie_word_embeddings"):
        assert alone.config[name] == wanted.config[name]
    make_folder(tmp_path / "q", "qwen2")
    write_gguf(tmp_path / "q", tmp_path / "q.gguf", "qwen2")
    with pytest.raises(NotACheckpointError, match="without their baseline"):
        Checkpoint.open(tmp_path / "q.gguf")


def test_a_pre_tokenizer_that_nobody_knows_is_no_obstacle(llama: Path, tmp_path: Path) -> None:
    """Beside a baseline, what GGUF only names is the baseline's."""
    write_gguf(llama, tmp_path / "m.gguf", metadata={"tokenizer.ggml.pre": "of-tomorrow"})
    assert not findings(llama, tmp_path / "m.gguf")
    with pytest.raises(InputError, match="unknown pre-tokenizer"):
        Checkpoint.open(tmp_path / "m.gguf")


# --- as published -----------------------------------------------------------------------------

COUNTS = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count",
          "attention.head_count_kv", "context_length", "rope.freq_base",
          "attention.layer_norm_rms_epsilon")  # fmt: skip
# Of models that are published in both forms: config.json (tests/configurations), architecture, and
# what converters state of it beside vocabulary and tensors.
PUBLISHED: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
    "gemma3": ("gemma3", (34, 2560, 10240, 8, 4, 131072, 1e6, 1e-6), {
        "attention.key_length": 256, "attention.sliding_window": 1024,
        "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "llama": ("llama", (16, 2048, 8192, 32, 8, 131072, 5e5, 1e-5), {
        "attention.key_length": 64, "rope.dimension_count": 64}),
    "phi3": ("phi3", (32, 3072, 8192, 32, 32, 131072, 1e4, 1e-5), {
        "rope.scaling.original_context_length": 4096, "rope.dimension_count": 96,
        "rope.scaling.attn_factor": 1.19}),
    "qwen2_5_vl": ("qwen2vl", (36, 2048, 11008, 16, 2, 128000, 1e6, 1e-6), {
        "rope.dimension_sections": [16, 24, 24, 0]}),
    "qwen3_vl": ("qwen3vl", (36, 2560, 9728, 32, 8, 262144, 5e6, 1e-6), {
        "attention.key_length": 128, "rope.dimension_sections": [24, 20, 20, 0],
        "n_deepstack_layers": 3}),
    "qwen3_5": ("qwen35", (32, 2560, 9216, 16, 4, 262144, 1e7, 1e-6), {
        "attention.key_length": 256, "rope.dimension_sections": [11, 11, 10, 0],
        "rope.dimension_count": 64, "ssm.conv_kernel": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096,
        "full_attention_interval": 4}),
    "mistral3": ("llama", (40, 5120, 32768, 32, 8, 131072, 1e9, 1e-5), {
        "attention.key_length": 128, "rope.dimension_count": 128}),
    "mistral3_ministral": ("mistral3", (26, 3072, 9216, 32, 8, 262144, 1e6, 1e-5), {
        "attention.key_length": 128, "rope.scaling.type": "yarn", "rope.scaling.factor": 16.0,
        "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.1,
        "rope.scaling.original_context_length": 16384}),
}  # fmt: skip


@pytest.mark.parametrize("changed", ["", *COUNTS])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_converters_state_of_published_models(name: str, changed: str, tmp_path: Path) -> None:
    """Nothing of it is a difference, and each number that is another one is."""
    import gguf
    from hub_configs import OLD

    arch, counts, more = PUBLISHED[name]
    stated = dict(zip(COUNTS, counts, strict=True)) | more
    if changed:
        stated[changed] *= 2
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    for key, value in stated.items():
        writers = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}
        writers.get(type(value), writer.add_uint32)(f"{arch}.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.add_tensor("output.weight", np.zeros((8, 32), np.float32))
    baseline = OLD[name]
    rope = baseline.get("rope_scaling") or {}
    if rope.get("rope_type") == "llama3":
        factors = llama3_factors(rope, baseline["rope_theta"], 64)
        writer.add_tensor("rope_freqs.weight", np.float32(factors))
    for kind in ("long", "short") if "long_factor" in rope else ():
        writer.add_tensor(f"rope_factors_{kind}.weight", np.float32(rope[f"{kind}_factor"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = config_of(Gguf(tmp_path / "m.gguf"), baseline)
    try:
        told = [d.name for d in differences(baseline, found) if d.name != "tie_word_embeddings"]
    except InputError:  # the class refuses the one number beside the others
        told = ["refused"]
    assert bool(told) == bool(changed)


# --- files ------------------------------------------------------------------------------------


def test_parts_and_folders_are_one_model(llama: Path, tmp_path: Path) -> None:
    """Any part of a split model, its folder and the whole file say the same."""
    write_gguf(llama, tmp_path / "whole.gguf")
    (tmp_path / "split").mkdir()
    write_gguf(llama, tmp_path / "split/m.gguf", split=7)
    parts = sorted((tmp_path / "split").iterdir())
    assert [p.name for p in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    # a projector beside it is no second model
    (tmp_path / "split/mmproj-m-f16.gguf").write_bytes(b"GGUF")
    whole = Checkpoint.open(tmp_path / "whole.gguf", llama)
    for named in (tmp_path / "split", *parts):
        opened = Checkpoint.open(named, llama)
        assert opened.shards == tuple(p.name for p in parts)
        for name in whole.tensors:
            assert opened.tensor_digest(name) == whole.tensor_digest(name)
        assert sorted(opened.stored) == sorted(opened.shards)
    parts[1].unlink()
    assert "1 of 3 parts" in only(findings(llama, parts[0]))
    assert parts[1].name in only(findings(llama, tmp_path / "split"))


def test_parts_of_two_models(llama: Path, tmp_path: Path) -> None:
    """A part that was taken from another model is noticed by how many tensors there are."""
    for name, split in (("a", 7), ("b", 8)):
        (tmp_path / name).mkdir()
        write_gguf(llama, tmp_path / name / "m.gguf", split=split)
    shutil.copy(tmp_path / "b/m-00003-of-00003.gguf", tmp_path / "a/m-00003-of-00003.gguf")
    assert "not of one model" in only(findings(llama, tmp_path / "a"))


def test_a_part_under_another_name(llama: Path, tmp_path: Path) -> None:
    """A first part that is called like a whole file is not taken for one."""
    write_gguf(llama, tmp_path / "m.gguf", split=12)
    (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "x.gguf")
    assert "is one of 2 parts" in only(findings(llama, tmp_path / "x.gguf"))


def test_a_folder_of_several_models(llama: Path, tmp_path: Path) -> None:
    """Which one is meant has to be said."""
    for name in ("Q8_0", "Q4_0"):
        write_gguf(llama, tmp_path / f"m.{name}.gguf", kind=name)
    with pytest.raises(NotACheckpointError, match=r"holds 2 GGUF models.*name the file of one"):
        refuse_unusable(tmp_path, llama)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_a_file_that_is_cut_off(share: float, llama: Path, tmp_path: Path) -> None:
    """Wherever it ends, it is one line."""
    write_gguf(llama, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: int(share * len(data))])
    assert "GGUF" in only(findings(llama, tmp_path / "m.gguf"))
    # a report names it by what it holds
    assert list(file_parts(tmp_path / "m.gguf")["files"]) == ["m.gguf"]


def test_garbage(llama: Path, tmp_path: Path) -> None:
    """Other content, and numbers of a header that mean nothing."""
    rng = np.random.default_rng(0)
    (tmp_path / "m.gguf").write_bytes(rng.bytes(4096))
    assert "not a GGUF file" in only(findings(llama, tmp_path / "m.gguf"))
    write_gguf(llama, tmp_path / "good.gguf")
    good = (tmp_path / "good.gguf").read_bytes()
    for start in (4, 8, 16, 24, 60, 400):
        (tmp_path / "m.gguf").write_bytes(good[:start] + rng.bytes(8) + good[start + 8 :])
        opened, failures = open_subject(tmp_path / "m.gguf", llama)
        assert opened is not None or "GGUF" in only(failures)
    name = good.index(b"llama")  # of the architecture
    (tmp_path / "m.gguf").write_bytes(good[:name] + b"\xc2" + good[name + 1 :])
    assert "general.architecture of the metadata is not UTF-8" in only(
        findings(llama, tmp_path / "m.gguf")
    )


def test_an_empty_tensor(llama: Path, tmp_path: Path) -> None:
    """The package writes one; no model has one."""
    nothing = "model.layers.0.mlp.down_proj.weight"
    write_gguf(llama, tmp_path / "m.gguf", change=lambda name, v: v[:0] if name == nothing else v)
    assert "blk.0.ffn_down.weight is empty" in only(findings(llama, tmp_path / "m.gguf"))


def test_another_architecture(llama: Path, tmp_path: Path) -> None:
    """One that is read is another model; one that is not is said to be not read."""
    make_folder(tmp_path / "q", "qwen2")
    write_gguf(tmp_path / "q", tmp_path / "q.gguf", "qwen2")
    found = findings(llama, tmp_path / "q.gguf")
    assert any("model_type was 'llama', is 'qwen2'" in each["message"] for each in found)
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "r.gguf", "rwkv7")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotACheckpointError, match="architecture rwkv7") as caught:
        refuse_unusable(tmp_path / "r.gguf", llama)
    assert "\n" not in str(caught.value)


def test_another_size(llama: Path, tmp_path: Path) -> None:
    """A model of more layers says so by its configuration and its tensors."""
    make_folder(tmp_path / "b", "smollm3")
    config = json.loads((tmp_path / "b/config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    write_gguf(tmp_path / "b", tmp_path / "b.gguf")
    texts = [each["message"] for each in findings(llama, tmp_path / "b.gguf")]
    assert any("num_hidden_layers was 2, is 4" in text for text in texts)
    assert any("19 tensors are new" in text for text in texts)


def test_another_vocabulary(llama: Path, tmp_path: Path) -> None:
    """Tokens are compared id by id."""
    vocabulary = json.loads((llama / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    tokens += ["<eos>"]
    tokens[70], tokens[71] = tokens[71], tokens[70]
    write_gguf(llama, tmp_path / "m.gguf", tokens=tokens)
    assert "2 tokens have another id" in only(findings(llama, tmp_path / "m.gguf"))


def test_a_template_of_its_own(llama: Path, tmp_path: Path) -> None:
    """The chat template that llama.cpp uses is the file's."""
    folder = shutil.copytree(llama, tmp_path / "b")
    mine, other = (f"{{{{ messages[0].content }}}}{end}" for end in ("!", "?"))
    (folder / "chat_template.jinja").write_text(mine + "\n")
    write_gguf(folder, tmp_path / "m.gguf", metadata={"tokenizer.chat_template": mine})
    assert not findings(folder, tmp_path / "m.gguf")
    write_gguf(folder, tmp_path / "m.gguf", metadata={"tokenizer.chat_template": other})
    assert "chat template differs" in only(findings(folder, tmp_path / "m.gguf"))
    write_gguf(folder, tmp_path / "m.gguf")
    assert "chat template is lost" in only(findings(folder, tmp_path / "m.gguf"))


def test_templates_by_other_names(llama: Path, tmp_path: Path) -> None:
    """llama.cpp asks for the one of tools by its name, and takes the plain one where it is lost."""
    folder = shutil.copytree(llama, tmp_path / "b")
    plain, tools, other = (f"{{{{ messages[0].content }}}}{end}" for end in "!?.")
    rows = [{"name": "default", "template": plain}, {"name": "tool_use", "template": tools}]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = rows
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    files = shutil.copytree(llama, tmp_path / "files")
    (files / "additional_chat_templates").mkdir()
    (files / "chat_template.jinja").write_text(plain)
    (files / "additional_chat_templates/tool_use.jinja").write_text(tools)
    for held, words in (
        ({"": plain, ".tool_use": tools}, ""),
        ({"": plain, ".tool_use": other}, "chat template tool_use differs"),
        ({"": plain}, "chat template tool_use is lost"),
        ({"": plain, ".tool_use": tools, ".rag": other}, "chat template rag is new"),
    ):
        metadata = {f"tokenizer.chat_template{name}": text for name, text in held.items()}
        for baseline in (folder, files):
            write_gguf(baseline, tmp_path / "m.gguf", metadata=metadata)
            found = findings(baseline, tmp_path / "m.gguf")
            assert words in only(found) if words else not found
    write_gguf(llama, tmp_path / "m.gguf", metadata={"tokenizer.chat_template.../x": plain})
    with pytest.raises(InputError, match="name a chat template"):
        Checkpoint.open(tmp_path / "m.gguf", llama)


DAMAGE: Mapping[str, tuple[Any, str]] = {
    "not a number": (np.float16("nan"), "3 of 192 blocks have a scale that is not finite"),
    "zero": (np.float16(0), "3 of 192 blocks have a scale of zero"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
@pytest.mark.parametrize("part", ["mlp.down_proj", "self_attn.q_proj"])
def test_damaged_scales(damage: str, part: str, llama: Path, tmp_path: Path) -> None:
    """Blocks whose scale is wrong are counted, under the name that the model has for them."""
    from gguf import GGUFReader

    value, words = DAMAGE[damage]
    if part == "self_attn.q_proj":
        words = words.replace("192", "128")
    path = tmp_path / "m.gguf"
    write_gguf(llama, path, kind="Q8_0")
    stored = {"mlp.down_proj": "blk.1.ffn_down.weight", "self_attn.q_proj": "blk.1.attn_q.weight"}
    reader = GGUFReader(path, "r+")
    tensor = next(t for t in reader.tensors if t.name == stored[part])
    blocks = tensor.data.reshape(-1, 34)
    blocks[[5, 6, 40], :2] = np.frombuffer(value.tobytes(), np.uint8)
    reader.data.flush()
    found = findings(llama, path)
    (text,) = [each["message"] for each in found if each["type"] == "packing"]
    assert text.startswith(f"model.layers.1.{part}.weight: {words}")
    finite = [each for each in found if each["type"] == "non_finite_tensor"]
    assert bool(finite) == (damage == "not a number")


def test_damaged_scales_of_an_expert(tmp_path: Path) -> None:
    """They are told under the name of the one expert that has them."""
    from gguf import GGUFReader

    make_folder(tmp_path / "m", "qwen3moe")
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "qwen3moe", kind="Q8_0")
    reader = GGUFReader(tmp_path / "m.gguf", "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_gate_exps.weight")
    blocks = tensor.data[2].reshape(-1, 34)
    blocks[4:7, :2] = 0
    reader.data.flush()
    told = only(findings(tmp_path / "m", tmp_path / "m.gguf"))
    assert told.startswith("model.layers.1.mlp.experts.2.gate_proj.weight: 3 of 64 blocks have a")


def test_a_scale_of_zero_where_there_are_no_weights(llama: Path, tmp_path: Path) -> None:
    """A block that is zero in the baseline has to be zero."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "b")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.k_proj.weight"][3, 32:] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_gguf(folder, tmp_path / "m.gguf", kind="Q8_0")
    assert not findings(folder, tmp_path / "m.gguf")


# --- settings ---------------------------------------------------------------------------------


def test_settings_that_differ_are_the_files(llama: Path, tmp_path: Path) -> None:
    """What the metadata say otherwise is a finding; a number in float32 is the same number."""
    from invarlock.formats.gguf.reading import Gguf

    write_gguf(llama, tmp_path / "m.gguf")
    config = json.loads((llama / "config.json").read_text())
    assert config_of(Gguf(tmp_path / "m.gguf"), config) == config
    changed = {**config, "rms_norm_eps": 1e-5, "max_position_embeddings": 128}
    made = config_of(Gguf(tmp_path / "m.gguf"), changed)
    assert made["max_position_embeddings"] == 256
    assert made["rms_norm_eps"] == config["rms_norm_eps"]
    # of several ids that end a text the file holds one
    several = {**config, "eos_token_id": [5, 259]}
    assert config_of(Gguf(tmp_path / "m.gguf"), several)["eos_token_id"] == [5, 259]
    assert (
        config_of(Gguf(tmp_path / "m.gguf"), {**config, "eos_token_id": 5})["eos_token_id"] == 259
    )


def test_positions_that_are_no_longer_stretched(llama: Path, tmp_path: Path) -> None:
    """A baseline that stretches its positions, and a file that does not say so."""
    folder = shutil.copytree(llama, tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(config))
    write_gguf(folder, tmp_path / "m.gguf")
    texts = [each["message"] for each in findings(folder, tmp_path / "m.gguf")]
    assert any("rope" in text for text in texts)
    stretched = {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 4.0}
    write_gguf(folder, tmp_path / "m.gguf", metadata=stretched)
    assert not findings(folder, tmp_path / "m.gguf")


def test_positions_that_are_stretched_where_the_baseline_says_nothing(
    llama: Path, tmp_path: Path
) -> None:
    """An older configuration without a word on rotation, and a file with one."""
    folder = shutil.copytree(llama, tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config))
    write_gguf(folder, tmp_path / "m.gguf")
    assert not findings(folder, tmp_path / "m.gguf")
    stretched = {"{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 4.0}
    write_gguf(folder, tmp_path / "m.gguf", metadata=stretched)
    assert "rope_parameters" in only(findings(folder, tmp_path / "m.gguf"))
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    write_gguf(other, tmp_path / "m.gguf")
    assert "rope_parameters" in only(findings(folder, tmp_path / "m.gguf"))


@pytest.mark.parametrize("stated", [None, {"eos_token_id": None, "temperature": 0.6}])
def test_sampling_that_the_file_asks_for(
    llama: Path, tmp_path: Path, stated: dict[str, Any] | None
) -> None:
    """llama.cpp takes it where nobody says otherwise: it has to be the baseline's."""
    folder = shutil.copytree(llama, tmp_path / "b")
    if stated is not None:
        (folder / "generation_config.json").write_text(json.dumps(stated))
        same = {"general.sampling.temp": 0.6, "general.sampling.top_k": 50}
    else:
        same = {"general.sampling.temp": 1.0}
    write_gguf(folder, tmp_path / "m.gguf", metadata=same)
    assert not findings(folder, tmp_path / "m.gguf")
    write_gguf(folder, tmp_path / "m.gguf", metadata=same | {"general.sampling.temp": 0.1})
    assert "temperature" in only(findings(folder, tmp_path / "m.gguf"))


@pytest.mark.parametrize(("special_type", "fatal"), [(3, False), (4, False), (1, True), (5, True)])
def test_special_tokens_of_an_ordinary_type(
    llama: Path, tmp_path: Path, special_type: int, fatal: bool
) -> None:
    """llama.cpp reads them letter by letter, in every chat."""
    write_gguf(llama, tmp_path / "m.gguf", special_type=special_type)
    found = findings(llama, tmp_path / "m.gguf")
    assert ("tokenizer_mismatch" in {each["type"] for each in found}) is fatal


def test_factors_of_the_rotation_are_no_weights() -> None:
    """They follow from the configuration."""
    assert FACTORS.fullmatch("rope_freqs.weight")
    assert not FACTORS.fullmatch("blk.0.attn_q.weight")
