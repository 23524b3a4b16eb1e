"""IQ1_KT: rows with one scale, a seed of 13 bits for 8 weights, 4-bit scales of 32 weights.

Row: ``d`` f32, then the blocks: ``sh`` 8 bytes (scale, bit 12 of four seeds), ``ql`` 32 bytes,
``qh`` 16 bytes.
"""

import numpy as np

from recover._compiled.float16 import f32_from_bits
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import double_word
from recover.quants._soft import errors, soft_type
from recover.quants._trellis import SCALES, fill_group
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, levels: F32Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq1_kt`."""
    for b in range(raw.size // 60):
        block = raw[60 * b : 60 * b + 60]
        d = f32_from_bits(np.uint32(double_word(block, 0)))
        for s in range(8):
            sh = np.int64(block[4 + s])
            dl = d * SCALES[sh & 15]
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = dl
            for j in range(4):
                g = 4 * s + j
                high = (np.int64(block[44 + g % 16]) >> (4 * (g // 16))) & 15
                seed = np.int64(block[12 + g]) | high << 8 | ((sh >> (4 + j)) & 1) << 12
                at = 256 * b + 8 * g
                fill_group(seed, levels[at : at + 8], False)


_ERRORS = errors(
    8,
    ((11, 8.4), (18, 9.2), (25, 10.4), (32, 12.6), (40, 15.9), (47, 20.9), (55, 27.4), (62, 34)),
    (
        *((2, 1), (7, 0.989), (16, 0.978), (27, 0.986), (39, 0.969)),
        *((52, 0.894), (67, 0.744), (82, 0.56), (99, 0.443)),
    ),
)


IQ1_KT = soft_type(
    layout("IQ1_KT", type_id=158, block_size=256, type_size=56),
    _unpack,
    _ERRORS,
    row_header=4,
    file_types={156: "IQ1_KT"},
    relative_mse=0.206,
)
