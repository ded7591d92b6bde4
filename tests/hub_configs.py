"""Configurations as the model hubs have them: older spellings, null values, fields left out.

Each file of ``tests/configurations`` is the ``config.json`` of a model of the kind that its name
begins with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OLD: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "configurations").glob("*.json"))
}
LLAMA, QWEN2 = OLD["llama"], OLD["qwen2"]
PLAIN = {**LLAMA, "rope_scaling": None, "rope_theta": 10000.0, "max_position_embeddings": 8192}
