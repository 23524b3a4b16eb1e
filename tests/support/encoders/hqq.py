"""HQQ in NumPy, after hqq/core/quantize.py, optimize.py and bitpack.py."""

import numpy as np

from tests.support.foreign_modules import FLOATS, Array

PARTS = {1: 8, 2: 4, 3: 10, 4: 2, 5: 1, 6: 1, 8: 1}


def pack(codes: Array, n_bits: int) -> Array:
    """Codes (n, m) to words: the first part of the rows has the highest bits."""
    n_parts = PARTS[n_bits]
    width = 3 if n_bits == 3 else 8 // n_parts
    padded = np.pad(codes.astype(np.uint32), ((0, -len(codes) % n_parts), (0, 0)))
    words = np.zeros((len(padded) // n_parts, codes.shape[1]), np.uint32)
    for number, part in enumerate(np.split(padded, n_parts)):
        words |= part << np.uint32(width * (n_parts - 1 - number))
    return words.view(np.int32) if n_bits == 3 else words.astype(np.uint8)


def _search(
    x: Array, scale: Array, zero: Array, n: int, axis: int, dtype: type, n_steps: int
) -> Array:
    """Zeros that a proximal solver finds, every operation in `dtype`."""
    seen: Array = x.astype(dtype)
    scale, zero = scale.astype(dtype), zero.astype(dtype)
    beta, best = 10.0, np.inf
    for _ in range(n_steps):
        codes = np.clip(np.rint(seen * scale + zero), 0, n)
        decoded = (codes - zero) / scale
        off = (seen - decoded).astype(np.float32)
        size = np.maximum(np.abs(off), 1e-12)
        shrunk = np.sign(off) * np.maximum(size - size**-0.3 / beta, 0)
        zero = (codes - (seen - shrunk.astype(dtype)) * scale).astype(np.float32)
        zero = zero.mean(axis, keepdims=True).astype(dtype)
        error = float(np.abs(off).mean())
        if not error < best:
            break
        best = error
    return zero


def encode(
    x: Array,
    n_bits: int = 4,
    group: int = 64,
    kind: str = "F16",
    *,
    axis: int = 1,
    on_gpu: bool = True,
    n_steps: int = 20,
) -> dict[str, Array]:
    """The arrays of a module; on a GPU the search is done in float16."""
    seen = x.astype(FLOATS[kind]).astype(np.float32)
    grouped = seen.reshape(-1, group) if axis == 1 else seen.reshape(group, -1)
    n = (1 << n_bits) - 1
    low, high = grouped.min(axis, keepdims=True), grouped.max(axis, keepdims=True)
    with np.errstate(divide="ignore"):
        scale = np.where(high - low <= 1e-4, np.float32(1), np.float32(n) / (high - low))
    scale = np.minimum(scale, np.float32(2e4)).astype(np.float32)
    zero = -low * scale
    if n_bits == 4:
        zero = np.rint(zero)
    dtype = np.float16 if on_gpu else np.float32
    zero = _search(grouped, scale, zero, n, axis, dtype, n_steps)
    scale = scale.astype(dtype)
    codes = np.rint(grouped * scale.astype(np.float32) + zero.astype(np.float32))
    return {
        "W_q": pack(np.clip(codes, 0, n), n_bits),
        "scale": (dtype(1) / scale).astype(FLOATS[kind]),
        "zero": zero.astype(FLOATS[kind]),
        "shape": np.array(x.shape, np.int64),
        "nbits": np.array(n_bits, np.int32),
        "group_size": np.array(group, np.int32),
        "axis": np.array(axis, np.int32),
        "view_as_float": np.array(0, np.uint8),
        "quant_scale": np.array(0, np.uint8),
        "quant_zero": np.array(0, np.uint8),
    }
