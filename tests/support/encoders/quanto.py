"""optimum-quanto in NumPy, after library/quantize.py, its max and absmax optimizers and packing."""

import ml_dtypes
import numpy as np

from tests.support.foreign_modules import FLOATS, Array


def encode_rows(x: Array, kind: str = "BF16", *, floats: bool = False) -> dict[str, Array]:
    """qint8, or qfloat8 (e4m3)."""
    seen = x.astype(FLOATS[kind])
    most = 448 if floats else 127
    scale = np.abs(seen).max(1, keepdims=True) / FLOATS[kind](most)
    data = (seen / scale).astype(np.float32)
    if floats:
        codes: Array = np.clip(data, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    else:
        codes = np.clip(np.rint(data), -128, 127).astype(np.int8)
    return {"weight._data": codes, "weight._scale": scale}


def pack(codes: Array, n_bits: int) -> Array:
    """The first part of the rows in the lowest bits."""
    parts = np.split(codes.astype(np.uint8), 8 // n_bits)
    packed = np.zeros_like(parts[0])
    for number, part in enumerate(parts):
        packed |= part << np.uint8(n_bits * number)
    return packed


def encode_groups(
    x: Array, n_bits: int = 4, group: int = 128, kind: str = "BF16"
) -> dict[str, Array]:
    """qint2 and qint4; the bias tells the size of the matrix."""
    dtype, n = FLOATS[kind], (1 << n_bits) - 1
    grouped = x.astype(dtype).reshape(-1, group)
    low, high = grouped.min(1, keepdims=True), grouped.max(1, keepdims=True)
    scale, shift = (high - low) / dtype(n), -low
    codes = np.clip(np.rint(((grouped + shift) / scale).astype(np.float32)), 0, n)
    return {
        "weight._data._data": pack(codes, n_bits),
        "weight._scale": scale,
        "weight._shift": shift,
        "bias": np.zeros(len(x), dtype),
    }
