"""What a model reads beside text, as its ``config.json`` says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PICTURE_TOKEN = re.compile(r"(?:image|video|audio|vision|boi|eoi|boa|eoa)\w*_token_(?:id|index)")


def is_for_more_than_text(config: Mapping[str, Any]) -> bool:
    """Whether the language model is part of a larger one; older files give its fields beside those
    of the part that reads images."""
    return isinstance(config.get("text_config"), Mapping) or "vision_config" in config


def tokens_of_pictures(config: Mapping[str, Any]) -> frozenset[int]:
    """Ids that stand for what is no text (images, videos, audio), and that no language model looks
    up: what it reads there is put in their place."""
    named = (value for key, value in config.items() if _PICTURE_TOKEN.fullmatch(key))
    return frozenset(value for value in named if type(value) is int)
