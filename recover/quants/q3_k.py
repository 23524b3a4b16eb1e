"""Q3_K: superblocks of 256 weights in 16 sub-blocks with signed 6-bit scales, 3-bit codes around zero.

Block: ``hmask`` 32 bytes (high bits), ``qs`` 64 bytes (low bits), ``scales`` 12 bytes, ``d`` f16.
"""

import numpy as np

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels, rounding_cells


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q3_K`."""
    for b in range(raw.size // 110):
        block = raw[110 * b : 110 * b + 110]
        d = read_f16(block, 108)
        scales = block[96:108]
        for g in range(16):
            # low four bits: nibbles of bytes 0..7; high two: pairs of bits of bytes 8..11
            low = (scales[g % 8] >> (4 * (g // 8))) & 15
            high = (scales[8 + g % 4] >> (2 * (g // 4))) & 3
            scale[16 * b + g] = d * np.float32(np.int32(low | (high << 4)) - 32)
            offset[16 * b + g] = -0.0
        for half in range(2):
            qs = block[32 + 32 * half : 64 + 32 * half]
            for j in range(4):
                y = codes[256 * b + 128 * half + 32 * j : 256 * b + 128 * half + 32 * j + 32]
                shift = np.uint8(2 * j)
                bit = np.uint8(4 * half + j)
                for i in range(32):
                    high_bit = (block[i] >> bit) & np.uint8(1)
                    y[i] = ((qs[i] >> shift) & np.uint8(3)) | (high_bit << np.uint8(2))


# `quantize_row_q3_K`: code = nearest_int(x / d) with the stored d, clipped to -4..3.
_LOWER, _UPPER = rounding_cells(8, first=-4)

Q3_K = ScalarType(
    name="Q3_K",
    type_id=11,
    block_size=256,
    type_size=110,
    levels=integer_levels(8, first=-4),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    unpack=_unpack,
    noise=0.0775,
    relative_mse=0.023,
)
