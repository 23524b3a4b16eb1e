"""Q5_K: as Q4_K, with 5-bit codes.

Block: ``d`` f16, ``dmin`` f16, ``scales`` 12 bytes, ``qh`` 32 bytes (fifth bits, sub-block k in bit k),
``qs`` 128 bytes.
"""

import numpy as np

from recover._jit import kernel
from recover.quants._k_scales import unpack_scales
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels, rounding_cells


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q5_K`."""
    one, fifteen, four = np.uint8(1), np.uint8(15), np.uint8(4)
    for b in range(raw.size // 176):
        block = raw[176 * b : 176 * b + 176]
        unpack_scales(
            block[:16], scale[16 * b : 16 * b + 16], offset[16 * b : 16 * b + 16]
        )
        qh = block[16:48]
        for j in range(4):
            qs = block[48 + 32 * j : 80 + 32 * j]
            low = codes[256 * b + 64 * j : 256 * b + 64 * j + 32]
            high = codes[256 * b + 64 * j + 32 : 256 * b + 64 * j + 64]
            bit = np.uint8(2 * j)
            for i in range(32):
                fifths = qh[i] >> bit
                low[i] = (qs[i] & fifteen) | ((fifths & one) << four)
                high[i] = (qs[i] >> four) | (((fifths >> one) & one) << four)


# `quantize_row_q5_K`: code = nearest_int((x + dm) / d) with the stored d and dm, clipped to 0..31.
_LOWER, _UPPER = rounding_cells(32)

Q5_K = ScalarType(
    name="Q5_K",
    type_id=13,
    block_size=256,
    type_size=176,
    levels=integer_levels(32),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    unpack=_unpack,
    noise=0.0712,
    relative_mse=0.0013,
)
