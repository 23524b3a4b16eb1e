"""Q2_K: superblocks of 256 weights in 16 sub-blocks with 4-bit scales and minima, 2-bit codes.

Block: ``scales`` 16 bytes (scale in the low nibble, minimum in the high one), ``qs`` 64 bytes, ``d`` f16,
``dmin`` f16.
"""

import numpy as np

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels, rounding_cells


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q2_K`."""
    for b in range(raw.size // 84):
        block = raw[84 * b : 84 * b + 84]
        d = read_f16(block, 80)
        dmin = read_f16(block, 82)
        for g in range(16):
            scale[16 * b + g] = d * np.float32(block[g] & 15)
            offset[16 * b + g] = -(dmin * np.float32(block[g] >> 4))
        for half in range(2):
            qs = block[16 + 32 * half : 48 + 32 * half]
            for j in range(4):
                y = codes[256 * b + 128 * half + 32 * j : 256 * b + 128 * half + 32 * j + 32]
                shift = np.uint8(2 * j)
                for i in range(32):
                    y[i] = (qs[i] >> shift) & np.uint8(3)


# `quantize_row_q2_K`: code = nearest_int((x + dm) / d) with the stored d and dm, clipped to 0..3.
_LOWER, _UPPER = rounding_cells(4)

Q2_K = ScalarType(
    name="Q2_K",
    type_id=10,
    block_size=256,
    type_size=84,
    levels=integer_levels(4),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    unpack=_unpack,
    noise=0.0659,
    relative_mse=0.088,
)
