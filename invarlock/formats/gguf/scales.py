"""Where the types of GGUF keep the scale of a block, and reading it without unpacking the block."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from gguf import ReaderTensor
    from numpy.typing import NDArray

# The scale (and the offset) of all values of a block: bytes from its start, each a float16.
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ2_XXS": (0,),
    "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,), "IQ4_NL": (0,),
    "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


def scale_bytes(tensor: ReaderTensor) -> list[NDArray[np.uint8]]:
    """Views of the scales of all blocks, and of their offsets: each (rows, blocks, 2 bytes).

    Of a vector, one row.
    """
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES

    _, block_bytes = GGML_QUANT_SIZES[tensor.tensor_type]
    raw = tensor.data
    blocks = raw.reshape(int(np.prod(raw.shape[:-1])), -1, block_bytes)
    return [blocks[..., at : at + 2] for at in SCALES[tensor.tensor_type.name]]


def scales_of(tensor: ReaderTensor) -> NDArray[np.float32]:
    """The same as numbers: (rows, blocks, 1 or 2)."""
    import numpy as np

    halves = [np.ascontiguousarray(part).view("<f2")[..., 0] for part in scale_bytes(tensor)]
    return np.stack(halves, axis=-1).astype(np.float32)
