"""Codes, scales and decoded weights of MLX itself: ``pip install 'mlx[cpu]' gguf ml_dtypes``.

    python -m tests.golden.make_mlx MODEL.gguf

The model is an unquantized one. Weights are decoded from scales and biases that are made float32,
as MLX's matrix products compute; ``mx.dequantize`` alone would round its result to theirs.
"""

import sys
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np

from tests.golden.foreign_files import Case, save, some_weights

DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
CASES = [
    *((n_bits, 64, "BF16") for n_bits in (2, 3, 4, 5, 6, 8)),
    *((4, group, kind) for group in (32, 128) for kind in ("F16", "F32")),
    (8, 32, "F16"),
]


def to_numpy(array: mx.array) -> np.ndarray:
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)


def main() -> None:
    weights = some_weights(Path(sys.argv[1]), 8, 256)
    cases = {}
    for n_bits, group, kind in CASES:
        seen = mx.array(weights).astype(DTYPES[kind])
        parts = mx.quantize(seen, group_size=group, bits=n_bits)
        exact = [part.astype(mx.float32) for part in parts[1:]]
        decoded = mx.dequantize(parts[0], *exact, group_size=group, bits=n_bits)
        leaves = zip(("weight", "scales", "biases"), parts, strict=True)
        cases[f"{n_bits} bits, groups of {group}, {kind}"] = Case(
            arrays={leaf: to_numpy(part) for leaf, part in leaves},
            original=to_numpy(seen.astype(mx.float32)),
            decoded=to_numpy(decoded),
            config={"group_size": group, "bits": n_bits, "mode": "affine"},
        )
    save("mlx", cases)


if __name__ == "__main__":
    main()
