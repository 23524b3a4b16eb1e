"""Q4_K: superblocks of 256 weights in 8 sub-blocks with 6-bit scales and minima, 4-bit codes.

Block: ``d`` f16, ``dmin`` f16, ``scales`` 12 bytes, ``qs`` 128 bytes (32 bytes hold two sub-blocks).
"""

import numpy as np

from recover._jit import kernel
from recover.quants._k_scales import unpack_scales
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels, rounding_cells


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q4_K`."""
    for b in range(raw.size // 144):
        block = raw[144 * b : 144 * b + 144]
        unpack_scales(
            block[:16], scale[16 * b : 16 * b + 16], offset[16 * b : 16 * b + 16]
        )
        for j in range(4):
            qs = block[16 + 32 * j : 48 + 32 * j]
            low = codes[256 * b + 64 * j : 256 * b + 64 * j + 32]
            high = codes[256 * b + 64 * j + 32 : 256 * b + 64 * j + 64]
            for i in range(32):
                low[i] = qs[i] & np.uint8(15)
                high[i] = qs[i] >> np.uint8(4)


# `quantize_row_q4_K`: code = nearest_int((x + dm) / d) with the stored d and dm, clipped to 0..15.
_LOWER, _UPPER = rounding_cells(16)

Q4_K = ScalarType(
    name="Q4_K",
    type_id=12,
    block_size=256,
    type_size=144,
    levels=integer_levels(16),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    unpack=_unpack,
    noise=0.0643,
    relative_mse=0.0051,
)
