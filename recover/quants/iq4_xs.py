"""IQ4_XS: superblocks of 256 weights in 8 sub-blocks with signed 6-bit scales, codes as in IQ4_NL.

Block: ``d`` f16, ``scales_h`` 2 bytes, ``scales_l`` 4 bytes, ``qs`` 128 bytes (16 per sub-block).
"""

import numpy as np

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants._iq4 import LEVELS, codebook_cells
from recover.quants._legacy import split_nibbles
from recover.quants.base import F32Array, ScalarType, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_iq4_xs`."""
    for b in range(raw.size // 136):
        block = raw[136 * b : 136 * b + 136]
        d = read_f16(block, 0)
        scales_h = np.uint32(block[2]) | (np.uint32(block[3]) << np.uint32(8))
        for j in range(8):
            low = (block[4 + j // 2] >> (4 * (j % 2))) & 15
            high = (scales_h >> np.uint32(2 * j)) & np.uint32(3)
            g = 16 * b + 2 * j
            scale[g : g + 2] = d * np.float32(np.int32(low | (high << np.uint32(4))) - 32)
            offset[g : g + 2] = -0.0
            y = codes[256 * b + 32 * j : 256 * b + 32 * j + 32]
            split_nibbles(block[8 + 16 * j : 24 + 16 * j], y)


# `quantize_row_iq4_nl_impl`: nearest entry of the code book for ``d * scale``; d is rounded to f16 last.
_LOWER, _UPPER = codebook_cells()

IQ4_XS = ScalarType(
    name="IQ4_XS",
    type_id=23,
    block_size=256,
    type_size=136,
    levels=LEVELS,
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    unpack=_unpack,
    noise=16.54,
    relative_mse=0.0059,
)
