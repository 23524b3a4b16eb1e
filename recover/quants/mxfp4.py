"""MXFP4: 32 weights, a power of two as their scale, 4-bit floats.

Block: ``e`` 1 byte (E8M0, an exponent), ``qs`` 16 bytes (as in Q4_0).
"""

import math

import numpy as np

from recover._compiled.across import largest_lane
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load, where
from recover.quants._declared import coded, layout
from recover.quants._fp4 import LEVELS, encode_fp4, nearest_cells, renumber
from recover.quants._legacy import join_nibbles, split_nibbles
from recover.quants.base import F32Array, ScalarType, U8Array


def _scales() -> F32Array:
    """``2 ** (e - 128)`` for each byte e, the first two subnormal; see `ggml_e8m0_to_fp32_half`."""
    return np.ldexp(np.float32(1), np.arange(256) - 128)


_SCALES = _scales()


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_mxfp4`."""
    for b in range(raw.size // 17):
        d = _SCALES[raw[17 * b]]
        for g in range(2 * b, 2 * b + 2):
            scale[g] = d
            offset[g] = -0.0
        split_nibbles(raw[17 * b + 1 : 17 * b + 17], codes[32 * b : 32 * b + 32])
    renumber(codes)


@inner
def _exponent(largest: np.float32) -> np.uint8:
    """The exponent of the largest magnitude less that of the level 4, with the bias of E8M0.

    The logarithm is rounded to float32, so that numbers just below a power of two count as it;
    numbers below 2**-125 wrap around to huge exponents.
    """
    if not largest > 0:
        return np.uint8(0)
    logarithm = np.float32(math.log2(np.float64(largest)))
    return np.uint8((np.int32(math.floor(logarithm)) + 125) & 255)


@kernel
def _quantize(x: F32Array, _imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_mxfp4_ref`; an importance matrix changes nothing."""
    x = x.reshape(x.size)
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        first, second = abs(load(x, 32 * b)), abs(load(x, 32 * b + 16))
        e = _exponent(largest_lane(where(second > first, second, first)))
        raw[17 * b] = e
        encode_fp4(x[32 * b : 32 * b + 32], _SCALES[e], codes)
        join_nibbles(codes, raw[17 * b + 1 : 17 * b + 17])


# `quantize_row_mxfp4_ref`: nearest level for the stored scale, which is never 0: a block of zeros
# has the smallest. No weight reaches 16 d, so that distances are told apart; but from the scale
# 2**125 on the levels 8 and 12 overflow and are never given.
MXFP4 = ScalarType(
    **layout("MXFP4", type_id=39, block_size=32, type_size=17),
    **coded(LEVELS, nearest_cells()),
    scale_limit=2.0**125,
    unpack=_unpack,
    quantize=_quantize,
    file_type=38,
    file_types={38: "MXFP4_MOE"},
    is_native=True,
    comes_back=True,
    noise=0.2513,
    relative_mse=0.0132,
)
