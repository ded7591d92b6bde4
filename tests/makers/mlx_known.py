"""Write ``tests/known/mlx.safetensors``: small matrices as MLX itself packs and unpacks them.

    python -m venv maker && maker/bin/pip install "mlx[cpu]==0.32.4"
    maker/bin/python tests/makers/mlx_known.py tests/known/mlx.safetensors

Of each way of packing, by the name MODE BITS GROUP: ``weight``, ``scales``, ``biases`` where it has
any, and ``stands for``, what MLX unpacks them to in float32.
"""

from __future__ import annotations

import sys

import mlx.core as mx

WAYS = (
    *(("affine", bits, 32) for bits in (2, 3, 4, 5, 6, 8)),
    ("affine", 4, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16),
)  # fmt: skip
ROWS, COLUMNS = 3, 64


def main() -> None:
    mx.random.seed(7)
    stored: dict[str, mx.array] = {}
    for mode, bits, group in WAYS:
        weight = mx.random.normal((ROWS, COLUMNS)).astype(mx.bfloat16)
        packed, scales, *more = mx.quantize(weight, group, bits, mode=mode)
        wide = [part.astype(mx.float32) for part in (scales, *more)] if more else [scales]
        dense = mx.dequantize(packed, *wide, group_size=group, bits=bits, mode=mode)
        name = f"{mode} {bits} {group}"
        stored |= {f"{name}.weight": packed, f"{name}.scales": scales}
        stored |= {f"{name}.biases": part for part in more}
        stored[f"{name}.stands for"] = dense.astype(mx.float32)
    mx.save_safetensors(sys.argv[1], stored)


if __name__ == "__main__":
    main()
