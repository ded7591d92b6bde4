"""Small seeded checkpoints on disk, written with the safetensors library, for any test.

``make_llama`` gives a folder that ``LlamaForCausalLM.from_pretrained`` and ``AutoTokenizer``
load. The weights are bfloat16 and random; they test plumbing and arithmetic, not language.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

_WORDS = (
    "the state of the union is a message to the people and to the congress of this nation",
    "we have made progress in peace and in trade and we will keep what we have made",
    "no law can do more for the people than the people will do for the law",
)
VOCABULARY = 320  # rows of the embedding; the tokenizer has as many ids


def write_tokenizer(folder: Path, special: tuple[str, ...] = ("<s>", "</s>")) -> None:
    """A byte-level BPE tokenizer of ``VOCABULARY`` ids, trained on three sentences."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_WORDS, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """Write ``tensors`` as one file, or as ``shards`` files of consecutive tensors and an index."""
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata)
        return
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata)
        weight_map |= dict.fromkeys(mine, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, by the safetensors library."""
    shards = sorted(folder.glob("*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)


def make_llama(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 16,
    seed: int = 0,
    tied: bool = True,
    shards: int = 1,
) -> Path:
    """A Llama folder: configuration, tokenizer and weights; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = 3 * hidden
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": hidden // 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": _random((VOCABULARY, hidden), generator)}
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = _random(shape, generator)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = ones.clone()
    tensors["model.norm.weight"] = ones.clone()
    if not tied:
        tensors["lm_head.weight"] = _random((VOCABULARY, hidden), generator)
    write_weights(folder, tensors, shards)
    write_tokenizer(folder)
    return folder


def make_folder(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> Path:
    """A folder with any configuration and tensors, in one shard, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, tensors)
    return folder


def make_varied_llama(folder: Path) -> Path:
    """A tied Llama of three layers with four key and value heads, whose norms differ between
    layers, with a chat template; returns ``folder``."""
    make_llama(folder, layers=3)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(3)
    for place, name in enumerate(sorted(tensors)):
        old = tensors[name]
        if "norm" in name:
            tensors[name] = old + 0.01 * (1 + place)
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            tensors[name] = torch.randn((16, 16), generator=draw).to(old.dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def make_gpt2(folder: Path, seed: int = 0) -> Path:
    """A GPT-2 folder of two layers whose projections are stored (inputs, outputs)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "transformer.wte.weight": _random((32, 8), generator),
        "transformer.wpe.weight": _random((16, 8), generator),
    }
    for layer in range(2):
        prefix = f"transformer.h.{layer}."
        for name, shape in {
            "attn.c_attn": (8, 24),
            "attn.c_proj": (8, 8),
            "mlp.c_fc": (8, 32),
            "mlp.c_proj": (32, 8),
        }.items():
            tensors[f"{prefix}{name}.weight"] = _random(shape, generator)
            tensors[f"{prefix}{name}.bias"] = _random(shape[1:], generator)
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 32}
    return make_folder(folder, config, tensors)


def make_mixtral(folder: Path, seed: int = 0) -> Path:
    """A Mixtral folder of one layer with a router and its experts fused into 3-D tensors."""
    generator = torch.Generator().manual_seed(seed)
    prefix = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": _random((32, 8), generator),
        "lm_head.weight": _random((32, 8), generator),
        prefix + "mlp.gate.weight": _random((3, 8), generator),
        prefix + "mlp.experts.gate_up_proj": _random((3, 24, 8), generator),
        prefix + "mlp.experts.down_proj": _random((3, 8, 12), generator),
    }
    for name, rows in {"q_proj": 8, "k_proj": 4, "v_proj": 4, "o_proj": 8}.items():
        tensors[f"{prefix}self_attn.{name}.weight"] = _random((rows, 8), generator)
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 32}
    return make_folder(folder, config, tensors)


def make_bert(folder: Path, seed: int = 0) -> Path:
    """A BERT folder of two layers as it was pre-trained: with pooler and sentence head."""
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    save_model(BertForPreTraining(config), folder)
    write_tokenizer(folder, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    return folder


def make_t5(folder: Path, seed: int = 0) -> Path:
    """A T5 folder of two encoder and three decoder blocks with gated feed-forward parts."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    save_model(T5ForConditionalGeneration(config), folder)
    write_tokenizer(folder, ("<pad>", "</s>", "<unk>"))
    return folder


def make_mixture(folder: Path) -> Path:
    """A Mixtral folder of two layers with four experts each, of which a token takes two."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, initializer_range=0.2,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    save_model(MixtralForCausalLM(config), folder)
    write_tokenizer(folder)
    return folder


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Write a model of the library as the library does, without its progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
