"""Q6_K: superblocks of 256 weights in 16 sub-blocks with signed 8-bit scales, 6-bit codes around zero.

Block: ``ql`` 128 bytes (low four bits), ``qh`` 64 bytes (high two bits), ``scales`` 16 signed bytes,
``d`` f16.
"""

import numpy as np

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels, rounding_cells


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q6_K`."""
    for b in range(raw.size // 210):
        block = raw[210 * b : 210 * b + 210]
        d = read_f16(block, 208)
        for g in range(16):
            scale[16 * b + g] = d * np.float32(np.int8(block[192 + g]))
            offset[16 * b + g] = -0.0
        for half in range(2):
            qh = block[128 + 32 * half : 160 + 32 * half]
            for j in range(4):
                ql = block[64 * half + 32 * (j % 2) : 64 * half + 32 * (j % 2) + 32]
                y = codes[256 * b + 128 * half + 32 * j : 256 * b + 128 * half + 32 * j + 32]
                low_shift = np.uint8(4 * (j // 2))
                high_shift = np.uint8(2 * j)
                for i in range(32):
                    low = (ql[i] >> low_shift) & np.uint8(15)
                    y[i] = low | (((qh[i] >> high_shift) & np.uint8(3)) << np.uint8(4))


# `quantize_row_q6_K`: code = nearest_int(x / d) with the stored d, clipped to -32..31.
_LOWER, _UPPER = rounding_cells(64, first=-32)

Q6_K = ScalarType(
    name="Q6_K",
    type_id=14,
    block_size=256,
    type_size=210,
    levels=integer_levels(64, first=-32),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    unpack=_unpack,
    noise=0.0688,
    relative_mse=0.00031,
)
