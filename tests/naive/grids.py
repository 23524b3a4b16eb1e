"""Integer grids by brute force, in float64."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

F64Array = NDArray[np.float64]

TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
EVERY_F16 = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
"""Every positive number."""


def rounded(values: F64Array, type_name: str) -> F64Array:
    """Numbers as a float type stores them."""
    return values.astype(np.float32).astype(TYPES[type_name]).astype(np.float64)


def stored_bytes(values: F64Array, type_name: str) -> NDArray[np.uint8]:
    """Their bytes."""
    kind = TYPES[type_name]
    return np.ascontiguousarray(values.astype(np.float32).astype(kind)).reshape(-1).view(np.uint8)


def coarsest_grids(stored: F64Array, type_name: str, max_code: int) -> F64Array:
    """All F16 scales that explain a run with the smallest possible largest code; maybe none."""
    largest = np.abs(stored).max()
    near = EVERY_F16[EVERY_F16 * (max_code + 1) > largest]
    near = near[near < 2 * largest]
    codes = np.rint(stored / near[:, None])
    fits = (rounded(codes * near[:, None], type_name) == stored).all(1)
    tops = np.abs(codes).max(1)
    fits &= tops <= max_code
    if not fits.any():
        return np.empty(0)
    return near[fits & (tops == tops[fits].min())]


def naive_q8_0(weights: F64Array) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Scales and codes that Q8_0 gives each 32 float32 weights."""
    scales, codes = [], []
    for block in weights.astype(np.float32).reshape(-1, 32):
        d = np.float32(max(abs(block)) / np.float32(127))
        factor = np.float32(1) / d if d else np.float32(0)
        scales.append(np.float16(d))
        for x in block:
            value = float(np.float32(x * factor))
            codes.append(int(np.sign(value) * np.floor(abs(value) + 0.5)))
    return np.array(scales, np.float16), np.array(codes)
