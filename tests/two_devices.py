"""Run a spread model on two devices that are not there: places of all tensors, no values.

    python tests/two_devices.py [--without-hooks] FOLDER...

Torch's fake tensors know which device they are on and refuse, as a GPU does, to work with one of
another device. Prints the bytes on each device and the device of the logits, a line of JSON each.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from invarlock.run import spread
from invarlock.run.loading import LOADERS

ADAPTERS = {"bert": "hf_mlm", "t5": "hf_seq2seq"}


def main() -> None:
    """See the module."""
    folders = [word for word in sys.argv[1:] if not word.startswith("--")]
    if "--without-hooks" in sys.argv:
        spread._fetch_inputs = lambda *_: None
    _setup_privateuseone_for_python_backend("gpu")  # a device type of which the CPU build has two
    for folder in folders:
        print(json.dumps(run(folder)), flush=True)


def run(folder: str) -> dict[str, object]:
    """What a forward pass of the model in ``folder`` would leave where."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with FakeTensorMode(), torch.inference_mode():
        kind = ADAPTERS.get(config.model_type, "hf_causal")
        model = getattr(transformers, LOADERS[kind]).from_config(config, attn_implementation="sdpa")
        model.requires_grad_(False).eval()
        spread.spread(model, ["gpu:0", "gpu:1"])
        ids = torch.zeros((2, 12), dtype=torch.long, device="gpu:0")
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        logits = model(**inputs, use_cache=False).logits
        sizes: Counter[str] = Counter()
        for parameter in model.parameters():
            sizes[str(parameter.device)] += parameter.nbytes
    return {"logits": str(logits.device), "bytes": dict(sizes)}


if __name__ == "__main__":
    main()
