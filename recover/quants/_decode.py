"""Decoding of scalar formats: unpack, then ``scale * levels[code] + offset``, tile by tile."""

import numpy as np

from recover._jit import kernel
from recover.quants.base import GROUP, TILE, F32Array, ScalarType, U8Array


@kernel
def decode_codes(
    codes: U8Array, scale: F32Array, offset: F32Array, levels: F32Array, out: F32Array
) -> None:
    """Codes (n,), scale and offset (n / 16,) to weights (n,)."""
    for g in range(scale.size):
        s = scale[g]
        o = offset[g]
        if np.isfinite(o):
            for j in range(16):
                i = 16 * g + j
                out[i] = s * levels[codes[i]] + o
        else:  # of two NaN, ggml's machine code keeps the first; an addition here may keep either
            for j in range(16):
                i = 16 * g + j
                product = s * levels[codes[i]]
                out[i] = product if np.isnan(product) else product + o


def decode_scalar(scalar_type: ScalarType, raw: U8Array, out: F32Array) -> None:
    """Decode whole blocks through tile-sized scratch arrays that stay in the L2 cache."""
    n = min(out.size, TILE)
    codes = np.empty(n, np.uint8)
    scale = np.empty(n // GROUP, np.float32)
    offset = np.empty(n // GROUP, np.float32)
    for start in range(0, out.size, TILE):
        end = min(start + TILE, out.size)
        n, n_groups = end - start, (end - start) // GROUP
        blocks = raw[scalar_type.n_bytes(start) : scalar_type.n_bytes(end)]
        scalar_type.unpack(blocks, codes[:n], scale[:n_groups], offset[:n_groups])
        decode_codes(
            codes[:n], scale[:n_groups], offset[:n_groups], scalar_type.levels, out[start:end]
        )
