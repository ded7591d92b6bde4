"""Which class of the library loads a ``config.json``, by the library's own tables.

They are read from the file that holds them: to import it is to import torch, which takes seconds
before every run.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CAUSAL, IMAGE_TEXT = "AutoModelForCausalLM", "AutoModelForImageTextToText"
# Ends of the names of classes that predict the next token.
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
_TABLES = {
    CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    IMAGE_TEXT: "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}


@functools.cache
def classes_of(loader: str) -> Mapping[str, str]:
    """The class that a loader takes for each ``model_type``; empty without the library."""
    library = importlib.util.find_spec("transformers")
    if library is None or library.origin is None:
        return {}
    path = Path(library.origin).parent / "models/auto/modeling_auto.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    table = re.search(rf"^{_TABLES[loader]}\b(.*?)^\)", text, re.M | re.S)
    found = re.findall(r'\(\s*"([^"]+)",\s*"(\w+)",?\s*\)', table[1]) if table else []
    return dict(found)


def reads_images(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` names the class for images and text of its ``model_type``."""
    named = classes_of(IMAGE_TEXT).get(str(config.get("model_type")))
    listed = config.get("architectures")
    return named is not None and isinstance(listed, list) and named in listed


def loader_of(config: Mapping[str, Any], loader: str) -> str:
    """The loader of a model on text: of one for images too it is that for images, where the
    causal one would take another class."""
    kind = str(config.get("model_type"))
    if loader != CAUSAL or not reads_images(config):
        return loader
    return CAUSAL if classes_of(CAUSAL).get(kind) in config["architectures"] else IMAGE_TEXT
