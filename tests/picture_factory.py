"""Tiny models for images and text, with processors, and records with generated pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from checkpoint_factory import save_model, write_tokenizer

SIZE = 28  # pixels of a side, two patches
TEXT = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": SIZE, "patch_size": 14,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}User:{% for c in m.content %}{% if c.type == 'image' %}<image>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %} Answer:"
)


def make_llava(folder: Path, seed: int = 0) -> Path:
    """A LLaVA of CLIP and Llama; four tokens a picture, no chat template."""
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, ("<s>", "</s>", "<image>"))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=32).to_dict(),
        text_config=LlamaConfig(**TEXT).to_dict(),
        image_token_index=2,
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    save_model(_spread(LlavaForConditionalGeneration(config)), folder)
    LlavaProcessor(
        image_processor=_clip_pixels(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(folder)
    return folder


def _clip_pixels() -> object:
    from transformers import CLIPImageProcessorPil

    side = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=side)


def make_idefics3(folder: Path, seed: int = 0) -> Path:
    """An Idefics 3 (SmolVLM's kind) of SigLIP and Llama, with a chat template."""
    from transformers import (
        AutoTokenizer,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        LlamaConfig,
    )

    folder.mkdir(parents=True, exist_ok=True)
    marks = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    write_tokenizer(folder, ("<s>", "</s>", *marks))
    config = Idefics3Config(
        vision_config=VISION,
        text_config=LlamaConfig(**TEXT).to_dict(),
        scale_factor=2,
        image_token_id=2,
    )
    torch.manual_seed(seed)
    save_model(_spread(Idefics3ForConditionalGeneration(config)), folder)
    Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": SIZE},
            max_image_size={"longest_edge": SIZE},
            do_image_splitting=False,
        ),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        image_seq_len=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough for a picture to make a difference, and vectors that are not all one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else parameter.add_(
                0.02 * torch.randn(parameter.shape)
            )
    return model.to(torch.float32).eval()


def picture(number: int, kind: str = "PNG") -> bytes:
    """A picture of a colour and a square of another, both by its number."""
    from PIL import Image

    random = np.random.default_rng(number)
    pixels = np.full((32, 40, 3), random.integers(0, 256, 3), dtype=np.uint8)
    top, left = random.integers(0, 16, 2)
    pixels[top : top + 14, left : left + 14] = random.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def picture_records(count: int) -> list[dict[str, object]]:
    """Questions about pictures: choices, and every fourth an exact answer."""
    choices = [" peace", " the people", " trade"]
    rows: list[dict[str, object]] = []
    for n in range(count):
        row: dict[str, object] = {"image": f"p/{n}.png", "prompt": f"what is {n % 7} here?"}
        row |= {"answer": " the"} if n % 4 == 0 else {"choices": choices, "answer": n % 3}
        rows.append(row)
    return rows


def write_picture_records(path: Path, count: int) -> list[dict[str, object]]:
    """The records as JSON lines, and their pictures beside them."""
    rows = picture_records(count)
    (path.parent / "p").mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        (path.parent / str(row["image"])).write_bytes(picture(number))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows
