"""Decoding of scalar formats: unpack, then ``scale * levels[code] + offset``, tile by tile."""

import numpy as np

from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import gather, load_bytes, store, to_f32
from recover.quants.base import GROUP, F32Array, ScalarType, U8Array

_PART = 65_536


@inner
def is_affine(levels: F32Array) -> bool:
    """Whether the levels (256,) are consecutive integers, so that no table is needed."""
    return levels[255] == levels[0] + np.float32(255)


@kernel
def decode_codes(
    codes: U8Array, scale: F32Array, offset: F32Array, levels: F32Array, out: F32Array
) -> None:
    """Codes (n,), scale and offset (n / 16,) to weights (n,)."""
    affine = is_affine(levels)
    for g in range(scale.size):
        q = load_bytes(codes, 16 * g)
        level = to_f32(q) + levels[0] if affine else gather(levels, q)
        if np.isfinite(offset[g]):
            store(out, 16 * g, level * scale[g] + offset[g])
        else:  # of two NaN, ggml's machine code keeps the first; an addition here may keep either
            for i in range(16 * g, 16 * g + 16):
                product = scale[g] * levels[codes[i]]
                out[i] = product if np.isnan(product) else product + offset[g]


def decode_scalar(scalar_type: ScalarType, raw: U8Array, out: F32Array) -> None:
    """Decode whole blocks part by part, through scratch arrays that stay in the L2 cache."""
    n = min(out.size, _PART)
    codes = np.empty(n, np.uint8)
    scale = np.empty(n // GROUP, np.float32)
    offset = np.empty(n // GROUP, np.float32)
    for start in range(0, out.size, _PART):
        end = min(start + _PART, out.size)
        n, n_groups = end - start, (end - start) // GROUP
        blocks = raw[scalar_type.n_bytes(start) : scalar_type.n_bytes(end)]
        scalar_type.unpack(blocks, codes[:n], scale[:n_groups], offset[:n_groups])
        decode_codes(
            codes[:n], scale[:n_groups], offset[:n_groups], scalar_type.levels, out[start:end]
        )
