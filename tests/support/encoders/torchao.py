"""torchao's integers in NumPy, after choose_qparams_affine and quantize_affine."""

import numpy as np

from tests.support.foreign_modules import FLOATS, Array


def encode(
    x: Array,
    n_bits: int = 8,
    group: int | None = None,
    kind: str = "BF16",
    *,
    symmetric: bool = True,
    scale_kind: str = "F32",
) -> dict[str, Array]:
    """The arrays of a module; scales by row without a group."""
    seen, half = FLOATS[kind], 1 << (n_bits - 1)
    grouped = x.astype(seen).reshape(len(x), -1, group or x.shape[1])
    low, high = np.minimum(grouped.min(-1), seen(0)), np.maximum(grouped.max(-1), seen(0))
    tiny = np.array(2.0**-14 if kind == "F16" else 2.0**-23, seen)
    if symmetric:
        scale = np.maximum(np.maximum(-low, high) / seen(half - 0.5), tiny)
        zero = np.zeros(scale.shape)
    else:
        scale = np.maximum((high - low) / seen(2 * half - 1), tiny)
        zero = np.clip(-half - np.rint((low / scale).astype(np.float32)), -half, half - 1)
    dtype = FLOATS[scale_kind]
    scale, grouped = scale.astype(dtype), grouped.astype(dtype)
    factor = dtype(1) / scale
    codes = np.rint((grouped * factor[..., None]).astype(np.float32)) + zero[..., None]
    return {
        "_weight_qdata": np.clip(codes, -half, half - 1).astype(np.int8).reshape(x.shape),
        "_weight_scale": scale,
        "_weight_zero_point": zero.astype(np.int8),
    }
